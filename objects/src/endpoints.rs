//! core/v1 Endpoints, read and written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_derive::Resource;
use serde::{Deserialize, Serialize};

use crate::{Protocol, meta};

/// Endpoints as the API server stores them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Endpoints, crates(kube_core = kube_core))]
pub struct Endpoints {
    /// Metadata without managed fields.
    #[serde(default, deserialize_with = "meta::unmanaged")]
    pub metadata: ObjectMeta,
    /// Groups of addresses with the same ports.
    #[serde(default, deserialize_with = "meta::nullable", skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<EndpointSubset>,
}

/// Addresses that serve the same ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSubset {
    /// Ready addresses.
    #[serde(deserialize_with = "meta::nullable", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<EndpointAddress>,
    /// Addresses that should not get traffic now.
    #[serde(deserialize_with = "meta::nullable", skip_serializing_if = "Vec::is_empty")]
    pub not_ready_addresses: Vec<EndpointAddress>,
    /// Ports that every address above serves.
    #[serde(deserialize_with = "meta::nullable", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EndpointPort>,
}

/// One address of a subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointAddress {
    /// The address as text, in hand-made objects perhaps not canonical.
    pub ip: String,
    /// DNS name of the endpoint below a headless Service.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Object behind the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<Box<ObjectReference>>,
}

/// One port of a subset.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPort {
    /// Name of the Service port; empty if the Service has only one, unnamed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Port number at the endpoint.
    pub port: i32,
    /// Protocol.
    #[serde(deserialize_with = "meta::nullable")]
    pub protocol: Protocol,
    /// Application protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// Reference to the object behind an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectReference {
    /// Kind of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Namespace of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Uid of the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// API version; we never set it, hand-made objects may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Resource version; we never set it, hand-made objects may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Field path; we never set it, hand-made objects may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field_path: String,
}
