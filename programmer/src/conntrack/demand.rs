//! Which UDP flows rules would send where: the desired state that flows are compared with.
//!
//! A frontend is to be compared when it leads elsewhere than before, in such a way that a flow may be left behind; what was
//! not touched is not looked at. A comparison may run while rules are being changed further: what the next rules allow is
//! added to its verdicts, so that it deletes nothing that they have decided.
//!
//! Invariants: pure; what changed is remembered until a comparison of it succeeded, whether its Service still exists or
//! not; a refresh and its verdicts cost what the dirty Services cost.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fairlead_compiler::{Config, Endpoint, ProxyState, ServicePort};
use fairlead_objects::{Protocol, ServiceKey};
use rustc_hash::{FxHashMap, FxHashSet};

use super::Ends;

/// An address and a port, without what only IPv6 sockets have: there are very many.
type Place = (IpAddr, u16);

/// Endpoints that may serve a flow: those that serve, whether ready, terminating, local or preferred by topology. Sorted.
type Backends = Arc<[Place]>;

/// Where a UDP Service port is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// At an address of its own.
    Address(IpAddr, u16),
    /// At this port of every address that serves node ports.
    NodePort(u16),
}

/// The UDP Services of one family.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    services: FxHashMap<ServiceKey, Box<[Frontend]>>,
    /// Where each leads: one Service, as a rule; several may claim the same external address.
    frontends: FxHashMap<Frontend, Box<[(ServiceKey, Backends)]>>,
    /// To be compared with flows.
    pending: FxHashSet<Frontend>,
    /// Being compared.
    compared: FxHashSet<Frontend>,
}

impl Demand {
    /// Takes over the `dirty` Services, present or not. Returns which frontends lead elsewhere from now on.
    pub fn refresh(&mut self, state: &ProxyState, dirty: &BTreeSet<ServiceKey>) -> Vec<Frontend> {
        let mut changed = Vec::new();
        for key in dirty {
            let new = frontends(state, key);
            let old = self.services.remove(key).unwrap_or_default();
            if !new.is_empty() {
                self.services.insert(key.clone(), new.iter().map(|(frontend, _)| *frontend).collect());
            }
            for frontend in old {
                if new.iter().all(|(kept, _)| *kept != frontend) {
                    self.give_up(frontend, key);
                    changed.push(frontend);
                }
            }
            for (frontend, backends) in new {
                changed.extend(self.lead(frontend, key, backends).then_some(frontend));
            }
        }
        changed
    }

    fn give_up(&mut self, frontend: Frontend, key: &ServiceKey) {
        self.pending.insert(frontend);
        let Some(holders) = self.frontends.remove(&frontend) else { return };
        let others: Box<[_]> = holders.into_iter().filter(|(holder, _)| holder != key).collect();
        if !others.is_empty() {
            self.frontends.insert(frontend, others);
        }
    }

    /// Has a frontend of a Service lead to `backends`. False if it did before.
    fn lead(&mut self, frontend: Frontend, key: &ServiceKey, backends: Backends) -> bool {
        let holders = self.frontends.entry(frontend).or_default();
        let Some((_, held)) = holders.iter_mut().find(|(holder, _)| holder == key) else {
            let others = std::mem::take(holders).into_iter();
            *holders = others.chain([(key.clone(), backends)]).collect();
            self.pending.insert(frontend);
            return true;
        };
        if *held == backends {
            return false;
        }
        let stays = |backend: &Place| backends.binary_search(backend).is_ok();
        // With more to choose from, every flow may stay where it is. Without any, flows were not translated.
        if held.is_empty() || !held.iter().all(stays) {
            self.pending.insert(frontend);
        }
        *held = backends;
        true
    }

    /// What flows should be compared with, for all that is to be done; it counts as being done until [`Self::settle`] or
    /// [`Self::resume`]. `own` are the node's addresses.
    pub fn verdicts(&mut self, config: &Config, own: Vec<IpAddr>) -> Option<Verdicts> {
        if self.pending.is_empty() {
            return None;
        }
        move_all(&mut self.pending, &mut self.compared);
        let mut verdicts =
            Verdicts { config: config.clone(), own: own.into_iter().collect(), ..Verdicts::default() };
        for frontend in &self.compared {
            verdicts.frontends.insert(*frontend, self.backends(*frontend));
            let Frontend::NodePort(port) = *frontend else { continue };
            // An address of the node may be somebody's frontend, which comes first.
            for address in &verdicts.own {
                let frontend = Frontend::Address(*address, port);
                if self.frontends.contains_key(&frontend) {
                    verdicts.frontends.insert(frontend, self.backends(frontend));
                }
            }
        }
        Some(verdicts)
    }

    /// The rules that are about to be written lead these frontends elsewhere: what they decide agrees, too.
    pub fn amend(&self, verdicts: &mut Verdicts, changed: &[Frontend]) {
        for frontend in changed {
            if let Some(alternatives) = verdicts.frontends.get_mut(frontend) {
                alternatives.extend(self.backends(*frontend));
            }
        }
    }

    /// The backends of each Service that is reached there, or none at all.
    fn backends(&self, frontend: Frontend) -> Vec<Backends> {
        match self.frontends.get(&frontend) {
            Some(holders) => holders.iter().map(|(_, backends)| Arc::clone(backends)).collect(),
            None => vec![Backends::default()],
        }
    }

    /// Rules were not what they should be for a while, so flows may have gone anywhere.
    pub fn suspect(&mut self) {
        self.pending.extend(self.frontends.keys());
    }

    /// Whether something is to be done that nobody does.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A comparison with all of the last verdicts succeeded.
    pub fn settle(&mut self) {
        self.compared = FxHashSet::default();
    }

    /// It failed, and is to be repeated.
    pub fn resume(&mut self) {
        move_all(&mut self.compared, &mut self.pending);
    }
}

/// At a start that is everything: what it takes is not needed again.
fn move_all(from: &mut FxHashSet<Frontend>, to: &mut FxHashSet<Frontend>) {
    let moved = std::mem::take(from);
    if to.is_empty() {
        *to = moved;
    } else {
        to.extend(moved);
    }
}

fn frontends(state: &ProxyState, key: &ServiceKey) -> Vec<(Frontend, Backends)> {
    let ports = || state.ports(key).iter().filter(|port| port.protocol() == Protocol::Udp);
    if ports().next().is_none() {
        return Vec::new();
    }
    let endpoints = state.endpoints(key);
    // A Service that names one address twice is reached there once.
    let mut frontends = FxHashMap::default();
    for port in ports() {
        let of_port = endpoints.get(&port.name.port).map(Vec::as_slice).unwrap_or_default();
        let serving = of_port.iter().filter(|endpoint| endpoint.serving);
        let backends: BTreeSet<Place> = serving.map(|Endpoint { address, .. }| place(*address)).collect();
        let backends: Backends = backends.into_iter().collect();
        frontends.extend(reached_at(port).map(|frontend| (frontend, Arc::clone(&backends))));
    }
    frontends.into_iter().collect()
}

fn reached_at(port: &ServicePort) -> impl Iterator<Item = Frontend> {
    let addresses = [port.cluster_ip].into_iter();
    let addresses = addresses.chain(port.external_ips.iter().copied());
    let addresses = addresses.chain(port.load_balancer_ips.iter().copied());
    let addresses = addresses.map(|address| Frontend::Address(address, port.port));
    addresses.chain((port.node_port != 0).then_some(Frontend::NodePort(port.node_port)))
}

fn place(address: SocketAddr) -> Place {
    (address.ip(), address.port())
}

/// Tells which flows contradict the rules.
#[derive(Clone, Debug, Default)]
pub struct Verdicts {
    config: Config,
    own: FxHashSet<IpAddr>,
    /// What agrees with any of the alternatives is not contradicted.
    frontends: FxHashMap<Frontend, Vec<Backends>>,
}

impl Verdicts {
    /// Whether the rules would not send the flow where it goes.
    pub fn contradicts(&self, ends: &Ends) -> bool {
        let Ends { destination, answerer } = ends;
        let at_address = self.frontends.get(&Frontend::Address(destination.ip(), destination.port()));
        let at_node_port = || {
            let alternatives = self.frontends.get(&Frontend::NodePort(destination.port()));
            alternatives.filter(|_| self.is_served(destination.ip()))
        };
        let contradicted = |backends: &Backends| {
            // Without any, rules leave it alone or refuse it: only a translation contradicts that. What is not translated
            // may be a flow to a program of the host.
            if backends.is_empty() {
                ends.is_translated()
            } else {
                backends.binary_search(&place(*answerer)).is_err()
            }
        };
        at_address.or_else(at_node_port).is_some_and(|alternatives| alternatives.iter().all(contradicted))
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

        fn verdicts(&self) -> Option<Verdicts> {
            let own = vec!["192.168.0.2".parse().unwrap()];
            self.demand.clone().verdicts(&Config::default(), own)
        }

        fn contradicts(&self, destination: &str, answerer: &str) -> bool {
            self.verdicts().unwrap().contradicts(&flow(destination, answerer))
        }

        /// Compares everything that is to be compared, successfully.
        fn settle(&mut self) {
            drop(self.demand.verdicts(&Config::default(), Vec::new()));
            self.demand.settle();
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
        bench.settle();
        set_endpoints(&mut bench.state, &[]);
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"));
        assert!(!bench.contradicts("192.168.0.2:30053", "192.168.0.2:30053"));
    }

    #[test]
    fn frontends_of_a_deleted_service_are_remembered_until_it_is_done() {
        let mut bench = Bench::new();
        bench.settle();
        bench.state.remove_service(&ServiceKey::new("default", "dns"));
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"));
        assert!(bench.contradicts("192.168.0.2:30053", "10.0.0.1:8053"));
        set_service(&mut bench.state, "UDP");
        bench.refresh();
        assert!(!bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"), "it came back");
        bench.settle();
        assert!(bench.verdicts().is_none());
    }

    #[test]
    fn other_protocols_are_no_reason_to_look() {
        let mut bench = Bench::new();
        bench.settle();
        set_service(&mut bench.state, "TCP");
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"), "the UDP port is gone");
        bench.settle();
        set_endpoints(&mut bench.state, &["10.0.0.7"]);
        bench.refresh();
        assert!(!bench.demand.is_pending());
    }

    #[test]
    fn node_port_counts_only_where_node_ports_are_served() {
        let mut bench = Bench::new();
        let config =
            Config { node_port_addresses: vec!["10.9.0.0/16".parse().unwrap()], ..Config::default() };
        let own = vec!["192.168.0.2".parse().unwrap(), "10.9.0.1".parse().unwrap()];
        let verdicts = bench.demand.verdicts(&config, own).unwrap();
        assert!(!verdicts.contradicts(&flow("192.168.0.2:30053", "192.168.0.2:30053")));
        assert!(verdicts.contradicts(&flow("10.9.0.1:30053", "10.9.0.1:30053")));
    }

    #[test]
    fn more_endpoints_are_no_reason_to_look_and_fewer_are() {
        let mut bench = Bench::new();
        bench.settle();
        set_endpoints(&mut bench.state, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        bench.refresh();
        assert!(!bench.demand.is_pending());
        set_endpoints(&mut bench.state, &["10.0.0.3"]);
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"));
        assert!(!bench.contradicts("10.96.0.53:53", "10.0.0.3:8053"));
        bench.settle();
        set_endpoints(&mut bench.state, &[]);
        bench.refresh();
        bench.settle();
        set_endpoints(&mut bench.state, &["10.0.0.1"]);
        bench.refresh();
        assert!(
            bench.contradicts("10.96.0.53:53", "10.96.0.53:53"),
            "it was not translated when there were none"
        );
    }

    #[test]
    fn only_what_changed_is_compared() {
        let mut bench = Bench::new();
        let other = json!({"clusterIP": "10.96.0.54", "clusterIPs": ["10.96.0.54"],
            "ports": [{"port": 53, "protocol": "UDP"}]});
        bench.state.set_service(&builders::service("other", other));
        bench.refresh();
        bench.settle();
        set_endpoints(&mut bench.state, &["10.0.0.7"]);
        bench.refresh();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.1:8053"));
        assert!(!bench.contradicts("10.96.0.54:53", "10.0.0.1:8053"), "nobody touched it");
        bench.demand.suspect();
        assert!(bench.contradicts("10.96.0.54:53", "10.0.0.1:8053"));
    }

    #[test]
    fn what_changes_during_a_comparison_agrees_with_either_and_is_compared_afterwards() {
        let mut bench = Bench::new();
        bench.settle();
        set_endpoints(&mut bench.state, &["10.0.0.2"]);
        bench.refresh();
        let mut verdicts = bench.demand.verdicts(&Config::default(), Vec::new()).unwrap();
        set_endpoints(&mut bench.state, &["10.0.0.3"]);
        let dirty = bench.state.take_dirty();
        let changed = bench.demand.refresh(&bench.state, &dirty);
        bench.demand.amend(&mut verdicts, &changed);
        let contradicts = |answerer| verdicts.contradicts(&flow("10.96.0.53:53", answerer));
        assert!(contradicts("10.0.0.1:8053"));
        assert!(!contradicts("10.0.0.2:8053") && !contradicts("10.0.0.3:8053"));
        bench.demand.settle();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.2:8053"), "not done with");
    }

    #[test]
    fn what_could_not_be_compared_is_to_be_done_again() {
        let mut bench = Bench::new();
        assert!(bench.demand.verdicts(&Config::default(), Vec::new()).is_some());
        assert!(!bench.demand.is_pending());
        bench.demand.resume();
        assert!(bench.contradicts("10.96.0.53:53", "10.0.0.9:8053"));
    }

    #[test]
    fn address_that_two_services_claim_may_lead_to_either_and_stays_with_the_one_that_is_left() {
        let mut bench = Bench::new();
        let rival = json!({"clusterIP": "10.96.0.54", "clusterIPs": ["10.96.0.54"],
            "externalIPs": ["198.51.100.1"], "ports": [{"port": 53, "protocol": "UDP"}]});
        bench.state.set_service(&builders::service("rival", rival));
        let mut slice = builders::slice("r", "rival", 8053, &[("10.0.0.8", "node-a", true)]);
        for port in &mut slice.ports {
            port.protocol = Some(Protocol::Udp);
        }
        bench.state.set_slice(&slice);
        bench.refresh();
        assert!(!bench.contradicts("198.51.100.1:53", "10.0.0.1:8053"));
        assert!(!bench.contradicts("198.51.100.1:53", "10.0.0.8:8053"));
        bench.settle();
        bench.state.remove_service(&ServiceKey::new("default", "dns"));
        bench.refresh();
        assert!(bench.contradicts("198.51.100.1:53", "10.0.0.1:8053"));
        assert!(!bench.contradicts("198.51.100.1:53", "10.0.0.8:8053"));
    }
}
