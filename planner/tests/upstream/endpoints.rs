//! Syncs of the endpoints controller.

use fairlead_objects::{
    EndpointSubset, Endpoints, Pod,
    builders::{merge, object, pod_with, service},
};
use fairlead_planner::{EndpointsPlan, TriggerTimes};
use serde_json::{Value, json};

use crate::{
    rows,
    world::{ENDPOINTS, World, at, pods},
};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

fn world(spec: Value) -> World {
    World::new(service("web", spec)).only(ENDPOINTS)
}

fn headless() -> Value {
    json!({"clusterIP": "None", "clusterIPs": ["None"]})
}

/// Endpoints that we made earlier.
fn ours(patch: Value) -> Endpoints {
    let mut endpoints = json!({"metadata": {"namespace": "default", "name": "web", "uid": "uid-endpoints",
        "resourceVersion": "7", "labels": {MANAGED_BY: "endpoint-controller"}}});
    merge(&mut endpoints, patch);
    object(endpoints)
}

/// Endpoints with one address that no Pod has.
fn theirs() -> Endpoints {
    let subsets = json!([{"addresses": [{"ip": "6.7.8.9"}], "ports": [{"port": 1000, "protocol": "TCP"}]}]);
    ours(json!({"metadata": {"labels": null}, "subsets": subsets}))
}

fn stored(world: &World) -> &Endpoints {
    world.endpoints.as_ref().expect("there are Endpoints")
}

fn labels(world: &World) -> Vec<(&str, &str)> {
    let labels = stored(world).metadata.labels.iter().flatten();
    labels.map(|(key, value)| (&**key, &**value)).collect()
}

/// Ready and other addresses, by their last number.
fn split(world: &World) -> (Vec<&str>, Vec<&str>) {
    fn last(ip: &str) -> &str {
        ip.rsplit_once('.').map_or(ip, |(_, last)| last)
    }
    let subsets = &stored(world).subsets;
    (
        subsets.iter().flat_map(|s| &s.addresses).map(|a| last(&a.ip)).collect(),
        subsets.iter().flat_map(|s| &s.not_ready_addresses).map(|a| last(&a.ip)).collect(),
    )
}

#[test]
fn TestSyncEndpointsItemsPreserveNoSelector() {
    let mut world = world(json!({"selector": null})).with_pods(pods(1, 1));
    world.endpoints = Some(theirs());
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncEndpointsExistingNilSubsets() {
    let mut world = world(json!({}));
    world.endpoints = Some(ours(json!({"subsets": null})));
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncEndpointsExistingEmptySubsets() {
    let mut world = world(json!({}));
    world.endpoints = Some(ours(json!({"subsets": []})));
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncEndpointsWithPodResourceVersionUpdateOnly() {
    let mut world = world(json!({})).with_pods(pods(1, 2));
    world.sync();
    for address in &mut world.endpoints.as_mut().unwrap().subsets[0].addresses {
        address.target_ref.as_mut().unwrap().resource_version = "41".to_owned();
    }
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncEndpointsNewNoSubsets() {
    let mut world = world(json!({}));
    let EndpointsPlan::Create(created) = world.sync().endpoints else { panic!("a creation") };
    assert_eq!(created.subsets, []);
}

fn protocol(protocol: &str) {
    let mut world = world(json!({"ports": [{"port": 80, "targetPort": 8080, "protocol": protocol}]}))
        .with_pods(pods(1, 1));
    world.endpoints = Some(theirs());
    let EndpointsPlan::Update(written) = world.sync().endpoints else { panic!("an update") };
    let [EndpointSubset { ports, .. }] = &written.subsets[..] else { panic!("one subset") };
    assert_eq!((ports.len(), ports[0].port, ports[0].protocol.as_str()), (1, 8080, protocol));
}

#[test]
fn TestSyncEndpointsProtocolTCP() {
    protocol("TCP");
}

#[test]
fn TestSyncEndpointsProtocolUDP() {
    protocol("UDP");
}

#[test]
fn TestSyncEndpointsProtocolSCTP() {
    protocol("SCTP");
}

#[test]
fn TestSyncEndpointsHeadlessServiceLabel() {
    let mut world = world(headless());
    world.endpoints = Some(ours(json!({"metadata": {"labels": {HEADLESS: ""}}})));
    assert!(world.plan().is_empty());
    // Deviation: upstream leaves the Endpoints alone if only this label is missing.
    world.endpoints = Some(ours(json!({})));
    world.sync();
    assert!(labels(&world).contains(&(HEADLESS, "")));
}

#[test]
fn TestSyncServiceExternalNameType() {
    let kinds = [
        ("selector and ports", json!({})),
        ("ports", json!({"selector": null})),
        ("selector", json!({"ports": null})),
        ("neither", json!({"selector": null, "ports": null})),
    ];
    for (case, mut spec) in rows("TestSyncServiceExternalNameType", kinds) {
        spec["type"] = json!("ExternalName");
        let mut world = world(spec).with_pods(pods(1, 1));
        world.endpoints = Some(theirs());
        assert!(world.plan().is_empty(), "{case}");
    }
}

#[test]
fn TestSyncEndpointsProtocolMultiProtocolSamePort() {
    let spec = json!({"ports": [{"name": "t", "port": 80, "targetPort": 8080, "protocol": "TCP"},
                                {"name": "u", "port": 80, "targetPort": 8080, "protocol": "UDP"}]});
    let mut world = world(spec).with_pods(pods(1, 1));
    world.sync();
    let [EndpointSubset { ports, .. }] = &stored(&world).subsets[..] else { panic!("one subset") };
    let mut ports: Vec<_> = ports.iter().map(|port| (port.port, port.protocol.as_str())).collect();
    ports.sort_unstable();
    assert_eq!(ports, [(8080, "TCP"), (8080, "UDP")]);
}

/// No API server stores a selector that is there and empty, but it has a meaning.
fn select_all(ready: [bool; 2]) -> World {
    let mut world = world(json!({})).with_pods(pods(1, 2));
    world.service_mut().selector = Some([].into());
    for (pod, ready) in world.pods.iter_mut().zip(ready) {
        pod.ready = ready;
    }
    world.sync();
    world
}

#[test]
fn TestSyncEndpointsItemsEmptySelectorSelectsAll() {
    assert_eq!(split(&select_all([true, true])), (vec!["1", "2"], vec![]));
}

#[test]
fn TestSyncEndpointsItemsEmptySelectorSelectsAllNotReady() {
    assert_eq!(split(&select_all([false, false])), (vec![], vec!["1", "2"]));
}

#[test]
fn TestSyncEndpointsItemsEmptySelectorSelectsAllMixed() {
    assert_eq!(split(&select_all([true, false])), (vec!["1"], vec!["2"]));
}

#[test]
fn TestSyncEndpointsItemsPreexisting() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.endpoints = Some(theirs());
    let EndpointsPlan::Update(written) = world.sync().endpoints else { panic!("an update") };
    assert_eq!(written.metadata.resource_version.as_deref(), Some("7"));
    assert_eq!(split(&world), (vec!["1"], vec![]));
}

#[test]
fn TestSyncEndpointsItemsPreexistingIdentical() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.sync();
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncEndpointsItemsPreexistingIdenticalUnsorted() {
    let spec = json!({"ports": [{"name": "a", "port": 80, "targetPort": 8080}, {"name": "b", "port": 81, "targetPort": "http"}]});
    let other = json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 9090}]}]}});
    let mut world = world(spec).with_pods(pods(1, 3));
    world.pods.push(pod_with("other", "web", "n1", "10.0.0.9", other));
    world.sync();
    let subsets = &mut world.endpoints.as_mut().unwrap().subsets;
    assert!(subsets.len() > 1);
    subsets.reverse();
    for subset in subsets {
        subset.addresses.reverse();
        subset.ports.reverse();
    }
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncEndpointsItems() {
    let spec = json!({"ports": [{"name": "port0", "port": 80, "targetPort": 8080}, {"name": "port1", "port": 88, "targetPort": 8088}]});
    let mut world = world(spec).with_pods(pods(1, 3));
    let EndpointsPlan::Create(created) = world.sync().endpoints else { panic!("a creation") };
    let [subset] = &created.subsets[..] else { panic!("one subset") };
    assert_eq!(split(&world), (vec!["1", "2", "3"], vec![]));
    let mut names: Vec<_> = subset.ports.iter().map(|port| (port.name.as_str(), port.port)).collect();
    names.sort_unstable();
    assert_eq!(names, [("port0", 8080), ("port1", 8088)]);
}

#[test]
fn TestSyncEndpointsItemsWithLabels() {
    // Deviation: upstream's Services here have no cluster IP at all and count as headless; for us, only "None" counts.
    let mut world = world(headless()).with_pods(pods(1, 3));
    world.service_mut().labels.insert("foo".into(), "bar".into());
    world.sync();
    assert_eq!(labels(&world), [(MANAGED_BY, "endpoint-controller"), ("foo", "bar"), (HEADLESS, "")]);
}

#[test]
fn TestSyncEndpointsItemsPreexistingLabelsChange() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.service_mut().labels.insert("baz".into(), "blah".into());
    world.endpoints = Some(ours(json!({"metadata": {"labels": {"foo": "bar"}}})));
    assert!(matches!(world.sync().endpoints, EndpointsPlan::Update(_)));
    assert_eq!(labels(&world), [("baz", "blah"), (MANAGED_BY, "endpoint-controller")]);
}

#[test]
fn TestSyncEndpointsHeadlessService() {
    let mut world = world(headless()).with_pods(pods(1, 1));
    world.service_mut().labels.insert("a".into(), "b".into());
    world.endpoints = Some(theirs());
    assert!(matches!(world.sync().endpoints, EndpointsPlan::Update(_)));
    assert_eq!(labels(&world), [("a", "b"), (MANAGED_BY, "endpoint-controller"), (HEADLESS, "")]);
}

fn ended(restart: &str, phase: &str) {
    let patch = json!({"spec": {"restartPolicy": restart},
                       "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "False"}]}});
    let mut world = world(json!({})).with_pods([pod_with("a", "web", "n1", "10.0.0.1", patch)]);
    world.endpoints = Some(theirs());
    let EndpointsPlan::Update(written) = world.sync().endpoints else { panic!("an update") };
    assert_eq!(written.subsets, []);
}

#[test]
fn TestSyncEndpointsItemsExcludeNotReadyPodsWithRestartPolicyNeverAndPhaseFailed() {
    ended("Never", "Failed");
}

#[test]
fn TestSyncEndpointsItemsExcludeNotReadyPodsWithRestartPolicyNeverAndPhaseSucceeded() {
    ended("Never", "Succeeded");
}

#[test]
fn TestSyncEndpointsItemsExcludeNotReadyPodsWithRestartPolicyOnFailureAndPhaseSucceeded() {
    ended("OnFailure", "Succeeded");
}

#[test]
fn TestSyncEndpointsHeadlessWithoutPort() {
    let mut spec = headless();
    spec["ports"] = json!(null);
    let mut world = world(spec).with_pods(pods(1, 1));
    world.sync();
    assert_eq!(split(&world), (vec!["1"], vec![]));
    assert_eq!(stored(&world).subsets[0].ports, []);
}

fn triggered(world: &World) -> Option<&str> {
    stored(world).metadata.annotations.as_ref()?.get(TRIGGER_TIME).map(String::as_str)
}

#[test]
fn TestLastTriggerChangeTimeAnnotation() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.triggers.endpoints =
        TriggerTimes::default().next(world.service.as_ref().unwrap(), &[&world.pods[0]]);
    world.sync();
    assert_eq!(triggered(&world), Some("2026-01-01T00:00:00Z"), "the creation of the Service");
}

#[test]
fn TestLastTriggerChangeTimeAnnotation_AnnotationOverridden() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    let older = json!({"metadata": {"annotations": {TRIGGER_TIME: "2025-01-01T00:00:00Z"}}});
    world.endpoints = Some(ours(older));
    world.triggers.endpoints = Some(at(1_767_225_600));
    world.sync();
    assert_eq!(triggered(&world), Some("2026-01-01T00:00:00Z"));
}

#[test]
fn TestLastTriggerChangeTimeAnnotation_AnnotationCleared() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    let (service, mut times) = (world.service.clone().unwrap(), TriggerTimes::default());
    times.next(&service, &[&world.pods[0]]);
    world.triggers.endpoints = times.next(&service, &[&world.pods[0]]);
    let older = json!({"metadata": {"annotations": {TRIGGER_TIME: "2025-01-01T00:00:00Z"}}});
    world.endpoints = Some(ours(older));
    world.sync();
    assert_eq!(triggered(&world), None);
}

#[test]
fn TestSyncEndpointsServiceNotFound() {
    let mut world = world(json!({}));
    world.service = None;
    world.endpoints = Some(ours(json!({})));
    assert!(matches!(world.sync().endpoints, EndpointsPlan::Delete(_)));
    // Deviation: upstream deletes hand-made Endpoints, too.
    world.endpoints = Some(theirs());
    assert!(world.plan().is_empty());
}

#[test]
fn TestSyncServiceOverCapacity() {
    type Case = (Option<&'static str>, usize, [usize; 2], [usize; 2], bool);
    let cases: [Case; 8] = [
        (None, 0, [0, 0], [0, 0], false),
        (None, 999, [997, 4], [997, 3], true),
        (None, 999, [1000, 10], [1000, 0], true),
        (Some("truncated"), 999, [999, 0], [999, 0], false),
        (Some("warning"), 1000, [1000, 0], [1000, 0], false),
        (Some("warning"), 1001, [1001, 0], [1000, 0], true),
        (Some("truncated"), 1000, [1000, 0], [1000, 0], false),
        (Some("invalid"), 1001, [1001, 0], [1000, 0], true),
    ];
    for (before, existing, [ready, not_ready], kept, annotated) in rows("TestSyncServiceOverCapacity", cases)
    {
        let mut world = world(json!({})).with_pods(pods(0, existing));
        world.sync();
        let annotation = |value: &str| ("endpoints.kubernetes.io/over-capacity".to_owned(), value.to_owned());
        let metadata = &mut world.endpoints.as_mut().unwrap().metadata;
        metadata.annotations = before.map(|value| [annotation(value)].into());
        world.pods = pods(0, ready + not_ready);
        world.pods[ready..].iter_mut().for_each(|pod| pod.ready = false);
        // Deviation: upstream writes truncated Endpoints on every sync; `sync` makes sure that we do not.
        world.sync();
        let (found_ready, found_not_ready) = split(&world);
        assert_eq!(
            [found_ready.len(), found_not_ready.len()],
            kept,
            "{before:?} {existing} {ready} {not_ready}"
        );
        let expected = annotated.then(|| [annotation("truncated")].into());
        assert_eq!(stored(&world).metadata.annotations, expected);
    }
}

#[test]
fn TestEndpointPortFromServicePort() {
    for (case, app) in rows("TestEndpointPortFromServicePort", [("nil", None), ("http", Some("http"))]) {
        let mut world =
            world(json!({"ports": [{"name": "web", "port": 80, "targetPort": 8080, "appProtocol": app}]}))
                .with_pods(pods(1, 1));
        world.sync();
        let port = &stored(&world).subsets[0].ports[0];
        assert_eq!(
            (port.name.as_str(), port.port, port.app_protocol.as_deref()),
            ("web", 8080, app),
            "{case}"
        );
    }
}

#[test]
fn TestEndpointSubsetsEqualIgnoreResourceVersion() {
    type Damage = fn(&mut Vec<EndpointSubset>);
    let prepare = || {
        let mut world = world(json!({})).with_pods(pods(1, 4));
        world.pods[2..].iter_mut().for_each(|pod| pod.ready = false);
        world.sync();
        world
    };
    let cases: [(&str, Damage, bool); 6] = [
        ("subsets removed", Vec::clear, false),
        ("ready address changed", |subsets| subsets[0].addresses[0].ip = "10.9.9.9".to_owned(), false),
        (
            "other address changed",
            |subsets| subsets[0].not_ready_addresses[0].ip = "10.9.9.9".to_owned(),
            false,
        ),
        ("ports changed", |subsets| subsets[0].ports[0].port = 81, false),
        (
            "version changed",
            |subsets| subsets[0].addresses[0].target_ref.as_mut().unwrap().resource_version = "3".to_owned(),
            true,
        ),
        (
            "version changed among those not ready",
            |subsets| {
                subsets[0].not_ready_addresses[0].target_ref.as_mut().unwrap().resource_version =
                    "3".to_owned();
            },
            true,
        ),
    ];
    for (case, damage, equal) in rows("TestEndpointSubsetsEqualIgnoreResourceVersion", cases) {
        let mut world = prepare();
        damage(&mut world.endpoints.as_mut().unwrap().subsets);
        assert_eq!(world.plan().is_empty(), equal, "{case}");
    }
}

#[test]
fn TestSyncEndpointsAddDeletePorts() {
    let ports = |count: usize| {
        let port = |i| json!({"name": format!("p{i}"), "port": 80 + i, "targetPort": 8080 + i});
        service("web", json!({"ports": (0..count).map(port).collect::<Vec<_>>()})).ports
    };
    let mut world = world(json!({}));
    for (step, (port_count, pod_count)) in
        [(1, 1), (2, 1), (2, 3), (1, 3), (3, 2), (0, 2), (1, 0), (1, 2)].into_iter().enumerate()
    {
        world.service_mut().ports = ports(port_count);
        world.pods = pods(1, pod_count);
        world.sync();
        let found: Vec<_> = stored(&world)
            .subsets
            .iter()
            .map(|subset| (subset.ports.len(), subset.addresses.len()))
            .collect();
        let expected = if port_count * pod_count == 0 { vec![] } else { vec![(port_count, pod_count)] };
        assert_eq!(found, expected, "step {step}");
    }
}

#[test]
fn TestSyncServiceAddresses() {
    let mut cases = 0;
    for phase in ["Running", "Unknown", "Pending", "Failed", "Succeeded"] {
        for bits in 0..8 {
            let [ready, deleting, publish] = [0, 1, 2].map(|bit| bits >> bit & 1 == 1);
            let patch = json!({"status": {"phase": phase}});
            let pod = pod_with("a", "web", "n1", "10.0.0.1", patch);
            let mut world = world(json!({"publishNotReadyAddresses": publish})).with_pods([Pod {
                ready,
                terminating: deleting,
                ..pod
            }]);
            world.sync();
            let expected = match (phase, publish, deleting, ready) {
                ("Failed" | "Succeeded", ..) | (_, false, true, _) => (vec![], vec![]),
                (_, true, ..) | (_, _, _, true) => (vec!["1"], vec![]),
                _ => (vec![], vec!["1"]),
            };
            assert_eq!(
                split(&world),
                expected,
                "{phase} ready={ready} deleting={deleting} publish={publish}"
            );
            cases += 1;
        }
    }
    crate::at_least("TestSyncServiceAddresses", cases);
}
