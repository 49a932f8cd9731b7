//! The compiler against the genuine kube-proxy: the same random Services, slices and node; the rules that each installs
//! in a real kernel; and every packet that may tell a difference, traced through both.
//!
//! kube-proxy follows the API server on the first node. Ours is compiled from the objects that the API server has, as
//! changes to what it was before, and restored on the second node by the same documents that the programmer writes;
//! both nodes' rules are then read back. A marker, one Service and one slice per family that are written last, tells
//! when kube-proxy has caught up: it sees changes of a kind in the order in which they were made.
//!
//! Invariant: what is compared follows from the seed alone, and a difference is told with all that is needed to see it
//! again.

mod comparison;
mod packets;
mod services;
mod shapes;
mod side;
mod slices;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_compiler::{Config, Dump, parse};
use fairlead_objects::{EndpointSlice, Family, Service, ServiceKey, ServiceObject};
use serde_json::{Value, json};

use self::{
    comparison::Comparison,
    packets::Frontends,
    side::Side,
    world::{Doomed, Step, World},
};
use crate::{Bed, bed::SETTLE, wait};

/// The node that kube-proxy runs on, and whose rules are compiled.
const GENUINE: u8 = 1;
/// The node that the compiled rules are restored on.
const OURS: u8 = 2;

/// How both are set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Flags for kube-proxy.
    pub flags: &'static [&'static str],
    /// The same for the compiler, which has kube-proxy's defaults and the bed's Pod network.
    pub config: fn(&mut Config),
}

/// How many moments are compared, and where they come from.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Seed of the random choices: `FAIRLEAD_SEED`.
    pub seed: u64,
    /// Number of moments: `FAIRLEAD_STATES`.
    pub states: usize,
}

impl Extent {
    /// From the environment, else so many moments from this seed.
    pub fn from_env(seed: u64, states: usize) -> Result<Self> {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text}: expected a number")),
            Err(_) => Ok(default),
        };
        let asked = number("FAIRLEAD_STATES", u64::try_from(states)?)?;
        Ok(Self { seed: number("FAIRLEAD_SEED", seed)?, states: usize::try_from(asked)? })
    }
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Moments.
    pub states: usize,
    /// Packets, through both.
    pub packets: usize,
    /// Packets that a Service did something with.
    pub handled: usize,
    /// Longest that kube-proxy took to catch up.
    pub slowest: Duration,
}

/// Runs kube-proxy and the compiler side by side through a series of random moments, until they differ.
pub fn run(bed: &mut Bed, settings: Settings, extent: Extent) -> Result<Report> {
    let Extent { seed, states } = extent;
    beside(bed, settings, |run| run.random(extent))
        .with_context(|| format!("again with FAIRLEAD_SEED={seed} FAIRLEAD_STATES={states}"))
}

/// The same with objects of shapes that nobody expects: they come, and they go.
pub fn run_odd_shapes(bed: &mut Bed, settings: Settings) -> Result<Report> {
    beside(bed, settings, odd_shapes)
}

fn odd_shapes(run: &mut Run<'_>) -> Result<Report> {
    let mut report = Report::default();
    let arrival = shapes::arrive();
    run.compare(&arrival, &mut report).context("when they come")?;
    run.compare(&shapes::leave(&arrival), &mut report).context("when they go")?;
    Ok(report)
}

/// Does `job` while kube-proxy runs.
fn beside(
    bed: &mut Bed,
    settings: Settings,
    job: impl FnOnce(&mut Run<'_>) -> Result<Report>,
) -> Result<Report> {
    // A case that failed may have left it running.
    drop(bed.stop_programmer(GENUINE));
    clear(bed)?;
    let flags = [&["--iptables-min-sync-period=1ms"], settings.flags].concat();
    bed.start_programmer(GENUINE, &flags)?;
    let report = job(&mut Run::new(bed, settings)?)?;
    bed.stop_programmer(GENUINE)?;
    Ok(report)
}

/// Removes what an earlier run left in the namespaces of the world.
fn clear(bed: &Bed) -> Result<()> {
    for namespace in world::NAMESPACES {
        let object = crate::kubernetes::namespace(namespace);
        bed.kubernetes().apply(&object)?;
        for kind in ["Service", "EndpointSlice"] {
            let objects: Vec<Value> = bed.kubernetes().list(kind, namespace, "")?;
            let names = objects.iter().filter_map(|object| object.pointer("/metadata/name")?.as_str());
            for name in names.filter(|name| *name != "kubernetes") {
                bed.kubernetes().delete(kind, namespace, name, 0)?;
            }
        }
    }
    Ok(())
}

struct Run<'a> {
    bed: &'a Bed,
    sides: [Side; 2],
    /// The Services of the moment before: their frontends must be gone, or somebody else's.
    before: BTreeMap<ServiceKey, Service>,
}

impl<'a> Run<'a> {
    fn new(bed: &'a Bed, settings: Settings) -> Result<Self> {
        let node = bed.node(GENUINE)?;
        let side = |family| Side::new(bed, node, family, settings.config);
        Ok(Self { bed, sides: [side(Family::V4)?, side(Family::V6)?], before: BTreeMap::new() })
    }

    fn random(&mut self, extent: Extent) -> Result<Report> {
        let mut world = World::new(extent.seed);
        let mut report = Report::default();
        for state in 0..extent.states {
            self.compare(&world.step(), &mut report).with_context(|| format!("state {state}"))?;
        }
        ensure!(report.handled * 4 > report.packets, "most packets met no Service: {report:?}");
        Ok(report)
    }

    /// Takes a step on both sides, and compares what comes of the packets to the Services that it touches.
    fn compare(&mut self, step: &Step, report: &mut Report) -> Result<()> {
        self.write(&step.delete, &step.apply)?;
        let began = std::time::Instant::now();
        let genuine = self.await_genuine()?;
        report.slowest = report.slowest.max(began.elapsed());
        let services: Vec<ServiceObject> = self.bed.kubernetes().list("Service", "", "")?;
        let services: BTreeMap<ServiceKey, Service> =
            services.into_iter().map(Service::from).map(|service| (service.key.clone(), service)).collect();
        let slices: Vec<EndpointSlice> = self.bed.kubernetes().list("EndpointSlice", "", "")?;
        let touched: BTreeSet<ServiceKey> = step
            .touched
            .iter()
            .map(|(namespace, name)| ServiceKey::new(namespace.as_str(), name.as_str()))
            .collect();
        for (side, genuine) in self.sides.iter_mut().zip(&genuine) {
            side.follow(self.bed, &services, &slices)?;
            let facts = side.facts();
            let (old, new) = (Frontends::of(&self.before, facts), Frontends::of(&services, facts));
            let mut comparison = Comparison::new(genuine, side.installed(), facts);
            for key in &touched {
                let own: Vec<&EndpointSlice> =
                    slices.iter().filter(|slice| slice.service_key().as_ref() == Some(key)).collect();
                let frontends: BTreeSet<_> = old.at(key).chain(new.at(key)).collect();
                for frontend in frontends.into_iter().filter(|frontend| !new.is_disputed(frontend)) {
                    for packet in packets::packets(frontend, &own, facts) {
                        comparison.compare(&packet).with_context(|| about(key, services.get(key), &own))?;
                    }
                }
            }
            report.packets += comparison.packets;
            report.handled += comparison.handled;
        }
        self.before = services;
        report.states += 1;
        Ok(())
    }

    fn write(&self, delete: &BTreeSet<Doomed>, apply: &[Value]) -> Result<()> {
        let kubernetes = self.bed.kubernetes();
        for Doomed { kind, namespace, name } in delete {
            kubernetes.delete(kind, namespace, name, 0)?;
        }
        kubernetes.apply_all(apply)
    }

    /// Writes the marker, and reads kube-proxy's rules once they show it: of both families, in the order of the sides.
    fn await_genuine(&self) -> Result<Vec<Dump>> {
        let marker = Marker::next();
        for object in marker.objects() {
            self.bed.kubernetes().apply(&object)?;
        }
        let mut dumps = Vec::new();
        for family in [Family::V4, Family::V6] {
            let save = wait::until_ok("kube-proxy to catch up", SETTLE, || {
                let save = self.bed.save(GENUINE, family)?;
                ensure!(marker.is_in(&save, family), "the marker is not there");
                Ok(save)
            })
            .with_context(|| self.bed.log_tails())?;
            dumps.push(parse(&save)?);
        }
        Ok(dumps)
    }
}

/// A Service that says by its port, and by its endpoint's port, which moment it is. No two moments of a process have the
/// same: rules outlive the kube-proxy that wrote them.
struct Marker {
    port: usize,
    target: usize,
}

impl Marker {
    fn next() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let moment = COUNT.fetch_add(1, Ordering::Relaxed) % 20_000;
        Self { port: 1000 + moment, target: 22_000 + moment }
    }

    fn addresses(family: Family) -> (&'static str, &'static str) {
        match family {
            Family::V4 => ("10.96.255.250", "10.244.99.1"),
            Family::V6 => ("fd00:96::ffff", "fd00:244:0:99::1"),
        }
    }

    fn objects(&self) -> Vec<Value> {
        let (v4, v6) = (Self::addresses(Family::V4), Self::addresses(Family::V6));
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "marker"},
            "spec": {"clusterIP": v4.0, "clusterIPs": [v4.0, v6.0], "ipFamilies": ["IPv4", "IPv6"],
                     "ipFamilyPolicy": "RequireDualStack", "ports": [{"name": "at", "protocol": "TCP", "port": self.port}]},
        })];
        for (family, (_, endpoint)) in [(Family::V4, v4), (Family::V6, v6)] {
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

    /// Whether both its current port and its current target are among the rules.
    fn is_in(&self, save: &str, family: Family) -> bool {
        let (ip, endpoint) = Self::addresses(family);
        let (destination, port) = (format!("-d {ip}/"), format!("--dport {} ", self.port));
        let target = match family {
            Family::V4 => format!("--to-destination {endpoint}:{}", self.target),
            Family::V6 => format!("--to-destination [{endpoint}]:{}", self.target),
        };
        save.lines().any(|line| line.contains(&destination) && line.contains(&port))
            && save.lines().any(|line| line.ends_with(&target))
    }
}

/// A Service and its slices, for whoever reads about a difference.
fn about(key: &ServiceKey, service: Option<&Service>, slices: &[&EndpointSlice]) -> String {
    let slices: Vec<String> = slices.iter().filter_map(|slice| serde_json::to_string(slice).ok()).collect();
    format!("about {key}\n{service:#?}\nslices\n{}", slices.join("\n"))
}
