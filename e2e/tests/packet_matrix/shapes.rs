//! The Services of the matrix: every state of endpoints, with every policy, and with source ranges.
//!
//! Invariant: each shape has a cluster IP, an external IP, a load balancer's address and a node port in both families
//! and all protocols, so that whatever differs follows from its axes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use fairlead_e2e::plan;
use fairlead_objects::{EndpointSlice, Family, Service, ServiceObject, builders::object};
use ipnet::IpNet;
use serde_json::{Value, json};

/// Where endpoints listen.
pub(crate) const TARGET_PORT: u16 = 8080;
/// As objects have them.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// In the place of a Pod's number: a process in the node's own network.
const PROCESS: u8 = 0;
/// The node that everything is seen from, and its zone.
pub(crate) const NODE: &str = "node1";
pub(crate) const ZONE: &str = "zone1";

/// An endpoint, as its slice has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Number of its node, and its own.
    place: (u8, u8),
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    /// For which zone a hint says that it is.
    pub(crate) zone: Option<&'static str>,
}

impl Endpoint {
    pub(crate) const fn ready(node: u8, number: u8) -> Self {
        Self { place: (node, number), ready: true, serving: true, terminating: false, zone: None }
    }

    const fn terminating(node: u8, number: u8) -> Self {
        Self { ready: false, terminating: true, ..Self::ready(node, number) }
    }

    const fn unready(node: u8, number: u8) -> Self {
        Self { ready: false, serving: false, ..Self::ready(node, number) }
    }

    const fn gone(node: u8, number: u8) -> Self {
        Self { serving: false, ..Self::terminating(node, number) }
    }

    const fn hinted(node: u8, number: u8, zone: &'static str) -> Self {
        Self { zone: Some(zone), ..Self::ready(node, number) }
    }

    /// A Pod with `hostNetwork`: its address is its node's.
    const fn process(node: u8) -> Self {
        Self::ready(node, PROCESS)
    }

    pub(crate) fn is_process(self) -> bool {
        self.place.1 == PROCESS
    }

    pub(crate) fn is_local(self) -> bool {
        self.place.0 == 1
    }

    pub(crate) fn address(self, family: Family) -> IpAddr {
        let (node, number) = self.place;
        if self.is_process() { node_address(family, node) } else { pod(family, node, number) }
    }

    fn to_json(self, family: Family) -> Value {
        let Self { place: (node, _), ready, serving, terminating, zone } = self;
        let mut value = json!({
            "addresses": [self.address(family).to_string()],
            "nodeName": format!("node{node}"),
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if let Some(zone) = zone {
            value["hints"] = json!({"forZones": [{"name": zone}]});
        }
        value
    }
}

/// The address by which the cluster knows a node.
pub(crate) fn node_address(family: Family, node: u8) -> IpAddr {
    let own = plan::Node::new(node).addresses;
    match family {
        Family::V4 => own.v4.into(),
        Family::V6 => own.v6.into(),
    }
}

/// The n-th Pod of a node.
pub(crate) fn pod(family: Family, node: u8, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, node, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, node.into(), 0, 0, 0, number.into()).into(),
    }
}

/// What endpoints there are.
pub(crate) const STATES: &[(&str, &[Endpoint])] = &[
    ("none", &[]),
    ("one remote ready", &[Endpoint::ready(2, 5)]),
    ("one local ready", &[Endpoint::ready(1, 5)]),
    ("local and remote ready", &[Endpoint::ready(1, 5), Endpoint::ready(2, 5)]),
    (
        "two local and two remote ready",
        &[Endpoint::ready(1, 5), Endpoint::ready(1, 6), Endpoint::ready(2, 5), Endpoint::ready(3, 5)],
    ),
    ("remote terminating", &[Endpoint::terminating(2, 5)]),
    ("local terminating", &[Endpoint::terminating(1, 5), Endpoint::gone(1, 6)]),
    ("local and remote terminating", &[Endpoint::terminating(1, 5), Endpoint::terminating(2, 5)]),
    ("local terminating, remote ready", &[Endpoint::terminating(1, 5), Endpoint::ready(2, 5)]),
    ("local ready, remote terminating", &[Endpoint::ready(1, 5), Endpoint::terminating(2, 5)]),
    ("not ready", &[Endpoint::unready(1, 5), Endpoint::unready(2, 5)]),
    ("local not ready, remote ready", &[Endpoint::unready(1, 5), Endpoint::ready(2, 5)]),
    (
        "hints for zones",
        &[
            Endpoint::hinted(1, 5, ZONE),
            Endpoint::hinted(1, 6, "zone2"),
            Endpoint::hinted(2, 5, ZONE),
            Endpoint::hinted(3, 5, "zone2"),
        ],
    ),
    ("hints for zones, one without", &[Endpoint::hinted(1, 5, ZONE), Endpoint::ready(2, 5)]),
    ("a process of this node", &[Endpoint::process(1)]),
    ("a process of another node", &[Endpoint::process(2)]),
    (
        "processes and Pods of both nodes",
        &[Endpoint::process(1), Endpoint::ready(1, 5), Endpoint::process(2), Endpoint::ready(2, 5)],
    ),
];

/// Who may use the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// Everybody.
    Open,
    /// The client outside and Pods of node 2.
    Some,
    /// The node and the client outside.
    Node,
    /// Somebody of the other family only.
    OtherFamily,
    /// Some, and all.
    Zero,
}

impl Ranges {
    pub(crate) const CLOSED: [Self; 4] = [Self::Some, Self::Node, Self::OtherFamily, Self::Zero];

    /// As the Service has them, of both families.
    pub(crate) fn networks(self, family: Family) -> Vec<IpNet> {
        let texts: &[&str] = match (self, family) {
            (Self::Open, _) | (Self::OtherFamily, Family::V6) => &[],
            (Self::Some, Family::V4) => &["203.0.113.0/24", "10.244.2.0/24"],
            (Self::Some, Family::V6) => &["2001:db8:113::/48", "fd00:244:0:2::/64"],
            (Self::Node, Family::V4) => &["172.30.0.11/32", "203.0.113.0/24"],
            (Self::Node, Family::V6) => &["fd00:30::b/128", "2001:db8:113::/48"],
            (Self::OtherFamily, Family::V4) => &["198.51.100.0/24"],
            (Self::Zero, Family::V4) => &["203.0.113.0/24", "0.0.0.0/0"],
            (Self::Zero, Family::V6) => &["::/0"],
        };
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

/// A Service of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) number: u8,
    pub(crate) state: &'static str,
    pub(crate) endpoints: &'static [Endpoint],
    /// `externalTrafficPolicy: Local`.
    pub(crate) external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub(crate) internal_local: bool,
    pub(crate) ranges: Ranges,
    /// `sessionAffinity: ClientIP`, with its timeout in seconds.
    pub(crate) affinity: Option<u32>,
}

/// All of them.
pub(crate) fn shapes() -> Vec<Shape> {
    let policies = [(false, false), (false, true), (true, false), (true, true)];
    let open = STATES.iter().flat_map(|state| policies.map(|policy| (*state, policy, Ranges::Open)));
    let few = STATES.iter().filter(|(name, _)| {
        ["none", "one remote ready", "local and remote ready", "not ready"].contains(name)
    });
    let closed = few.flat_map(|state| {
        let external = [false, true].into_iter();
        external.flat_map(|local| Ranges::CLOSED.map(|ranges| (*state, (local, false), ranges)))
    });
    let all = open.chain(closed).zip(1..);
    all.map(|(((state, endpoints), (external_local, internal_local), ranges), number)| Shape {
        number,
        state,
        endpoints,
        external_local,
        internal_local,
        ranges,
        affinity: None,
    })
    .collect()
}

/// The address of the load balancer, which all Services share.
pub(crate) fn load_balancer(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 80).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, 0x80).into(),
    }
}

impl Shape {
    pub(crate) fn cluster_ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 96, 3, self.number).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, self.number.into()).into(),
        }
    }

    pub(crate) fn external_ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(192, 0, 3, self.number).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x81, 0, 0, 0, 0, self.number.into()).into(),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        1000 + u16::from(self.number)
    }

    pub(crate) fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// Where an endpoint with this address listens.
    pub(crate) fn target(address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, TARGET_PORT)
    }

    pub(crate) fn service(&self) -> Service {
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let both = |address: fn(&Self, Family) -> IpAddr| Family::ALL.map(|family| address(self, family));
        let port = |protocol: &str| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": self.port(),
                   "nodePort": self.node_port()})
        };
        let (cluster_ips, ports) = (both(Self::cluster_ip), PROTOCOLS.map(port));
        let ranges: Vec<IpNet> =
            Family::ALL.into_iter().flat_map(|family| self.ranges.networks(family)).collect();
        let ingress: Vec<Value> =
            Family::ALL.map(|family| json!({"ip": load_balancer(family), "ipMode": "VIP"})).into();
        let affinity = self.affinity.map(|seconds| json!({"clientIP": {"timeoutSeconds": seconds}}));
        object::<ServiceObject>(json!({
            "metadata": {"namespace": "default", "name": self.name(), "uid": self.name()},
            "spec": {
                "type": "LoadBalancer", "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                "ipFamilies": ["IPv4", "IPv6"], "externalIPs": both(Self::external_ip),
                "externalTrafficPolicy": policy(self.external_local),
                "internalTrafficPolicy": policy(self.internal_local),
                "loadBalancerSourceRanges": ranges, "ports": ports,
                "sessionAffinity": if affinity.is_some() { "ClientIP" } else { "None" },
                "sessionAffinityConfig": affinity,
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .into()
    }

    pub(crate) fn slice(&self, family: Family) -> EndpointSlice {
        let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET_PORT});
        let ports = PROTOCOLS.map(port);
        let endpoints: Vec<Value> = self.endpoints.iter().map(|endpoint| endpoint.to_json(family)).collect();
        object(json!({
            "metadata": {"namespace": "default", "name": format!("{}-{}", self.name(), family.as_str()),
                         "labels": {"kubernetes.io/service-name": self.name()}},
            "addressType": family.as_str(), "endpoints": endpoints, "ports": ports,
        }))
    }

    fn name(&self) -> String {
        format!("s{}", self.number)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, state, external_local, internal_local, ranges, affinity, .. } = self;
        let policy = |local: &bool| if *local { "Local" } else { "Cluster" };
        write!(
            f,
            "s{number}: endpoints: {state}; externalTrafficPolicy {}; internalTrafficPolicy {}; source ranges {ranges:?}",
            policy(external_local),
            policy(internal_local)
        )?;
        affinity.map_or(Ok(()), |seconds| write!(f, "; clients are remembered for {seconds} s"))
    }
}
