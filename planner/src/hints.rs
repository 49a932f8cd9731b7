//! Hints of `trafficDistribution`: which zone or node should prefer an endpoint (KEP-4444, KEP-3015). Those of topology
//! mode `Auto`, which has precedence, are in [`crate::topology`].
//!
//! Invariants: only ready endpoints carry hints; without a distribution none does; a slice whose hints are right is not
//! written for their sake.

use fairlead_objects::{Endpoint, ForName, Hints, Service};

use crate::packing::{Packed, Rewrite};
use crate::{is_topology_auto, port::PortSet};

/// What consumers should prefer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distribution {
    /// Nothing.
    Anywhere,
    /// Endpoints of their zone.
    Zone,
    /// Endpoints of their node, then of their zone.
    Node,
}

impl Distribution {
    /// What the Service asks for; unknown values count as absent.
    pub(crate) fn of(service: &Service) -> Self {
        match traffic_distribution(service) {
            Some("PreferClose" | "PreferSameZone") => Self::Zone,
            Some("PreferSameNode") => Self::Node,
            _ => Self::Anywhere,
        }
    }

    fn hints(self, endpoint: &Endpoint) -> Option<Box<Hints>> {
        if self == Self::Anywhere || endpoint.conditions.ready != Some(true) {
            return None;
        }
        let names =
            |name: Option<&String>| name.map(|name| ForName { name: name.clone() }).into_iter().collect();
        let for_zones: Vec<ForName> = names(endpoint.zone.as_ref());
        let node = endpoint.node_name.as_ref().filter(|_| self == Self::Node);
        let hints = Hints { for_zones, for_nodes: names(node) };
        (hints != Hints::default()).then(|| Box::new(hints))
    }

    /// Whether a stored endpoint need not be written. One that is not ready gets no traffic anyway, so with a
    /// distribution its hints do not matter.
    fn is_satisfied(self, endpoint: &Endpoint) -> bool {
        let stored = endpoint.hints.as_ref().filter(|hints| ***hints != Hints::default());
        let ignored = self != Self::Anywhere && endpoint.conditions.ready != Some(true);
        ignored || stored == self.hints(endpoint).as_ref()
    }

    fn apply(self, endpoints: &mut [Endpoint]) {
        for endpoint in endpoints {
            endpoint.hints = self.hints(endpoint);
        }
    }
}

/// The `trafficDistribution` of a Service, if it is one that takes effect: known, and not overruled by topology mode `Auto`.
pub fn traffic_distribution(service: &Service) -> Option<&str> {
    let known = |value: &&str| matches!(*value, "PreferClose" | "PreferSameZone" | "PreferSameNode");
    service.traffic_distribution.as_deref().filter(known).filter(|_| !is_topology_auto(service))
}

/// Puts the right hints on everything that is written, and adds slices whose hints are wrong.
pub(crate) fn apply(packed: &mut Packed<'_>, distribution: Distribution) {
    let wrong = |endpoint: &Endpoint| !distribution.is_satisfied(endpoint);
    for existing in std::mem::take(&mut packed.unchanged) {
        if existing.endpoints.iter().any(wrong) {
            let ports = PortSet::new(existing.ports.iter().cloned());
            packed.update.push(Rewrite { existing, ports, endpoints: existing.endpoints.clone() });
        } else {
            packed.unchanged.push(existing);
        }
    }
    for endpoints in packed.written_mut() {
        distribution.apply(endpoints);
    }
}
