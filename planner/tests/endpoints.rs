//! Endpoints of Services with a selector, beyond upstream's own tests (`upstream/endpoints.rs`).

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use fairlead_objects::{
    EndpointSubset, Endpoints, Pod, Service,
    builders::{merge, object, pod, pod_with, service},
};
use fairlead_planner::{EndpointsPlan, NoteKind};
use serde_json::{Value, json};
use world::{ENDPOINTS, World, at, pods};

fn world(spec: Value) -> World {
    World::new(service("web", spec)).only(ENDPOINTS)
}

fn stored(patch: Value) -> Endpoints {
    let mut endpoints = json!({"metadata": {"namespace": "default", "name": "web", "uid": "uid-endpoints", "resourceVersion": "7",
        "labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}}});
    merge(&mut endpoints, patch);
    object(endpoints)
}

fn subsets(value: Value) -> Vec<EndpointSubset> {
    object(value)
}

/// Addresses of all subsets as (ready, not ready).
fn addresses(endpoints: &Endpoints) -> (Vec<&str>, Vec<&str>) {
    let ready = endpoints.subsets.iter().flat_map(|s| &s.addresses).map(|a| a.ip.as_str()).collect();
    let not_ready =
        endpoints.subsets.iter().flat_map(|s| &s.not_ready_addresses).map(|a| a.ip.as_str()).collect();
    (ready, not_ready)
}

fn reference(name: &str) -> Value {
    json!({"kind": "Pod", "namespace": "default", "name": name, "uid": format!("uid-{name}")})
}

#[test]
fn unmanaged_endpoints_of_the_same_name_are_taken_over() {
    let mut world = world(json!({"ports": [{"port": 80, "targetPort": 8080}]})).with_pods(pods(1, 1));
    world.endpoints = Some(stored(
        json!({"metadata": {"labels": null, "annotations": {"mine": "stays"}, "finalizers": ["f"]},
               "subsets": [{"addresses": [{"ip": "6.7.8.9"}], "ports": [{"port": 1000, "protocol": "TCP"}]}]}),
    ));
    let EndpointsPlan::Update(written) = world.sync().endpoints else { panic!("an update") };
    assert_eq!(written.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(written.metadata.annotations.as_ref().unwrap()["mine"], "stays");
    assert_eq!(written.metadata.finalizers, Some(vec!["f".to_owned()]));
    assert_eq!(
        written.subsets,
        subsets(
            json!([{"addresses": [{"ip": "10.0.0.1", "nodeName": "n1", "targetRef": reference("pod-0001")}],
                        "ports": [{"port": 8080, "protocol": "TCP"}]}])
        )
    );
}

#[test]
fn special_labels_of_the_service_do_not_cause_endless_writes() {
    let mut world = world(json!({}));
    let labels = &mut world.service_mut().labels;
    labels.insert("endpoints.kubernetes.io/managed-by".into(), "somebody".into());
    labels.insert("service.kubernetes.io/headless".into(), String::new().into());
    world.sync();
    let labels = world.endpoints.as_ref().unwrap().metadata.labels.as_ref().unwrap();
    assert_eq!(labels["endpoints.kubernetes.io/managed-by"], "endpoint-controller");
    assert!(!labels.contains_key("service.kubernetes.io/headless"));
}

#[test]
fn headless_service_is_labelled_and_may_have_no_ports() {
    let mut world =
        world(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": null})).with_pods(pods(1, 1));
    world.sync();
    let endpoints = world.endpoints.as_ref().unwrap();
    assert_eq!(endpoints.metadata.labels.as_ref().unwrap()["service.kubernetes.io/headless"], "");
    assert_eq!(addresses(endpoints), (vec!["10.0.0.1"], vec![]));
    assert_eq!(endpoints.subsets[0].ports, []);
}

#[test]
fn service_without_ports_and_not_headless_stays_empty() {
    let mut world = world(json!({"ports": null})).with_pods(pods(1, 1));
    let plan = world.sync();
    assert_eq!(world.endpoints.unwrap().subsets, []);
    assert_eq!(plan.notes[0].kind, NoteKind::NoServicePorts);
}

#[test]
fn addresses_are_written_canonically() {
    let mut world = world(json!({})).with_pods([pod("a", "web", "n1", "010.001.000.1")]);
    world.sync();
    assert_eq!(addresses(world.endpoints.as_ref().unwrap()).0, ["10.1.0.1"]);
}

#[test]
fn pod_without_node_has_no_node_name() {
    let unscheduled = Pod { node: None, ..pods(1, 1).remove(0) };
    let mut world = world(json!({})).with_pods([unscheduled]);
    world.sync();
    let address = &world.endpoints.as_ref().unwrap().subsets[0].addresses[0];
    assert_eq!(serde_json::to_value(address).unwrap().get("nodeName"), None);
}

#[test]
fn hostname_is_that_of_the_services_subdomain() {
    let named = json!({"spec": {"hostname": "h", "subdomain": "web"}});
    let mut world = world(json!({})).with_pods([pod_with("a", "web", "n1", "10.0.0.1", named)]);
    world.sync();
    assert_eq!(world.endpoints.as_ref().unwrap().subsets[0].addresses[0].hostname, "h");
}

#[test]
fn trigger_time_is_written_and_cleared_with_the_next_write() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    let annotation = |world: &World| {
        let metadata = &world.endpoints.as_ref().unwrap().metadata;
        metadata.annotations.as_ref()?.get("endpoints.kubernetes.io/last-change-trigger-time").cloned()
    };
    world.triggers.endpoints = Some(at(1_767_225_600));
    world.sync();
    assert_eq!(annotation(&world).as_deref(), Some("2026-01-01T00:00:00Z"));
    world.triggers.endpoints = None;
    assert!(world.plan().is_empty(), "a trigger time alone is no reason to write");
    world.pods = pods(1, 2);
    world.sync();
    assert_eq!(annotation(&world), None);
}

#[test]
fn endpoints_without_service_are_deleted_only_if_they_are_ours() {
    let leader = json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}});
    let foreign = json!({"metadata": {"labels": {"endpoints.kubernetes.io/managed-by": null}}});
    for (patch, deleted) in [(json!({}), true), (leader, false), (foreign, false)] {
        let mut world = world(json!({}));
        world.service = None;
        world.endpoints = Some(stored(patch));
        let plan = world.sync();
        assert_eq!(matches!(plan.endpoints, EndpointsPlan::Delete(_)), deleted);
        if let EndpointsPlan::Delete(gone) = plan.endpoints {
            assert_eq!(
                (gone.uid.as_deref(), gone.resource_version.as_deref()),
                (Some("uid-endpoints"), Some("7"))
            );
        }
    }
}

#[test]
fn service_being_deleted_gets_updates_but_no_new_object() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.service = world.service.map(|service| Service { terminating: true, ..service });
    assert!(world.plan().is_empty());
    world.endpoints = Some(stored(json!({})));
    assert!(matches!(world.sync().endpoints, EndpointsPlan::Update(_)));
}

#[test]
fn ports_added_and_removed_change_the_subsets_each_time() {
    let mut world =
        world(json!({"ports": [{"name": "a", "port": 80, "targetPort": 8080}]})).with_pods(pods(1, 2));
    world.sync();
    let first = world.endpoints.clone().unwrap().subsets;
    let other = service(
        "web",
        json!({"ports": [{"name": "a", "port": 80, "targetPort": 8080},
                                               {"name": "b", "port": 81, "targetPort": "missing"},
                                               {"name": "c", "port": 82, "targetPort": "http"}]}),
    );
    world.service_mut().ports = other.ports;
    let plan = world.sync();
    let numbers: Vec<_> = world.endpoints.as_ref().unwrap().subsets.iter().map(|s| s.ports.len()).collect();
    assert_eq!(numbers, [2]);
    assert_eq!(plan.notes.iter().filter(|note| note.reason() == "PortNotFound").count(), 2);
    world.service_mut().ports.truncate(1);
    world.sync();
    assert_eq!(world.endpoints.unwrap().subsets, first);
}

#[test]
fn pods_that_name_different_numbers_are_in_different_subsets() {
    let other = json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 9090}]}]}});
    let mut world = world(json!({"ports": [{"port": 80, "targetPort": "http"}]}))
        .with_pods([pod("a", "web", "n1", "10.0.0.1"), pod_with("b", "web", "n1", "10.0.0.2", other)]);
    world.sync();
    let mut found: Vec<_> = world
        .endpoints
        .iter()
        .flat_map(|e| &e.subsets)
        .map(|s| (s.ports[0].port, s.addresses[0].ip.as_str()))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(8080, "10.0.0.1"), (9090, "10.0.0.2")]);
}
