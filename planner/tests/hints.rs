//! Hints of trafficDistribution: upstream's trafficdist tests, as data.

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use std::sync::Arc;

use fairlead_objects::{
    Endpoint, ForName, Hints,
    builders::{node, pod, service},
};
use serde_json::{Value, json};
use world::{SLICES, World, actions};

fn world(spec: Value) -> World {
    let mut world = World::new(service("web", spec)).only(SLICES).with_pods([
        pod("a", "web", "n1", "10.0.0.1"),
        pod("b", "web", "n2", "10.0.0.2"),
        pod("c", "web", "bare", "10.0.0.3"),
    ]);
    let nodes = world.nodes.as_mut().unwrap();
    nodes.insert(Arc::from("n2"), node("n2", "192.168.0.2", "z2"));
    nodes.insert(Arc::from("bare"), node("bare", "192.168.0.3", ""));
    world.pods[1].ready = true;
    world
}

fn hints(world: &World) -> Vec<(Vec<&str>, Vec<&str>)> {
    fn names(names: &[ForName]) -> Vec<&str> {
        names.iter().map(|name| name.name.as_str()).collect()
    }
    let of = |endpoint: &'_ Endpoint| endpoint.hints.is_some();
    assert!(
        world.slices[0]
            .endpoints
            .iter()
            .filter(|e| of(e))
            .all(|e| e.hints.as_deref() != Some(&Hints::default()))
    );
    world.slices[0]
        .endpoints
        .iter()
        .map(|endpoint| {
            endpoint.hints.as_deref().map_or((vec![], vec![]), |h| (names(&h.for_zones), names(&h.for_nodes)))
        })
        .collect()
}

#[test]
fn ready_endpoints_prefer_their_zone_or_node() {
    let nothing = || (vec![], vec![]);
    for (distribution, expected) in [
        (json!("PreferClose"), [(vec!["z1"], vec![]), (vec!["z2"], vec![]), nothing()]),
        (json!("PreferSameZone"), [(vec!["z1"], vec![]), (vec!["z2"], vec![]), nothing()]),
        (
            json!("PreferSameNode"),
            [(vec!["z1"], vec!["n1"]), (vec!["z2"], vec!["n2"]), (vec![], vec!["bare"])],
        ),
        (json!("PreferElsewhere"), [nothing(), nothing(), nothing()]),
        (json!(null), [nothing(), nothing(), nothing()]),
    ] {
        let mut world = world(json!({"trafficDistribution": distribution}));
        world.sync();
        assert_eq!(hints(&world), expected, "{distribution}");
    }
}

#[test]
fn endpoints_that_are_not_ready_have_no_hints_and_cause_no_writes() {
    let mut world = world(json!({"trafficDistribution": "PreferClose"}));
    world.pods[0].ready = false;
    world.sync();
    assert_eq!(hints(&world)[0], (vec![], vec![]));
    let stale = Hints { for_zones: vec![ForName { name: "z9".to_owned() }], for_nodes: vec![] };
    world.slices[0].endpoints[0].hints = Some(Box::new(stale));
    assert!(world.plan().is_empty());
}

#[test]
fn wrong_hints_are_repaired_and_right_ones_left_alone() {
    let mut world = world(json!({"trafficDistribution": "PreferClose"}));
    world.sync();
    let right = hints(&world).iter().map(|(z, n)| (z.join(","), n.join(","))).collect::<Vec<_>>();
    for wrong in [
        None,
        Some(Hints { for_zones: vec![ForName { name: "z2".to_owned() }], for_nodes: vec![] }),
        Some(Hints {
            for_zones: vec![ForName { name: "z1".to_owned() }],
            for_nodes: vec![ForName { name: "n1".to_owned() }],
        }),
    ] {
        world.slices[0].endpoints[0].hints = wrong.map(Box::new);
        assert_eq!(actions(&world.sync().slices), (0, 1, 0));
        assert_eq!(hints(&world).iter().map(|(z, n)| (z.join(","), n.join(","))).collect::<Vec<_>>(), right);
    }
}

#[test]
fn hints_go_when_the_distribution_goes() {
    let mut world = world(json!({"trafficDistribution": "PreferClose"}));
    world.sync();
    world.service_mut().traffic_distribution = None;
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    assert!(world.slices[0].endpoints.iter().all(|endpoint| endpoint.hints.is_none()));
}

#[test]
fn topology_annotation_has_precedence_and_is_reported() {
    let mut world = world(json!({"trafficDistribution": "PreferClose"}));
    let annotations = &mut world.service_mut().annotations;
    annotations.insert("service.kubernetes.io/topology-mode".into(), "Auto".into());
    let plan = world.sync();
    assert!(world.slices[0].endpoints.iter().all(|endpoint| endpoint.hints.is_none()));
    assert!(plan.notes.iter().any(|note| note.reason() == "TopologyAwareHintsDisabled"));
    let annotations = &mut world.service_mut().annotations;
    annotations.insert("service.kubernetes.io/topology-aware-hints".into(), "disabled".into());
    world.sync();
    assert!(world.slices[0].endpoints[0].hints.is_some(), "the deprecated annotation wins");
}
