//! Golden tests: a case in `cases/*.yaml` is a cluster, its snapshot is the plan of the one Service (or of the Service
//! that the Endpoints and slices belonged to). Adding a case is adding a file.

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{
    EndpointSlice, Endpoints, Node, NodeObject, Pod, PodObject, Service, ServiceKey, ServiceObject,
    builders::object,
};
use fairlead_planner::{EndpointsPlan, ObjectRef, Plan, SlicePlan, selects};
use serde_json::{Value, json};
use world::World;

/// Reads a case; Pods that the Service does not select are left out, as a controller's index would.
fn read(text: &str) -> World {
    let (mut services, mut pods, mut nodes) = (Vec::<Service>::new(), Vec::<Pod>::new(), BTreeMap::new());
    let (mut endpoints, mut slices) = (None::<Endpoints>, Vec::<EndpointSlice>::new());
    for document in serde_saphyr::from_multiple::<Value>(text).expect("the case is YAML") {
        match document["kind"].as_str().expect("every document has a kind") {
            "Service" => services.push(object::<ServiceObject>(document).into()),
            "Pod" => pods.push(object::<PodObject>(document).into()),
            "Node" => {
                let node: Node = object::<NodeObject>(document).into();
                nodes.insert(Arc::clone(&node.name), node);
            }
            "Endpoints" => endpoints = Some(object(document)),
            "EndpointSlice" => slices.push(object(document)),
            other => panic!("a case holds no {other}"),
        }
    }
    let stand_in = || fairlead_objects::builders::service("web", json!({}));
    let mut world = World::new(services.first().cloned().unwrap_or_else(stand_in));
    if let Some(selector) = world.service.as_ref().and_then(|service| service.selector.clone()) {
        pods.retain(|pod| pod.namespace == world.key.namespace && selects(&selector, &pod.labels));
    }
    if services.is_empty() {
        world.key = ServiceKey::new("default", "web");
        world.service = None;
    }
    World { pods, nodes: Some(nodes).filter(|nodes| !nodes.is_empty()), endpoints, slices, ..world }
}

fn reference(gone: &ObjectRef) -> Value {
    json!({"name": gone.name, "uid": gone.uid, "resourceVersion": gone.resource_version})
}

fn part(part: &SlicePlan) -> Value {
    json!({"create": part.create, "update": part.update, "delete": part.delete.iter().map(reference).collect::<Vec<_>>(),
           "unchanged": part.unchanged, "added": part.added, "removed": part.removed, "updated": part.updated})
}

fn report(plan: &Plan) -> Value {
    let endpoints = match &plan.endpoints {
        EndpointsPlan::Keep => json!("keep"),
        EndpointsPlan::Create(endpoints) => json!({"create": endpoints}),
        EndpointsPlan::Update(endpoints) => json!({"update": endpoints}),
        EndpointsPlan::Delete(gone) => json!({"delete": reference(gone)}),
    };
    json!({"endpoints": endpoints, "slices": part(&plan.slices), "mirror": part(&plan.mirror),
           "notes": plan.notes.iter().map(ToString::to_string).collect::<Vec<_>>()})
}

#[test]
fn plans_match_their_snapshots() {
    insta::glob!("cases/*.yaml", |path| {
        let text = std::fs::read_to_string(path).expect("the case can be read");
        let mut world = read(&text);
        let plan = world.sync();
        insta::with_settings!({omit_expression => true, prepend_module_to_snapshot => false}, {
            insta::assert_yaml_snapshot!("plan", report(&plan));
        });
    });
}
