//! Syncs of the mirroring controller.

use fairlead_objects::{
    EndpointSlice, Endpoints,
    builders::{merge, object, service, slice},
};
use serde_json::{Value, json};

use crate::{
    rows,
    world::{MIRROR, World, actions},
};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";

fn endpoints(subsets: Value, metadata: Value) -> Endpoints {
    let mut endpoints =
        json!({"metadata": {"namespace": "default", "name": "web", "uid": "uid-ep", "resourceVersion": "3"}});
    endpoints["subsets"] = subsets;
    merge(&mut endpoints["metadata"], metadata);
    object(endpoints)
}

fn subset(ips: &[&str], port: i32) -> Value {
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"addresses": addresses, "ports": [{"name": "p", "port": port, "protocol": "TCP"}]})
}

fn one() -> Value {
    json!([subset(&["10.0.0.1"], 80)])
}

/// A Service without selector, and its Endpoints.
fn world(subsets: Value, metadata: Value) -> World {
    let mut world = World::new(service("web", json!({"selector": null}))).only(MIRROR);
    world.endpoints = Some(endpoints(subsets, metadata));
    world
}

fn labelled(key: &str, value: &str) -> Value {
    json!({"labels": {key: value}})
}

fn leader() -> Value {
    json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": ""}})
}

#[test]
fn TestSyncEndpoints() {
    // Endpoints with their metadata; the Service; whether a mirrored slice exists; creates, updates, deletes.
    type Case<'a> = (&'a str, Option<Value>, Option<Value>, bool, (usize, usize, usize));
    let skip = |value: &str| labelled("endpointslice.kubernetes.io/skip-mirror", value);
    let (plain, selecting) = (json!({"selector": null}), json!({"selector": {"app": "web"}}));
    let none = json!({});
    let cases: [Case<'_>; 9] = [
        ("Endpoints gone", None, Some(plain.clone()), true, (0, 0, 1)),
        ("no slices yet", Some(none.clone()), Some(plain.clone()), false, (1, 0, 0)),
        ("nothing to do", Some(none.clone()), Some(plain.clone()), true, (0, 0, 0)),
        ("skipped", Some(skip("true")), Some(plain.clone()), true, (0, 0, 1)),
        ("leader election", Some(leader()), Some(plain.clone()), true, (0, 0, 1)),
        ("Service gone", Some(none.clone()), None, true, (0, 0, 1)),
        ("Service with a selector", Some(none.clone()), Some(selecting.clone()), true, (0, 0, 1)),
        ("Service with a selector, no slices", Some(none), Some(selecting), false, (0, 0, 0)),
        ("changed", Some(labelled("foo", "bar")), Some(plain), true, (0, 1, 0)),
    ];
    for (case, metadata, spec, existing, expected) in rows("TestSyncEndpoints", cases) {
        let mut world = world(one(), json!({}));
        if existing {
            world.sync();
        }
        world.endpoints = metadata.map(|metadata| endpoints(one(), metadata));
        world.service = spec.map(|spec| service("web", spec));
        assert_eq!(actions(&world.sync().mirror), expected, "{case}");
    }
}

#[test]
fn TestShouldMirror() {
    let cases = [
        ("plain", json!({}), true),
        ("skip-mirror", labelled("endpointslice.kubernetes.io/skip-mirror", "true"), false),
        (
            "skip-mirror with another value",
            labelled("endpointslice.kubernetes.io/skip-mirror", "invalid"),
            true,
        ),
        ("leader election", leader(), false),
    ];
    for (case, metadata, mirrored) in rows("TestShouldMirror", cases) {
        assert_eq!(!world(one(), metadata).plan().is_empty(), mirrored, "{case}");
    }
}

#[test]
fn TestEndpointSlicesMirroredForService() {
    let labels = |service: Option<&str>, manager: Option<&str>| json!({"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": manager});
    let cases = [
        ("ours", "default", labels(Some("web"), Some(MANAGER)), true),
        ("no labels", "default", labels(None, None), false),
        ("no manager", "default", labels(Some("web"), None), false),
        ("another manager", "default", labels(Some("web"), Some("somebody")), false),
        ("no Service", "default", labels(None, Some(MANAGER)), false),
        ("another Service", "default", labels(Some("other"), Some(MANAGER)), false),
    ];
    for (case, namespace, labels, ours) in rows("TestEndpointSlicesMirroredForService", cases) {
        // What is ours is deleted when the Endpoints are gone.
        let mut world = world(one(), json!({}));
        world.endpoints = None;
        let mut stored = serde_json::to_value(slice("example-1", "web", 80, &[])).unwrap();
        merge(&mut stored, json!({"metadata": {"namespace": namespace, "labels": labels}}));
        world.slices = vec![object(stored)];
        assert_eq!(world.sync().mirror.delete.len(), usize::from(ours), "{case}");
    }
}

#[test]
fn TestRecycleSlices() {
    // Subsets before and after, by address type and port; slices that are created, updated, deleted.
    type Slices<'a> = &'a [(&'a str, i32)];
    type Case<'a> = (&'a str, Slices<'a>, Slices<'a>, (usize, usize, usize));
    let cases: [Case<'_>; 8] = [
        ("nothing", &[], &[], (0, 0, 0)),
        ("one create", &[], &[("10.0.0.1", 80)], (1, 0, 0)),
        ("one delete", &[("10.0.0.1", 80)], &[], (0, 0, 1)),
        ("one of each", &[("10.0.0.1", 80)], &[("10.0.0.1", 81)], (0, 1, 0)),
        ("one of each, other types", &[("10.0.0.1", 80)], &[("2000::1", 81)], (1, 0, 1)),
        (
            "more creates",
            &[("10.0.0.1", 80)],
            &[("10.0.0.1", 81), ("10.0.0.2", 82), ("10.0.0.3", 83)],
            (2, 1, 0),
        ),
        (
            "more deletes",
            &[("10.0.0.1", 80), ("10.0.0.2", 81), ("10.0.0.3", 82)],
            &[("10.0.0.1", 83)],
            (0, 1, 2),
        ),
        // Deviation: upstream may take the wrong one of two creates here.
        ("creates of both types", &[("2000::1", 80)], &[("10.0.0.1", 81), ("2000::1", 82)], (1, 1, 0)),
    ];
    let subsets =
        |slices: Slices<'_>| -> Value { slices.iter().map(|(ip, port)| subset(&[ip], *port)).collect() };
    for (case, before, after, expected) in rows("TestRecycleSlices", cases) {
        let mut world = world(subsets(before), json!({}));
        world.sync();
        let names: Vec<_> = world.slices.iter().map(|slice| slice.metadata.name.clone()).collect();
        world.endpoints = Some(endpoints(subsets(after), json!({})));
        let plan = world.sync().mirror;
        assert_eq!(actions(&plan), expected, "{case}");
        assert!(plan.update.iter().all(|slice| names.contains(&slice.metadata.name)), "{case}");
    }
}

/// The metadata of the slice mirrored from Endpoints with this metadata.
fn mirrored(metadata: Value) -> EndpointSlice {
    let mut world = world(one(), metadata);
    world.sync();
    world.slices.remove(0)
}

#[test]
fn TestNewEndpointSlice() {
    let applied = json!({"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}});
    let timed = json!({"annotations": {"a": "1", "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}});
    let cases = [
        ("nothing to copy", json!({}), json!({}), json!(null)),
        ("labels", labelled("foo", "bar"), json!({"foo": "bar"}), json!(null)),
        ("annotations", json!({"annotations": {"a": "1"}}), json!({}), json!({"a": "1"})),
        ("last applied configuration", applied, json!({}), json!(null)),
        ("trigger time", timed, json!({}), json!({"a": "1"})),
        ("forged labels", labelled("endpointslice.kubernetes.io/managed-by", "bad"), json!({}), json!(null)),
    ];
    for (case, metadata, labels, annotations) in rows("TestNewEndpointSlice", cases) {
        let slice = mirrored(metadata);
        let mut expected =
            json!({"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": MANAGER});
        merge(&mut expected, labels);
        assert_eq!(json!(slice.metadata.labels), expected, "{case}");
        assert_eq!(json!(slice.metadata.annotations), annotations, "{case}");
        assert_eq!(slice.metadata.generate_name.as_deref(), Some("web-"), "{case}");
        let owner = json!({"apiVersion": "v1", "kind": "Endpoints", "name": "web", "uid": "uid-ep",
                           "controller": true, "blockOwnerDeletion": true});
        assert_eq!(json!(slice.metadata.owner_references), json!([owner]), "{case}");
    }
}

#[test]
fn TestAddressToEndpoint() {
    let target = json!({"kind": "Pod", "namespace": "default", "name": "a", "uid": "u", "apiVersion": "v1", "resourceVersion": "5"});
    let address = json!({"ip": "10.0.0.1", "hostname": "foo", "nodeName": "node-abc", "targetRef": target});
    let mut world = world(json!([{"addresses": [address], "ports": [{"port": 80}]}]), json!({}));
    world.sync();
    let expected = json!([{"addresses": ["10.0.0.1"], "hostname": "foo", "nodeName": "node-abc", "targetRef": target,
                           "conditions": {"ready": true}}]);
    assert_eq!(json!(world.slices[0].endpoints), expected);
}
