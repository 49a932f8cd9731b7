//! A running sync loop with the real kernel, fed by a test instead of an API server.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each test uses a part of it")]

use std::{sync::Arc, time::Duration};

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
    sentinel::Sentinel,
    settings::{ConntrackSettings, DetectLocal, NodePortAddresses, Settings},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

fn settings() -> Settings {
    Settings {
        node_name: "node-a".to_owned(),
        bind_address: [0, 0, 0, 0].into(),
        health_address: None,
        metrics_address: ([127, 0, 0, 1], 0).into(),
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
        api_rate: (None, None),
        variant: None,
    }
}

/// A running sync loop.
pub struct Node {
    changes: mpsc::Sender<Change>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    registry: Registry,
    pub notices: mpsc::Receiver<Notice>,
    _basis: watch::Sender<Option<fairlead_programmer::own_node::Basis>>,
}

impl Node {
    /// Starts it, tells it `changes`, and waits until they are programmed.
    pub async fn start(variant: Variant, changes: impl IntoIterator<Item = Change>) -> Self {
        let tool = detect(Family::V4, Some(variant)).await.unwrap();
        let kernel =
            Kernel { features: Features::probe(&tool).await, liberal_tcp: false, route_localnet: true };
        let node = builders::node("node-a", "192.168.0.2", "a");
        let (sender, receiver) = mpsc::channel(64);
        let (basis, known) = watch::channel(Some(basis(Family::V4, &settings(), kernel, Some(&node))));
        let readiness = Readiness::default();
        let registry = Registry::new();
        let (events, notices) = Events::new();
        let lane = Lane::new(Wiring {
            family: Family::V4,
            netfilter: Arc::new(tool),
            flows: Arc::new(Flows),
            changes: receiver,
            basis: known,
            addresses: interfaces::addresses,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            sentinel: Sentinel::new(Family::V4, variant).unwrap(),
            events,
            gate: readiness.gate("rules"),
            health: Arc::new(Mutex::new(Health::new(Duration::from_secs(30)))),
            health_ports: watch::channel(HealthPorts::default()).0,
            metrics: registry.register(Metrics::register),
        });
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { lane.run(stop).await.unwrap() });
        let node = Self { changes: sender, shutdown, task, registry, notices, _basis: basis };
        for change in changes {
            node.tell(change).await;
        }
        node.tell(Change::Listed(Kind::Services)).await;
        node.tell(Change::Listed(Kind::EndpointSlices)).await;
        readiness.wait().await;
        node
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
        self.stop().await;
        let tool = detect(Family::V4, Some(variant)).await.unwrap();
        assert!(cleanup::clean(&tool).await.is_empty());
    }

    /// The value of a metric that counts, or 0 if it is not there. The name is with its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.registry.encode().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_default()
    }
}
