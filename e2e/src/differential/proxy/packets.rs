//! The packets that both sides are asked about: every frontend of some Services, from everywhere, first packets of
//! connections and such that belong to none.
//!
//! Frontends are read from the objects, not from what the compiler made of them, so that one it forgot is asked for.
//!
//! Invariant: where several Services claim one address, port and protocol, kube-proxy picks one at random, so nothing
//! is asked about that place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use fairlead_compiler::{Fate, Host, NodeFacts, Origin, Outcome, Packet, Tracer};
use fairlead_objects::{EndpointSlice, Family, Protocol, Service, ServiceKey, parse_address};

use super::place::Place;
use crate::{
    plan,
    tun::{Entry, Kind, Probe},
};

/// Endpoints of a Service that send packets to it.
const BACKENDS: usize = 6;
/// Clients that send packets of no connection.
const STRAYS: usize = 3;
/// The bridge that local Pods are behind, for those that tell them by that.
pub(super) const PODS: &str = "cbr0";
/// The link to all others.
pub(super) const WORLD: &str = "world";

/// A place that packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Frontend {
    /// Address.
    pub(super) address: IpAddr,
    /// Protocol.
    pub(super) protocol: Protocol,
    /// Port.
    pub(super) port: u16,
}

/// Where the Services of a moment can be reached, and by whom else.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    of: BTreeMap<ServiceKey, BTreeSet<Frontend>>,
    claims: BTreeMap<Frontend, BTreeSet<(ServiceKey, String)>>,
}

impl Frontends {
    /// The frontends of these Services in a family.
    pub(super) fn of(services: &BTreeMap<ServiceKey, Service>, facts: &NodeFacts) -> Self {
        let mut frontends = Self::default();
        for service in services.values() {
            frontends.add(service, facts);
        }
        frontends
    }

    fn add(&mut self, service: &Service, facts: &NodeFacts) {
        let family = facts.family;
        let ingress = service.ingress_ips.iter().map(|ingress| ingress.ip);
        let addresses =
            service.cluster_ips.iter().copied().flatten().chain(service.external_ips.iter().copied());
        let addresses: BTreeSet<IpAddr> =
            addresses.chain(ingress).filter(|address| Family::of(*address) == family).collect();
        let own = self.of.entry(service.key.clone()).or_default();
        for port in &service.ports {
            for address in &addresses {
                let frontend = Frontend { address: *address, protocol: port.protocol, port: port.port };
                own.insert(frontend);
                self.claims.entry(frontend).or_default().insert((service.key.clone(), port.name.to_string()));
            }
            // On every address of the node, and on another node's.
            let elsewhere = plan::host(13).known(plan::Families::DualStack);
            let nodes = node_addresses(facts).into_iter().chain(elsewhere);
            for address in nodes.filter(|address| Family::of(*address) == family) {
                own.extend((port.node_port != 0).then_some(Frontend {
                    address,
                    protocol: port.protocol,
                    port: port.node_port,
                }));
            }
        }
        if service.health_check_node_port != 0 {
            let port = service.health_check_node_port;
            own.insert(Frontend { address: facts.node_ip, protocol: Protocol::Tcp, port });
        }
    }

    /// The frontends of a Service.
    pub(super) fn at(&self, key: &ServiceKey) -> impl Iterator<Item = Frontend> + '_ {
        self.of.get(key).into_iter().flatten().copied()
    }

    /// Whether several Services claim a place.
    pub(super) fn is_disputed(&self, frontend: &Frontend) -> bool {
        self.claims.get(frontend).is_some_and(|claims| claims.len() > 1)
    }
}

/// The node's addresses, and one of its loopback.
fn node_addresses(facts: &NodeFacts) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = facts.addresses.iter().map(ipnet::IpNet::addr).collect();
    addresses.retain(|address| Family::of(*address) == facts.family);
    addresses
}

/// A packet, and what else there is to know about it.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The packet. It comes by the harness' devices.
    pub(super) packet: Packet,
    /// Which one of a connection it is.
    pub(super) kind: Kind,
    /// Whether the Service remembers its clients, long enough for a second question.
    pub(super) sticks: bool,
    /// Whether the node takes packets of 127.0.0.0/8 out of, and in by, other devices than loopback.
    routes_loopback: bool,
}

impl Question {
    pub(super) fn family(&self) -> Family {
        Family::of(self.packet.destination)
    }

    pub(super) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.packet.destination, self.packet.destination_port)
    }

    /// As it is sent.
    pub(super) fn probe(&self) -> Probe {
        let entry = match &self.packet.origin {
            Origin::Node => Entry::Node,
            Origin::Interface(Some(name)) if name == PODS => Entry::Pods,
            Origin::Interface(_) => Entry::World,
        };
        Probe::new(entry, self.packet.source, self.packet.protocol, self.destination()).of(self.kind)
    }

    /// How often it is sent at once.
    pub(super) fn repeats(&self) -> usize {
        1 + usize::from(self.sticks)
    }

    /// All that is sent at once.
    pub(super) fn probes(&self) -> impl Iterator<Item = Probe> + use<> {
        std::iter::repeat_n(self.probe(), self.repeats())
    }

    /// What becomes of it by the rules. Conntrack looks at checksums only where packets come in.
    pub(super) fn trace(&self, tracer: &Tracer<'_>, host: &Host) -> Fate {
        let invalid = match self.kind {
            Kind::First => false,
            Kind::Stray => self.packet.protocol != Protocol::Udp,
            Kind::Damaged => self.packet.origin != Origin::Node,
        };
        if invalid { tracer.fate_of_invalid(&self.packet, host) } else { tracer.fate(&self.packet, host) }
    }

    /// Whether the node's routes, of which the tracer knows nothing, may have no way for it.
    pub(super) fn may_be_lost(&self, traced: &Fate) -> bool {
        let Packet { source, destination, .. } = self.packet;
        let can = |outcome: Outcome| traced.outcomes.contains_key(&outcome);
        let passes = can(Outcome::NoMatch);
        // Only what is led to an endpoint has somewhere to go.
        let astray = is_no_host(destination) && (passes || can(Outcome::Rejected));
        let inward = destination.is_loopback() && self.packet.origin != Origin::Node;
        // Before rules see it, or those that refuse packets to the node.
        let refused = inward && (destination.is_ipv6() || !self.routes_loopback);
        refused || astray || (passes && inward) || (source.is_loopback() && !self.routes_loopback)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.probe())
    }
}

/// Addresses that are not those of one host.
pub(super) fn is_no_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
    }
}

/// The packets to a frontend: from Pods here and there, this node, outside, inside and outside of source ranges, a host
/// that has the address itself, and the Service's own endpoints.
pub(super) fn questions(
    frontend: Frontend,
    slices: &[&EndpointSlice],
    facts: &NodeFacts,
    place: &Place,
    sticks: bool,
) -> Vec<Question> {
    let host = Host::from(facts);
    let clients: &[&str] = match facts.family {
        Family::V4 => &["10.244.1.200", "10.244.2.200", "172.30.0.100", "203.0.113.9", "203.0.113.200"],
        Family::V6 => {
            &["fd00:244:0:1::c8", "fd00:244:0:2::c8", "fd00:30::64", "2001:db8:113::9", "2001:db8:fff::9"]
        }
    };
    let clients: Vec<IpAddr> = clients.iter().filter_map(|text| parse_address(text).ok()).collect();
    let mut sources: BTreeSet<IpAddr> = clients.iter().copied().collect();
    sources.extend(node_addresses(facts));
    sources.extend(backends(slices, facts.family).into_iter().take(BACKENDS));
    let question = |source: IpAddr, origin: Origin, kind: Kind| Question {
        packet: Packet {
            source,
            source_port: 40_000,
            destination: frontend.address,
            destination_port: frontend.port,
            protocol: frontend.protocol,
            origin,
        },
        kind,
        sticks: sticks && kind == Kind::First,
        routes_loopback: place.routes_loopback && facts.family == Family::V4,
    };
    let mut questions: Vec<Question> = sources
        .into_iter()
        .filter(|source| !source.is_loopback() || host.is_local(frontend.address))
        .map(|source| question(source, place.origin(source, &host), Kind::First))
        .collect();
    // The node may have a load balancer's address on one of its interfaces and send from it.
    questions.push(question(frontend.address, Origin::Node, Kind::First));
    for source in clients.iter().copied().take(STRAYS) {
        for kind in [Kind::Damaged, Kind::Stray] {
            questions.push(question(source, place.origin(source, &host), kind));
        }
    }
    questions.push(question(facts.node_ip, Origin::Node, Kind::Stray));
    if is_no_host(frontend.address) {
        // Rules may make one of it; without them it goes other ways than packets to hosts.
        questions.retain(|question| question.packet.origin != Origin::Node && question.kind == Kind::First);
    }
    // And what no Service listens on.
    if let Some(source) = clients.first() {
        let mut nobody = question(*source, place.origin(*source, &host), Kind::First);
        nobody.packet.destination_port = 7;
        questions.push(nobody);
    }
    questions
}

fn backends(slices: &[&EndpointSlice], family: Family) -> BTreeSet<IpAddr> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let addresses = endpoints.filter_map(|endpoint| parse_address(endpoint.addresses.first()?).ok());
    addresses.filter(|address| Family::of(*address) == family).collect()
}
