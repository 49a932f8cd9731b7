//! The checker finds what is wrong with a plan: one damaged plan per invariant.

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use fairlead_objects::{
    Service,
    builders::{node, service},
};
use fairlead_planner::{EndpointsPlan, Invariant, Parts, Plan, check};
use serde_json::json;
use world::{ENDPOINTS, World, pods};

/// What the checker says of a plan after it was damaged.
fn findings(world: &World, damage: impl FnOnce(&mut Plan)) -> Vec<Invariant> {
    let mut plan = world.plan();
    damage(&mut plan);
    let mut found: Vec<Invariant> =
        world.with_input(|input| check(&plan, input)).iter().map(|finding| finding.invariant).collect();
    found.dedup();
    found
}

fn fresh() -> World {
    World::new(service("web", json!({}))).with_pods(pods(1, 3))
}

/// Written once, and about to be written again because a Pod is gone.
fn changed() -> World {
    let mut world = fresh();
    world.sync();
    world.pods.truncate(2);
    world
}

#[test]
fn endpoint_that_is_lost_or_doubled_is_found() {
    assert_eq!(findings(&fresh(), |plan| plan.slices.create[0].endpoints.truncate(2)), [Invariant::Coverage]);
    let twice = |plan: &mut Plan| {
        let mut twin = plan.slices.create[0].clone();
        twin.metadata.name = Some("web-twin".to_owned());
        plan.slices.create.push(twin);
    };
    assert_eq!(findings(&fresh(), twice), [Invariant::Coverage]);
    let forgotten = |plan: &mut Plan| plan.endpoints = EndpointsPlan::Keep;
    assert_eq!(findings(&fresh(), forgotten), [Invariant::Coverage]);
}

#[test]
fn wrong_names_versions_and_labels_are_found() {
    let unnamed = |plan: &mut Plan| plan.slices.create[0].metadata.name = None;
    assert_eq!(findings(&fresh(), unnamed), [Invariant::NewNames]);
    let unversioned = |plan: &mut Plan| plan.slices.update[0].metadata.resource_version = None;
    assert_eq!(findings(&changed(), unversioned), [Invariant::VersionsKept]);
    let unlabelled = |plan: &mut Plan| plan.slices.update[0].metadata.labels = None;
    assert_eq!(
        findings(&changed(), unlabelled),
        [Invariant::Labelled, Invariant::Coverage, Invariant::Placeholder]
    );
    let converted =
        |plan: &mut Plan| plan.slices.update[0].address_type = fairlead_objects::AddressType::IPv6;
    let found = findings(&changed(), converted);
    assert!(found.contains(&Invariant::ImmutableKept) && found.contains(&Invariant::OneAddressType));
}

#[test]
fn foreign_objects_that_are_touched_are_found() {
    let mut world = changed();
    let mut foreign = world.slices[0].clone();
    foreign.metadata.name = Some("web-foreign".to_owned());
    foreign.metadata.labels = Some([("kubernetes.io/service-name".to_owned(), "web".to_owned())].into());
    world.slices.push(foreign.clone());
    let delete = |plan: &mut Plan| plan.slices.delete.push((&foreign.metadata).into());
    assert_eq!(findings(&world, delete), [Invariant::OnlyOurs]);
}

#[test]
fn slices_that_grow_too_large_are_found() {
    let mut world = fresh();
    world.limits.endpoints_per_slice = 2;
    let merge = |plan: &mut Plan| {
        let second = plan.slices.create.remove(1);
        plan.slices.create[0].endpoints.extend(second.endpoints);
    };
    assert_eq!(findings(&world, merge), [Invariant::SizeLimit]);
}

#[test]
fn what_no_api_server_takes_is_found() {
    let special =
        |plan: &mut Plan| plan.slices.create[0].endpoints[0].addresses = vec!["127.0.0.1".to_owned()];
    assert_eq!(findings(&fresh(), special), [Invariant::Acceptable, Invariant::Coverage]);
    let twin = |plan: &mut Plan| {
        let port = plan.slices.create[0].ports[0].clone();
        plan.slices.create[0].ports.push(port);
    };
    assert_eq!(findings(&fresh(), twin), [Invariant::Acceptable, Invariant::Coverage]);
    let hollow = |plan: &mut Plan| {
        let EndpointsPlan::Create(endpoints) = &mut plan.endpoints else { panic!("to be created") };
        endpoints.subsets.push(fairlead_objects::EndpointSubset::default());
    };
    assert_eq!(findings(&fresh(), hollow), [Invariant::Acceptable]);
}

#[test]
fn writes_of_a_part_that_is_off_are_found() {
    let mut world = fresh().only(ENDPOINTS);
    let plan = world.plan();
    world.parts = Parts { endpoints: false, ..ENDPOINTS };
    assert_eq!(findings(&world, |damaged| *damaged = plan), [Invariant::OnlyPartsThatAreOn]);
}

#[test]
fn topology_hints_for_a_part_of_a_family_are_found() {
    let mut world = fresh();
    world.nodes.as_mut().unwrap().insert("n2".into(), node("n2", "192.168.0.2", "z2"));
    world.service_mut().annotations.insert("service.kubernetes.io/topology-mode".into(), "Auto".into());
    world.pods.truncate(2);
    world.pods[1].node = Some("n2".into());
    assert_eq!(findings(&world, |_| {}), []);
    let lost = |plan: &mut Plan| plan.slices.create[0].endpoints[0].hints = None;
    assert_eq!(findings(&world, lost), [Invariant::HintedWhole]);
    let forgotten = |plan: &mut Plan| plan.topology.hinted.clear();
    assert_eq!(findings(&world, forgotten), [Invariant::HintedWhole]);
}

#[test]
fn creation_for_a_service_being_deleted_is_found() {
    let mut world = fresh();
    let plan = world.plan();
    world.service = world.service.map(|service| Service { terminating: true, ..service });
    assert_eq!(findings(&world, |damaged| *damaged = plan), [Invariant::NoCreationWhileTerminating]);
}
