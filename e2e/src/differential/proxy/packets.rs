//! The packets that both sides are asked about: every frontend of some Services, from everywhere.
//!
//! Frontends are read from the objects, not from what the compiler made of them, so that one it forgot is asked for.
//!
//! Invariant: where several Services claim one address, port and protocol, kube-proxy picks one at random, so nothing
//! is asked about that place.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use fairlead_compiler::{Host, NodeFacts, Origin, Packet};
use fairlead_objects::{EndpointSlice, Family, Protocol, Service, ServiceKey, parse_address};

use crate::plan;

/// Endpoints of a Service that send packets to it.
const BACKENDS: usize = 6;

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
            let elsewhere = plan::host(12).known(plan::Families::DualStack);
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

/// The packets to a frontend: from Pods here and there, this node, outside, inside and outside of source ranges, a host
/// that has the address itself, and the Service's own endpoints.
pub(super) fn packets(frontend: Frontend, slices: &[&EndpointSlice], facts: &NodeFacts) -> Vec<Packet> {
    let host = Host::from(facts);
    let clients: &[&str] = match facts.family {
        Family::V4 => &["10.244.1.200", "10.244.2.200", "172.30.0.100", "203.0.113.9", "203.0.113.200"],
        Family::V6 => {
            &["fd00:244:0:1::c8", "fd00:244:0:2::c8", "fd00:30::64", "2001:db8:113::9", "2001:db8:fff::9"]
        }
    };
    let mut sources: BTreeSet<IpAddr> = clients.iter().filter_map(|text| parse_address(text).ok()).collect();
    sources.extend(node_addresses(facts));
    sources.extend(backends(slices, facts.family).into_iter().take(BACKENDS));
    let packet = |source: IpAddr, origin: Origin| Packet {
        source,
        source_port: 40_000,
        destination: frontend.address,
        destination_port: frontend.port,
        protocol: frontend.protocol,
        origin,
    };
    let mut packets: Vec<Packet> = sources
        .into_iter()
        .filter(|source| !source.is_loopback() || host.is_local(frontend.address))
        .map(|source| packet(source, origin(source, &host)))
        .collect();
    // The node may have a load balancer's address on one of its interfaces and send from it.
    packets.push(packet(frontend.address, Origin::Node));
    // And what no Service listens on.
    if let Some(source) = clients.first().and_then(|text| parse_address(text).ok()) {
        packets.push(Packet { destination_port: 7, ..packet(source, Origin::Interface(None)) });
    }
    packets
}

/// Local Pods are behind a bridge, for those that tell them by that.
fn origin(source: IpAddr, host: &Host) -> Origin {
    let local = plan::Node::new(1).pod_networks();
    let is_in = |network: &str| network.parse().is_ok_and(|network: ipnet::IpNet| network.contains(&source));
    if host.is_local(source) {
        Origin::Node
    } else if is_in(&local.0) || is_in(&local.1) {
        Origin::Interface(Some("cbr0".to_owned()))
    } else {
        Origin::Interface(None)
    }
}

fn backends(slices: &[&EndpointSlice], family: Family) -> BTreeSet<IpAddr> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let addresses = endpoints.filter_map(|endpoint| parse_address(endpoint.addresses.first()?).ok());
    addresses.filter(|address| Family::of(*address) == family).collect()
}
