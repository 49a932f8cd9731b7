//! The reconciler's other tests: placeholders, address types, labels.

use fairlead_objects::{
    AddressType, EndpointSlice,
    builders::{merge, object, pod_with, service},
};
use serde_json::{Value, json};

use crate::{
    rows,
    world::{SLICES, World, actions, pods},
};

fn world(spec: Value) -> World {
    World::new(service("web", spec)).only(SLICES)
}

#[test]
fn TestReconcileEmpty() {
    let mut world = world(json!({}));
    let plan = world.sync().slices;
    assert_eq!((actions(&plan), plan.desired_slices, world.sizes()), ((1, 0, 0), 1, vec![0]));
}

#[test]
fn TestReconcile1Pod() {
    let v4 = || vec![(AddressType::IPv4, "10.0.0.1".to_owned())];
    let v6 = || vec![(AddressType::IPv6, "fd00::1".to_owned())];
    let by_v6 = json!({"clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]});
    let without = |mut spec: Value| {
        spec["ipFamilies"] = json!(null);
        spec
    };
    let families = |mut spec: Value, families: Value| {
        spec["ipFamilies"] = families;
        spec
    };
    let forged = json!({"kubernetes.io/service-name": "bad", "endpointslice.kubernetes.io/managed-by": "bad",
                        "service.kubernetes.io/headless": "bad"});
    let none = json!({});
    // Deviation: "no families" is a headless Service with both address types upstream, because its cluster IP is empty;
    // for us it is an object that no API server has seen, with the family of its Pods.
    let no_families = json!({"ipFamilies": null, "clusterIP": null, "clusterIPs": null});
    let cases = [
        ("no families", no_families, none.clone(), v4(), none.clone()),
        ("v4", json!({}), none.clone(), v4(), none.clone()),
        ("cluster IP of v4", without(json!({})), none.clone(), v4(), none.clone()),
        ("labels", json!({}), json!({"foo": "bar"}), v4(), json!({"foo": "bar"})),
        ("bad labels", json!({}), forged, v4(), none.clone()),
        ("v6", families(by_v6.clone(), json!(["IPv6"])), none.clone(), v6(), none.clone()),
        ("cluster IP of v6", without(by_v6), none.clone(), v6(), none.clone()),
        (
            "dual stack",
            families(json!({}), json!(["IPv6", "IPv4"])),
            none.clone(),
            v4().into_iter().chain(v6()).collect(),
            none,
        ),
    ];
    let ips = json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
    for (case, spec, labels, expected, copied) in rows("TestReconcile1Pod", cases) {
        let mut world = world(spec).with_pods([pod_with("a", "web", "n1", "", ips.clone())]);
        world.service_mut().labels = object(labels);
        world.sync();
        let mut found: Vec<_> = world
            .slices
            .iter()
            .map(|s| (s.address_type.clone(), s.endpoints[0].addresses.join(",")))
            .collect();
        found.sort();
        assert_eq!(found, expected, "{case}");
        let mut wanted = json!({"kubernetes.io/service-name": "web",
                                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"});
        merge(&mut wanted, copied);
        for slice in &world.slices {
            assert_eq!(json!(slice.metadata.labels), wanted, "{case}");
        }
    }
}

/// What a placeholder becomes with a patch, and the writes that follow.
fn placeholder(patch: Option<Value>) -> (usize, usize, usize) {
    let mut world = world(json!({}));
    world.service_mut().labels.insert("foo".into(), "bar".into());
    if let Some(patch) = patch {
        world.sync();
        let mut stored = serde_json::to_value(&world.slices[0]).unwrap();
        merge(&mut stored, patch);
        world.slices = vec![object::<EndpointSlice>(stored)];
    }
    actions(&world.sync().slices)
}

#[test]
fn TestReconcile1EndpointSlice() {
    let cases = [
        ("none", None, (1, 0, 0)),
        ("the same", Some(json!({})), (0, 0, 0)),
        ("another", Some(json!({"ports": [{"name": "x", "port": 1, "protocol": "TCP"}]})), (0, 1, 0)),
    ];
    for (case, patch, expected) in rows("TestReconcile1EndpointSlice", cases) {
        assert_eq!(placeholder(patch), expected, "{case}");
    }
}

#[test]
fn TestPlaceHolderSliceCompare() {
    let endpoint = json!([{"addresses": ["10.0.0.9"], "conditions": {}}]);
    let port = json!([{"name": "x", "port": 1, "protocol": "TCP"}]);
    let (kept, rewritten) = ((0, 0, 0), (0, 1, 0));
    let cases = [
        ("the same", json!({}), kept),
        ("lists that are null", json!({"endpoints": null, "ports": null}), kept),
        ("lists that are empty", json!({"endpoints": [], "ports": []}), kept),
        ("another name", json!({"metadata": {"name": "web-other"}}), kept),
        (
            "another time of creation",
            json!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}}),
            kept,
        ),
        ("a label less", json!({"metadata": {"labels": {"foo": null}}}), rewritten),
        ("a label more", json!({"metadata": {"labels": {"baz": "x"}}}), rewritten),
        ("an endpoint", json!({"endpoints": endpoint}), rewritten),
        ("a port", json!({"ports": port}), rewritten),
        // Deviation: upstream lets a placeholder be that lacks this label, or has it wrongly.
        (
            "headless wrongly",
            json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}),
            rewritten,
        ),
        // Deviation: upstream lets a placeholder be that an earlier Service of the same name owned.
        ("another owner", json!({"metadata": {"ownerReferences": null}}), (1, 0, 1)),
        ("another type", json!({"addressType": "IP"}), (1, 0, 1)),
    ];
    for (case, patch, expected) in rows("TestPlaceHolderSliceCompare", cases) {
        assert_eq!(placeholder(Some(patch)), expected, "{case}");
    }
}

#[test]
fn TestReconcile1EndpointSlicePublishNotReadyAddresses() {
    let mut world = world(json!({"publishNotReadyAddresses": true})).with_pods(pods(1, 50));
    world.pods[20..].iter_mut().for_each(|pod| pod.ready = false);
    world.sync();
    let endpoints = &world.slices[0].endpoints;
    assert!(endpoints.iter().all(|endpoint| endpoint.conditions.ready == Some(true)));
    let serving = endpoints.iter().filter(|endpoint| endpoint.conditions.serving == Some(true)).count();
    assert_eq!((endpoints.len(), serving), (50, 20));
}

#[test]
fn TestReconcileHeadlessServiceNoPorts() {
    let mut world =
        world(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": null})).with_pods(pods(1, 2));
    world.sync();
    for ports in [json!(null), json!([])] {
        let mut stored = serde_json::to_value(&world.slices[0]).unwrap();
        merge(&mut stored, json!({"ports": ports}));
        world.slices = vec![object(stored)];
        assert!(world.plan().is_empty());
    }
}
