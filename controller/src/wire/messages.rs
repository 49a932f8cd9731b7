//! The messages: field numbers of Kubernetes' `generated.proto` files (`k8s.io/apimachinery/pkg/runtime`,
//! `k8s.io/apimachinery/pkg/apis/meta/v1`, `k8s.io/api/core/v1`, `k8s.io/api/discovery/v1`).
//!
//! Invariant: `optional` where Go has a pointer, so that "set to nothing" and "not set" stay different.

use std::collections::BTreeMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Unknown {
    #[prost(message, optional, tag = "1")]
    pub(super) type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TypeMeta {
    #[prost(string, tag = "1")]
    pub(super) api_version: String,
    #[prost(string, tag = "2")]
    pub(super) kind: String,
}

/// Without managed fields, which the API server keeps by itself.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectMeta {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) generate_name: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(string, tag = "5")]
    pub(super) uid: String,
    #[prost(string, tag = "6")]
    pub(super) resource_version: String,
    #[prost(int64, tag = "7")]
    pub(super) generation: i64,
    #[prost(message, optional, tag = "8")]
    pub(super) creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    pub(super) deletion_timestamp: Option<Time>,
    #[prost(int64, optional, tag = "10")]
    pub(super) deletion_grace_period_seconds: Option<i64>,
    #[prost(btree_map = "string, string", tag = "11")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    pub(super) annotations: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "13")]
    pub(super) owner_references: Vec<OwnerReference>,
    #[prost(string, repeated, tag = "14")]
    pub(super) finalizers: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Time {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OwnerReference {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) uid: String,
    #[prost(string, tag = "5")]
    pub(super) api_version: String,
    #[prost(bool, optional, tag = "6")]
    pub(super) controller: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(super) block_owner_deletion: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectReference {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "4")]
    pub(super) uid: String,
    #[prost(string, tag = "5")]
    pub(super) api_version: String,
    #[prost(string, tag = "6")]
    pub(super) resource_version: String,
    #[prost(string, tag = "7")]
    pub(super) field_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoints {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    pub(super) subsets: Vec<EndpointSubset>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EndpointSubset {
    #[prost(message, repeated, tag = "1")]
    pub(super) addresses: Vec<EndpointAddress>,
    #[prost(message, repeated, tag = "2")]
    pub(super) not_ready_addresses: Vec<EndpointAddress>,
    #[prost(message, repeated, tag = "3")]
    pub(super) ports: Vec<SubsetPort>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EndpointAddress {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
    #[prost(message, optional, tag = "2")]
    pub(super) target_ref: Option<ObjectReference>,
    #[prost(string, tag = "3")]
    pub(super) hostname: String,
    #[prost(string, optional, tag = "4")]
    pub(super) node_name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SubsetPort {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) port: i32,
    #[prost(string, tag = "3")]
    pub(super) protocol: String,
    #[prost(string, optional, tag = "4")]
    pub(super) app_protocol: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    pub(super) endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    pub(super) ports: Vec<SlicePort>,
    #[prost(string, tag = "4")]
    pub(super) address_type: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    pub(super) addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub(super) conditions: Option<Conditions>,
    #[prost(string, optional, tag = "3")]
    pub(super) hostname: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(super) target_ref: Option<ObjectReference>,
    #[prost(string, optional, tag = "6")]
    pub(super) node_name: Option<String>,
    #[prost(string, optional, tag = "7")]
    pub(super) zone: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub(super) hints: Option<Hints>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Conditions {
    #[prost(bool, optional, tag = "1")]
    pub(super) ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(super) serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub(super) terminating: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Hints {
    #[prost(message, repeated, tag = "1")]
    pub(super) for_zones: Vec<ForName>,
    #[prost(message, repeated, tag = "2")]
    pub(super) for_nodes: Vec<ForName>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ForName {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SlicePort {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub(super) port: Option<i32>,
    #[prost(string, optional, tag = "4")]
    pub(super) app_protocol: Option<String>,
}
