//! Which UDP flows rules would send where: the desired state that flows are compared with.
//!
//! Invariants: pure; what was given up (a frontend of a Service that changed or went) is remembered until a reconcile
//! succeeded; a refresh costs what the dirty Services cost.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fairlead_compiler::{Config, Endpoint, ProxyState, ServicePort};
use fairlead_objects::{Protocol, ServiceKey};
use rustc_hash::{FxHashMap, FxHashSet};

use super::Ends;

/// Endpoints that may serve a flow: those that serve, whether ready, terminating, local or preferred by topology.
type Backends = Arc<BTreeSet<SocketAddr>>;

/// Where a UDP Service port is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Frontend {
    Address(SocketAddr),
    NodePort(u16),
}

/// The UDP Services of one family.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    services: BTreeMap<ServiceKey, BTreeMap<Frontend, Backends>>,
    given_up: BTreeSet<Frontend>,
    pending: bool,
}

impl Demand {
    /// Takes over the `dirty` Services, present or not.
    pub fn refresh(&mut self, state: &ProxyState, dirty: &BTreeSet<ServiceKey>) {
        for key in dirty {
            let new = frontends(state, key);
            let old = if new.is_empty() {
                self.services.remove(key).unwrap_or_default()
            } else if self.services.get(key) == Some(&new) {
                continue;
            } else {
                self.services.insert(key.clone(), new.clone()).unwrap_or_default()
            };
            self.pending |= !old.is_empty() || !new.is_empty();
            self.given_up.extend(old.into_keys().filter(|frontend| !new.contains_key(frontend)));
        }
    }

    /// What flows should be compared with, if something changed since the last success. `own` are the node's addresses.
    pub fn verdicts(&self, config: &Config, own: Vec<IpAddr>) -> Option<Verdicts> {
        if !self.pending {
            return None;
        }
        let mut verdicts =
            Verdicts { config: config.clone(), own: own.into_iter().collect(), ..Verdicts::default() };
        let none = Backends::default();
        let given_up = self.given_up.iter().map(|frontend| (frontend, &none));
        // What another Service has taken over meanwhile is not given up.
        for (frontend, backends) in given_up.chain(self.services.values().flatten()) {
            match frontend {
                Frontend::Address(address) => {
                    verdicts.addresses.insert(*address, Arc::clone(backends));
                }
                Frontend::NodePort(port) => {
                    verdicts.node_ports.insert(*port, Arc::clone(backends));
                }
            }
        }
        Some(verdicts)
    }

    /// Rules were not what they should be for a while, so flows may have gone anywhere.
    pub fn suspect(&mut self) {
        self.pending |= !self.services.is_empty();
    }

    /// Whether something is to be done.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// A reconcile with all of the last verdicts succeeded.
    pub fn settle(&mut self) {
        self.pending = false;
        self.given_up.clear();
    }
}

fn frontends(state: &ProxyState, key: &ServiceKey) -> BTreeMap<Frontend, Backends> {
    let ports = || state.ports(key).iter().filter(|port| port.protocol() == Protocol::Udp);
    if ports().next().is_none() {
        return BTreeMap::new();
    }
    let endpoints = state.endpoints(key);
    let mut frontends = BTreeMap::new();
    for port in ports() {
        let of_port = endpoints.get(&port.name.port).map(Vec::as_slice).unwrap_or_default();
        let serving = of_port.iter().filter(|endpoint| endpoint.serving);
        let backends = Arc::new(serving.map(|Endpoint { address, .. }| *address).collect());
        let reached = reached_at(port).map(|frontend| (frontend, Arc::clone(&backends)));
        frontends.extend(reached);
    }
    frontends
}

fn reached_at(port: &ServicePort) -> impl Iterator<Item = Frontend> {
    let addresses = [port.cluster_ip].into_iter();
    let addresses = addresses.chain(port.external_ips.iter().copied());
    let addresses = addresses.chain(port.load_balancer_ips.iter().copied());
    let addresses = addresses.map(|address| Frontend::Address(SocketAddr::new(address, port.port)));
    addresses.chain((port.node_port != 0).then_some(Frontend::NodePort(port.node_port)))
}

/// Tells which flows contradict the rules.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    config: Config,
    own: FxHashSet<IpAddr>,
    addresses: FxHashMap<SocketAddr, Backends>,
    node_ports: FxHashMap<u16, Backends>,
}

impl Verdicts {
    /// Whether the rules would not send the flow where it goes.
    pub fn contradicts(&self, ends: &Ends) -> bool {
        let at_address = self.addresses.get(&ends.destination);
        let at_node_port = || {
            self.node_ports.get(&ends.destination.port()).filter(|_| self.is_served(ends.destination.ip()))
        };
        match at_address.or_else(at_node_port) {
            None => false,
            // Rules leave it alone or refuse it: only a translation contradicts that. What is not translated may be
            // a flow to a program of the host.
            Some(backends) if backends.is_empty() => ends.is_translated(),
            Some(backends) => !backends.contains(&ends.answerer),
        }
    }

    /// Whether node ports are served on this address. A flow to another host that happens to use the number is not ours.
    fn is_served(&self, address: IpAddr) -> bool {
        (self.own.contains(&address) || address.is_loopback()) && self.config.accepts_node_ports(address)
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::{Family, builders};
    use serde_json::json;

    use super::*;

    fn set_service(state: &mut ProxyState, protocol: &str) {
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.53", "clusterIPs": ["10.96.0.53"],
            "externalIPs": ["198.51.100.1"],
            "ports": [{"port": 53, "protocol": protocol, "nodePort": 30053}]});
        state.set_service(&builders::service("dns", spec));
    }

    fn set_endpoints(state: &mut ProxyState, addresses: &[&str]) {
        let endpoints: Vec<_> = addresses.iter().map(|ip| (*ip, "node-a", true)).collect();
        let mut slice = builders::slice("s", "dns", 8053, &endpoints);
        for port in &mut slice.ports {
            port.protocol = Some(Protocol::Udp);
        }
        state.set_slice(&slice);
    }

    fn flow(destination: &str, answerer: &str) -> Ends {
        Ends { destination: destination.parse().unwrap(), answerer: answerer.parse().unwrap() }
    }

    struct Bench {
        state: ProxyState,
        demand: Demand,
    }

    impl Bench {
        fn new() -> Self {
            let mut bench = Self { state: ProxyState::new(Family::V4), demand: Demand::default() };
            set_service(&mut bench.state, "UDP");
            set_endpoints(&mut bench.state, &["10.0.0.1", "10.0.0.2"]);
            bench.refresh();
            bench
        }

        fn refresh(&mut self) {
            let dirty = self.state.take_dirty();
            self.demand.refresh(&self.state, &dirty);
        }

        fn contradicts(&self, destination: &str, answerer: &str) -> bool {
            let own = vec!["192.168.0.2".parse().unwrap()];
            let verdicts = self.demand.verdicts(&Config::default(), own).unwrap();
            verdicts.contradicts(&flow(destination, answerer))
        }
    }

    #[test]
    fn flows_to_serving_endpoints_stay_and_all_others_of_the_frontend_go() {
        let bench = Bench::new();
        for frontend in ["10.96.0.53:53", "198.51.100.1:53", "192.168.0.2:30053", "127.0.0.1:30053"] {
            assert!(!bench.contradicts(frontend, "10.0.0.1:8053"), "{frontend}");
            assert!(bench.contradicts(frontend, "10.0.0.9:8053"), "{frontend}");
            assert!(bench.contradicts(frontend, frontend), "not translated: {frontend}");
        }
    }

    #[test]
    fn flows_that_are_no_frontends_stay() {
        let bench = Bench::new();
        assert!(!bench.contradicts("10.96.0.53:54", "10.96.0.53:54"));
        assert!(!bench.contradicts("203.0.113.7:30053", "203.0.113.7:30053"), "another host's port 30053");
        assert!(!bench.contradicts("10.0.0.1:8053", "10.0.0.1:8053"));
    }

    #[test]
    fn without_endpoints_only_translated_flows_go() {
        let mut bench = Bench::new();
        bench.demand.settle();
        set_endpoints(&mut bench.state, &[]);
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"));
        assert!(!bench.contradicts("192.168.0.2:30053", "192.168.0.2:30053"));
    }

    #[test]
    fn frontends_of_a_deleted_service_are_remembered_until_it_is_done() {
        let mut bench = Bench::new();
        bench.demand.settle();
        bench.state.remove_service(&ServiceKey::new("default", "dns"));
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"));
        assert!(bench.contradicts("192.168.0.2:30053", "10.0.0.1:8053"));
        set_service(&mut bench.state, "UDP");
        bench.refresh();
        assert!(!bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"), "it came back");
        bench.demand.settle();
        assert!(bench.demand.verdicts(&Config::default(), Vec::new()).is_none());
    }

    #[test]
    fn other_protocols_are_no_reason_to_look() {
        let mut bench = Bench::new();
        bench.demand.settle();
        set_service(&mut bench.state, "TCP");
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"), "the UDP port is gone");
        bench.demand.settle();
        set_endpoints(&mut bench.state, &["10.0.0.7"]);
        bench.refresh();
        assert!(!bench.demand.is_pending());
    }

    #[test]
    fn node_port_counts_only_where_node_ports_are_served() {
        let bench = Bench::new();
        let config =
            Config { node_port_addresses: vec!["10.9.0.0/16".parse().unwrap()], ..Config::default() };
        let own = vec!["192.168.0.2".parse().unwrap(), "10.9.0.1".parse().unwrap()];
        let verdicts = bench.demand.verdicts(&config, own).unwrap();
        assert!(!verdicts.contradicts(&flow("192.168.0.2:30053", "192.168.0.2:30053")));
        assert!(verdicts.contradicts(&flow("10.9.0.1:30053", "10.9.0.1:30053")));
    }
}
