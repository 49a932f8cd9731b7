//! Slices mirrored from hand-made Endpoints of Services without a selector (upstream's endpointslicemirroring
//! controller).
//!
//! Invariants: only mirrored slices are read, changed or deleted; there is one slice per family and port set, in which no
//! two ports have one name, and never an empty one; annotations and labels are those of the Endpoints; each deletion is
//! reused for at most one creation of the same family.

use std::collections::BTreeMap;

use fairlead_objects::{
    Conditions, Endpoint, EndpointAddress, EndpointPort, EndpointSlice, EndpointSubset, Endpoints, Family,
    ObjectMeta, SlicePort, labels, parse_address,
};

use crate::{
    Note, NoteKind, ObjectRef, PlanInput, Scope, SlicePlan, Subject,
    endpoints::entry,
    membership,
    naming::{self, Names},
    packing::{self, Draft, Identity, Packed, Rewrite},
    port::PortSet,
    repack, slices,
};

/// The API refuses larger slices.
const MAX_PER_SLICE: usize = 1000;

/// What to do with mirrored slices.
pub(crate) fn plan(input: &PlanInput<'_>, names: &mut Names, notes: &mut Vec<Note>) -> SlicePlan {
    let ours = slices::managed(input, labels::MIRRORING_CONTROLLER);
    let wanted = input.service.is_some_and(|service| service.selector.is_none());
    match input.endpoints.filter(|endpoints| wanted && is_mirrorable(endpoints)) {
        Some(endpoints) => Mirror::new(input, endpoints).plan(&ours, names, notes),
        None => slices::delete_all(&ours),
    }
}

/// Whether Endpoints may be mirrored: neither opted out nor a leader-election record.
pub(crate) fn is_mirrorable(endpoints: &Endpoints) -> bool {
    let metadata = &endpoints.metadata;
    entry(metadata.labels.as_ref(), labels::SKIP_MIRROR) != Some("true")
        && entry(metadata.annotations.as_ref(), labels::LEADER).is_none()
}

/// What the addresses of all subsets come to.
#[derive(Default)]
struct Gathered {
    groups: BTreeMap<(Family, PortSet), Vec<Endpoint>>,
    invalid: usize,
    skipped: usize,
}

struct Mirror<'a> {
    input: &'a PlanInput<'a>,
    endpoints: &'a Endpoints,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    max: usize,
}

impl<'a> Mirror<'a> {
    fn new(input: &'a PlanInput<'a>, endpoints: &'a Endpoints) -> Self {
        let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
        labels.insert(labels::SERVICE_NAME.to_owned(), input.key.name.to_string());
        labels.insert(labels::SLICE_MANAGED_BY.to_owned(), labels::MIRRORING_CONTROLLER.to_owned());
        let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(labels::TRIGGER_TIME);
        annotations.remove(labels::LAST_APPLIED);
        Self { input, endpoints, labels, annotations, max: input.limits.mirrored_per_subset.max(1) }
    }

    fn plan(&self, ours: &[&'a EndpointSlice], names: &mut Names, notes: &mut Vec<Note>) -> SlicePlan {
        let mut gathered = self.gather();
        self.cut(&mut gathered);
        self.take_notes(&gathered, notes);
        let mut plan = SlicePlan {
            desired_endpoints: gathered.groups.values().map(Vec::len).sum(),
            desired_slices: gathered.groups.len(),
            ..SlicePlan::default()
        };
        for family in Family::ALL {
            let existing = ours.iter().copied().filter(|slice| slice.address_type.family() == Some(family));
            let desired = gathered.groups.iter().filter(|((of, _), _)| *of == family);
            let packed = self.pack(existing, desired.map(|((_, ports), endpoints)| (ports, endpoints)));
            self.finalize(family, packed, names, &mut plan);
        }
        let others = ours.iter().filter(|slice| slice.address_type.family().is_none());
        plan.delete.extend(others.map(|slice| ObjectRef::from(&slice.metadata)));
        plan
    }

    /// Sorts the addresses of all subsets into groups, up to the limit of valid ones per subset.
    fn gather(&self) -> Gathered {
        let mut gathered = Gathered::default();
        for subset in repack(&self.endpoints.subsets) {
            let sets = port_sets(&subset);
            let mut added = 0;
            for (address, ready) in addresses(&subset) {
                if added == self.max {
                    gathered.skipped += 1;
                } else if let Some((family, endpoint)) = endpoint(address, ready) {
                    for ports in &sets {
                        gathered.groups.entry((family, ports.clone())).or_default().push(endpoint.clone());
                    }
                    added += 1;
                } else {
                    gathered.invalid += 1;
                    gathered.skipped += 1;
                }
            }
        }
        gathered
    }

    /// Orders every group, and cuts what several subsets without ports may have made too large.
    fn cut(&self, gathered: &mut Gathered) {
        for endpoints in gathered.groups.values_mut() {
            *endpoints = packing::in_order(std::mem::take(endpoints));
            gathered.skipped += endpoints.len().saturating_sub(self.max.min(MAX_PER_SLICE));
            endpoints.truncate(self.max.min(MAX_PER_SLICE));
        }
    }

    fn take_notes(&self, gathered: &Gathered, notes: &mut Vec<Note>) {
        let &Gathered { invalid, skipped, .. } = gathered;
        let invalid_ones = (invalid > 0).then_some(NoteKind::InvalidAddresses(invalid));
        let too_many = (skipped > invalid).then_some(NoteKind::TooManyAddresses { max: self.max, skipped });
        notes.extend(invalid_ones.into_iter().chain(too_many).map(|kind| Note {
            subject: Subject::Endpoints(self.input.key.clone()),
            scope: Scope::Mirror,
            kind,
        }));
    }

    fn pack<'d>(
        &self,
        existing: impl Iterator<Item = &'a EndpointSlice>,
        desired: impl Iterator<Item = (&'d PortSet, &'d Vec<Endpoint>)>,
    ) -> Packed<'a> {
        let mut packed = Packed::default();
        let mut by_ports: BTreeMap<PortSet, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in existing {
            by_ports.entry(PortSet::new(slice.ports.iter().cloned())).or_default().push(slice);
        }
        for (ports, endpoints) in desired {
            let mut slices = by_ports.remove(ports).unwrap_or_default().into_iter();
            if let Some(existing) = slices.next() {
                self.compare(existing, ports, endpoints, &mut packed);
            } else {
                packed.added += endpoints.len();
                packed.create.push(Draft { ports: ports.clone(), endpoints: endpoints.clone() });
            }
            slices.for_each(|surplus| packed.discard(surplus));
        }
        for slice in by_ports.into_values().flatten() {
            packed.discard(slice);
        }
        packed.recycle(|_| true);
        packed
    }

    fn compare(
        &self,
        existing: &'a EndpointSlice,
        ports: &PortSet,
        endpoints: &[Endpoint],
        packed: &mut Packed<'a>,
    ) {
        let mut missing: BTreeMap<Identity<'_>, &Endpoint> =
            endpoints.iter().filter_map(|endpoint| Some((Identity::of(endpoint)?, endpoint))).collect();
        let (mut removed, mut updated) = (0, 0);
        for endpoint in &existing.endpoints {
            match Identity::of(endpoint).and_then(|identity| missing.remove(&identity)) {
                Some(fresh) => updated += usize::from(!packing::is_same(endpoint, fresh)),
                None => removed += 1,
            }
        }
        let is_right =
            missing.is_empty() && removed == 0 && updated == 0 && self.has_right_metadata(existing);
        packed.added += missing.len();
        packed.removed += removed;
        packed.updated += updated;
        if is_right {
            packed.unchanged.push(existing);
        } else {
            let endpoints = endpoints.to_vec();
            packed.update.push(Rewrite { existing, ports: ports.clone(), endpoints });
        }
    }

    fn has_right_metadata(&self, slice: &EndpointSlice) -> bool {
        let ObjectMeta { labels, annotations, owner_references, .. } = &slice.metadata;
        let empty = BTreeMap::new();
        let stray = owner_references.iter().flatten().any(|owner| {
            owner.kind == "Endpoints" && *owner.name == *self.input.key.name && owner.uid != self.uid()
        });
        !stray
            && labels.as_ref() == Some(&self.labels)
            && annotations.as_ref().unwrap_or(&empty) == &self.annotations
    }

    fn uid(&self) -> &str {
        slices::owner_uid(self.endpoints.metadata.uid.as_deref().unwrap_or_default())
    }

    fn finalize(&self, family: Family, packed: Packed<'_>, names: &mut Names, plan: &mut SlicePlan) {
        plan.count(family, &packed);
        plan.unchanged += packed.unchanged.len();
        plan.delete.extend(packed.delete.iter().map(|slice| ObjectRef::from(&slice.metadata)));
        plan.update.extend(packed.update.into_iter().map(|rewrite| self.rewritten(rewrite)));
        if self.endpoints.metadata.deletion_timestamp.is_none() {
            plan.create.extend(packed.create.into_iter().map(|draft| self.created(family, draft, names)));
        }
    }

    fn created(&self, family: Family, draft: Draft, names: &mut Names) -> EndpointSlice {
        let key = self.input.key;
        let identity = ["mirror", self.uid(), family.as_str(), &draft.ports.key()];
        let metadata = ObjectMeta {
            name: Some(names.take(&key.name, &identity)),
            generate_name: Some(naming::generate_name(&key.name)),
            namespace: Some(key.namespace.to_string()),
            owner_references: Some(vec![slices::owner("Endpoints", &key.name, self.uid())]),
            ..ObjectMeta::default()
        };
        EndpointSlice {
            metadata: self.marked(metadata),
            address_type: family.into(),
            endpoints: draft.endpoints,
            ports: draft.ports.ports().to_vec(),
        }
    }

    fn rewritten(&self, rewrite: Rewrite<'_>) -> EndpointSlice {
        let key = self.input.key;
        let mut metadata = rewrite.existing.metadata.clone();
        metadata.generate_name.get_or_insert_with(|| naming::generate_name(&key.name));
        // There can be one controlling owner only, and that is the Endpoints.
        let owners = metadata.owner_references.get_or_insert_default();
        owners.retain(|owner| owner.kind != "Endpoints" && owner.controller != Some(true));
        owners.push(slices::owner("Endpoints", &key.name, self.uid()));
        EndpointSlice {
            metadata: self.marked(metadata),
            address_type: rewrite.existing.address_type.clone(),
            endpoints: rewrite.endpoints,
            ports: rewrite.ports.ports().to_vec(),
        }
    }

    fn marked(&self, metadata: ObjectMeta) -> ObjectMeta {
        let annotations = Some(self.annotations.clone()).filter(|annotations| !annotations.is_empty());
        ObjectMeta { labels: Some(self.labels.clone()), annotations, ..metadata }
    }
}

/// Ready addresses first.
fn addresses(subset: &EndpointSubset) -> impl Iterator<Item = (&EndpointAddress, bool)> {
    let ready = subset.addresses.iter().map(|address| (address, true));
    ready.chain(subset.not_ready_addresses.iter().map(|address| (address, false)))
}

/// The mirrored endpoint; `None` if the address is invalid.
fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(Family, Endpoint)> {
    let ip = parse_address(&address.ip).ok().filter(|ip| !membership::is_special(*ip))?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Conditions { ready: Some(ready), ..Conditions::default() },
        hostname: Some(address.hostname.clone()).filter(|hostname| !hostname.is_empty()),
        target_ref: address.target_ref.clone(),
        node_name: address.node_name.clone(),
        ..Endpoint::default()
    };
    Some((Family::of(ip), endpoint))
}

/// The ports of a subset, in as many sets as it takes: Endpoints may hold several ports of one name, a slice may not.
fn port_sets(subset: &EndpointSubset) -> Vec<PortSet> {
    let mut sets: Vec<Vec<&EndpointPort>> = vec![Vec::new()];
    for port in &subset.ports {
        match sets.iter_mut().find(|set| set.iter().all(|other| other.name != port.name)) {
            Some(set) => set.push(port),
            None => sets.push(vec![port]),
        }
    }
    sets.into_iter().map(|set| PortSet::new(set.into_iter().map(slice_port))).collect()
}

fn slice_port(port: &EndpointPort) -> SlicePort {
    SlicePort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol.clone(),
    }
}
