//! How endpoints are spread over slices: upstream's reconciler tests, by their numbers.

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use fairlead_objects::{
    EndpointSlice, Service,
    builders::{object, pod_with, service},
};
use fairlead_planner::Limits;
use serde_json::{Value, json};
use world::{SLICES, World, actions, pods};

fn web() -> Service {
    service("web", json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}))
}

fn world(count: usize) -> World {
    World::new(web()).with_pods(pods(0, count)).only(SLICES)
}

/// A world whose slices hold the Pods in chunks of these sizes.
fn chunked(sizes: &[usize], patch: &Value) -> World {
    let mut world = world(sizes.iter().sum());
    world.limits = Limits { endpoints_per_slice: 1000, ..Limits::default() };
    let made = world.plan().slices.create.remove(0);
    let mut endpoints = made.endpoints.clone().into_iter();
    world.slices = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| {
            let mut metadata = json!({"metadata": {"name": format!("web-{i}"), "uid": format!("uid-{i}"), "resourceVersion": "1"}});
            fairlead_objects::builders::merge(&mut metadata, patch.clone());
            let mut slice = serde_json::to_value(&made).unwrap();
            fairlead_objects::builders::merge(&mut slice, metadata);
            let slice: EndpointSlice = object(slice);
            EndpointSlice { endpoints: endpoints.by_ref().take(*size).collect(), ..slice }
        })
        .collect();
    world.limits = Limits::default();
    world
}

#[test]
fn many_pods_fill_new_slices_to_the_maximum() {
    let mut world = world(250);
    assert_eq!(actions(&world.sync().slices), (3, 0, 0));
    assert_eq!(world.sizes(), [50, 100, 100]);
}

#[test]
fn slices_never_exceed_the_configured_maximum() {
    for (max, sizes) in [
        (50, vec![50; 5]),
        (80, vec![10, 80, 80, 80]),
        (150, vec![100, 150]),
        (250, vec![250]),
        (500, vec![250]),
    ] {
        let mut world = world(250);
        world.limits.endpoints_per_slice = max;
        world.sync();
        assert_eq!(world.sizes(), sizes);
    }
}

#[test]
fn remainder_goes_into_the_slice_that_it_fills_best() {
    let mut world = chunked(&[62, 61], &json!({}));
    world.pods = pods(0, 250);
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (1, 1, 0));
    assert_eq!(plan.slices.added, 127);
    assert_eq!(plan.slices.update[0].metadata.name.as_deref(), Some("web-0"), "the fuller one");
    assert_eq!(world.sizes(), [61, 89, 100]);
}

#[test]
fn remainder_that_fits_nowhere_gets_a_slice_of_its_own() {
    let mut world = chunked(&[74, 74], &json!({}));
    world.pods = pods(0, 300);
    assert_eq!(actions(&world.sync().slices), (2, 0, 0));
    assert_eq!(world.sizes(), [52, 74, 74, 100]);
}

#[test]
fn full_slice_is_made_rather_than_an_empty_one_filled() {
    let mut world = chunked(&[0, 60], &json!({}));
    world.pods = pods(0, 160);
    assert_eq!(actions(&world.sync().slices), (1, 0, 0));
    assert_eq!(world.sizes(), [0, 60, 100]);
}

#[test]
fn exact_fit_fills_the_slice() {
    let mut world = chunked(&[90, 40], &json!({}));
    world.pods = pods(0, 140);
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    assert_eq!(world.sizes(), [40, 100]);
}

#[test]
fn changed_port_recycles_all_slices() {
    let mut world = world(250);
    world.sync();
    world.service_mut().ports[0].target = fairlead_objects::TargetPort::Number(81);
    assert_eq!(actions(&world.sync().slices), (0, 3, 0));
    assert_eq!(world.sizes(), [50, 100, 100]);
    assert!(world.slices.iter().all(|slice| slice.ports[0].port == Some(81)));
}

#[test]
fn changed_labels_rewrite_all_slices() {
    let mut world = world(250);
    world.sync();
    world.service_mut().labels.insert("foo".into(), "bar".into());
    assert_eq!(actions(&world.sync().slices), (0, 3, 0));
    assert!(world.slices.iter().all(|slice| slice.label("foo") == Some("bar")));
}

#[test]
fn reserved_labels_of_the_service_are_ignored() {
    let mut world = world(250);
    world.sync();
    let labels = &mut world.service_mut().labels;
    for key in [
        "kubernetes.io/service-name",
        "endpointslice.kubernetes.io/managed-by",
        "service.kubernetes.io/headless",
    ] {
        labels.insert(key.into(), "forged".into());
    }
    assert!(world.plan().is_empty());
}

#[test]
fn sparse_slices_stay_until_their_port_changes() {
    let mut world = chunked(&[30; 10], &json!({}));
    assert!(world.plan().is_empty());
    world.service_mut().ports[0].target = fairlead_objects::TargetPort::Number(81);
    assert_eq!(actions(&world.sync().slices), (0, 3, 7));
    assert_eq!(world.sizes(), [100, 100, 100]);
}

#[test]
fn slices_that_are_written_anyway_are_filled_first() {
    // The first Pod of each slice becomes unready, so that both are written.
    let mut world = chunked(&[20, 80], &json!({}));
    world.pods = pods(0, 115);
    world.pods[0].ready = false;
    world.pods[20].ready = false;
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (0, 2, 0));
    assert_eq!((plan.slices.added, plan.slices.updated, plan.slices.removed), (15, 2, 0));
    assert_eq!(world.sizes(), [20, 95]);
}

#[test]
fn slices_of_an_unknown_address_type_are_replaced() {
    let mut world = chunked(&[80, 50], &json!({"addressType": "IP"}));
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (2, 0, 2));
    assert_eq!(world.sizes(), [30, 100]);
}

#[test]
fn slices_of_an_earlier_service_are_replaced() {
    let earlier = json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "earlier"}]}});
    let mut world = chunked(&[10], &earlier);
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (1, 0, 1));
    assert_eq!(world.sizes(), [10]);
    let mut same = chunked(&[10], &json!({}));
    assert!(same.sync().is_empty());
}

#[test]
fn port_name_with_five_numbers_makes_five_slices() {
    let service = service("web", json!({"ports": [{"name": "http", "port": 80, "targetPort": "named"}]}));
    let pods = (0..300).map(|i| {
        let port = 8080 + i % 5;
        let containers =
            json!({"spec": {"containers": [{"ports": [{"name": "named", "containerPort": port}]}]}});
        pod_with(&format!("pod-{i}"), "web", "n1", &format!("10.0.{}.{}", i / 256, i % 256), containers)
    });
    let mut world = World::new(service).with_pods(pods).only(SLICES);
    world.sync();
    assert_eq!(world.sizes(), [60; 5]);
    let mut numbers: Vec<_> = world.slices.iter().filter_map(|slice| slice.ports[0].port).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [8080, 8081, 8082, 8083, 8084]);
}

#[test]
fn fewer_pods_change_only_the_slices_that_held_them() {
    let mut world = world(20);
    let plan = world.sync();
    assert_eq!((plan.slices.added, plan.slices.removed), (20, 0));
    world.pods.truncate(10);
    let plan = world.sync();
    assert_eq!((plan.slices.added, plan.slices.removed), (0, 10));
    assert_eq!(actions(&plan.slices), (0, 1, 0));
}

#[test]
fn endpoint_listed_twice_stays_once() {
    let mut world = chunked(&[10], &json!({}));
    let mut twin = world.slices[0].clone();
    twin.metadata.name = Some("web-9".to_owned());
    twin.endpoints.truncate(3);
    world.slices.push(twin);
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (0, 0, 1));
    assert_eq!(plan.slices.delete[0].name, "web-9");
}

#[test]
fn unwritten_slice_larger_than_a_lowered_maximum_is_left_alone() {
    let mut world = chunked(&[50], &json!({}));
    world.limits.endpoints_per_slice = 20;
    assert!(world.plan().is_empty());
    world.pods = pods(0, 55);
    world.sync();
    assert_eq!(world.sizes(), [5, 50]);
}

#[test]
fn desired_slices_are_counted_as_if_packed_perfectly() {
    let world = chunked(&[30; 10], &json!({}));
    let plan = world.plan();
    assert_eq!(
        (plan.slices.desired_endpoints, plan.slices.desired_slices, plan.slices.unchanged),
        (300, 3, 10)
    );
    let plan = World::new(web()).only(SLICES).plan();
    assert_eq!((plan.slices.desired_endpoints, plan.slices.desired_slices), (0, 1));
}
