//! What is counted about Services besides their rules: health check ports, and policies that leave traffic stranded.
//!
//! Invariants: pure; a refresh costs what the dirty Services cost; after any series of refreshes the census equals one
//! taken afresh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fairlead_compiler::{Config, NodeFacts, ProxyState, categorize};
use fairlead_objects::{Family, ServiceKey};

/// What a health check port answers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node. What is terminating does not count, so that load balancers
    /// leave the node while it still serves.
    pub endpoints: usize,
}

/// The health check ports of one family, and where they should listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthPorts {
    /// The addresses, each with every port.
    pub addresses: Vec<IpAddr>,
    /// By Service.
    pub services: BTreeMap<ServiceKey, HealthPort>,
}

/// Service ports whose policy is Local and that have endpoints, but none on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stranded {
    /// By their internal policy.
    pub internal: usize,
    /// By their external policy.
    pub external: usize,
}

/// The census of one family.
#[derive(Clone, Debug, Default)]
pub struct Census {
    health: BTreeMap<ServiceKey, HealthPort>,
    stranded: BTreeMap<ServiceKey, Stranded>,
    total: Stranded,
}

impl Census {
    /// Counts everything.
    pub fn of(state: &ProxyState, facts: &NodeFacts) -> Self {
        let mut census = Self::default();
        census.refresh(state, &state.services().map(|(key, _)| key.clone()).collect(), facts);
        census
    }

    /// Counts the `dirty` Services again, present or not.
    pub fn refresh(&mut self, state: &ProxyState, dirty: &BTreeSet<ServiceKey>, facts: &NodeFacts) {
        for key in dirty {
            self.set_health(key, state, facts);
            self.set_stranded(key, stranded(key, state, facts));
        }
    }

    /// Health check ports, for listeners where node ports are served.
    pub fn health_ports(&self, config: &Config, facts: &NodeFacts) -> HealthPorts {
        HealthPorts { addresses: listening(config, facts), services: self.health.clone() }
    }

    /// How many Service ports strand traffic.
    pub fn stranded(&self) -> Stranded {
        self.total
    }

    fn set_health(&mut self, key: &ServiceKey, state: &ProxyState, facts: &NodeFacts) {
        let port = state.ports(key).iter().map(|port| port.health_check_node_port).find(|port| *port != 0);
        if let Some(port) = port {
            let endpoints = state.local_ready_count(key, &facts.name);
            self.health.insert(key.clone(), HealthPort { port, endpoints });
        } else {
            self.health.remove(key);
        }
    }

    fn set_stranded(&mut self, key: &ServiceKey, new: Stranded) {
        let old = self.stranded.remove(key).unwrap_or_default();
        self.total.internal = self.total.internal + new.internal - old.internal;
        self.total.external = self.total.external + new.external - old.external;
        if new != Stranded::default() {
            self.stranded.insert(key.clone(), new);
        }
    }
}

fn stranded(key: &ServiceKey, state: &ProxyState, facts: &NodeFacts) -> Stranded {
    let ports = || state.ports(key).iter().filter(|port| port.uses_local_endpoints());
    if ports().next().is_none() {
        return Stranded::default();
    }
    let endpoints = state.endpoints(key);
    let mut stranded = Stranded::default();
    for port in ports() {
        let of_port = endpoints.get(&port.name.port).map(Vec::as_slice).unwrap_or_default();
        let choice = categorize(of_port, port, facts);
        if choice.any && choice.local.is_empty() {
            stranded.internal += usize::from(port.internal_local);
            stranded.external += usize::from(port.external_local && port.externally_accessible());
        }
    }
    stranded
}

/// All addresses, or those of this node's that serve node ports. A link-local one would need an interface to it.
fn listening(config: &Config, facts: &NodeFacts) -> Vec<IpAddr> {
    if config.node_ports_match_all(facts.family) {
        return vec![match facts.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }];
    }
    let own = facts.addresses.iter().map(ipnet::IpNet::addr);
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let accepting = own.filter(|address| config.accepts_node_ports(*address) && !link_local(address));
    accepting.collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use fairlead_objects::{NodeName, builders};
    use serde_json::json;

    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            name: NodeName::new("node-a"),
            zone: None,
            node_ip: IpAddr::from([192, 168, 0, 2]),
            addresses: vec!["192.168.0.2/24".parse().unwrap(), "10.9.0.1/16".parse().unwrap()],
            family: Family::V4,
        }
    }

    fn set_balanced(state: &mut ProxyState, internal: &str) {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": internal, "healthCheckNodePort": 31000,
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
        state.set_service(&builders::service("web", spec));
    }

    fn key() -> ServiceKey {
        ServiceKey::new("default", "web")
    }

    #[test]
    fn only_ready_endpoints_of_this_node_count_and_each_address_once() {
        let mut state = ProxyState::new(Family::V4);
        set_balanced(&mut state, "Cluster");
        let endpoints =
            [("10.0.0.1", "node-a", true), ("10.0.0.2", "node-a", false), ("10.0.0.3", "node-b", true)];
        state.set_slice(&builders::slice("s1", "web", 8080, &endpoints));
        state.set_slice(&builders::slice("s2", "web", 8080, &endpoints));
        let ports = Census::of(&state, &facts()).health_ports(&Config::default(), &facts());
        assert_eq!(ports.services, [(key(), HealthPort { port: 31000, endpoints: 1 })].into());
        assert_eq!(ports.addresses, [IpAddr::from([0, 0, 0, 0])]);
    }

    #[test]
    fn listeners_follow_the_addresses_that_serve_node_ports() {
        let config =
            Config { node_port_addresses: vec!["10.9.0.0/16".parse().unwrap()], ..Config::default() };
        let ports = Census::default().health_ports(&config, &facts());
        assert_eq!(ports.addresses, [IpAddr::from([10, 9, 0, 1])]);
    }

    #[test]
    fn stranded_ports_are_counted_by_policy_and_forgotten_with_their_service() {
        let mut state = ProxyState::new(Family::V4);
        set_balanced(&mut state, "Local");
        let mut census = Census::of(&state, &facts());
        assert_eq!(census.stranded(), Stranded::default(), "no endpoint anywhere is another matter");
        state.set_slice(&builders::slice("s1", "web", 8080, &[("10.0.0.3", "node-b", true)]));
        census.refresh(&state, &[key()].into(), &facts());
        assert_eq!(census.stranded(), Stranded { internal: 1, external: 1 });
        set_balanced(&mut state, "Cluster");
        census.refresh(&state, &[key()].into(), &facts());
        assert_eq!(census.stranded(), Stranded { internal: 0, external: 1 });
        state.remove_service(&key());
        census.refresh(&state, &[key()].into(), &facts());
        assert_eq!(census.stranded(), Stranded::default());
        assert!(census.health_ports(&Config::default(), &facts()).services.is_empty());
    }
}
