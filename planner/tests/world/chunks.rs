//! Worlds whose slices are packed in a given way, for the tests of packing.

use fairlead_objects::{
    EndpointSlice, Service,
    builders::{merge, object, service},
};
use fairlead_planner::Limits;
use serde_json::{Value, json};

use crate::world::{SLICES, World, pods};

pub(crate) fn web() -> Service {
    service("web", json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}))
}

pub(crate) fn world(count: usize) -> World {
    World::new(web()).with_pods(pods(0, count)).only(SLICES)
}

/// A world whose slices hold the Pods in chunks of these sizes, each with `patch` merged into it.
pub(crate) fn chunked(sizes: &[usize], patch: &Value) -> World {
    let mut world = world(sizes.iter().sum());
    world.limits = Limits { endpoints_per_slice: 1000, ..Limits::default() };
    let made = world.plan().slices.create.remove(0);
    let mut endpoints = made.endpoints.clone().into_iter();
    let chunk = |(i, size): (usize, &usize)| {
        let mut slice = serde_json::to_value(&made).unwrap();
        let name = json!({"name": format!("web-{i}"), "uid": format!("uid-{i}"), "resourceVersion": "1"});
        merge(&mut slice, json!({"metadata": name}));
        merge(&mut slice, patch.clone());
        EndpointSlice { endpoints: endpoints.by_ref().take(*size).collect(), ..object(slice) }
    };
    world.slices = sizes.iter().enumerate().map(chunk).collect();
    world.limits = Limits::default();
    world
}
