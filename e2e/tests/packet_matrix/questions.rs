//! What is asked: a client, a frontend of a Service, a protocol.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use fairlead_compiler::{Origin, Packet};
use fairlead_e2e::{
    plan,
    tun::{Entry, Kind, Probe, Setup},
};
use fairlead_objects::{Family, Protocol};

use crate::shapes::{Ranges, Shape, load_balancer, node_address, pod};

pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) what: &'static str,
    pub(crate) entry: Entry,
    pub(crate) source: IpAddr,
}

/// By which of its addresses a Service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frontend {
    ClusterIp,
    External,
    LoadBalancer,
    /// The node port, at this address of a node.
    NodePort(IpAddr),
}

/// One cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) shape: Shape,
    pub(crate) client: Client,
    pub(crate) frontend: Frontend,
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
    pub(crate) kind: Kind,
}

/// The node's own addresses: its own, and its Pods' gateway.
pub(crate) fn node_addresses(family: Family) -> [IpAddr; 2] {
    let gateway = plan::Node::new(1).pod(1);
    let gateway = match family {
        Family::V4 => gateway.v4.into(),
        Family::V6 => gateway.v6.into(),
    };
    [node_address(family, 1), gateway]
}

pub(crate) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Another node, which has none of our rules.
fn other_node(family: Family) -> IpAddr {
    node_address(family, 2)
}

fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, 9).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9).into(),
    }
}

/// Everybody who asks a Service. The node asks from `extra`, too.
fn clients(shape: &Shape, family: Family, extra: Option<IpAddr>) -> Vec<Client> {
    let [node, gateway] = node_addresses(family);
    let client = |what, entry, source| Client { what, entry, source };
    let mut clients = vec![
        client("a Pod on this node", Entry::Pods, pod(family, 1, 200)),
        client("a Pod elsewhere", Entry::World, pod(family, 2, 200)),
        client("this node", Entry::Node, node),
        client("this node by its Pods' gateway", Entry::Node, gateway),
        client("another node", Entry::World, other_node(family)),
        client("outside", Entry::World, outside(family)),
    ];
    // Processes of nodes are among them already, as these nodes.
    let backends = shape.endpoints.iter().filter(|endpoint| !endpoint.is_process());
    clients.extend(backends.map(|endpoint| {
        let entry = if endpoint.is_local() { Entry::Pods } else { Entry::World };
        client("a backend itself", entry, endpoint.address(family))
    }));
    clients
        .extend(extra.map(|source| client("this node by the load balancer's address", Entry::Node, source)));
    clients
}

/// All that is asked of a Service in a family. `given`: the load balancer's address is the node's own, too.
pub(crate) fn questions(shape: Shape, family: Family, given: bool) -> Vec<Question> {
    let [node, gateway] = node_addresses(family);
    let mut frontends = vec![Frontend::External, Frontend::LoadBalancer, Frontend::NodePort(node)];
    if shape.ranges == Ranges::Open {
        let more = [gateway, other_node(family), loopback(family)].map(Frontend::NodePort);
        frontends.extend([Frontend::ClusterIp].into_iter().chain(more));
    }
    if given {
        frontends.push(Frontend::NodePort(load_balancer(family)));
    }
    let clients = clients(&shape, family, given.then(|| load_balancer(family)));
    let itself = Client { what: "this node by loopback", entry: Entry::Node, source: loopback(family) };
    let mut questions = Vec::new();
    for frontend in frontends {
        let at_loopback = frontend == Frontend::NodePort(loopback(family));
        let clients = if at_loopback { std::slice::from_ref(&itself) } else { &clients };
        for client in clients {
            questions.extend(PROTOCOLS.map(|protocol| Question {
                shape,
                client: *client,
                frontend,
                family,
                protocol,
                kind: Kind::First,
            }));
        }
    }
    questions
}

/// Names of the links are those of the harness.
fn link(entry: Entry) -> Origin {
    let Setup { pods, world } = Setup::default();
    match entry {
        Entry::Pods => Origin::Interface(Some(pods)),
        Entry::World => Origin::Interface(Some(world)),
        Entry::Node => Origin::Node,
    }
}

impl Question {
    pub(crate) fn destination(&self) -> SocketAddr {
        let Self { shape, family, .. } = self;
        match self.frontend {
            Frontend::ClusterIp => SocketAddr::new(shape.cluster_ip(*family), shape.port()),
            Frontend::External => SocketAddr::new(shape.external_ip(*family), shape.port()),
            Frontend::LoadBalancer => SocketAddr::new(load_balancer(*family), shape.port()),
            Frontend::NodePort(address) => SocketAddr::new(address, shape.node_port()),
        }
    }

    pub(crate) fn probe(&self) -> Probe {
        Probe::new(self.client.entry, self.client.source, self.protocol, self.destination()).of(self.kind)
    }

    /// For the tracer.
    pub(crate) fn packet(&self) -> Packet {
        Packet {
            source: self.client.source,
            source_port: 40_000,
            destination: self.destination().ip(),
            destination_port: self.destination().port(),
            protocol: self.protocol,
            origin: link(self.client.entry),
        }
    }

    /// Whether conntrack calls it INVALID. It looks at checksums only where packets come in.
    pub(crate) fn is_invalid(&self) -> bool {
        match self.kind {
            Kind::First => false,
            Kind::Stray => self.protocol != Protocol::Udp,
            Kind::Damaged => self.client.entry != Entry::Node,
        }
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, client, frontend, .. } = self;
        write!(f, "{} asks {frontend:?} of {shape}\n  {}", client.what, self.probe())
    }
}
