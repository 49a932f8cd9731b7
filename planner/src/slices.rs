//! Slices of Services with a selector (upstream's endpointslice controller).
//!
//! Invariants: only slices that carry our managed-by label are read, changed or deleted; a Service has at least one slice
//! per address type; every write keeps the existing object's resourceVersion, finalizers and foreign annotations, and
//! replaces its labels; what would be created for a Service that is being deleted is given up before hints are dealt.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_objects::{
    AddressType, Conditions, Endpoint, EndpointSlice, Family, ObjectMeta, OwnerReference, Pod, Service,
    Timestamp, labels,
};

use crate::{
    NodeLookup, Note, NoteKind, ObjectRef, PlanInput, Scope, SlicePlan, Subject,
    endpoints::{annotate, pod_reference},
    hints::{self, Distribution},
    membership,
    naming::{self, Names},
    packing::{self, Draft, Packed, Rewrite},
    port::{self, PortSet},
    topology::{self, Remembered, Unhinted},
};

/// Uid of owners that come without one (files that never were in a cluster).
pub const PLACEHOLDER_UID: &str = "00000000-0000-0000-0000-000000000000";

/// What to do with the slices, and what to remember of their topology hints.
pub(crate) fn plan(
    input: &PlanInput<'_>,
    names: &mut Names,
    notes: &mut Vec<Note>,
) -> (SlicePlan, Remembered) {
    let ours = managed(input, labels::SLICE_CONTROLLER);
    match membership::selecting(input) {
        // The garbage collector would come, too; but only where the owner is still referred to.
        Err(None) => (delete_all(&ours), Remembered::default()),
        Err(Some(_)) => (SlicePlan::default(), Remembered::default()),
        Ok(service) => Planner::new(input, service).plan(&ours, names, notes),
    }
}

/// The slices of the Service that a manager may touch, by name. Those on their way out are as good as gone.
pub(crate) fn managed<'a>(input: &PlanInput<'a>, manager: &str) -> Vec<&'a EndpointSlice> {
    let mut ours: Vec<&EndpointSlice> = input
        .slices
        .iter()
        .copied()
        .filter(|slice| slice.label(labels::SLICE_MANAGED_BY) == Some(manager))
        .filter(|slice| slice.label(labels::SERVICE_NAME) == Some(&*input.key.name))
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .collect();
    ours.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    ours
}

/// Deletes slices that nothing wants any more.
pub(crate) fn delete_all(slices: &[&EndpointSlice]) -> SlicePlan {
    SlicePlan {
        delete: slices.iter().map(|slice| ObjectRef::from(&slice.metadata)).collect(),
        removed: slices.iter().map(|slice| slice.endpoints.len()).sum(),
        ..SlicePlan::default()
    }
}

/// The uid that refers to an owner.
pub(crate) fn owner_uid(uid: &str) -> &str {
    if uid.is_empty() { PLACEHOLDER_UID } else { uid }
}

struct Planner<'a> {
    input: &'a PlanInput<'a>,
    service: &'a Service,
    labels: BTreeMap<String, String>,
    max: usize,
}

impl<'a> Planner<'a> {
    fn new(input: &'a PlanInput<'a>, service: &'a Service) -> Self {
        Self { input, service, labels: labels_of(service), max: input.limits.endpoints_per_slice.max(1) }
    }

    fn plan(
        &self,
        ours: &[&'a EndpointSlice],
        names: &mut Names,
        notes: &mut Vec<Note>,
    ) -> (SlicePlan, Remembered) {
        let (mut plan, mut remembered) = (SlicePlan::default(), Remembered::default());
        let families = membership::families(self.service, self.input.pods);
        let mut suppressed = false;
        for family in &families {
            let of_family: Vec<&EndpointSlice> =
                ours.iter().copied().filter(|slice| slice.address_type.family() == Some(*family)).collect();
            let desired = self.desired(*family, notes);
            plan.desired_endpoints += desired.values().map(Vec::len).sum::<usize>();
            let slices: usize = desired.values().map(|endpoints| endpoints.len().div_ceil(self.max)).sum();
            plan.desired_slices += slices.max(1);
            let mut packed = self.pack(*family, &of_family, desired);
            if self.service.terminating {
                suppressed |= !std::mem::take(&mut packed.create).is_empty();
            }
            let remark = self.hint(*family, &mut packed, &mut remembered);
            notes.extend(remark.map(|kind| self.note(Scope::Slices(*family), kind)));
            self.finalize(*family, packed, names, &mut plan);
        }
        let is_unsupported = |slice: &&&EndpointSlice| {
            slice.address_type.family().is_none_or(|family| !families.contains(&family))
        };
        plan.delete.extend(ours.iter().filter(is_unsupported).map(|slice| ObjectRef::from(&slice.metadata)));
        if suppressed {
            notes.push(self.note(Scope::All, NoteKind::ServiceTerminating));
        }
        (plan, remembered)
    }

    fn note(&self, scope: Scope, kind: NoteKind) -> Note {
        Note { subject: Subject::Service(self.input.key.clone()), scope, kind }
    }

    /// The endpoints of one family by port set, in order. A port set stays even if no Pod has an address for it.
    fn desired(&self, family: Family, notes: &mut Vec<Note>) -> BTreeMap<PortSet, Vec<Endpoint>> {
        let mut desired: BTreeMap<PortSet, Vec<Endpoint>> = BTreeMap::new();
        for pod in membership::in_order(self.input.pods) {
            if membership::exclusion(pod).is_some() {
                continue;
            }
            let ports = port::resolve(pod, self.service).into_iter().map(port::Resolved::to_slice_port);
            let endpoints = desired.entry(PortSet::new(ports)).or_default();
            match self.endpoint(pod, family) {
                Ok((endpoint, note)) => {
                    endpoints.push(endpoint);
                    notes.extend(note.map(|kind| membership::note(pod, Scope::Slices(family), kind)));
                }
                Err(kind) => notes.push(membership::note(pod, Scope::Slices(family), kind)),
            }
        }
        desired.into_iter().map(|(ports, endpoints)| (ports, packing::in_order(endpoints))).collect()
    }

    /// The endpoint of a Pod, perhaps with a remark; or why there is none.
    fn endpoint(&self, pod: &Pod, family: Family) -> Result<(Endpoint, Option<NoteKind>), NoteKind> {
        let publish = self.service.publish_not_ready_addresses;
        let addresses: Vec<String> = membership::addresses_of(pod, family).map(|ip| ip.to_string()).collect();
        if addresses.is_empty() {
            return Err(NoteKind::WrongFamily(family));
        }
        let (zone, remark) = match self.input.nodes.node(pod.node.as_deref().unwrap_or_default()) {
            NodeLookup::Known(node) => (node.zone().map(ToString::to_string), None),
            NodeLookup::Unchecked => (None, None),
            NodeLookup::Missing => match (&pod.node, publish) {
                (Some(node), true) => (None, Some(NoteKind::ZoneUnknown(node.clone()))),
                (None, true) => (None, None),
                (Some(node), false) => return Err(NoteKind::NodeUnknown(node.clone())),
                (None, false) => return Err(NoteKind::PodUnscheduled),
            },
        };
        let endpoint = Endpoint {
            addresses,
            conditions: Conditions {
                ready: Some(publish || (pod.ready && !pod.terminating)),
                serving: Some(pod.ready),
                terminating: Some(pod.terminating),
            },
            hostname: membership::hostname(pod, self.service).map(Into::into),
            target_ref: Some(Box::new(pod_reference(pod))),
            node_name: pod.node.as_deref().map(Into::into),
            zone,
            hints: None,
        };
        Ok((endpoint, remark))
    }

    fn pack(
        &self,
        family: Family,
        existing: &[&'a EndpointSlice],
        desired: BTreeMap<PortSet, Vec<Endpoint>>,
    ) -> Packed<'a> {
        let mut packed = Packed::default();
        let mut by_ports: BTreeMap<PortSet, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in existing {
            if self.owns(slice) {
                by_ports.entry(PortSet::new(slice.ports.iter().cloned())).or_default().push(slice);
            } else {
                packed.discard(slice);
            }
        }
        for (ports, endpoints) in desired {
            let slices = by_ports.remove(&ports).unwrap_or_default();
            packed.pack(&ports, &slices, &endpoints, |slice| self.is_labelled(slice), self.max);
        }
        for slice in by_ports.into_values().flatten() {
            packed.discard(slice);
        }
        if packed.delete.len() == existing.len() && packed.create.is_empty() {
            self.keep_place(family, &mut packed);
        }
        packed.recycle(|slice| self.owns(slice));
        packed
    }

    /// Puts the right hints on the slices of one family. The two families of a Service are told of and remembered each for
    /// itself, so that one that cannot be hinted does not make the other look as if it had changed.
    fn hint(&self, family: Family, packed: &mut Packed<'_>, remembered: &mut Remembered) -> Option<NoteKind> {
        let topology = self.input.topology;
        let was_hinted = topology.remembered.is_some_and(|before| before.hinted.contains_key(&family));
        if !topology::is_topology_auto(self.service) {
            hints::apply(packed, Distribution::of(self.service));
            let why = Unhinted::NotRequested;
            return was_hinted.then_some(NoteKind::TopologyHintsDisabled { family, why });
        }
        match topology::apply(packed, topology.shares) {
            Ok(counts) => {
                remembered.hinted.insert(family, counts);
                (!was_hinted).then_some(NoteKind::TopologyHintsEnabled(family))
            }
            Err(why) => {
                hints::apply(packed, Distribution::Anywhere);
                remembered.refused.insert(family, why);
                Some(NoteKind::TopologyHintsDisabled { family, why })
            }
        }
    }

    /// Sees to it that a Service without endpoints has a slice without endpoints: the placeholder.
    fn keep_place(&self, family: Family, packed: &mut Packed<'a>) {
        let is_placeholder = |slice: &EndpointSlice| {
            slice.endpoints.is_empty()
                && slice.ports.is_empty()
                && slice.address_type == AddressType::from(family)
                && self.owns(slice)
                && self.is_labelled(slice)
        };
        if let [only] = packed.delete[..]
            && is_placeholder(only)
        {
            packed.delete.clear();
            packed.unchanged.push(only);
        } else {
            packed.create.push(Draft { ports: PortSet::new([]), endpoints: Vec::new() });
        }
    }

    /// Whether a slice belongs to this very Service, not to an earlier one of the same name.
    fn owns(&self, slice: &EndpointSlice) -> bool {
        slice.metadata.owner_references.iter().flatten().any(|owner| {
            owner.uid == owner_uid(&self.service.uid) && owner.kind == "Service" && owner.api_version == "v1"
        })
    }

    fn is_labelled(&self, slice: &EndpointSlice) -> bool {
        slice.metadata.labels.as_ref() == Some(&self.labels)
    }

    fn finalize(&self, family: Family, packed: Packed<'_>, names: &mut Names, plan: &mut SlicePlan) {
        plan.count(family, &packed);
        plan.unchanged += packed.unchanged.len();
        plan.delete.extend(packed.delete.iter().map(|slice| ObjectRef::from(&slice.metadata)));
        plan.update.extend(packed.update.into_iter().map(|rewrite| self.rewritten(rewrite)));
        plan.create.extend(packed.create.into_iter().map(|draft| self.created(family, draft, names)));
    }

    fn created(&self, family: Family, draft: Draft, names: &mut Names) -> EndpointSlice {
        let key = &self.service.key;
        let identity = [owner_uid(&self.service.uid), family.as_str(), &draft.ports.key()];
        let mut metadata = ObjectMeta {
            name: Some(names.take(&key.name, &identity)),
            generate_name: Some(naming::generate_name(&key.name)),
            namespace: Some(key.namespace.to_string()),
            labels: Some(self.labels.clone()),
            owner_references: Some(vec![owner("Service", &key.name, &self.service.uid)]),
            ..ObjectMeta::default()
        };
        stamp(&mut metadata, self.input.triggers.slices);
        EndpointSlice {
            metadata,
            address_type: family.into(),
            endpoints: draft.endpoints,
            ports: draft.ports.ports().to_vec(),
        }
    }

    fn rewritten(&self, rewrite: Rewrite<'_>) -> EndpointSlice {
        let mut metadata = rewrite.existing.metadata.clone();
        metadata.labels = Some(self.labels.clone());
        metadata.generate_name.get_or_insert_with(|| naming::generate_name(&self.service.key.name));
        stamp(&mut metadata, self.input.triggers.slices);
        EndpointSlice {
            metadata,
            address_type: rewrite.existing.address_type.clone(),
            endpoints: rewrite.endpoints,
            ports: rewrite.ports.ports().to_vec(),
        }
    }
}

fn stamp(metadata: &mut ObjectMeta, trigger: Option<Timestamp>) {
    annotate(metadata, labels::TRIGGER_TIME, trigger.map(|time| time.to_string()));
}

/// A reference to the controlling owner.
pub(crate) fn owner(kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: owner_uid(uid).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The Service's labels and ours; the Service cannot forge ours.
fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let reserved = BTreeSet::from([labels::SERVICE_NAME, labels::SLICE_MANAGED_BY, labels::HEADLESS]);
    let copied = service.labels.iter().filter(|(key, _)| !reserved.contains(&***key));
    let mut desired: BTreeMap<String, String> =
        copied.map(|(key, value)| (key.to_string(), value.to_string())).collect();
    desired.insert(labels::SERVICE_NAME.to_owned(), service.key.name.to_string());
    desired.insert(labels::SLICE_MANAGED_BY.to_owned(), labels::SLICE_CONTROLLER.to_owned());
    if membership::is_headless(service) {
        desired.insert(labels::HEADLESS.to_owned(), String::new());
    }
    desired
}
