//! Endpoints of Services with a selector (upstream's endpoints controller).
//!
//! Invariants: Endpoints are written only if they differ from what would be written; those that somebody made by hand are
//! never deleted; they hold at most [`MAX_ADDRESSES`] addresses.

use std::collections::BTreeMap;

use fairlead_objects::{
    EndpointAddress, EndpointSubset, Endpoints, Family, ObjectMeta, ObjectReference, Pod, Service, Timestamp,
    labels,
};

use crate::{
    EndpointsPlan, Note, NoteKind, ObjectRef, PlanInput, Scope, Subject, membership, port, repack,
    subset::{self, Packer},
};

/// Most addresses that one Endpoints holds, ready or not.
pub const MAX_ADDRESSES: usize = 1000;
/// Value of [`labels::OVER_CAPACITY`].
const TRUNCATED: &str = "truncated";

/// What to do with the Endpoints.
pub(crate) fn plan(input: &PlanInput<'_>, notes: &mut Vec<Note>) -> EndpointsPlan {
    match membership::selecting(input) {
        Err(None) => orphan(input),
        Err(Some(_)) => EndpointsPlan::Keep,
        Ok(service) => managed(input, service, notes),
    }
}

/// Without a Service, only what we made goes.
fn orphan(input: &PlanInput<'_>) -> EndpointsPlan {
    let ours = |endpoints: &&Endpoints| {
        let metadata = &endpoints.metadata;
        entry(metadata.labels.as_ref(), labels::ENDPOINTS_MANAGED_BY) == Some(labels::ENDPOINTS_CONTROLLER)
            && entry(metadata.annotations.as_ref(), labels::LEADER).is_none()
            && metadata.deletion_timestamp.is_none()
    };
    input
        .endpoints
        .filter(ours)
        .map_or(EndpointsPlan::Keep, |endpoints| EndpointsPlan::Delete(ObjectRef::from(&endpoints.metadata)))
}

fn managed(input: &PlanInput<'_>, service: &Service, notes: &mut Vec<Note>) -> EndpointsPlan {
    let mut subsets = subsets(service, input.pods, notes);
    let left_out = subset::truncate(&mut subsets, MAX_ADDRESSES);
    if left_out > 0 {
        let (ready, not_ready) = subset::count(&subsets);
        let kind = NoteKind::OverCapacity { kept: ready + not_ready, left_out };
        notes.push(Note { subject: Subject::Endpoints(input.key.clone()), scope: Scope::Endpoints, kind });
    }
    let labels = labels_of(service);
    match input.endpoints {
        None if service.terminating => EndpointsPlan::Keep,
        None => {
            let metadata = ObjectMeta {
                namespace: Some(service.key.namespace.to_string()),
                name: Some(service.key.name.to_string()),
                ..ObjectMeta::default()
            };
            EndpointsPlan::Create(write(metadata, labels, subsets, left_out > 0, input.triggers.endpoints))
        }
        Some(stored) if is_right(stored, &labels, &subsets, left_out > 0) => EndpointsPlan::Keep,
        Some(stored) => {
            let metadata = stored.metadata.clone();
            EndpointsPlan::Update(write(metadata, labels, subsets, left_out > 0, input.triggers.endpoints))
        }
    }
}

/// What the Endpoints should hold, before it is cut to size.
fn subsets(service: &Service, pods: &[&Pod], notes: &mut Vec<Note>) -> Vec<EndpointSubset> {
    let mut packer = Packer::default();
    let family = membership::endpoints_family(service, pods);
    let portless = service.ports.is_empty() && membership::is_headless(service);
    for pod in membership::in_order(pods) {
        if membership::exclusion(pod).is_some() {
            continue;
        }
        let address = match address(service, family, pod) {
            Ok(address) => packer.address(&address),
            Err(kind) => {
                notes.push(membership::note(pod, Scope::Endpoints, kind));
                continue;
            }
        };
        let ready = pod.ready || service.publish_not_ready_addresses;
        if portless {
            packer.add(None, address, ready);
        }
        for resolved in port::resolve(pod, service) {
            packer.add(Some(&resolved.to_endpoint_port()), address, ready);
        }
    }
    packer.finish()
}

fn address(service: &Service, family: Option<Family>, pod: &Pod) -> Result<EndpointAddress, NoteKind> {
    if pod.terminating && !service.publish_not_ready_addresses {
        return Err(NoteKind::PodTerminating);
    }
    let ip = membership::endpoints_address(pod, family).map_err(NoteKind::WrongFamily)?;
    Ok(EndpointAddress {
        ip: ip.to_string(),
        hostname: membership::hostname(pod, service).unwrap_or_default().to_owned(),
        node_name: pod.node.as_deref().map(Into::into),
        target_ref: Some(Box::new(pod_reference(pod))),
    })
}

/// What an endpoint says of the Pod behind it.
pub(crate) fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: "Pod".to_owned(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        ..ObjectReference::default()
    }
}

fn labels_of(service: &Service) -> BTreeMap<String, String> {
    let mut desired: BTreeMap<String, String> =
        service.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    desired.remove(labels::HEADLESS);
    if membership::is_headless(service) {
        desired.insert(labels::HEADLESS.to_owned(), String::new());
    }
    desired.insert(labels::ENDPOINTS_MANAGED_BY.to_owned(), labels::ENDPOINTS_CONTROLLER.to_owned());
    desired
}

/// Whether a stored object needs no write. Older API servers stored other orders, so that is not a difference; neither
/// is the trigger time.
fn is_right(
    stored: &Endpoints,
    labels: &BTreeMap<String, String>,
    subsets: &[EndpointSubset],
    truncated: bool,
) -> bool {
    let mark = entry(stored.metadata.annotations.as_ref(), labels::OVER_CAPACITY);
    let marked_right = if truncated { mark == Some(TRUNCATED) } else { mark.is_none() };
    let empty = BTreeMap::new();
    marked_right
        && stored.metadata.labels.as_ref().unwrap_or(&empty) == labels
        && same(&stored.subsets, subsets)
}

/// Whether subsets hold the same, whatever their order and the versions of the Pods that they refer to.
fn same(stored: &[EndpointSubset], desired: &[EndpointSubset]) -> bool {
    let mut stored = stored.to_vec();
    for subset in &mut stored {
        for address in subset.addresses.iter_mut().chain(&mut subset.not_ready_addresses) {
            if let Some(reference) = &mut address.target_ref {
                reference.resource_version.clear();
            }
        }
    }
    stored == desired || repack(&stored) == repack(desired)
}

fn write(
    mut metadata: ObjectMeta,
    labels: BTreeMap<String, String>,
    subsets: Vec<EndpointSubset>,
    truncated: bool,
    trigger: Option<Timestamp>,
) -> Endpoints {
    metadata.labels = Some(labels);
    annotate(&mut metadata, labels::TRIGGER_TIME, trigger.map(|time| time.to_string()));
    annotate(&mut metadata, labels::OVER_CAPACITY, truncated.then(|| TRUNCATED.to_owned()));
    Endpoints { metadata, subsets }
}

/// Sets an annotation, or removes it.
pub(crate) fn annotate(metadata: &mut ObjectMeta, key: &str, value: Option<String>) {
    let mut annotations = metadata.annotations.take().unwrap_or_default();
    match value {
        Some(value) => annotations.insert(key.to_owned(), value),
        None => annotations.remove(key),
    };
    metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
}

/// A label or annotation.
pub(crate) fn entry<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}
