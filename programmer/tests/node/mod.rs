//! A running sync loop with the real kernel, fed by a test instead of an API server.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each test uses a part of it")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_daemon::{metrics::Metrics as Registry, readiness::Readiness};
use fairlead_objects::{Family, builders};
use fairlead_programmer::{
    census::HealthPorts,
    cleanup,
    conntrack::Kernel as Flows,
    events::{Events, Notice},
    feed::{Change, Kind},
    health::Health,
    interfaces,
    lane::{Lane, Wiring},
    metrics::Metrics,
    netfilter::{Features, Variant, detect},
    own_node::{Kernel, basis},
    rival::{Seen, Signs},
    sentinel::Sentinel,
    settings::{ConntrackSettings, DetectLocal, LogSettings, NodePortAddresses, Settings},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

fn settings() -> Settings {
    Settings {
        node_name: "node-a".to_owned(),
        bind_address: [0, 0, 0, 0].into(),
        health_address: None,
        metrics_address: None,
        hard_fail: false,
        sync_period: Duration::from_secs(30),
        min_sync_period: Duration::ZERO,
        masquerade_bit: 14,
        masquerade_all: false,
        localhost_node_ports: true,
        detect_local: DetectLocal::ClusterCidr(Vec::new()),
        node_port_addresses: NodePortAddresses::Networks(Vec::new()),
        conntrack: ConntrackSettings::default(),
        oom_score_adj: 0,
        unavailable_mode: None,
        kubeconfig: None,
        api_rate: (5.0, 10),
        log: LogSettings::default(),
        variant: None,
    }
}

/// A running sync loop.
pub struct Node {
    pub family: Family,
    changes: mpsc::Sender<Change>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    registry: Registry,
    readiness: Readiness,
    pub notices: mpsc::Receiver<Notice>,
    pub seen: watch::Receiver<Seen>,
    _basis: watch::Sender<Option<fairlead_programmer::own_node::Basis>>,
}

/// Its own address.
pub fn address(family: Family) -> &'static str {
    match family {
        Family::V4 => "192.168.0.2",
        Family::V6 => "fd00:192::2",
    }
}

impl Node {
    /// Starts it, tells it `changes`, and waits until they are programmed.
    pub async fn start(family: Family, variant: Variant, changes: impl IntoIterator<Item = Change>) -> Self {
        let node = Self::begin(family, variant, Duration::from_secs(30), changes).await;
        node.is_ready().await;
        node
    }

    /// Starts it and tells it `changes`.
    pub async fn begin(
        family: Family,
        variant: Variant,
        sync_period: Duration,
        changes: impl IntoIterator<Item = Change>,
    ) -> Self {
        let tool = detect(family, Some(variant)).await.unwrap();
        let kernel = Kernel {
            features: Features::probe(&tool).await,
            liberal_tcp: false,
            route_localnet: family == Family::V4,
        };
        let node = builders::node("node-a", address(family), "a");
        let (sender, receiver) = mpsc::channel(64);
        let (basis, known) = watch::channel(Some(basis(family, &settings(), kernel, Some(&node))));
        let readiness = Readiness::default();
        let registry = Registry::new();
        let (events, notices) = Events::new();
        let (signs, seen) = Signs::new();
        let lane = Lane::new(Wiring {
            family,
            netfilter: Arc::new(tool),
            flows: Arc::new(Flows),
            changes: receiver,
            basis: known,
            addresses: interfaces::addresses,
            sync_period,
            min_sync_period: Duration::ZERO,
            sentinel: Sentinel::new(family, variant).unwrap(),
            events,
            signs,
            gate: readiness.gate("rules"),
            health: Arc::new(Mutex::new(Health::new(sync_period))),
            health_ports: watch::channel(HealthPorts::default()).0,
            metrics: registry.register(Metrics::register),
        });
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { lane.run(stop).await.unwrap() });
        let node = Self {
            family,
            changes: sender,
            shutdown,
            task,
            registry,
            readiness,
            notices,
            seen,
            _basis: basis,
        };
        for change in changes {
            node.tell(change).await;
        }
        node.tell(Change::Listed(Kind::Services)).await;
        node.tell(Change::Listed(Kind::EndpointSlices)).await;
        node
    }

    /// Waits until everything was programmed once.
    pub async fn is_ready(&self) {
        self.readiness.wait().await;
    }

    pub async fn tell(&self, change: Change) {
        self.changes.send(change).await.unwrap();
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }

    /// Stops it and removes its rules, which would otherwise go on beside those of the other variant.
    pub async fn remove(self, variant: Variant) {
        let family = self.family;
        self.stop().await;
        let tool = detect(family, Some(variant)).await.unwrap();
        assert!(cleanup::clean(&tool).await.is_empty());
    }

    /// The value of a metric that counts, or 0 if it is not there.
    pub fn metric(&self, name: &str) -> u64 {
        self.value(&format!("{name}{{ip_family=\"{}\"}}", self.family))
    }

    /// As [`Self::metric`], of one reason.
    pub fn metric_of(&self, name: &str, reason: &str) -> u64 {
        self.value(&format!("{name}{{ip_family=\"{}\",reason=\"{reason}\"}}", self.family))
    }

    /// Syncs that failed, for whatever reason.
    pub fn failures(&self) -> u64 {
        let text = self.registry.encode().unwrap();
        let failures = text.lines().filter(|line| line.starts_with("fairlead_sync_failures_total{"));
        failures.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    fn value(&self, name: &str) -> u64 {
        let text = self.registry.encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_default()
    }
}

/// Waits until `condition` is met; returns after how long.
pub async fn until(what: &str, condition: impl FnMut() -> bool) -> Duration {
    within(PATIENCE, what, condition).await
}

/// As [`until`], for as long as was promised.
pub async fn within(promise: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < promise, "not within {promise:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
pub const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];

/// For what a test waits for without a promise: for ever on a busy machine, but not quite.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// `iptables-nft` and its like.
pub fn program(family: Family, variant: Variant) -> String {
    format!("{}-{}", fairlead_programmer::netfilter::tool::base_name(family), variant.infix())
}
