//! Service ports: what a Service means on a node, one per port, as kube-proxy's `BaseServicePortInfo`.

use std::{fmt, net::IpAddr, sync::Arc};

use fairlead_objects::{
    ClusterIp, Family, Protocol, Service, ServiceKey, ServicePort as Port, ServiceType, TrafficPolicy, labels,
};
use ipnet::IpNet;

use crate::endpoint::PortKey;

/// Identity of a Service port; its text is `namespace/name:port`, without the colon if the port has no name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// Service.
    pub service: ServiceKey,
    /// Port name and protocol. The protocol is not in the text.
    pub port: PortKey,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if self.port.name.is_empty() { Ok(()) } else { write!(f, ":{}", self.port.name) }
    }
}

/// One port of a Service, cut down to one family and to what rules are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Identity.
    pub name: Arc<ServicePortName>,
    /// Cluster IP.
    pub cluster_ip: IpAddr,
    /// Port of every frontend but the node port.
    pub port: u16,
    /// Node port; 0 if there is none.
    pub node_port: u16,
    /// Timeout of client affinity in seconds.
    pub affinity: Option<u32>,
    /// External addresses.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer addresses that nodes claim.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Networks that may use the load balancer; empty for all.
    pub source_ranges: Vec<IpNet>,
    /// Health check port; 0 if there is none.
    pub health_check_node_port: u16,
    /// External traffic only goes to endpoints on the node.
    pub external_local: bool,
    /// Internal traffic only goes to endpoints on the node.
    pub internal_local: bool,
}

impl ServicePort {
    /// The ports of a Service in a family. None if nodes have nothing to do for it: headless, ExternalName, no cluster IP of
    /// the family, or handed to another proxy.
    pub fn of(service: &Service, family: Family) -> Vec<Self> {
        let other_proxy = service.labels.contains_key(labels::SERVICE_PROXY_NAME);
        let no_address =
            !matches!(service.cluster_ip, ClusterIp::Ip(_)) || service.kind == ServiceType::ExternalName;
        let Some(cluster_ip) = service.cluster_ip_of(family).filter(|ip| Family::of(*ip) == family) else {
            return Vec::new();
        };
        if other_proxy || no_address {
            return Vec::new();
        }
        let mut ports: Vec<Self> = Vec::with_capacity(service.ports.len());
        // Port 0 is none: no API server lets it in, but a file may have it.
        for port in service.ports.iter().filter(|port| port.port != 0) {
            let port = Self::of_port(service, port, cluster_ip);
            match ports.iter_mut().find(|other| other.name == port.name) {
                Some(other) => *other = port,
                None => ports.push(port),
            }
        }
        ports
    }

    fn of_port(service: &Service, port: &Port, cluster_ip: IpAddr) -> Self {
        let family = Family::of(cluster_ip);
        let external_local = is_external_local(service);
        Self {
            name: Arc::new(ServicePortName {
                service: service.key.clone(),
                port: PortKey { name: Arc::clone(&port.name), protocol: port.protocol },
            }),
            cluster_ip,
            port: port.port,
            node_port: port.node_port,
            // The kernel refuses a timeout of 0, and with it the whole document.
            affinity: service.client_ip_affinity.map(|seconds| seconds.max(1)),
            external_ips: distinct(
                service.external_ips.iter().copied().filter(|ip| Family::of(*ip) == family),
            ),
            load_balancer_ips: distinct(
                service
                    .ingress_ips
                    .iter()
                    .filter(|i| !i.proxy_mode && Family::of(i.ip) == family)
                    .map(|i| i.ip),
            ),
            source_ranges: source_ranges(service, family),
            health_check_node_port: match (service.kind, external_local) {
                (ServiceType::LoadBalancer, true) => service.health_check_node_port,
                _ => 0,
            },
            external_local,
            internal_local: service.internal_policy == TrafficPolicy::Local,
        }
    }

    /// Protocol of the port.
    pub fn protocol(&self) -> Protocol {
        self.name.port.protocol
    }

    /// Whether it has a frontend other than the cluster IP.
    pub fn externally_accessible(&self) -> bool {
        self.node_port != 0 || !self.load_balancer_ips.is_empty() || !self.external_ips.is_empty()
    }

    /// Whether any frontend may need endpoints elsewhere. With a Local external policy, Pods and the node itself still do.
    pub fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_local || self.externally_accessible()
    }

    /// Whether any frontend is restricted to endpoints on the node.
    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible())
    }
}

fn is_external_local(service: &Service) -> bool {
    service.external_policy == TrafficPolicy::Local
        && match service.kind {
            ServiceType::LoadBalancer | ServiceType::NodePort => true,
            ServiceType::ClusterIp => !service.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        }
}

/// A zero network among them means that all may come.
fn source_ranges(service: &Service, family: Family) -> Vec<IpNet> {
    let ranges: Vec<_> =
        service.source_ranges.iter().copied().filter(|net| Family::of(net.addr()) == family).collect();
    if ranges.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { distinct(ranges) }
}

/// In order, without repetitions: an address given twice would give every rule twice.
fn distinct<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}
