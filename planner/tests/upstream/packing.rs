//! How the reconciler spreads endpoints over slices, by upstream's numbers.

use fairlead_objects::{
    TargetPort,
    builders::{pod_with, service},
};
use fairlead_planner::Churn;
use serde_json::json;

use crate::{
    chunks::{chunked, world},
    rows,
    world::{SLICES, World, actions, pods},
};

#[test]
fn TestReconcileManyPods() {
    let mut world = world(250);
    assert_eq!(actions(&world.sync().slices), (3, 0, 0));
    assert_eq!(world.sizes(), [50, 100, 100]);
}

#[test]
fn TestReconcileEndpointSlicesSomePreexisting() {
    let mut world = chunked(&[62, 61], &json!({}));
    world.pods = pods(0, 250);
    let plan = world.sync();
    assert_eq!((actions(&plan.slices), plan.slices.added), ((1, 1, 0), 127));
    assert_eq!(world.sizes(), [61, 89, 100]);
}

#[test]
fn TestReconcileEndpointSlicesSomePreexistingWorseAllocation() {
    let mut world = chunked(&[74, 74], &json!({}));
    world.pods = pods(0, 300);
    assert_eq!(actions(&world.sync().slices), (2, 0, 0));
    assert_eq!(world.sizes(), [52, 74, 74, 100]);
}

#[test]
fn TestReconcileEndpointSlicesUpdating() {
    let mut world = world(250);
    world.sync();
    world.service_mut().ports[0].target = TargetPort::Number(81);
    assert_eq!(actions(&world.sync().slices), (0, 3, 0));
    assert_eq!(world.sizes(), [50, 100, 100]);
    assert!(world.slices.iter().all(|slice| slice.ports[0].port == Some(81)));
}

#[test]
fn TestReconcileEndpointSlicesServicesLabelsUpdating() {
    let mut world = world(250);
    world.sync();
    world.service_mut().labels.insert("foo".into(), "bar".into());
    assert_eq!(actions(&world.sync().slices), (0, 3, 0));
    assert!(world.slices.iter().all(|slice| slice.label("foo") == Some("bar")));
}

#[test]
fn TestReconcileEndpointSlicesServicesReservedLabels() {
    let mut world = world(250);
    world.sync();
    let keys = [
        "kubernetes.io/service-name",
        "endpointslice.kubernetes.io/managed-by",
        "service.kubernetes.io/headless",
    ];
    world.service_mut().labels.extend(keys.map(|key| (key.into(), "forged".into())));
    assert!(world.plan().is_empty());
}

#[test]
fn TestReconcileEndpointSlicesRecycling() {
    let mut world = chunked(&[30; 10], &json!({}));
    assert!(world.plan().is_empty());
    world.service_mut().ports[0].target = TargetPort::Number(81);
    assert_eq!(actions(&world.sync().slices), (0, 3, 7));
    assert_eq!(world.sizes(), [100, 100, 100]);
}

#[test]
fn TestReconcileEndpointSlicesUpdatePacking() {
    let mut world = chunked(&[80, 20], &json!({}));
    for slice in &mut world.slices {
        slice.endpoints[0].conditions.ready = Some(false);
    }
    world.pods = pods(0, 115);
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (0, 2, 0));
    assert_eq!((plan.slices.added, plan.slices.updated), (15, 2));
    assert_eq!(world.sizes(), [20, 95]);
}

#[test]
fn TestReconcileEndpointSlicesReplaceDeprecated() {
    let mut world = chunked(&[80, 50], &json!({"addressType": "IP"}));
    assert_eq!(actions(&world.sync().slices), (2, 0, 2));
    assert_eq!(world.sizes(), [30, 100]);
}

#[test]
fn TestReconcileEndpointSlicesRecreation() {
    let cases = [("same Service", "uid-web", (0, 0, 0)), ("earlier Service", "earlier", (1, 0, 1))];
    for (case, uid, expected) in rows("TestReconcileEndpointSlicesRecreation", cases) {
        let owner = json!([{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": uid}]);
        let mut world = chunked(&[10], &json!({"metadata": {"ownerReferences": owner}}));
        assert_eq!(actions(&world.sync().slices), expected, "{case}");
        assert_eq!(world.sizes(), [10]);
    }
}

#[test]
fn TestReconcileEndpointSlicesNamedPorts() {
    let service = service("web", json!({"ports": [{"name": "http", "port": 80, "targetPort": "named"}]}));
    let pods = (0..300).map(|i| {
        let port = json!({"name": "named", "containerPort": 8080 + i % 5});
        let patch = json!({"spec": {"containers": [{"ports": [port]}]}});
        pod_with(&format!("pod-{i}"), "web", "n1", &format!("10.0.{}.{}", i / 256, i % 256), patch)
    });
    let mut world = World::new(service).with_pods(pods).only(SLICES);
    world.sync();
    assert_eq!(world.sizes(), [60; 5]);
    let mut numbers: Vec<_> = world.slices.iter().filter_map(|slice| slice.ports[0].port).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [8080, 8081, 8082, 8083, 8084]);
}

#[test]
fn TestReconcileMaxEndpointsPerSlice() {
    let cases = [
        (50, vec![50; 5]),
        (80, vec![10, 80, 80, 80]),
        (150, vec![100, 150]),
        (250, vec![250]),
        (500, vec![250]),
    ];
    for (max, sizes) in rows("TestReconcileMaxEndpointsPerSlice", cases) {
        let mut world = world(250);
        world.limits.endpoints_per_slice = max;
        world.sync();
        assert_eq!(world.sizes(), sizes);
    }
}

#[test]
fn TestReconcileEndpointSlicesMetrics() {
    let mut world = world(20);
    let first = world.sync().slices;
    assert_eq!((first.desired_endpoints, first.desired_slices, actions(&first)), (20, 1, (1, 0, 0)));
    world.pods.truncate(10);
    let second = world.sync().slices;
    assert_eq!((second.desired_endpoints, second.desired_slices, actions(&second)), (10, 1, (0, 1, 0)));
    let churn = [&first, &second].map(|plan| plan.churn[&fairlead_objects::Family::V4]);
    assert_eq!(churn, [Churn { added: 20, ..Churn::default() }, Churn { removed: 10, ..Churn::default() }]);
}

#[test]
fn TestPlaceHolderSlice() {
    let plan = chunked(&[0, 0], &json!({})).plan().slices;
    assert_eq!((plan.desired_endpoints, plan.desired_slices), (0, 1));
}
