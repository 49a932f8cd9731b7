//! Compilation: from objects and flags to the rules of one node in one family.
//!
//! Invariants: the slices of a Service are planned exactly where files hold what they are made from, and count as they are
//! otherwise; `render rules` and `trace` compile alike.

use fairlead_compiler::{NodeFacts, ProxyState, Ruleset, compile};
use fairlead_objects::{ClusterIp, EndpointSlice, Family, Service, ServiceType};

use crate::{
    args::{NodeFlags, Supply},
    cluster::Scope,
    config::{self, Settings},
    node,
    objects::Objects,
    snapshot::{Snapshot, node_warning, warnings},
    supply,
};

/// The rules of a node.
pub(crate) struct Compilation {
    pub(crate) ruleset: Ruleset,
    pub(crate) facts: NodeFacts,
    /// What the user should know, as whole lines.
    pub(crate) notices: Vec<String>,
}

impl Compilation {
    /// Reads what is supplied and compiles the rules of the node called `node`.
    pub(crate) fn read(
        supply: &Supply,
        node: &str,
        flags: &NodeFlags,
        family: Family,
    ) -> anyhow::Result<Self> {
        let (settings, mut notices) =
            flags.config.as_deref().map_or_else(|| Ok((Settings::default(), Vec::new())), config::read)?;
        let (objects, input_notices) = supply::objects(supply, Scope::Programmer(node))?;
        notices.extend(input_notices);
        let target = node::target(node, flags, &settings, &objects, family)?;
        notices.extend(target.notices);
        let mut state = ProxyState::new(family);
        for slice in slices(&objects, &mut notices) {
            state.set_slice(&slice);
        }
        for service in objects.services.values() {
            notices.extend(incomplete(service, family));
            state.set_service(service);
        }
        let ruleset = compile(&state, &target.config, &target.facts);
        Ok(Self { ruleset, facts: target.facts, notices })
    }
}

/// The slices that the node would see: planned where the input says what from, as they are otherwise.
fn slices(objects: &Objects, notices: &mut Vec<String>) -> Vec<EndpointSlice> {
    notices.extend(node_warning(objects));
    let snapshot = Snapshot::new(objects);
    let mut slices = Vec::new();
    for service in objects.services.values() {
        let given = snapshot.slices(&service.key);
        if snapshot.is_planned(service) {
            let (outcome, notes) = snapshot.outcome(service);
            notices.extend(warnings(&notes));
            slices.extend(outcome.slices);
        } else {
            if given.is_empty() && service.kind != ServiceType::ExternalName {
                notices.push(format!(
                    "warning: Service {}: nothing in {} gives it endpoints",
                    service.key,
                    objects.origin.place()
                ));
            }
            slices.extend(given.iter().copied().cloned());
        }
    }
    slices
}

/// Warnings about what an API server would have allocated for `service` and the input does not say.
fn incomplete(service: &Service, family: Family) -> Vec<String> {
    if service.kind == ServiceType::ExternalName || service.cluster_ip == ClusterIp::None {
        return Vec::new();
    }
    let key = &service.key;
    let mut warnings = Vec::new();
    if service.cluster_ip == ClusterIp::Unset {
        warnings
            .push(format!("warning: Service {key}: no clusterIP in the input, so no {family} rule for one"));
    }
    let lacks_node_port = service.ports.iter().any(|port| port.node_port == 0);
    if service.kind == ServiceType::NodePort && lacks_node_port {
        warnings.push(format!(
            "warning: Service {key}: a port without nodePort in the input, so no rule for one"
        ));
    }
    warnings
}
