//! Settings of the rules. Names and defaults are kube-proxy's.

use std::{net::IpAddr, sync::Arc};

use fairlead_objects::Family;
use ipnet::IpNet;

use crate::matches::{InterfaceName, Match};

/// Settings of the rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, as in KubeProxyConfiguration")]
pub struct Config {
    /// Bit of the packet mark that asks for masquerading (`iptables.masqueradeBit`).
    pub masquerade_bit: u8,
    /// Masquerades all traffic to cluster IPs (`iptables.masqueradeAll`).
    pub masquerade_all: bool,
    /// How traffic of local Pods is recognised (`detectLocalMode`).
    pub detector: Detector,
    /// Networks whose interface addresses accept node ports; `primary` has been replaced by the node's addresses. Empty means
    /// all (`nodePortAddresses`).
    pub node_port_addresses: Vec<IpNet>,
    /// Node ports on loopback, IPv4 only (`iptables.localhostNodePorts`).
    pub localhost_node_ports: bool,
    /// `MASQUERADE --random-fully`: iptables 1.6.2 or newer.
    pub random_fully: bool,
    /// conntrack is liberal about TCP windows, so that INVALID packets need not be dropped.
    pub liberal_tcp: bool,
    /// The nfacct counters exist.
    pub nfacct: bool,
    /// The kernel has xt_bpf: one hairpin rule, endpoints inlined. Without it, one chain per endpoint, as kube-proxy.
    pub bpf: bool,
    /// The kernel has xt_recent: session affinity. Without it every connection chooses anew.
    pub recent: bool,
    /// The kernel has xt_statistic. Without it the client's source port chooses between endpoints.
    pub statistic: bool,
    /// The kernel has xt_comment. Without it rules carry none.
    pub comments: bool,
    /// The kernel has xt_conntrack's match. Without it rules for new connections hold for all packets, and rules that ask for
    /// another state are left out.
    pub conn_state: bool,
    /// The kernel has xt_mark. Without it everything that goes to a Service is masqueraded.
    pub marks: bool,
    /// The kernel has xt_addrtype. Without it the node's addresses are listed.
    pub address_types: bool,
    /// The kernel has the target REJECT. Without it packets are dropped.
    pub reject: bool,
    /// The kernel has the target MASQUERADE. Without it sources stay as they are.
    pub masquerade: bool,
    /// Above so many endpoints, rules for single endpoints lose their comments.
    pub comment_limit: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            masquerade_bit: 14,
            masquerade_all: false,
            detector: Detector::None,
            node_port_addresses: Vec::new(),
            localhost_node_ports: true,
            random_fully: true,
            liberal_tcp: false,
            nfacct: false,
            bpf: true,
            recent: true,
            statistic: true,
            comments: true,
            conn_state: true,
            marks: true,
            address_types: true,
            reject: true,
            masquerade: true,
            comment_limit: 1000,
        }
    }
}

impl Config {
    /// The masquerade mark. Bits above 31 do not exist; they count as 31.
    pub fn masquerade_mark(&self) -> u32 {
        1 << self.masquerade_bit.min(31)
    }

    /// Whether node ports are open on loopback: then the shell sets `route_localnet`, and KUBE-FIREWALL is ours to write.
    pub fn localhost_node_ports_active(&self, family: Family) -> bool {
        let loopback: fn(&IpNet) -> bool = |net| match net {
            IpNet::V4(net) => {
                net.network().is_loopback() || net.contains(&std::net::Ipv4Addr::new(127, 0, 0, 0))
            }
            IpNet::V6(_) => false,
        };
        family == Family::V4
            && self.localhost_node_ports
            // Without, KUBE-FIREWALL could not protect loopback.
            && self.conn_state
            && (self.node_ports_match_all(family) || self.node_port_addresses.iter().any(loopback))
    }

    /// Whether rules hold addresses of the node's interfaces, which must be known then.
    pub fn lists_addresses(&self, family: Family) -> bool {
        !self.address_types || !self.node_ports_match_all(family)
    }

    /// Whether every local address accepts node ports: no network of the family is given, or a zero network is.
    pub fn node_ports_match_all(&self, family: Family) -> bool {
        let mut networks = self.node_port_networks(family).peekable();
        networks.peek().is_none() || networks.any(|net| net.prefix_len() == 0)
    }

    /// Whether `address`, which is the node's own, accepts node ports.
    pub fn accepts_node_ports(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        self.node_ports_match_all(family) || self.node_port_networks(family).any(|net| net.contains(&address))
    }

    fn node_port_networks(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.node_port_addresses.iter().filter(move |net| Family::of(net.addr()) == family)
    }
}

/// How traffic of the node's own Pods is recognised. A network of another family counts as none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Detector {
    /// Not at all: Pods are treated as off-cluster clients.
    #[default]
    None,
    /// By source address (`ClusterCIDR` and `NodeCIDR`).
    Cidr(IpNet),
    /// By the bridge that it comes from (`BridgeInterface`).
    Bridge(Arc<str>),
    /// By the prefix of the interface's name (`InterfaceNamePrefix`).
    Prefix(Arc<str>),
}

impl Detector {
    /// The match for traffic of local Pods.
    pub(crate) fn local(&self, family: Family) -> Option<Match> {
        self.condition(family, false)
    }

    /// The match for all other traffic.
    pub(crate) fn not_local(&self, family: Family) -> Option<Match> {
        self.condition(family, true)
    }

    fn condition(&self, family: Family, negated: bool) -> Option<Match> {
        Some(match self {
            Self::None => return None,
            Self::Cidr(net) if Family::of(net.addr()) != family => return None,
            Self::Cidr(net) => Match::Source { net: net.trunc(), negated },
            Self::Bridge(name) => Match::InInterface { name: InterfaceName::new(Arc::clone(name)), negated },
            Self::Prefix(prefix) => {
                Match::InInterface { name: InterfaceName::new(format!("{prefix}+")), negated }
            }
        })
    }
}
