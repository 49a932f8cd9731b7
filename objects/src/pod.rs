//! Pods: the parts of them that decide whether and how they serve.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube_derive::Resource;
use serde::Deserialize;

use crate::{LabelMap, Protocol, Uid, meta, parse_address};

/// A Pod as the API server sends it, cut down to what [`Pod`] is made from.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Pod, crates(kube_core = kube_core))]
pub struct PodObject {
    /// Metadata without annotations, owners and managed fields.
    #[serde(default, deserialize_with = "meta::lean")]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "meta::nullable")]
    spec: Spec,
    #[serde(default, deserialize_with = "meta::nullable")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    hostname: Option<String>,
    subdomain: Option<String>,
    #[serde(deserialize_with = "meta::nullable")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "meta::nullable")]
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    restart_policy: Option<String>,
    #[serde(deserialize_with = "meta::nullable")]
    ports: Vec<PortObject>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PortObject {
    name: Option<String>,
    container_port: i32,
    protocol: Option<Protocol>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "meta::nullable")]
    pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "meta::nullable")]
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Time>,
}

/// Phase of a Pod, as far as it matters: the last two are terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Pending, Running, Unknown or anything else that is not terminal.
    #[default]
    Live,
    /// All containers ended well.
    Succeeded,
    /// A container ended badly.
    Failed,
}

/// A named container port: what a `targetPort` name may refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerPort {
    /// Name of the port.
    pub name: Arc<str>,
    /// Its number, not range-checked (the API server does that).
    pub number: i32,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What the planner needs to know of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Uid; empty for input that has none.
    pub uid: Uid,
    /// Labels.
    pub labels: Arc<LabelMap>,
    /// The deletion of the Pod has begun.
    pub terminating: bool,
    /// Phase.
    pub phase: Phase,
    /// First condition of type `Ready` is `True`.
    pub ready: bool,
    /// When that condition last changed.
    pub ready_changed: Option<Timestamp>,
    /// `status.podIP`, parsed.
    pub ip: Option<IpAddr>,
    /// `status.podIPs`, in order, where they say more than [`Self::ip`] alone, which they seldom do; unparsable ones are left
    /// out.
    pub ips: Box<[IpAddr]>,
    /// Where it runs, once scheduled.
    pub node: Option<Arc<str>>,
    /// `spec.hostname`, if not empty.
    pub hostname: Option<Arc<str>>,
    /// `spec.subdomain`, if not empty.
    pub subdomain: Option<Arc<str>>,
    /// Named ports in lookup order: containers, then init containers that keep running (sidecars).
    pub ports: Arc<[ContainerPort]>,
}

impl From<PodObject> for Pod {
    fn from(object: PodObject) -> Self {
        let PodObject { metadata, spec, status } = object;
        let ready = status.conditions.into_iter().find(|condition| condition.kind == "Ready");
        let sidecars =
            spec.init_containers.into_iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let ports = spec.containers.into_iter().chain(sidecars).flat_map(|container| container.ports);
        let ip = status.pod_ip.and_then(|ip| parse_address(&ip).ok());
        let ips: Box<[IpAddr]> =
            status.pod_ips.into_iter().filter_map(|ip| parse_address(&ip.ip?).ok()).collect();
        Self {
            namespace: meta::namespace(metadata.namespace),
            name: meta::text(metadata.name),
            uid: Uid::new(metadata.uid.as_deref().unwrap_or_default()),
            labels: Arc::new(meta::label_map(metadata.labels)),
            terminating: metadata.deletion_timestamp.is_some(),
            phase: match status.phase.as_deref() {
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                _ => Phase::Live,
            },
            ready: ready.as_ref().is_some_and(|condition| condition.status == "True"),
            ready_changed: ready.and_then(|condition| condition.last_transition_time).map(|time| time.0),
            ip,
            ips: if *ips == *ip.as_slice() { Box::default() } else { ips },
            node: meta::non_empty(spec.node_name),
            hostname: meta::non_empty(spec.hostname),
            subdomain: meta::non_empty(spec.subdomain),
            ports: ports
                .filter_map(|port| {
                    Some(ContainerPort {
                        name: meta::non_empty(port.name)?,
                        number: port.container_port,
                        protocol: port.protocol.unwrap_or_default(),
                    })
                })
                .collect(),
        }
    }
}
