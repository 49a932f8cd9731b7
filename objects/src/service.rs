//! Services: frontends, selectors and policies.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString};
use kube_derive::Resource;
use serde::{Deserialize, Serialize};

use crate::{Family, LabelMap, ServiceKey, meta, parse_address, parse_network};

/// Only annotations with this prefix mean anything to us; others (`kubectl apply` keeps whole objects there) are dropped.
const ANNOTATION_PREFIX: &str = "service.kubernetes.io/";

/// A Service as the API server sends it, cut down to what [`Service`] is made from.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Service, crates(kube_core = kube_core))]
pub struct ServiceObject {
    /// Metadata without owners and managed fields.
    #[serde(default, deserialize_with = "meta::lean_annotated")]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "meta::nullable")]
    spec: Spec,
    #[serde(default, deserialize_with = "meta::nullable")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(rename = "type")]
    kind: Option<String>,
    selector: Option<std::collections::BTreeMap<String, String>>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "meta::nullable")]
    cluster_ips: Vec<String>,
    #[serde(deserialize_with = "meta::nullable")]
    ip_families: Vec<Family>,
    #[serde(deserialize_with = "meta::nullable")]
    ports: Vec<PortObject>,
    publish_not_ready_addresses: Option<bool>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    #[serde(rename = "externalIPs", deserialize_with = "meta::nullable")]
    external_ips: Vec<String>,
    #[serde(deserialize_with = "meta::nullable")]
    load_balancer_source_ranges: Vec<String>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    health_check_node_port: Option<i32>,
    traffic_distribution: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIpConfig {
    timeout_seconds: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortObject {
    name: Option<String>,
    protocol: Option<Protocol>,
    port: u16,
    target_port: Option<IntOrString>,
    node_port: Option<u16>,
    app_protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "meta::nullable")]
    load_balancer: LoadBalancerStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancerStatus {
    #[serde(deserialize_with = "meta::nullable")]
    ingress: Vec<IngressObject>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IngressObject {
    ip: Option<String>,
    ip_mode: Option<String>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name used in API fields: `TCP`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The name used by iptables and in chain hashes: `tcp`.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServiceType {
    /// Reachable inside the cluster, or headless.
    #[default]
    ClusterIp,
    /// Also on a port of every node.
    NodePort,
    /// Also through a load balancer.
    LoadBalancer,
    /// An alias for a DNS name: no endpoints, no rules.
    ExternalName,
}

/// `spec.clusterIP`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClusterIp {
    /// Empty or absent (only in input that no API server defaulted), or unparsable.
    #[default]
    Unset,
    /// `None`: a headless Service.
    None,
    /// An address.
    Ip(IpAddr),
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node.
    Local,
}

/// `targetPort` of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// A number, as written.
    Number(i32),
    /// The name of a container port.
    Name(Arc<str>),
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Name; empty if the Service has only one, unnamed.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port number of the frontend.
    pub port: u16,
    /// Where it leads at the Pod; defaults to the same number.
    pub target: TargetPort,
    /// Port on every node; 0 if there is none.
    pub node_port: u16,
    /// Application protocol, copied to endpoints.
    pub app_protocol: Option<Arc<str>>,
}

/// One address of a load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IngressIp {
    /// The address.
    pub ip: IpAddr,
    /// `ipMode: Proxy`: traffic arrives with another destination, so nodes must not claim the address.
    pub proxy_mode: bool,
}

/// What the planner and the compiler need to know of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// Uid; empty for input that has none.
    pub uid: Arc<str>,
    /// Resource version, for logs and references.
    pub resource_version: Arc<str>,
    /// Labels.
    pub labels: LabelMap,
    /// Annotations below `service.kubernetes.io/`.
    pub annotations: LabelMap,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its deletion has begun.
    pub terminating: bool,
    /// Type.
    pub kind: ServiceType,
    /// Selector; `None` if absent. An empty one cannot come from an API server; in files it counts as absent, too.
    pub selector: Option<LabelMap>,
    /// `spec.clusterIP`.
    pub cluster_ip: ClusterIp,
    /// `spec.clusterIPs`, in the order of `ip_families`; `None` where the text is no address.
    pub cluster_ips: Vec<Option<IpAddr>>,
    /// `spec.ipFamilies`.
    pub ip_families: Vec<Family>,
    /// Ports, in order.
    pub ports: Vec<ServicePort>,
    /// Endpoints count as ready whatever the Pods say.
    pub publish_not_ready_addresses: bool,
    /// Timeout in seconds of `sessionAffinity: ClientIP`; `None` without affinity.
    pub client_ip_affinity: Option<u32>,
    /// External addresses of either family; unparsable ones are left out.
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer addresses of either family; entries without an address are left out.
    pub ingress_ips: Vec<IngressIp>,
    /// Networks that may use the load balancer; unparsable ones are left out.
    pub source_ranges: Vec<IpNet>,
    /// Which endpoints external traffic may use.
    pub external_policy: TrafficPolicy,
    /// Which endpoints traffic to the cluster IP may use.
    pub internal_policy: TrafficPolicy,
    /// Port of the per-Service health check; 0 if there is none.
    pub health_check_node_port: u16,
    /// `spec.trafficDistribution`, as written.
    pub traffic_distribution: Option<Arc<str>>,
}

impl Service {
    /// Whether `clusterIP` is `None` or empty: what upstream labels as headless.
    pub fn has_no_cluster_ip(&self) -> bool {
        !matches!(self.cluster_ip, ClusterIp::Ip(_))
    }

    /// The cluster IP of `family`: by position in `ipFamilies`, else `clusterIP` itself if it is of that family.
    pub fn cluster_ip_of(&self, family: Family) -> Option<IpAddr> {
        let ClusterIp::Ip(first) = self.cluster_ip else { return None };
        if self.ip_families.is_empty() || self.cluster_ips.is_empty() {
            return (Family::of(first) == family).then_some(first);
        }
        let index = self.ip_families.iter().position(|f| *f == family)?;
        self.cluster_ips.get(index).copied().flatten()
    }
}

/// Seconds of `sessionAffinity: ClientIP` without an explicit timeout (API default).
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

impl From<ServiceObject> for Service {
    fn from(object: ServiceObject) -> Self {
        let ServiceObject { metadata, spec, status } = object;
        let policy = |text: Option<String>| match text.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let cluster_ip = spec.cluster_ip.or_else(|| spec.cluster_ips.first().cloned()).unwrap_or_default();
        let annotations = metadata.annotations.map(|mut annotations| {
            annotations.retain(|key, _| key.starts_with(ANNOTATION_PREFIX));
            annotations
        });
        Self {
            key: ServiceKey::new(meta::namespace(metadata.namespace), meta::text(metadata.name)),
            uid: meta::text(metadata.uid),
            resource_version: meta::text(metadata.resource_version),
            labels: meta::label_map(metadata.labels),
            annotations: meta::label_map(annotations),
            created: metadata.creation_timestamp.map(|time| time.0),
            terminating: metadata.deletion_timestamp.is_some(),
            kind: match spec.kind.as_deref() {
                Some("NodePort") => ServiceType::NodePort,
                Some("LoadBalancer") => ServiceType::LoadBalancer,
                Some("ExternalName") => ServiceType::ExternalName,
                _ => ServiceType::ClusterIp,
            },
            selector: spec.selector.filter(|selector| !selector.is_empty()).map(|s| meta::label_map(Some(s))),
            cluster_ip: match cluster_ip.as_str() {
                "None" => ClusterIp::None,
                text => parse_address(text).map_or(ClusterIp::Unset, ClusterIp::Ip),
            },
            cluster_ips: spec.cluster_ips.iter().map(|ip| parse_address(ip).ok()).collect(),
            ip_families: spec.ip_families,
            ports: spec.ports.into_iter().map(Into::into).collect(),
            publish_not_ready_addresses: spec.publish_not_ready_addresses.unwrap_or(false),
            client_ip_affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                spec.session_affinity_config
                    .and_then(|config| config.client_ip?.timeout_seconds)
                    .unwrap_or(DEFAULT_AFFINITY_SECONDS)
            }),
            external_ips: spec.external_ips.iter().filter_map(|ip| parse_address(ip).ok()).collect(),
            ingress_ips: status
                .load_balancer
                .ingress
                .into_iter()
                .filter_map(|ingress| {
                    Some(IngressIp {
                        ip: parse_address(&ingress.ip?).ok()?,
                        proxy_mode: ingress.ip_mode.as_deref() == Some("Proxy"),
                    })
                })
                .collect(),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .filter_map(|r| parse_network(r).ok())
                .collect(),
            external_policy: policy(spec.external_traffic_policy),
            internal_policy: policy(spec.internal_traffic_policy),
            health_check_node_port: spec.health_check_node_port.and_then(|p| p.try_into().ok()).unwrap_or(0),
            traffic_distribution: meta::non_empty(spec.traffic_distribution),
        }
    }
}

impl From<PortObject> for ServicePort {
    fn from(port: PortObject) -> Self {
        Self {
            name: meta::text(port.name),
            protocol: port.protocol.unwrap_or_default(),
            port: port.port,
            target: match port.target_port {
                Some(IntOrString::String(name)) if !name.is_empty() => TargetPort::Name(name.into()),
                Some(IntOrString::Int(number)) if number != 0 => TargetPort::Number(number),
                _ => TargetPort::Number(port.port.into()),
            },
            node_port: port.node_port.unwrap_or(0),
            app_protocol: port.app_protocol.map(Into::into),
        }
    }
}
