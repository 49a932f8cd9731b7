//! Syncs of the endpointslice controller.

use fairlead_objects::{
    Conditions, EndpointSlice, Pod, Service,
    builders::{merge, object, pod, pod_with, service},
};
use fairlead_planner::{NoteKind, TriggerTimes, selects};
use serde_json::{Value, json};

use crate::{
    rows,
    world::{SLICES, World, actions, at, pods},
};

fn world(spec: Value) -> World {
    World::new(service("web", spec)).only(SLICES)
}

/// A slice that we made for the Pods of `world`.
fn ours(world: &World) -> EndpointSlice {
    let mut world = world.clone();
    world.sync();
    world.slices.remove(0)
}

fn patched(slice: &EndpointSlice, patch: Value) -> EndpointSlice {
    let mut value = serde_json::to_value(slice).unwrap();
    merge(&mut value, patch);
    object(value)
}

#[test]
fn TestSyncServiceNoSelector() {
    assert!(world(json!({"selector": null})).with_pods(pods(1, 1)).plan().is_empty());
}

#[test]
fn TestServiceExternalNameTypeSync() {
    let kinds = [
        ("selector and ports", json!({})),
        ("ports", json!({"selector": null})),
        ("selector", json!({"ports": null})),
        ("neither", json!({"selector": null, "ports": null})),
    ];
    let existing = ours(&world(json!({})).with_pods(pods(1, 1)));
    for (case, mut spec) in rows("TestServiceExternalNameTypeSync", kinds) {
        spec["type"] = json!("ExternalName");
        let mut world = world(spec).with_pods(pods(1, 1));
        world.slices = vec![existing.clone()];
        assert!(world.plan().is_empty(), "{case}");
    }
}

#[test]
fn TestSyncServicePendingDeletion() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.service_mut().terminating = true;
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncServiceWithSelector() {
    let mut world = world(json!({}));
    world.triggers.slices = Some(at(1_767_225_600));
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (1, 0, 0));
    let made = &plan.slices.create[0];
    assert!(made.metadata.name.as_ref().unwrap().starts_with("web-"));
    assert!(made.endpoints.is_empty() && made.ports.is_empty());
    assert_eq!(made.label("kubernetes.io/service-name"), Some("web"));
    assert_eq!(made.label("endpointslice.kubernetes.io/managed-by"), Some("endpointslice-controller.k8s.io"));
    let annotations = made.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["endpoints.kubernetes.io/last-change-trigger-time"], "2026-01-01T00:00:00Z");
}

#[test]
fn TestSyncServiceMissing() {
    let mut world = world(json!({}));
    world.service = None;
    assert!(world.plan().is_empty());
    let (mut times, other) = (TriggerTimes::default(), service("other", json!({})));
    times.next(&other, &[]);
    times.forget(&world.key);
    assert_eq!(times.next(&other, &[]), None, "other Services are remembered");
    // Deviation: upstream leaves its slices to the garbage collector.
    let mut orphaned = world.clone();
    orphaned.slices = vec![ours(&self::world(json!({})))];
    assert_eq!(actions(&orphaned.sync().slices), (0, 0, 1));
}

#[test]
fn TestSyncServicePodSelection() {
    let all = [pod("pod1", "web", "n1", "10.0.0.1"), pod("pod2", "other", "n1", "10.0.0.2")];
    let mut world = world(json!({}));
    let selector = world.service_mut().selector.clone().unwrap();
    world.pods = all.into_iter().filter(|pod| selects(&selector, &pod.labels)).collect();
    world.sync();
    let [endpoint] = &world.slices[0].endpoints[..] else { panic!("one endpoint") };
    let target = endpoint.target_ref.as_ref().unwrap();
    assert_eq!(
        [&*target.kind, &target.namespace, &target.name, &target.uid],
        ["Pod", "default", "pod1", "uid-pod1"]
    );
    assert_eq!(target.resource_version, "");
}

fn leaving(slice: &EndpointSlice) -> EndpointSlice {
    patched(slice, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["f"]}}))
}

#[test]
fn TestSyncServiceEndpointSlicePendingDeletion() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.slices = vec![leaving(&ours(&world))];
    let before = world.slices[0].clone();
    assert_eq!(actions(&world.sync().slices), (1, 0, 0));
    assert!(world.slices.contains(&before), "it is neither written nor deleted");
    assert!(world.plan().is_empty());
}

#[test]
fn Test_dropEndpointSlicesPendingDeletion() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    let kept = ours(&world);
    let gone = leaving(&patched(&kept, json!({"metadata": {"name": "web-gone"}})));
    world.slices = vec![gone, kept];
    let plan = world.plan();
    assert!(plan.is_empty());
    assert_eq!(plan.slices.unchanged, 1);
}

#[test]
fn TestSyncServiceEndpointSliceLabelSelection() {
    let mut world = world(json!({}));
    let right = ours(&world.clone().with_pods(pods(1, 1)));
    let named = |name: &str, manager: Value, of: &str| {
        let labels =
            json!({"kubernetes.io/service-name": of, "endpointslice.kubernetes.io/managed-by": manager});
        patched(&right, json!({"metadata": {"name": name, "labels": labels}}))
    };
    let manager = json!("endpointslice-controller.k8s.io");
    world.slices = vec![
        named("matching-1", manager.clone(), "web"),
        named("matching-2", manager.clone(), "web"),
        named("not-managed", json!(null), "web"),
        named("managed-by-another", json!("somebody"), "web"),
        named("of-another-service", manager, "other"),
    ];
    let untouched = world.slices[2..].to_vec();
    let plan = world.sync().slices;
    let updated: Vec<_> = plan.update.iter().map(|slice| slice.metadata.name.as_deref().unwrap()).collect();
    let deleted: Vec<_> = plan.delete.iter().map(|gone| &*gone.name).collect();
    assert_eq!((plan.create.len(), updated, deleted), (0, vec!["matching-1"], vec!["matching-2"]));
    assert!(untouched.iter().all(|slice| world.slices.contains(slice)));
}

#[test]
fn TestSyncService() {
    // Endpoints as (address, Pod, [ready, serving, terminating]).
    type Expected = Vec<(&'static str, &'static str, [bool; 3])>;
    let dual = |name: &str| {
        let ips = json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
        pod_with(name, "web", "n1", "10.0.0.1", ips)
    };
    let one =
        |ready: bool, terminating: bool| Pod { ready, terminating, ..pod("a", "web", "n1", "10.0.0.1") };
    let twin = |phase: &str| pod_with("b", "web", "n1", "10.0.0.1", json!({"status": {"phase": phase}}));
    let v4 = json!({"ipFamilies": ["IPv4"]});
    let v6 = json!({"ipFamilies": ["IPv6"], "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]});
    let serving = [true, true, false];
    let cases: [(&str, Value, Vec<Pod>, Expected); 6] = [
        ("v4 of dual", v4.clone(), vec![dual("a")], vec![("10.0.0.1", "a", serving)]),
        ("v6 of dual", v6, vec![dual("a")], vec![("fd00::1", "a", serving)]),
        (
            "terminating, ready",
            v4.clone(),
            vec![one(true, true)],
            vec![("10.0.0.1", "a", [false, true, true])],
        ),
        (
            "terminating, not ready",
            v4.clone(),
            vec![one(false, true)],
            vec![("10.0.0.1", "a", [false, false, true])],
        ),
        (
            "shared with a completed pod",
            v4.clone(),
            vec![one(true, false), twin("Succeeded")],
            vec![("10.0.0.1", "a", serving)],
        ),
        (
            "shared by two",
            v4,
            vec![one(true, false), twin("Running")],
            vec![("10.0.0.1", "a", serving), ("10.0.0.1", "b", serving)],
        ),
    ];
    for (case, spec, pods, expected) in rows("TestSyncService", cases) {
        let mut world = world(spec).with_pods(pods);
        world.sync();
        let state = |c: Conditions| [c.ready, c.serving, c.terminating].map(Option::unwrap);
        let found: Vec<_> = world.slices[0]
            .endpoints
            .iter()
            .map(|e| (&*e.addresses[0], &*e.target_ref.as_ref().unwrap().name, state(e.conditions)))
            .collect();
        assert_eq!(found, expected, "{case}");
    }
}

#[test]
fn TestReconcilerFinalizeSvcDeletionTimestamp() {
    // Whether the Service is being deleted, what changes, and creates, updates and deletes.
    type Change = fn(&mut World);
    type Case<'a> = (&'a str, bool, Change, (usize, usize, usize));
    let twin: Change = |world| {
        let twin = patched(&world.slices[0], json!({"metadata": {"name": "web-twin"}}));
        world.slices.push(twin);
    };
    let port: Change = |world| world.service_mut().ports[0].target = fairlead_objects::TargetPort::Number(81);
    let cases: [Case<'_>; 5] = [
        ("creates happen otherwise", false, |world| world.slices.clear(), (1, 0, 0)),
        ("no creates", true, |world| world.slices.clear(), (0, 0, 0)),
        ("updates go on", true, |world| world.pods[0].ready = false, (0, 1, 0)),
        ("deletes go on", true, twin, (0, 0, 1)),
        ("recycling goes on", true, port, (0, 1, 0)),
    ];
    for (case, terminating, change, expected) in rows("TestReconcilerFinalizeSvcDeletionTimestamp", cases) {
        let mut world = world(json!({})).with_pods(pods(1, 1));
        world.sync();
        world.service = world.service.map(|service| Service { terminating, ..service });
        change(&mut world);
        assert_eq!(actions(&world.sync().slices), expected, "{case}");
    }
}

#[test]
fn TestReconcilerPodMissingNode() {
    // Whether Pods are published regardless, whether a slice exists, which Nodes do, endpoints left, whether Pods wait.
    let cases = [
        (false, true, vec!["n1"], 1, true),
        (false, true, vec![], 0, true),
        (false, false, vec!["n1"], 1, true),
        (false, false, vec![], 0, true),
        (true, true, vec!["n1"], 2, false),
        (true, false, vec![], 2, false),
    ];
    for (publish, existing, nodes, left, waits) in rows("TestReconcilerPodMissingNode", cases) {
        let mut world = world(json!({"publishNotReadyAddresses": publish}))
            .with_pods([pod("a", "web", "n1", "10.0.0.1"), pod("b", "web", "n2", "10.0.0.2")]);
        let all =
            ["n1", "n2"].map(|name| (name.into(), fairlead_objects::builders::node(name, "192.168.0.1", "")));
        world.nodes = Some(all.into());
        if existing {
            world.sync();
        }
        world.nodes.as_mut().unwrap().retain(|name, _| nodes.contains(&&**name));
        let plan = world.sync();
        assert_eq!(world.sizes(), [left], "{publish} {existing} {nodes:?}");
        assert_eq!(plan.needs_retry(), waits);
        let unknown = plan.notes.iter().filter(|note| matches!(note.kind, NoteKind::NodeUnknown(_))).count();
        assert_eq!(unknown, if publish { 0 } else { 2 - nodes.len() });
    }
}
