//! What Fairlead's planner thinks of what a side has: nothing is to be written.
//!
//! On the genuine side this is what taking a cluster over comes to, and, beyond the comparison of the two sides, it shows
//! that the order of subsets and addresses is upstream's: that follows from uids, which differ between the sides.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use fairlead_objects::{
    Endpoint, EndpointSlice, Endpoints, Node, NodeObject, Pod, PodObject, Service, ServiceKey, ServiceObject,
};
use fairlead_planner::{EndpointsPlan, Limits, Plan, PlanInput, SlicePlan, Topology, ZoneShares};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    complaints::Part,
    side::{ENDPOINTS_PER_SLICE, MIRRORED_PER_SUBSET, Objects},
    state::{self, Key, Made, Written},
};

const LIMITS: Limits =
    Limits { endpoints_per_slice: ENDPOINTS_PER_SLICE, mirrored_per_subset: MIRRORED_PER_SUBSET };

/// Something that Fairlead would write.
#[derive(Clone, Debug)]
pub struct Unwanted {
    /// The Service.
    pub key: Key,
    /// Which of its objects.
    pub part: Part,
    /// Whether it is about hints and nothing else.
    pub hints_only: bool,
    /// The write, in words.
    pub write: String,
}

/// What Fairlead would write for the Services of these namespaces.
pub fn unwanted(made: &Made, written: &Written, namespaces: &BTreeSet<String>) -> Result<Vec<Unwanted>> {
    let mut found = Vec::new();
    for (key, plan, order) in plans(made, written, namespaces)? {
        let order = order.map(|write| (Part::Endpoints, write));
        let all = writes(&plan).into_iter().chain(order);
        let SlicePlan { create, update, delete, .. } = &plan.slices;
        let mut hints_only = create.is_empty() && delete.is_empty();
        for slice in update {
            let there = written.slices.iter().find(|there| state::key(there) == named(slice));
            hints_only &= there.map(parse).transpose()?.is_some_and(|there| differ_in_hints(&there, slice));
        }
        found.extend(all.map(|(part, write)| {
            let hints_only = hints_only && part == Part::Selected;
            Unwanted { key: key.clone(), part, hints_only, write }
        }));
    }
    Ok(found)
}

fn named(slice: &EndpointSlice) -> Key {
    let metadata = &slice.metadata;
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn differ_in_hints(there: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let without_hints = |slice: &EndpointSlice| -> Vec<Endpoint> {
        let bare = slice.endpoints.iter().map(|endpoint| Endpoint { hints: None, ..endpoint.clone() });
        bare.collect()
    };
    there.metadata.labels == wanted.metadata.labels
        && there.ports == wanted.ports
        && without_hints(there) == without_hints(wanted)
}

/// Fairlead's plans for the Services of these namespaces, and what is wrong with the order in their Endpoints.
pub fn plans(
    made: &Made,
    written: &Written,
    namespaces: &BTreeSet<String>,
) -> Result<Vec<(Key, Plan, Option<String>)>> {
    let within = |key: &Key| namespaces.contains(&key.0);
    let nodes: BTreeMap<Arc<str>, Node> = read::<NodeObject>(&made.nodes, |_| true)?
        .into_values()
        .flatten()
        .map(|object| {
            let name = object.metadata.name.clone().unwrap_or_default();
            (Arc::from(name), Node::from(object))
        })
        .collect();
    let shares = ZoneShares::of(nodes.values());
    let mut pods: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for (key, objects) in read::<PodObject>(&made.pods, within)? {
        pods.entry(key.0).or_default().extend(objects.into_iter().map(Pod::from));
    }
    let endpoints = read::<Endpoints>(&written.endpoints, within)?;
    let mut slices: BTreeMap<Key, Vec<EndpointSlice>> = BTreeMap::new();
    for slice in written.slices.iter().filter(|slice| within(&state::key(slice))) {
        slices.entry(state::service_of(slice)).or_default().push(parse(slice)?);
    }
    let mut found = Vec::new();
    for object in &made.services {
        let key = state::key(object);
        if !within(&key) {
            continue;
        }
        let service = Service::from(parse::<ServiceObject>(object)?);
        let selects = |pod: &&Pod| {
            let selector = service.selector.as_ref();
            selector.is_some_and(|selector| fairlead_planner::selects(selector, &pod.labels))
        };
        let chosen: Vec<&Pod> = pods.get(&key.0).into_iter().flatten().filter(selects).collect();
        let slices: Vec<&EndpointSlice> = slices.get(&key).into_iter().flatten().collect();
        let service_key = ServiceKey::new(key.0.as_str(), key.1.as_str());
        let input = PlanInput {
            service: Some(&service),
            pods: &chosen,
            endpoints: endpoints.get(&key).and_then(|found| found.first()),
            slices: &slices,
            limits: LIMITS,
            topology: Topology { shares: shares.as_ref(), remembered: None },
            ..PlanInput::new(&service_key, &nodes)
        };
        found.push((key, fairlead_planner::plan(&input), wrong_order(&input)));
    }
    Ok(found)
}

/// Endpoints are right in any order of their subsets, as upstream has it; so the order is asked for on its own.
fn wrong_order(input: &PlanInput<'_>) -> Option<String> {
    let anew = PlanInput { endpoints: None, ..*input };
    let EndpointsPlan::Create(wanted) = fairlead_planner::plan(&anew).endpoints else { return None };
    let found = input.endpoints.filter(|found| found.subsets != wanted.subsets)?;
    let [there, planned] = [&found.subsets, &wanted.subsets].map(text);
    Some(format!("order in Endpoints:\n    there {there}\n    planned {planned}"))
}

fn writes(plan: &Plan) -> Vec<(Part, String)> {
    let endpoints = match &plan.endpoints {
        EndpointsPlan::Keep => None,
        EndpointsPlan::Create(endpoints) => Some(format!("create Endpoints {}", text(endpoints))),
        EndpointsPlan::Update(endpoints) => Some(format!("update Endpoints {}", text(endpoints))),
        EndpointsPlan::Delete(_) => Some("delete Endpoints".to_owned()),
    };
    let mut writes: Vec<(Part, String)> =
        endpoints.map(|write| (Part::Endpoints, write)).into_iter().collect();
    for (part, slices) in [(Part::Selected, &plan.slices), (Part::Mirrored, &plan.mirror)] {
        let SlicePlan { create, update, delete, .. } = slices;
        let created = create.iter().map(|slice| format!("create slice {}", text(slice)));
        let updated = update.iter().map(|slice| format!("update slice {}", text(slice)));
        let deleted = delete.iter().map(|slice| format!("delete slice {}", slice.name));
        writes.extend(created.chain(updated).chain(deleted).map(|write| (part, write)));
    }
    writes
}

fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}

fn read<T: DeserializeOwned>(
    objects: &Objects,
    within: impl Fn(&Key) -> bool,
) -> Result<BTreeMap<Key, Vec<T>>> {
    let mut found: BTreeMap<Key, Vec<T>> = BTreeMap::new();
    for object in objects.iter().filter(|object| within(&state::key(object))) {
        found.entry(state::key(object)).or_default().push(parse(object)?);
    }
    Ok(found)
}

fn parse<T: DeserializeOwned>(object: &Value) -> Result<T> {
    T::deserialize(object).with_context(|| format!("reading {object}"))
}
