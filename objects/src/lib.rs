//! Lean views of the Kubernetes objects that Fairlead reads and writes.
//!
//! Two kinds of types live here:
//!
//! * `*Object` types ([`PodObject`], [`NodeObject`], [`ServiceObject`]) have the shape the API server sends, cut down to
//!   the fields we use. They are what a watch deserialises; nothing keeps them.
//! * Views ([`Pod`], [`Node`], [`Service`]) are made from them once, at the edge: text is parsed, defaults are filled in,
//!   `null` and "absent" become the same thing. The planner and the compiler see only views.
//!
//! [`Endpoints`] and [`EndpointSlice`] are both read and written, so one type serves for both directions and keeps the
//! metadata we do not own (foreign annotations, finalizers) for the way back.
//!
//! [`KubeProxyConfiguration`] is no object of the API, but a file that the node agent and the cli both read.
//!
//! Any crate may depend on this one. It depends on kube-core for the `Resource` trait (API paths) and on nothing that
//! could do I/O: no client, no runtime, no clock.
//!
//! Invariants: a view never fails to be made (bad parts are dropped or kept as typed "unusable" values, so that the
//! planner can say what was wrong), and addresses are canonical: no leading zeros, no IPv4-mapped IPv6.

mod address;
#[cfg(any(test, feature = "builders"))]
pub mod builders;
mod endpoints;
mod intern;
mod key;
pub mod labels;
mod meta;
mod node;
mod pod;
pub mod proxy_configuration;
mod service;
mod slice;

pub use address::{Family, ParseAddressError, parse_address, parse_network};
pub use endpoints::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference};
pub use intern::Interner;
pub use key::{NodeName, ServiceKey, Uid};
pub use meta::LabelMap;
pub use node::{Node, NodeObject};
pub use pod::{ContainerPort, Phase, Pod, PodObject};
pub use proxy_configuration::KubeProxyConfiguration;
pub use service::{
    ClusterIp, IngressIp, Protocol, Service, ServiceObject, ServicePort, ServiceType, TargetPort,
    TrafficPolicy,
};
pub use slice::{AddressType, Conditions, Endpoint, EndpointSlice, ForName, Hints, SlicePort};

pub use jiff::Timestamp;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
