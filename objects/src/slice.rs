//! discovery.k8s.io/v1 EndpointSlice, read and written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_derive::Resource;
use serde::{Deserialize, Serialize};

use crate::{Family, ObjectReference, Protocol, ServiceKey, labels, meta};

/// An EndpointSlice as the API server stores it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, Resource)]
#[resource(inherit = k8s_openapi::api::discovery::v1::EndpointSlice, crates(kube_core = kube_core))]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Metadata without managed fields.
    #[serde(default, deserialize_with = "meta::unmanaged")]
    pub metadata: ObjectMeta,
    /// What kind of addresses it holds. Immutable.
    pub address_type: AddressType,
    /// The endpoints. `null` and absent mean empty.
    #[serde(default, deserialize_with = "meta::nullable")]
    pub endpoints: Vec<Endpoint>,
    /// Ports that every endpoint serves. `null` and absent mean empty.
    #[serde(default, deserialize_with = "meta::nullable")]
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    /// The Service it belongs to: its namespace and its service-name label, if that is not empty.
    pub fn service_key(&self) -> Option<ServiceKey> {
        let name = self.label(labels::SERVICE_NAME).filter(|name| !name.is_empty())?;
        Some(ServiceKey::new(meta::namespace(self.metadata.namespace.clone()), name))
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

/// Kind of the addresses of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum AddressType {
    /// IPv4 addresses.
    #[default]
    IPv4,
    /// IPv6 addresses.
    IPv6,
    /// Domain names; no proxy uses them.
    #[serde(rename = "FQDN")]
    Fqdn,
    /// A type that we do not know (`IP` once existed).
    #[serde(untagged)]
    Other(String),
}

impl AddressType {
    /// The family of the addresses, if they are IP addresses.
    pub fn family(&self) -> Option<Family> {
        match self {
            Self::IPv4 => Some(Family::V4),
            Self::IPv6 => Some(Family::V6),
            Self::Fqdn | Self::Other(_) => None,
        }
    }
}

impl From<Family> for AddressType {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::IPv4,
            Family::V6 => Self::IPv6,
        }
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Its addresses; consumers use the first.
    #[serde(deserialize_with = "meta::nullable")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(deserialize_with = "meta::nullable")]
    pub conditions: Conditions,
    /// DNS name below a headless Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Object behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<Box<ObjectReference>>,
    /// Node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Zone that it runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Which consumers should prefer it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hints: Option<Box<Hints>>,
}

/// State of an endpoint. `None` is "unknown", which consumers read as ready, serving, not terminating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Conditions {
    /// Serving and not terminating, or published regardless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// Passes its readiness checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// Its deletion has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

/// Consumers that should prefer an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// In these zones.
    #[serde(deserialize_with = "meta::nullable", skip_serializing_if = "Vec::is_empty")]
    pub for_zones: Vec<ForName>,
    /// On these nodes.
    #[serde(deserialize_with = "meta::nullable", skip_serializing_if = "Vec::is_empty")]
    pub for_nodes: Vec<ForName>,
}

/// A zone or a node in a hint.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct ForName {
    /// Its name.
    pub name: String,
}

/// One port of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// Name of the Service port; the API server defaults it to "".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Port number at the endpoint; `None` is "all ports", which no proxy uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// Protocol; the API server defaults it to TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Application protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}
