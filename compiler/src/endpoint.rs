//! Endpoints as the node sees them: one address and port, merged from all slices of a Service.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use fairlead_objects::{NodeName, Protocol};

/// One endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the three conditions of the API are independent")]
pub struct Endpoint {
    /// Address and port. Its text, `10.0.0.1:80` or `[fd00::1]:80`, decides the order of endpoints.
    pub address: SocketAddr,
    /// Node that it runs on.
    pub node: Option<Arc<str>>,
    /// Should get traffic. Unknown counts as ready.
    pub ready: bool,
    /// Passes its readiness checks, terminating or not. Unknown counts as serving.
    pub serving: bool,
    /// Its deletion has begun.
    pub terminating: bool,
    /// Which consumers should prefer it.
    pub hints: Option<Arc<EndpointHints>>,
}

impl Endpoint {
    /// Whether it runs on `node`.
    pub fn is_on(&self, node: &NodeName) -> bool {
        self.node.as_deref() == Some(node.as_str())
    }

    /// Last resort: on its way out, but still answering.
    pub(crate) fn is_serving_terminating(&self) -> bool {
        self.serving && self.terminating
    }

    pub(crate) fn zone_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    pub(crate) fn node_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}

/// Consumers that should prefer an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndpointHints {
    /// In these zones.
    pub zones: Vec<Arc<str>>,
    /// On these nodes.
    pub nodes: Vec<Arc<str>>,
}

/// What an endpoint port is found by: the name of the Service port and the protocol, never the number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Name of the port; empty if unnamed.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
}

/// The endpoints of one Service, by port, each list sorted by the text of the address.
pub type Endpoints = BTreeMap<PortKey, Vec<Endpoint>>;
