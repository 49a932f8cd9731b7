//! How endpoints are spread over slices, beyond upstream's own tests (`upstream/packing.rs`).

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

#[path = "world/chunks.rs"]
mod chunks;
mod world;

use chunks::{chunked, web};
use serde_json::json;
use world::{SLICES, World, actions, pods};

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
