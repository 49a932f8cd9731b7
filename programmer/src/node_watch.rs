//! Follows our own Node, and tells what rules and health depend on.
//!
//! Rules wait for the Node, but not for ever: a node whose Node object is missing or has no address is programmed with
//! loopback addresses after a while, as kube-proxy does, and anew when the Node appears.
//!
//! Invariant: what was published is replaced only by something different.

use std::{sync::Arc, time::Duration};

use fairlead_daemon::watch::Event;
use fairlead_objects::{Family, Node, NodeObject};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use crate::{
    health::Health,
    own_node::{Basis, Kernel, basis, is_complete},
    settings::{DetectLocal, Settings},
};

/// How long to wait for the Node's address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for the Node's Pod networks, where rules depend on them.
const POD_NETWORK_PATIENCE: Duration = Duration::from_mins(5);

/// The Node has no Pod networks.
#[derive(Debug, thiserror::Error)]
#[error(
    "Node {name} has no spec.podCIDRs after {} minutes, but --detect-local-mode=NodeCIDR needs them: let the \
     kube-controller-manager allocate them (--allocate-node-cidrs), or choose another mode",
    POD_NETWORK_PATIENCE.as_secs() / 60
)]
pub struct NoPodNetworks {
    name: String,
}

/// Who is told what rules depend on: one receiver per family, whose kernel is part of it.
pub type Audience = Vec<(Family, Kernel, watch::Sender<Option<Basis>>)>;

/// Where what the Node says goes.
#[derive(Debug)]
pub struct NodeWatch {
    /// Settings that override or need the Node.
    pub settings: Settings,
    /// What else rules depend on, by family.
    pub receivers: Audience,
    /// What probes are told.
    pub health: Arc<Mutex<Health>>,
}

/// What is known of the Node.
#[derive(Debug, Default)]
struct View {
    node: Option<Node>,
    /// As last seen; kept when the Node is deleted, because this host is still what it was.
    last: Option<Node>,
    /// While a list is read: whether the Node was in it.
    listing: Option<bool>,
}

impl View {
    /// Takes in an event; true when the Node is known as it is now.
    fn observe(&mut self, event: Event<NodeObject>) -> bool {
        match event {
            Event::Init => self.listing = Some(false),
            Event::InitApply(node) => {
                self.node = Some(node.into());
                self.listing = Some(true);
            }
            Event::InitDone => {
                if self.listing.take() == Some(false) {
                    self.node = None;
                }
            }
            Event::Apply(node) => self.node = Some(node.into()),
            Event::Delete(_) => self.node = None,
        }
        if self.node.is_some() {
            self.last.clone_from(&self.node);
        }
        self.listing.is_none()
    }
}

impl NodeWatch {
    /// Follows the Node until the events end. Must be dropped on shutdown.
    pub async fn follow(self, events: impl Stream<Item = Event<NodeObject>>) -> Result<(), NoPodNetworks> {
        let mut events = std::pin::pin!(events);
        let mut view = View::default();
        let mut deadline: Option<Instant> = None;
        let mut released = false;
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { return Ok(()) };
                    if !view.observe(event) {
                        continue;
                    }
                    self.health.lock().observe_node(view.node.as_ref());
                    let complete = view.node.as_ref().is_some_and(|node| is_complete(&self.settings, node));
                    if deadline.is_none() && !complete {
                        self.explain_wait(view.node.as_ref());
                    }
                    deadline = Some(deadline.unwrap_or_else(|| Instant::now() + self.patience()));
                    released |= complete;
                }
                () = until(deadline), if !released => {
                    released = true;
                    self.give_up(view.node.as_ref())?;
                }
            }
            if released {
                self.publish(view.last.as_ref());
            }
        }
    }

    fn patience(&self) -> Duration {
        match self.settings.detect_local {
            DetectLocal::NodeCidr => POD_NETWORK_PATIENCE,
            _ => ADDRESS_PATIENCE,
        }
    }

    fn explain_wait(&self, node: Option<&Node>) {
        let name = &self.settings.node_name;
        let seconds = self.patience().as_secs();
        if node.is_some() {
            info!("Node {name} is not complete yet: waiting for it for up to {seconds} s");
        } else {
            warn!(
                "Node {name} does not exist: waiting for it for up to {seconds} s; if this node has another name, \
                 give it with --hostname-override"
            );
        }
    }

    fn give_up(&self, node: Option<&Node>) -> Result<(), NoPodNetworks> {
        let name = self.settings.node_name.clone();
        if self.settings.detect_local == DetectLocal::NodeCidr
            && node.is_none_or(|node| node.pod_cidrs.is_empty())
        {
            return Err(NoPodNetworks { name });
        }
        warn!(
            "Node {name} is still missing or has no address: going on with loopback addresses and without a zone"
        );
        Ok(())
    }

    fn publish(&self, node: Option<&Node>) {
        for (family, kernel, receiver) in &self.receivers {
            let new = Some(basis(*family, &self.settings, *kernel, node));
            receiver.send_if_modified(|old| {
                let different = *old != new;
                *old = new;
                different
            });
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders;
    use futures::{SinkExt, channel::mpsc};
    use serde_json::json;

    use super::*;
    use crate::{
        netfilter::Features,
        settings::{NodePortAddresses, testing},
    };

    const KERNEL: Kernel = Kernel { features: Features::ALL, liberal_tcp: false, route_localnet: true };

    fn node(zone: &str, spec: &serde_json::Value) -> NodeObject {
        builders::object(json!({
            "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": zone}}, "spec": spec,
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]}
        }))
    }

    struct Bench {
        events: mpsc::Sender<Event<NodeObject>>,
        basis: watch::Receiver<Option<Basis>>,
        health: Arc<Mutex<Health>>,
        task: tokio::task::JoinHandle<Result<(), NoPodNetworks>>,
    }

    fn bench(settings: Settings) -> Bench {
        let (sender, basis) = watch::channel(None);
        let (events, receiver) = mpsc::channel(8);
        let health = Arc::new(Mutex::new(Health::new(settings.sync_period)));
        let receivers = vec![(Family::V4, KERNEL, sender)];
        let watch = NodeWatch { settings, receivers, health: Arc::clone(&health) };
        Bench { events, basis, health, task: tokio::spawn(watch.follow(receiver)) }
    }

    impl Bench {
        async fn tell(&mut self, events: Vec<Event<NodeObject>>) {
            for event in events {
                self.events.send(event).await.unwrap();
            }
        }

        async fn next(&mut self) -> Basis {
            self.basis.changed().await.unwrap();
            self.basis.borrow_and_update().clone().unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn zone_change_is_published_and_taints_and_deletion_are_not() {
        let mut bench = bench(testing::settings());
        bench.tell(vec![Event::Init, Event::InitApply(node("a", &json!({}))), Event::InitDone]).await;
        let basis = bench.next().await;
        assert_eq!(
            (basis.facts.zone.as_deref(), basis.facts.node_ip),
            (Some("a"), "192.168.0.2".parse().unwrap())
        );
        bench.tell(vec![Event::Apply(node("a", &json!({"taints": [{"key": "x"}]})))]).await;
        bench.tell(vec![Event::Delete(node("a", &json!({})))]).await;
        bench.tell(vec![Event::Apply(node("b", &json!({})))]).await;
        assert_eq!(bench.next().await.facts.zone.as_deref(), Some("b"));
        assert!(!bench.basis.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn missing_node_is_given_up_on_after_half_a_minute_and_taken_up_when_it_appears() {
        let mut bench = bench(testing::settings());
        let start = Instant::now();
        bench.tell(vec![Event::Init, Event::InitDone]).await;
        assert!(bench.next().await.facts.node_ip.is_loopback());
        assert_eq!(start.elapsed().as_secs(), 30);
        bench.tell(vec![Event::Apply(node("a", &json!({})))]).await;
        assert_eq!(bench.next().await.facts.node_ip, "192.168.0.2".parse::<std::net::IpAddr>().unwrap());
        let probe = crate::health::Probe::Healthz;
        assert!(bench.health.lock().answer(probe, fairlead_objects::Timestamp::now()).ok());
    }

    #[tokio::test(start_paused = true)]
    async fn node_without_addresses_is_waited_for_half_a_minute_and_then_known_by_loopback() {
        let mut bench = bench(testing::settings());
        let start = Instant::now();
        let nameless = builders::object(json!({
            "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "a"}},
            "status": {"addresses": [{"type": "Hostname", "address": "node-a"}]}
        }));
        bench.tell(vec![Event::Init, Event::InitApply(nameless), Event::InitDone]).await;
        let facts = bench.next().await.facts;
        assert!(facts.node_ip.is_loopback() && facts.zone.as_deref() == Some("a"), "{facts:?}");
        assert_eq!(start.elapsed().as_secs(), 30);
        bench.tell(vec![Event::Apply(node("a", &json!({})))]).await;
        assert_eq!(bench.next().await.facts.node_ip, "192.168.0.2".parse::<std::net::IpAddr>().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn mode_node_cidr_waits_for_pod_networks_and_ends_without_them() {
        let settings = Settings { detect_local: DetectLocal::NodeCidr, ..testing::settings() };
        let mut bench = bench(settings);
        bench.tell(vec![Event::Init, Event::InitApply(node("a", &json!({}))), Event::InitDone]).await;
        let error = bench.task.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("node-a") && error.contains("5 minutes"), "{error}");
        assert!(bench.basis.borrow().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn pod_networks_and_primary_addresses_come_from_the_node() {
        let settings = Settings {
            detect_local: DetectLocal::NodeCidr,
            node_port_addresses: NodePortAddresses::Primary,
            ..testing::settings()
        };
        let mut bench = bench(settings);
        let node = node("a", &json!({"podCIDRs": ["10.1.0.0/24", "fd00::/64"]}));
        bench.tell(vec![Event::Init, Event::InitApply(node), Event::InitDone]).await;
        let config = bench.next().await.config;
        assert_eq!(config.detector, fairlead_compiler::Detector::Cidr("10.1.0.0/24".parse().unwrap()));
        assert_eq!(config.node_port_addresses, ["192.168.0.2/32".parse().unwrap()]);
        // Where kube-proxy ends, to be started again.
        bench.tell(vec![Event::Apply(self::node("a", &json!({"podCIDRs": ["10.2.0.0/24"]})))]).await;
        let config = bench.next().await.config;
        assert_eq!(config.detector, fairlead_compiler::Detector::Cidr("10.2.0.0/24".parse().unwrap()));
        assert!(!bench.task.is_finished());
    }
}
