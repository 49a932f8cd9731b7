//! Slices mirrored from hand-made Endpoints, beyond upstream's own tests (`upstream/mirror.rs`, `upstream/mirrored.rs`).

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use fairlead_objects::{
    AddressType, Endpoints,
    builders::{merge, object, service, slice},
};
use fairlead_planner::NoteKind;
use serde_json::{Value, json};
use world::{MIRROR, World, actions};

fn at(ips: &[&str]) -> Value {
    ips.iter().map(|ip| json!({"ip": ip})).collect()
}

fn port(number: i32) -> Value {
    json!({"name": format!("p{number}"), "port": number, "protocol": "TCP"})
}

fn endpoints(subsets: Value, patch: Value) -> Endpoints {
    let mut endpoints =
        json!({"metadata": {"namespace": "default", "name": "web", "uid": "uid-ep", "resourceVersion": "3"}});
    endpoints["subsets"] = subsets;
    merge(&mut endpoints, patch);
    object(endpoints)
}

fn world(subsets: Value) -> World {
    let mut world = World::new(service("web", json!({"selector": null}))).only(MIRROR);
    world.endpoints = Some(endpoints(subsets, json!({})));
    world
}

/// Address types and sizes of slices.
type Shape = Vec<(AddressType, usize)>;

/// The shape of all slices, sorted.
fn types(world: &World) -> Shape {
    let mut types: Shape = world.slices.iter().map(|s| (s.address_type.clone(), s.endpoints.len())).collect();
    types.sort();
    types
}

#[test]
fn mirrored_slice_is_a_copy_of_its_endpoints() {
    let address = json!({"ip": "10.0.0.1", "hostname": "h", "nodeName": "n9",
        "targetRef": {"kind": "Thing", "name": "t", "namespace": "default", "apiVersion": "v9", "resourceVersion": "5"}});
    let mut world = world(json!([]));
    world.endpoints = Some(endpoints(
        json!([{"addresses": [address], "notReadyAddresses": at(&["10.0.0.2"]), "ports": [{"port": 80}]}]),
        json!({"metadata": {"labels": {"l": "1", "kubernetes.io/service-name": "forged"}, "annotations": {"a": "1",
            "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z",
            "kubectl.kubernetes.io/last-applied-configuration": "{}"}}}),
    ));
    world.sync();
    let [slice] = &world.slices[..] else { panic!("one slice") };
    let written = serde_json::to_value(slice).unwrap();
    assert_eq!(
        written["endpoints"],
        json!([
        {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "hostname": "h", "nodeName": "n9",
         "targetRef": {"kind": "Thing", "name": "t", "namespace": "default", "apiVersion": "v9", "resourceVersion": "5"}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}])
    );
    assert_eq!(written["ports"], json!([{"name": "", "port": 80, "protocol": "TCP"}]));
    assert_eq!(
        written["metadata"]["labels"],
        json!({"l": "1", "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"})
    );
    assert_eq!(written["metadata"]["annotations"], json!({"a": "1"}));
    assert_eq!(
        written["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Endpoints", "name": "web",
        "uid": "uid-ep", "controller": true, "blockOwnerDeletion": true}])
    );
}

#[test]
fn only_what_may_be_mirrored_is_and_the_rest_is_cleaned_up() {
    let subsets = || json!([{"addresses": at(&["10.0.0.1"]), "ports": [port(80)]}]);
    let skip =
        |value: &str| json!({"metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": value}}});
    let leader = json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": ""}}});
    let selecting = json!({"selector": {"app": "web"}});
    let plain = json!({"selector": null});
    let cases = [
        (json!({}), Some(plain.clone()), true),
        (json!({}), Some(json!({"selector": null, "type": "ExternalName"})), true),
        (skip("true"), Some(plain.clone()), false),
        (skip("invalid"), Some(plain.clone()), true),
        (leader, Some(plain), false),
        (json!({}), Some(selecting), false),
        (json!({}), None, false),
    ];
    for (patch, spec, mirrored) in cases {
        let mut world = world(subsets());
        world.sync();
        assert_eq!(world.slices.len(), 1);
        let foreign = slice("web-manual", "web", 80, &[("10.0.0.9", "n1", true)]);
        world.slices.push(foreign.clone());
        world.endpoints = Some(endpoints(subsets(), patch.clone()));
        world.service = spec.clone().map(|spec| service("web", spec));
        world.sync();
        assert_eq!(world.slices.len(), 1 + usize::from(mirrored), "{patch} {spec:?}");
        assert!(world.slices.contains(&foreign));
    }
    let mut world = world(subsets());
    world.sync();
    world.endpoints = None;
    assert_eq!(actions(&world.sync().mirror), (0, 0, 1));
}

#[test]
fn existing_slice_is_written_only_if_something_differs() {
    let mut right = world(json!([{"addresses": at(&["10.0.0.1"]), "ports": [port(80)]}]));
    right.sync();
    let cases: [(&str, Value, bool); 6] = [
        ("same", json!({}), false),
        (
            "missing label",
            json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by":
            "endpointslicemirroring-controller.k8s.io", "foo": "bar"}}}),
            true,
        ),
        ("extra annotation", json!({"metadata": {"annotations": {"foo": "bar"}}}), true),
        (
            "earlier owner",
            json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Endpoints", "name": "web",
            "uid": "earlier", "controller": true}]}}),
            true,
        ),
        (
            "condition",
            json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]}),
            true,
        ),
        ("finalizer", json!({"metadata": {"finalizers": ["f"]}}), false),
    ];
    for (name, patch, written) in cases {
        let mut world = right.clone();
        let mut stored = serde_json::to_value(&world.slices[0]).unwrap();
        merge(&mut stored, patch);
        world.slices = vec![object(stored)];
        let version = world.slices[0].metadata.resource_version.clone();
        let plan = world.sync();
        assert_eq!(actions(&plan.mirror), (0, usize::from(written), 0), "{name}");
        assert!(plan.mirror.update.iter().all(|slice| slice.metadata.resource_version == version));
        if written {
            let owners = world.slices[0].metadata.owner_references.as_ref().unwrap();
            assert_eq!(
                owners.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>(),
                ["uid-ep"],
                "{name}"
            );
        }
    }
}

#[test]
fn addresses_beyond_the_maximum_are_skipped_and_reported() {
    let mut world = world(json!([
        {"addresses": at(&["10.0.0.1", "10.0.0.2", "bad"]), "notReadyAddresses": at(&["10.0.0.3", "10.0.0.4"]), "ports": [port(80)]},
        {"addresses": at(&["10.0.0.5"]), "ports": [port(81)]}]));
    world.limits.mirrored_per_subset = 3;
    let plan = world.sync();
    assert_eq!(types(&world), [(AddressType::IPv4, 1), (AddressType::IPv4, 3)]);
    let kinds: Vec<_> = plan.notes.iter().map(|note| note.kind.clone()).collect();
    assert_eq!(kinds, [NoteKind::InvalidAddresses(1), NoteKind::TooManyAddresses { max: 3, skipped: 2 }]);
}

#[test]
fn ports_of_one_name_are_mirrored_into_slices_of_their_own() {
    let doubled = json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 82}]);
    let mut world = world(json!([{"addresses": at(&["10.0.0.1"]), "ports": doubled}]));
    world.sync();
    let mut sets: Vec<Vec<i32>> =
        world.slices.iter().map(|slice| slice.ports.iter().filter_map(|port| port.port).collect()).collect();
    sets.sort_by_key(Vec::len);
    assert_eq!(sets.concat().len(), 3, "every port once: {sets:?}");
    assert_eq!(sets.len(), 2, "{sets:?}");
    assert!(sets[1].contains(&82), "{sets:?}");
}

#[test]
fn addresses_that_a_slice_cannot_hold_count_as_invalid() {
    let mut world =
        world(json!([{"addresses": at(&["10.0.0.1", "127.0.0.1", "fe80::1"]), "ports": [port(80)]}]));
    let plan = world.sync();
    assert_eq!(types(&world), [(AddressType::IPv4, 1)]);
    assert_eq!(plan.notes[0].kind, NoteKind::InvalidAddresses(2));
}

#[test]
fn slices_are_recycled_within_their_family_only() {
    let mut world = world(json!([{"addresses": at(&["10.0.0.1"]), "ports": [port(80)]},
                                 {"addresses": at(&["2000::1"]), "ports": [port(81)]}]));
    world.sync();
    world.endpoints = Some(endpoints(
        json!([{"addresses": at(&["10.0.0.1", "2000::1"]), "ports": [port(82)]},
               {"addresses": at(&["2000::2"]), "ports": [port(83)]}]),
        json!({}),
    ));
    let plan = world.sync();
    assert_eq!(actions(&plan.mirror), (1, 2, 0));
    assert_eq!(plan.mirror.create[0].address_type, AddressType::IPv6);
    assert_eq!(types(&world), [(AddressType::IPv4, 1), (AddressType::IPv6, 1), (AddressType::IPv6, 1)]);
}

#[test]
fn surplus_slices_of_a_group_are_deleted() {
    let mut world = world(json!([{"addresses": at(&["10.0.0.1"]), "ports": [port(80)]}]));
    world.sync();
    let mut twin = world.slices[0].clone();
    twin.metadata.name = Some("web-zzzzz".to_owned());
    world.slices.push(twin);
    let plan = world.sync();
    assert_eq!(actions(&plan.mirror), (0, 0, 1));
    assert_eq!(plan.mirror.delete[0].name, "web-zzzzz");
}
