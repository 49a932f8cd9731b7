//! The object that is written last, and that tells when kube-proxy has caught up: it sees changes of a kind in the order
//! in which they were made.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use fairlead_objects::{Family, Protocol, parse_address};
use serde_json::{Value, json};

use super::kernel::FAMILIES;
use crate::{
    bed::SETTLE,
    kubernetes::Kubernetes,
    tun::{Entry, Harness, Probe},
    wait,
};

/// Between two packets to it.
const PAUSE: Duration = Duration::from_millis(2);

/// A Service that says by its port, and by its endpoint's port, which moment it is. No two moments of a process have the
/// same: rules outlive the kube-proxy that wrote them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marker {
    port: u16,
    target: u16,
}

impl Marker {
    pub(super) fn next() -> Self {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let moment = COUNT.fetch_add(1, Ordering::Relaxed) % 20_000;
        Self { port: 1000 + moment, target: 22_000 + moment }
    }

    /// Its cluster IP, its endpoint, and who asks.
    fn addresses(family: Family) -> [&'static str; 3] {
        match family {
            Family::V4 => ["10.96.255.250", "10.244.99.1", "10.244.99.2"],
            Family::V6 => ["fd00:96::ffff", "fd00:244:0:99::1", "fd00:244:0:99::2"],
        }
    }

    /// Tells the API server; it has the marker of another moment unless this is the first.
    pub(super) fn write(self, kubernetes: &Kubernetes, first: bool) -> Result<()> {
        let objects = self.objects();
        if first {
            return kubernetes.apply_all(&objects);
        }
        for object in objects {
            let text =
                |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (kind, name) = (text("/kind"), text("/metadata/name"));
            kubernetes.merge(&kind, "default", &name, object)?;
        }
        Ok(())
    }

    fn objects(self) -> Vec<Value> {
        let [v4, endpoint4, _] = Self::addresses(Family::V4);
        let [v6, endpoint6, _] = Self::addresses(Family::V6);
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "marker"},
            "spec": {"clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
                     "ipFamilyPolicy": "RequireDualStack", "ports": [{"name": "at", "protocol": "TCP", "port": self.port}]},
        })];
        for (family, endpoint) in [(Family::V4, endpoint4), (Family::V6, endpoint6)] {
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.as_str(),
                "metadata": {"namespace": "default", "name": format!("marker-{}", family.as_str().to_lowercase()),
                             "labels": {"kubernetes.io/service-name": "marker"}},
                "ports": [{"name": "at", "protocol": "TCP", "port": self.target}],
                "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}],
            }));
        }
        objects
    }

    /// Sends packets to it until they are led to its endpoint of now, in both families.
    pub(super) fn await_in(self, harness: &mut Harness) -> Result<()> {
        let began = Instant::now();
        for family in FAMILIES {
            let [ip, endpoint, client] = Self::addresses(family).map(parse_address);
            let probe = Probe::new(Entry::World, client?, Protocol::Tcp, SocketAddr::new(ip?, self.port));
            let target = Some(SocketAddr::new(endpoint?, self.target));
            loop {
                let fate = harness.send(&probe)?;
                if fate.destination() == target {
                    break;
                }
                let patient = began.elapsed() < SETTLE;
                ensure!(patient, "kube-proxy did not catch up in {SETTLE:?}; {probe}: {fate}");
                wait::watch(PAUSE);
            }
        }
        Ok(())
    }
}
