//! Nodes: where they are and whether they are fit to serve.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_derive::Resource;
use serde::Deserialize;

use crate::{LabelMap, labels, meta, parse_address, parse_network};

/// A Node as the API server sends it, cut down to what [`Node`] is made from.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Node, crates(kube_core = kube_core))]
pub struct NodeObject {
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
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "meta::nullable")]
    pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "meta::nullable")]
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, Deserialize)]
struct Taint {
    key: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "meta::nullable")]
    addresses: Vec<Address>,
    #[serde(deserialize_with = "meta::nullable")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "meta::nullable")]
    allocatable: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// What the planner and the compiler need to know of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name of the Node.
    pub name: Arc<str>,
    /// Labels.
    pub labels: LabelMap,
    /// First condition of type `Ready` is `True`.
    pub ready: bool,
    /// The deletion of the Node has begun.
    pub terminating: bool,
    /// Keys of its taints.
    pub taints: Vec<Arc<str>>,
    /// Internal addresses first, then external ones; unparsable ones are left out.
    pub addresses: Vec<IpAddr>,
    /// Pod networks of this Node.
    pub pod_cidrs: Vec<ipnet::IpNet>,
    /// `status.allocatable.cpu` as written (a Kubernetes quantity).
    pub allocatable_cpu: Option<Arc<str>>,
}

impl Node {
    /// The zone label, when there is one and it is not empty.
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.labels.get(labels::ZONE).filter(|zone| !zone.is_empty())
    }
}

impl From<NodeObject> for Node {
    fn from(object: NodeObject) -> Self {
        let NodeObject { metadata, spec, status } = object;
        let of_type = |kind: &'static str| {
            status
                .addresses
                .iter()
                .filter(move |a| a.kind == kind)
                .filter_map(|a| parse_address(&a.address).ok())
        };
        let addresses = of_type("InternalIP").chain(of_type("ExternalIP")).collect();
        let pod_cidrs =
            if spec.pod_cidrs.is_empty() { spec.pod_cidr.into_iter().collect() } else { spec.pod_cidrs };
        Self {
            name: meta::text(metadata.name),
            labels: meta::label_map(metadata.labels),
            ready: status.conditions.iter().find(|c| c.kind == "Ready").is_some_and(|c| c.status == "True"),
            terminating: metadata.deletion_timestamp.is_some(),
            taints: spec.taints.into_iter().map(|taint| taint.key.into()).collect(),
            addresses,
            pod_cidrs: pod_cidrs.iter().filter_map(|cidr| parse_network(cidr).ok()).collect(),
            allocatable_cpu: status.allocatable.get("cpu").map(|cpu| match cpu {
                serde_json::Value::String(text) => text.as_str().into(),
                number => number.to_string().into(),
            }),
        }
    }
}
