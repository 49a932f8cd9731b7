//! Frontends: where packets to Services go, by the state, and by the rules of the other proxy.
//!
//! Invariant: one place (address, protocol, port) is one claim, however many Services claim it.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use fairlead_objects::{Family, Protocol, ServiceKey};
use ipnet::IpNet;

use super::traces::{Place, Traces};
use crate::{
    config::Config,
    facts::NodeFacts,
    names::ServiceChains,
    service_port::{ServicePort, ServicePortName},
    state::ProxyState,
};

/// In what capacity a place belongs to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// Its cluster IP.
    ClusterIp,
    /// An external IP.
    ExternalIp,
    /// An address of its load balancer.
    LoadBalancerIp,
    /// Its node port, on an address of the node.
    NodePort,
    /// Its health check port, on the node's address.
    HealthCheckPort,
    /// None: only rules that are installed speak of it.
    Unclaimed,
}

impl FrontendKind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster IP",
            Self::ExternalIp => "external IP",
            Self::LoadBalancerIp => "load balancer IP",
            Self::NodePort => "node port",
            Self::HealthCheckPort => "health check port",
            Self::Unclaimed => "place of no Service",
        }
    }
}

/// A place that packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// In what capacity.
    pub kind: FrontendKind,
    /// Address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// `cluster IP 10.96.0.10:80/TCP`
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = std::net::SocketAddr::new(self.address, self.port);
        write!(f, "{} {place}/{}", self.kind.as_str(), self.protocol)
    }
}

/// A frontend, and whose it is.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) frontend: Frontend,
    /// In the order of the state; none if it is unclaimed.
    pub(super) owners: Vec<Arc<ServicePortName>>,
    /// Whose it was, by a comment on a rule.
    pub(super) former: Option<(ServiceKey, Arc<str>)>,
    /// Several Service ports claim the address, so that it is not settled whose it is.
    pub(super) disputed: bool,
    /// Source ranges that matter there, on either side.
    pub(super) ranges: Vec<IpNet>,
}

/// All frontends, of the state and of the rules.
pub(super) fn claims(state: &ProxyState, config: &Config, facts: &NodeFacts, traces: &Traces) -> Vec<Claim> {
    let nodes = node_port_addresses(config, facts);
    let mut claims: BTreeMap<Place, Claim> = BTreeMap::new();
    for port in state.services().flat_map(|(_, ports)| ports) {
        for (kind, address, number) in frontends(port, &nodes, facts) {
            // Health checks are over TCP, whatever the Service is.
            let protocol = match kind {
                FrontendKind::HealthCheckPort => Protocol::Tcp,
                _ => port.protocol(),
            };
            let frontend = Frontend { kind, address, protocol, port: number };
            let claim = claims.entry((address, protocol, number)).or_insert_with(|| Claim::of(frontend));
            claim.add(port, kind);
            if kind == FrontendKind::LoadBalancerIp {
                claim.add_ranges(port, traces);
            }
        }
    }
    for (place, former) in traces.places(&nodes) {
        let (address, protocol, port) = place;
        let frontend = Frontend { kind: FrontendKind::Unclaimed, address, protocol, port };
        claims.entry(place).or_insert_with(|| Claim { former, ..Claim::of(frontend) });
    }
    claims.into_values().collect()
}

impl Claim {
    fn of(frontend: Frontend) -> Self {
        Self { frontend, owners: Vec::new(), former: None, disputed: false, ranges: Vec::new() }
    }

    /// Node ports and health check ports come behind addresses on both sides, so they dispute nothing.
    fn add(&mut self, port: &ServicePort, kind: FrontendKind) {
        let dispute = |kind| !matches!(kind, FrontendKind::NodePort | FrontendKind::HealthCheckPort);
        if self.owners.contains(&port.name) {
            return;
        }
        self.disputed |= !self.owners.is_empty() && dispute(kind) && dispute(self.frontend.kind);
        self.owners.push(Arc::clone(&port.name));
    }

    fn add_ranges(&mut self, port: &ServicePort, traces: &Traces) {
        let theirs = traces.ranges(&ServiceChains::of(&port.name).firewall());
        for range in port.source_ranges.iter().chain(theirs) {
            if !self.ranges.contains(range) {
                self.ranges.push(*range);
            }
        }
    }
}

fn frontends<'a>(
    port: &'a ServicePort,
    nodes: &'a [IpAddr],
    facts: &'a NodeFacts,
) -> impl Iterator<Item = (FrontendKind, IpAddr, u16)> + 'a {
    let of = |kind| move |address: &IpAddr| (kind, *address, port.port);
    let node_port = nodes.iter().filter(|_| port.node_port != 0);
    let health_check = Some(port.health_check_node_port).filter(|number| *number != 0);
    [(FrontendKind::ClusterIp, port.cluster_ip, port.port)]
        .into_iter()
        .chain(port.external_ips.iter().map(of(FrontendKind::ExternalIp)))
        .chain(port.load_balancer_ips.iter().map(of(FrontendKind::LoadBalancerIp)))
        .chain(node_port.map(|address| (FrontendKind::NodePort, *address, port.node_port)))
        .chain(health_check.map(|number| (FrontendKind::HealthCheckPort, facts.node_ip, number)))
}

/// The addresses of the node that stand for all of them: the one that the cluster knows, loopback, and one more of those
/// that accept node ports and of those that do not.
fn node_port_addresses(config: &Config, facts: &NodeFacts) -> Vec<IpAddr> {
    let own: Vec<IpAddr> = facts.own_addresses().collect();
    let loopback = match facts.family {
        Family::V4 => IpAddr::from([127, 0, 0, 1]),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
    };
    let other = |accepting: bool| {
        own.iter().copied().find(|address| {
            !address.is_loopback()
                && *address != facts.node_ip
                && config.accepts_node_ports(*address) == accepting
        })
    };
    let mut addresses = vec![facts.node_ip];
    addresses.extend([Some(loopback), other(true), other(false)].into_iter().flatten());
    addresses.dedup();
    addresses
}
