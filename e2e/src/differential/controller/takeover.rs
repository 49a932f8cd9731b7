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
    EndpointSlice, Endpoints, Node, NodeObject, Pod, PodObject, Service, ServiceKey, ServiceObject,
};
use fairlead_planner::{EndpointsPlan, Limits, Plan, PlanInput, SlicePlan};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    side::{ENDPOINTS_PER_SLICE, MIRRORED_PER_SUBSET, Objects},
    state::{self, Key, Made, Written},
};

const LIMITS: Limits =
    Limits { endpoints_per_slice: ENDPOINTS_PER_SLICE, mirrored_per_subset: MIRRORED_PER_SUBSET };

/// What Fairlead would write, a line for each object, for the Services of these namespaces but those that `skip` names.
pub fn unwanted(
    made: &Made,
    written: &Written,
    namespaces: &BTreeSet<&str>,
    skip: impl Fn(&Key) -> bool,
) -> Result<Vec<String>> {
    let within = |key: &Key| namespaces.contains(key.0.as_str());
    let nodes: BTreeMap<Arc<str>, Node> = read::<NodeObject>(&made.nodes, |_| true)?
        .into_values()
        .flatten()
        .map(|object| {
            let name = object.metadata.name.clone().unwrap_or_default();
            (Arc::from(name), Node::from(object))
        })
        .collect();
    let mut pods: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for (key, objects) in read::<PodObject>(&made.pods, within)? {
        pods.entry(key.0).or_default().extend(objects.into_iter().map(Pod::from));
    }
    let endpoints = read::<Endpoints>(&written.endpoints, within)?;
    let mut slices: BTreeMap<Key, Vec<EndpointSlice>> = BTreeMap::new();
    for slice in written.slices.iter().filter(|slice| within(&state::key(slice))) {
        slices.entry(state::service_of(slice)).or_default().push(parse(slice)?);
    }
    let mut lines = Vec::new();
    for object in &made.services {
        let key = state::key(object);
        // Topology mode `Auto` needs to know what the last plan remembered.
        if !within(&key) || skip(&key) || state::is_auto(object) {
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
            ..PlanInput::new(&service_key, &nodes)
        };
        let name = format!("{}/{}", key.0, key.1);
        describe(&name, &fairlead_planner::plan(&input), &mut lines);
        check_order(&name, &input, &mut lines);
    }
    Ok(lines)
}

/// Endpoints are right in any order of their subsets, as upstream has it; so the order is asked for on its own.
fn check_order(name: &str, input: &PlanInput<'_>, lines: &mut Vec<String>) {
    let anew = PlanInput { endpoints: None, ..*input };
    if let (EndpointsPlan::Create(wanted), Some(found)) =
        (fairlead_planner::plan(&anew).endpoints, input.endpoints)
        && wanted.subsets != found.subsets
    {
        lines.push(format!(
            "{name}: order in Endpoints:\n    there {}\n    planned {}",
            text(&found.subsets),
            text(&wanted.subsets)
        ));
    }
}

fn describe(name: &str, plan: &Plan, lines: &mut Vec<String>) {
    match &plan.endpoints {
        EndpointsPlan::Keep => {}
        EndpointsPlan::Create(endpoints) => {
            lines.push(format!("{name}: create Endpoints {}", text(endpoints)));
        }
        EndpointsPlan::Update(endpoints) => {
            lines.push(format!("{name}: update Endpoints {}", text(endpoints)));
        }
        EndpointsPlan::Delete(_) => lines.push(format!("{name}: delete Endpoints")),
    }
    let SlicePlan { create, update, delete, .. } = &plan.slices;
    let mirror = &plan.mirror;
    for slice in create.iter().chain(&mirror.create) {
        lines.push(format!("{name}: create slice {}", text(slice)));
    }
    for slice in update.iter().chain(&mirror.update) {
        lines.push(format!("{name}: update slice {}", text(slice)));
    }
    for slice in delete.iter().chain(&mirror.delete) {
        lines.push(format!("{name}: delete slice {}", slice.name));
    }
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
