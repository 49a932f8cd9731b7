//! The address plan of a bed. Every bed uses the same addresses: its namespaces have no way out, so beds cannot meet.
//!
//! Invariant: every host has an address of each family; whether Kubernetes hears of IPv6 is the bed's choice
//! ([`Families`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Which families the cluster (not the network) has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    #[default]
    V4,
    /// IPv4 first, IPv6 second.
    DualStack,
}

/// The address pair of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Those that the cluster knows, first one first.
    pub fn known(self, families: Families) -> Vec<IpAddr> {
        match families {
            Families::V4 => vec![self.v4.into()],
            Families::DualStack => vec![self.v4.into(), self.v6.into()],
        }
    }
}

/// The network all hosts share, 172.30.0.0/24 and fd00:30::/64; `host` is the last byte of both.
pub fn host(host: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(172, 30, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, host.into()),
    }
}

/// The networks of [`host`].
pub fn shared_networks() -> [ipnet::IpNet; 2] {
    [ipnet::Ipv4Net::new_assert(host(0).v4, 24).into(), ipnet::Ipv6Net::new_assert(host(0).v6, 64).into()]
}

/// The host that etcd, the API server and the controllers run on. It is also the default route of the nodes, so that a
/// packet to an address that no rule knows has a way to leave the node; it is not forwarded further.
pub fn control_plane() -> Addresses {
    host(10)
}

/// A client outside the cluster: it knows the way to the nodes and to nothing behind them.
pub fn outside() -> Addresses {
    host(100)
}

/// The n-th host that a bed adds for servers outside the cluster, from 0.
pub fn external(n: u8) -> Addresses {
    host(200_u8.saturating_add(n))
}

/// What a node is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Number, from 1.
    pub number: u8,
    /// Name in the cluster: `node1`.
    pub name: String,
    /// Its own addresses.
    pub addresses: Addresses,
}

impl Node {
    /// The n-th node, from 1.
    pub fn new(number: u8) -> Self {
        Self { number, name: format!("node{number}"), addresses: host(10_u8.saturating_add(number)) }
    }

    /// The Pod networks: 10.244.N.0/24 and fd00:244:0:N::/64.
    pub fn pod_networks(&self) -> (String, String) {
        (format!("10.244.{}.0/24", self.number), format!("fd00:244:0:{:x}::/64", self.number))
    }

    /// Those of its Pod networks that the cluster knows.
    pub fn known_pod_networks(&self, families: Families) -> Vec<String> {
        let (v4, v6) = self.pod_networks();
        match families {
            Families::V4 => vec![v4],
            Families::DualStack => vec![v4, v6],
        }
    }

    /// The n-th address of the Pod network; 1 is the node's own, the Pods' gateway.
    pub fn pod(&self, n: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::new(10, 244, self.number, n),
            v6: Ipv6Addr::new(0xfd00, 0x244, 0, self.number.into(), 0, 0, 0, n.into()),
        }
    }
}

/// The networks of all Pods.
pub fn cluster_networks(families: Families) -> &'static str {
    match families {
        Families::V4 => "10.244.0.0/16",
        Families::DualStack => "10.244.0.0/16,fd00:244::/32",
    }
}

/// The networks that cluster IPs are given from.
pub fn service_networks(families: Families) -> &'static str {
    match families {
        Families::V4 => "10.96.0.0/16",
        Families::DualStack => "10.96.0.0/16,fd00:96::/108",
    }
}

/// The cluster IP of the API server.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
