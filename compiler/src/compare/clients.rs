//! Clients: who sends packets to a frontend, of all the kinds that rules can tell apart.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use fairlead_objects::Family;
use ipnet::IpNet;

use super::{
    Subject,
    frontends::{Claim, Frontend, FrontendKind},
    traces::Traces,
};
use crate::{
    config::Detector,
    facts::NodeFacts,
    state::ProxyState,
    trace::{Fate, Host, Origin, Packet},
};

/// A port that no rule asks for.
const SOURCE_PORT: u16 = 40_000;
/// Endpoints of a Service that call it themselves.
const CALLERS: usize = 3;
/// Source ranges of a load balancer that send a client each.
const RANGES: usize = 8;
/// Networks that the other proxy takes for Pods'.
const NETWORKS: usize = 2;
/// Clients outside of every cluster: addresses for documentation.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(203, 0, 113, 9), Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9));
/// A Pod, where nothing tells what addresses Pods have.
const SOMEWHERE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 9), Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 9));

/// A kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientKind {
    /// A Pod on this node.
    Pod,
    /// This node itself.
    Node,
    /// Somebody outside of the cluster.
    Outside,
    /// An endpoint of the Service itself.
    Endpoint,
    /// Somebody within a source range of the load balancer.
    InRange,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Of which kind.
    pub kind: ClientKind,
    /// Its address.
    pub address: IpAddr,
    /// Where its packets come from.
    pub origin: Origin,
}

/// `a Pod here (10.244.1.7)`
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ClientKind::Pod => "a Pod here",
            ClientKind::Node => "this node",
            ClientKind::Outside => "outside",
            ClientKind::Endpoint => "the endpoint itself",
            ClientKind::InRange => "within a source range",
        };
        write!(f, "{kind} ({})", self.address)
    }
}

/// The packet that a client sends to a frontend.
pub(super) fn packet(client: &Client, frontend: &Frontend) -> Packet {
    Packet {
        source: client.address,
        source_port: SOURCE_PORT,
        destination: frontend.address,
        destination_port: frontend.port,
        protocol: frontend.protocol,
        origin: client.origin.clone(),
    }
}

/// Endpoints that may call themselves: of ours the first and the last, and the first that only the other side has.
pub(super) fn callers(ours: &Fate, theirs: &Fate) -> Vec<IpAddr> {
    let all = |fate: &Fate| fate.targets.keys().map(|(target, _)| target.ip()).collect::<Vec<_>>();
    let (ours, theirs) = (all(ours), all(theirs));
    let other = theirs.iter().find(|address| !ours.contains(address));
    ours.first().into_iter().chain(ours.last()).chain(other).copied().collect()
}

/// The clients that all frontends have.
pub(super) struct Clients<'a> {
    facts: &'a NodeFacts,
    /// The interface that Pods are behind, if anybody asks for it.
    interface: Option<String>,
    pods: Vec<IpAddr>,
}

impl<'a> Clients<'a> {
    pub(super) fn new(subject: Subject<'a>, traces: &Traces) -> Self {
        let Subject { state, config, facts, .. } = subject;
        let interface = match &config.detector {
            Detector::Bridge(name) => Some(name.to_string()),
            // Any interface with that prefix.
            Detector::Prefix(prefix) => Some(format!("{prefix}0")),
            Detector::None | Detector::Cidr(_) => traces.interface.as_ref().map(Arc::to_string),
        };
        let own = match &config.detector {
            Detector::Cidr(network) => Some(*network),
            _ => None,
        };
        let networks = own.into_iter().chain(traces.networks.iter().copied().take(NETWORKS));
        let mut pods = Vec::new();
        for address in networks.filter(|network| Family::of(network.addr()) == facts.family).map(last) {
            if !pods.contains(&address) {
                pods.push(address);
            }
        }
        if pods.is_empty() {
            pods.push(endpoint_here(state, facts).unwrap_or_else(|| of_family(SOMEWHERE, facts.family)));
        }
        Self { facts, interface, pods }
    }

    /// All but the endpoints. Only the node itself can call its loopback addresses.
    pub(super) fn general(&self, claim: &Claim, host: &Host) -> Vec<Client> {
        let to = &claim.frontend;
        if to.address.is_loopback() {
            return vec![Client { kind: ClientKind::Node, address: to.address, origin: Origin::Node }];
        }
        let mut clients: Vec<Client> = self.pods.iter().map(|address| self.pod(*address)).collect();
        clients.push(Client { kind: ClientKind::Node, address: self.own_address(), origin: Origin::Node });
        let outside = of_family(OUTSIDE, self.facts.family);
        clients.push(Client { kind: ClientKind::Outside, address: outside, origin: Origin::Interface(None) });
        for range in claim.ranges.iter().take(RANGES) {
            let address = first(*range);
            let origin = if host.is_local(address) { Origin::Node } else { Origin::Interface(None) };
            clients.push(Client { kind: ClientKind::InRange, address, origin });
        }
        if !claim.ranges.is_empty() && to.kind == FrontendKind::LoadBalancerIp {
            // The node may have the load balancer's address on an interface, and send from it.
            clients.push(Client { kind: ClientKind::Node, address: to.address, origin: Origin::Node });
        }
        clients
    }

    /// A few of the endpoints that packets may be sent to.
    pub(super) fn endpoints(&self, targets: &[IpAddr], to: &Frontend, host: &Host) -> Vec<Client> {
        if to.address.is_loopback() {
            return Vec::new();
        }
        let mut clients: Vec<Client> = Vec::new();
        for address in targets {
            let known = clients.iter().any(|client| client.address == *address);
            if known
                || clients.len() == CALLERS
                || (host.is_local(*address) && *address == self.own_address())
            {
                continue;
            }
            let origin = if host.is_local(*address) { Origin::Node } else { self.pod(*address).origin };
            clients.push(Client { kind: ClientKind::Endpoint, address: *address, origin });
        }
        clients
    }

    fn pod(&self, address: IpAddr) -> Client {
        Client { kind: ClientKind::Pod, address, origin: Origin::Interface(self.interface.clone()) }
    }

    /// The address that the cluster knows, unless it knows none.
    fn own_address(&self) -> IpAddr {
        let known = Some(self.facts.node_ip).filter(|address| !address.is_loopback());
        let other = || self.facts.own_addresses().find(|address| !address.is_loopback());
        known.or_else(other).unwrap_or(self.facts.node_ip)
    }
}

fn of_family((v4, v6): (Ipv4Addr, Ipv6Addr), family: Family) -> IpAddr {
    match family {
        Family::V4 => v4.into(),
        Family::V6 => v6.into(),
    }
}

/// The last address of a network but broadcast: Pods seldom get it.
fn last(network: IpNet) -> IpAddr {
    match network {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            Ipv4Addr::from_bits(net.broadcast().to_bits().saturating_sub(1)).into()
        }
        IpNet::V6(net) if net.prefix_len() < 127 => {
            Ipv6Addr::from_bits(net.broadcast().to_bits().saturating_sub(1)).into()
        }
        _ => network.addr(),
    }
}

/// The first address of a network, behind the one that names it.
fn first(network: IpNet) -> IpAddr {
    match network {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            Ipv4Addr::from_bits(net.network().to_bits().saturating_add(1)).into()
        }
        IpNet::V6(net) if net.prefix_len() < 127 => {
            Ipv6Addr::from_bits(net.network().to_bits().saturating_add(1)).into()
        }
        _ => network.addr(),
    }
}

/// Any endpoint on this node that is no process of the node itself.
fn endpoint_here(state: &ProxyState, facts: &NodeFacts) -> Option<IpAddr> {
    state.services().find_map(|(key, _)| {
        let endpoints = state.endpoints(key);
        let mut here = endpoints.values().flatten().filter(|endpoint| endpoint.is_on(&facts.name));
        here.find_map(|endpoint| {
            let address = endpoint.address.ip();
            (address != facts.node_ip && !facts.own_addresses().any(|own| own == address)).then_some(address)
        })
    })
}
