//! Which endpoints a Service port uses on this node, as kube-proxy's `CategorizeEndpoints`.
//!
//! Invariants: what is ready wins over what is terminating; the fall-back to terminating endpoints is decided for cluster
//! and local endpoints independently; hints are honoured only if every ready endpoint has them.

use crate::{endpoint::Endpoint, facts::NodeFacts, service_port::ServicePort};

/// The endpoints to use, in the order of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For traffic that may leave the node. Empty if the Service port has no such traffic.
    pub cluster: Vec<Endpoint>,
    /// For traffic that must stay on the node. Empty if the Service port has no such traffic.
    pub local: Vec<Endpoint>,
    /// Some usable endpoint exists somewhere: then what cannot be delivered is dropped, not rejected.
    pub any: bool,
}

/// Chooses among all endpoints of a Service port.
pub fn categorize(endpoints: &[Endpoint], port: &ServicePort, facts: &NodeFacts) -> Choice {
    let mut choice = Choice::default();
    if port.uses_cluster_endpoints() {
        let topology = Topology::of(endpoints, facts);
        choice.cluster = select(endpoints, |e| e.ready && topology.admits(e, facts));
        if choice.cluster.is_empty() {
            choice.cluster = select(endpoints, Endpoint::is_serving_terminating);
        }
        choice.any = !choice.cluster.is_empty();
    }
    if port.uses_local_endpoints() {
        choice.local = select(endpoints, |e| e.ready && e.is_on(&facts.name));
        if choice.local.is_empty() {
            choice.local = select(endpoints, |e| e.is_serving_terminating() && e.is_on(&facts.name));
        }
        choice.any |= endpoints.iter().any(|e| e.ready || e.is_serving_terminating());
    }
    choice
}

fn select(endpoints: &[Endpoint], eligible: impl Fn(&Endpoint) -> bool) -> Vec<Endpoint> {
    endpoints.iter().filter(|endpoint| eligible(endpoint)).cloned().collect()
}

/// Which hints apply.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    None,
    SameNode,
    SameZone,
}

impl Topology {
    fn of(endpoints: &[Endpoint], facts: &NodeFacts) -> Self {
        let applies = |topology: Self, hinted: fn(&Endpoint) -> bool| {
            let mut ready = endpoints.iter().filter(|endpoint| endpoint.ready);
            ready.clone().all(hinted) && ready.any(|endpoint| topology.admits(endpoint, facts))
        };
        if applies(Self::SameNode, |e| !e.node_hints().is_empty()) {
            Self::SameNode
        } else if applies(Self::SameZone, |e| !e.zone_hints().is_empty()) {
            Self::SameZone
        } else {
            Self::None
        }
    }

    fn admits(self, endpoint: &Endpoint, facts: &NodeFacts) -> bool {
        match self {
            Self::None => true,
            Self::SameNode => endpoint.node_hints().iter().any(|node| **node == *facts.name.as_str()),
            Self::SameZone => facts
                .zone
                .as_ref()
                .is_some_and(|zone| !zone.is_empty() && endpoint.zone_hints().contains(zone)),
        }
    }
}
