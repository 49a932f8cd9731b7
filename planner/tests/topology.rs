//! Hints of topology mode `Auto`, beyond upstream's own tests (`upstream/topology.rs`).

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use std::sync::Arc;

use fairlead_objects::{
    Family, ForName, Hints, Node, Pod,
    builders::{node, pod_with, service},
};
use fairlead_planner::{Note, Plan, Unhinted};
use serde_json::{Value, json};
use world::{ENDPOINTS, SLICES, World, actions, pods};

const MODE: &str = "service.kubernetes.io/topology-mode";

/// A Service in topology mode with so many ready Pods in zones `z1` and `z2`, whose Nodes are `n1` and `n2`.
fn world(spec: Value, counts: [usize; 2]) -> World {
    let mut world = World::new(service("web", spec)).only(SLICES);
    world.service_mut().annotations.insert(MODE.into(), "Auto".into());
    world.nodes.as_mut().unwrap().insert("n2".into(), node("n2", "192.168.0.2", "z2"));
    world.pods = pods(1, counts[0] + counts[1]);
    for pod in &mut world.pods[counts[0]..] {
        pod.node = Some("n2".into());
    }
    world
}

fn events(plan: &Plan) -> Vec<String> {
    let about = |note: &&Note| note.reason().starts_with("TopologyAware");
    plan.notes.iter().filter(about).map(ToString::to_string).collect()
}

/// The zone that every endpoint is hinted to; empty if it is not.
fn zones(world: &World) -> Vec<&str> {
    let endpoints = world.slices.iter().flat_map(|slice| &slice.endpoints);
    let zone = |hints: &'_ Hints| hints.for_zones.len() == 1;
    endpoints
        .map(|endpoint| match endpoint.hints.as_deref().filter(|hints| zone(hints)) {
            Some(hints) => &*hints.for_zones[0].name,
            None => "",
        })
        .collect()
}

#[test]
fn families_are_told_of_each_for_itself() {
    let mut world = world(json!({"ipFamilies": ["IPv4", "IPv6"]}), [0, 0]);
    let pod = |i: usize, ips: &[&str]| {
        let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({"status": {"podIP": null, "podIPs": ips}});
        pod_with(&format!("pod-{i}"), "web", &format!("n{i}"), "", status)
    };
    world.pods = vec![pod(1, &["10.0.0.1", "fd00::1"]), pod(2, &["10.0.0.2"])];
    let refused = "Insufficient number of endpoints (1 endpoints, 2 zones), addressType: IPv6";
    let enabled = |family| format!("Topology Aware Hints has been enabled, addressType: {family}");
    assert_eq!(events(&world.sync()), [&enabled("IPv4"), refused]);
    // Upstream says "enabled" again and again here.
    assert_eq!(events(&world.plan()), [refused]);
    world.pods[1] = pod(2, &["10.0.0.2", "fd00::2"]);
    assert_eq!(events(&world.sync()), [enabled("IPv6")]);
    assert_eq!(events(&world.plan()), [""; 0]);
    assert_eq!(world.remembered.hinted.len(), 2);
}

#[test]
fn hints_go_when_the_annotation_goes_and_that_is_told_once() {
    let mut world = world(json!({}), [2, 2]);
    world.sync();
    assert_eq!(zones(&world), ["z1", "z1", "z2", "z2"]);
    world.service_mut().annotations.clear();
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (0, 1, 0));
    assert_eq!(events(&plan), ["Topology Aware Hints has been disabled, addressType: IPv4"]);
    assert_eq!(zones(&world), [""; 4]);
    assert!(world.remembered.is_empty() && events(&world.plan()).is_empty());
}

#[test]
fn deprecated_annotation_wins_over_both() {
    let mut world = world(json!({"trafficDistribution": "PreferClose"}), [3, 1]);
    world.sync();
    assert_eq!(zones(&world), ["z2", "z1", "z1", "z2"], "dealt evenly");
    let key = Arc::from("service.kubernetes.io/topology-aware-hints");
    world.service_mut().annotations.insert(key, "disabled".into());
    world.sync();
    assert_eq!(zones(&world), ["z1", "z1", "z1", "z2"], "each its own zone");
}

#[test]
fn hints_to_nodes_are_dealt_anew() {
    let mut world = world(json!({"trafficDistribution": "PreferSameNode"}), [2, 2]);
    let auto = std::mem::take(&mut world.service_mut().annotations);
    world.sync();
    assert_eq!(world.slices[0].endpoints[0].hints.as_ref().unwrap().for_nodes[0].name, "n1");
    world.service_mut().annotations = auto;
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    let of_nodes = |hints: &Hints| !hints.for_nodes.is_empty();
    let endpoints = &world.slices[0].endpoints;
    assert!(!endpoints.iter().any(|endpoint| endpoint.hints.as_deref().is_some_and(of_nodes)));
}

#[test]
fn endpoint_without_a_zone_stops_all_hints() {
    let mut world = world(json!({}), [3, 3]);
    world.sync();
    world
        .nodes
        .as_mut()
        .unwrap()
        .insert("bare".into(), Node { ready: false, ..node("bare", "192.168.0.3", "") });
    world.pods.push(Pod { node: Some("bare".into()), ..pods(9, 1).remove(0) });
    let plan = world.sync();
    assert_eq!(plan.topology.refused[&Family::V4], Unhinted::EndpointWithoutZone);
    assert_eq!(zones(&world), [""; 7]);
    // One that is not ready does not matter.
    world.pods[6].ready = false;
    world.sync();
    assert_eq!(zones(&world), ["z1", "z1", "z1", "z2", "z2", "z2", ""]);
}

#[test]
fn stale_hint_of_an_endpoint_that_is_not_ready_is_not_worth_a_write() {
    let mut world = world(json!({}), [3, 2]);
    world.pods[0].ready = false;
    world.sync();
    let stale = Hints { for_zones: vec![ForName { name: "z9".to_owned() }], for_nodes: vec![] };
    world.slices[0].endpoints[0].hints = Some(Box::new(stale));
    assert!(world.plan().is_empty());
}

#[test]
fn slices_that_need_no_new_hints_are_not_written() {
    let mut world = world(json!({}), [6, 6]);
    world.limits.endpoints_per_slice = 4;
    world.sync();
    // A Pod in each zone leaves the last slice; the others stay as they are.
    world.pods.pop();
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
}

#[test]
fn memory_outlasts_plans_without_slices_but_not_the_service() {
    let mut world = world(json!({}), [2, 2]);
    world.sync();
    let remembered = world.remembered.clone();
    assert!(!remembered.is_empty());
    world.parts = ENDPOINTS;
    assert_eq!(world.plan().topology, remembered);
    world.parts = SLICES;
    let mut gone = world.clone();
    gone.service = None;
    assert!(gone.sync().topology.is_empty());
    world.service_mut().selector = None;
    assert!(world.plan().topology.is_empty());
}

#[test]
fn shares_that_changed_make_services_outdated_until_they_are_planned() {
    let mut world = world(json!({}), [4, 4]);
    world.sync();
    assert!(!world.remembered.is_outdated(world.shares().as_ref()));
    world.nodes.as_mut().unwrap().get_mut("n2").unwrap().allocatable_cpu = Some("6".into());
    assert!(world.remembered.is_outdated(world.shares().as_ref()));
    world.sync();
    assert_eq!(world.remembered.hinted[&Family::V4], [("z1".into(), 2), ("z2".into(), 6)].into());
    assert!(!world.remembered.is_outdated(world.shares().as_ref()));
    // Without shares there can be no hints any more.
    assert!(world.remembered.is_outdated(None));
    world.nodes.as_mut().unwrap().remove("n2");
    world.pods.truncate(4);
    world.sync();
    assert!(!world.remembered.is_outdated(world.shares().as_ref()));
}
