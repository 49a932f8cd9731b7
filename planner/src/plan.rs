//! The plan: what to create, update and delete for one Service.
//!
//! Invariants: updates carry the metadata of the object that they replace (name, uid, resourceVersion, finalizers), and
//! creates carry everything a new object needs. Execute creates before updates before deletes, so that an endpoint never
//! disappears in between.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_objects::{EndpointSlice, Endpoints, Family, ObjectMeta};

use crate::{
    Note, PlanInput, Remembered, endpoints, membership, mirror, naming::Names, packing::Packed, slices,
};

/// What should be written, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// For the Endpoints of the Service.
    pub endpoints: EndpointsPlan,
    /// For the slices of a Service with a selector.
    pub slices: SlicePlan,
    /// For slices mirrored from hand-made Endpoints.
    pub mirror: SlicePlan,
    /// What to hand to the next plan of the same Service as [`crate::Topology::remembered`], whether or not this one could
    /// be executed. It holds something only for Services with topology mode `Auto`.
    pub topology: Remembered,
    /// What was left out or looks wrong, in a stable order.
    pub notes: Vec<Note>,
}

impl Plan {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.endpoints == EndpointsPlan::Keep && self.slices.is_empty() && self.mirror.is_empty()
    }

    /// Whether the Service must be planned again later although nothing changed in the API.
    pub fn needs_retry(&self) -> bool {
        self.notes.iter().any(Note::needs_retry)
    }
}

/// What to do with the Endpoints of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum EndpointsPlan {
    /// Nothing: it is right, or not ours.
    #[default]
    Keep,
    /// Create this object.
    Create(Endpoints),
    /// Replace the existing object by this one, provided that it still has this resourceVersion.
    Update(Endpoints),
    /// Delete this object.
    Delete(ObjectRef),
}

/// What to do with the slices of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SlicePlan {
    /// Slices to create. Their names follow from what they hold, so that repeating a request is harmless.
    pub create: Vec<EndpointSlice>,
    /// Slices to replace, provided that they still have this resourceVersion.
    pub update: Vec<EndpointSlice>,
    /// Slices to delete.
    pub delete: Vec<ObjectRef>,
    /// How many slices stay as they are.
    pub unchanged: usize,
    /// How many endpoints appear, over all address types.
    pub added: usize,
    /// How many endpoints disappear, over all address types.
    pub removed: usize,
    /// How many endpoints change in place, over all address types.
    pub updated: usize,
    /// The same by address type: upstream's histograms count each for itself.
    pub churn: BTreeMap<Family, Churn>,
    /// How many endpoints there should be, over all address types.
    pub desired_endpoints: usize,
    /// How many slices would hold them if they were packed perfectly.
    pub desired_slices: usize,
}

impl SlicePlan {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }

    pub(crate) fn count(&mut self, family: Family, packed: &Packed<'_>) {
        let &Packed { added, removed, updated, .. } = packed;
        self.churn.insert(family, Churn { added, removed, updated });
        self.added += added;
        self.removed += removed;
        self.updated += updated;
    }
}

/// How many endpoints of one address type come, go and change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Churn {
    /// How many appear.
    pub added: usize,
    /// How many disappear.
    pub removed: usize,
    /// How many change in place.
    pub updated: usize,
}

/// An existing object, with what is needed to delete exactly it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Name; the namespace is that of the Service.
    pub name: String,
    /// Uid, for the deletion's precondition; `None` in input that has none.
    pub uid: Option<String>,
    /// Version that the decision is based on; `None` in input that has none.
    pub resource_version: Option<String>,
}

impl From<&ObjectMeta> for ObjectRef {
    fn from(metadata: &ObjectMeta) -> Self {
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
        }
    }
}

/// Decides what should be written for one Service.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let mut plan = Plan::default();
    let existing = input.slices.iter().filter_map(|slice| slice.metadata.name.clone());
    let mut names = Names::new(existing.chain(input.taken_names.iter().cloned()).collect::<BTreeSet<_>>());
    if input.parts.endpoints || input.parts.slices {
        membership::notes(input, &mut plan.notes);
    }
    if input.parts.endpoints {
        plan.endpoints = endpoints::plan(input, &mut plan.notes);
    }
    if input.parts.slices {
        (plan.slices, plan.topology) = slices::plan(input, &mut names, &mut plan.notes);
    } else {
        plan.topology = input.topology.remembered.cloned().unwrap_or_default();
    }
    if input.parts.mirror {
        plan.mirror = mirror::plan(input, &mut names, &mut plan.notes);
    }
    plan
}
