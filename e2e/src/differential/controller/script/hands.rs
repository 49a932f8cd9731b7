//! What hands do to what the controllers wrote.
//!
//! Invariant: a slice that a hand holds is let go in the next step; a Service whose slices a hand took is replaced some
//! steps later.

use serde_json::json;

use super::{REPLACED_EVERY, Script, Space, Step};
use crate::differential::controller::{
    change::{Change, SliceEdit},
    endpoints,
    pod::PodModel,
    service::Kind,
};

/// For so many steps a Service stays without what a hand took from it, and then it is replaced.
const ROBBED: usize = 2;

impl Script {
    /// By hand, on what a controller wrote, or beside it.
    pub(super) fn edit(&mut self, space: &mut Space, number: usize, step: &mut Step) {
        let names: Vec<String> = space.services.keys().cloned().collect();
        let Some(name) = self.random.pick(&names).cloned() else { return };
        if space.robbed.contains_key(&name) {
            // Where a controller is stuck there may be no slices to edit.
            return;
        }
        space.changed.insert(name.clone());
        let Some(service) = space.services.get_mut(&name) else { return };
        service.fresh = false;
        let namespace = space.name.clone();
        let merge = |patch| Change::Merge {
            kind: "Endpoints",
            namespace: namespace.clone(),
            name: name.clone(),
            patch,
        };
        let selects = service.selector.is_some() && service.kind != Kind::External;
        let manager = if service.selector.is_none() {
            "endpointslicemirroring-controller"
        } else {
            "endpointslice-controller"
        };
        let repaired = selects || service.selector.is_none();
        // A namespace that is being replaced would wait for slices that are held.
        let may_hold = !number.is_multiple_of(REPLACED_EVERY) && !(number + 1).is_multiple_of(REPLACED_EVERY);
        let edit = match self.random.below(if self.is_tame { 10 } else { 14 }) {
            0 => Change::Apply(endpoints::foreign_slice(&mut self.random, &namespace, &name)),
            1 if selects => Change::Apply(endpoints::orphan_slice(&namespace, &name)),
            1 | 2 => Change::Delete { kind: "Endpoints", namespace, name, grace: 0 },
            3 => merge(json!({"subsets": [{"addresses": [{"ip": "10.98.0.1"}], "ports": [{"port": 1}]}]})),
            // An annotation stays with an object for good, and beside a Pod without a node only one side may have the object.
            4 if space.pods.values().all(PodModel::has_node) => {
                merge(json!({"metadata": {"labels": {"by-hand": "yes"}, "annotations": {"by-hand": "yes"}}}))
            }
            // What nobody repairs would differ for good: which slice it is follows from how many there are.
            _ if !repaired => return,
            drawn => {
                let edit = match drawn {
                    5..8 => SliceEdit::Delete,
                    8 => SliceEdit::Stranger,
                    9 => SliceEdit::Patch(json!({"metadata": {"labels": {"by-hand": "yes"}}})),
                    10 if selects => {
                        space.robbed.insert(name.clone(), ROBBED);
                        label("endpointslice.kubernetes.io/managed-by", "somebody-else")
                    }
                    11 if selects => {
                        space.robbed.insert(name.clone(), ROBBED);
                        label("kubernetes.io/service-name", "nobody")
                    }
                    12 if selects && may_hold => {
                        space.held.push(name.clone());
                        SliceEdit::Hold
                    }
                    _ => SliceEdit::Patch(json!({"ports": [{"name": "odd", "port": 1, "protocol": "TCP"}]})),
                };
                Change::EditSlice { namespace, service: name, manager, rank: self.random.below(8), edit }
            }
        };
        step.edits.push(edit);
    }
}

fn label(name: &str, value: &str) -> SliceEdit {
    SliceEdit::Patch(json!({"metadata": {"labels": {name: value}}}))
}

/// What was held is let go.
pub(super) fn release(space: &mut Space, step: &mut Step) {
    for service in space.held.drain(..) {
        space.changed.insert(service.clone());
        step.edits.push(Change::EditSlice {
            namespace: space.name.clone(),
            service,
            manager: "endpointslice-controller",
            rank: 0,
            edit: SliceEdit::Release,
        });
    }
}

/// Only another Service makes kube-controller-manager forget what it lost.
pub(super) fn replace_robbed(space: &mut Space, step: &mut Step) {
    let mut due = Vec::new();
    space.robbed.retain(|name, left| {
        *left = left.saturating_sub(1);
        let replaced = *left == 0;
        due.extend(replaced.then(|| name.clone()));
        !replaced
    });
    for name in due {
        let delete =
            |kind| Change::Delete { kind, namespace: space.name.clone(), name: name.clone(), grace: 0 };
        // What it became since may be by hand, and that would outlive it.
        let selects = space.services.get(&name).is_some_and(|service| service.selector.is_some());
        if selects && space.changed.insert(name.clone()) {
            step.changes.push(delete("Service"));
            space.services.remove(&name);
        }
    }
}
