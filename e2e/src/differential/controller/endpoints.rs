//! Random Endpoints made by hand, and slices of other managers.

use serde_json::{Value, json};

use super::random::Random;

/// Endpoints for a Service without a selector.
pub fn by_hand(random: &mut Random, namespace: &str, name: &str) -> Value {
    let count = random.one_of([0, 1, 1, 1, 2, 2, 3]);
    let subsets: Vec<Value> = (0..count).map(|_| subset(random, namespace)).collect();
    let mut labels = json!({});
    let mut annotations = json!({});
    if random.chance(40) {
        labels["team"] = json!(random.one_of(["one", "two"]));
    }
    if random.chance(12) {
        labels["endpointslice.kubernetes.io/skip-mirror"] = json!(random.one_of(["true", "true", "false"]));
    }
    if random.chance(30) {
        annotations["note"] = json!(random.one_of(["this", "that"]));
    }
    if random.chance(5) {
        annotations["control-plane.alpha.kubernetes.io/leader"] = json!("{}");
    }
    json!({"apiVersion": "v1", "kind": "Endpoints", "subsets": subsets, "metadata": {
        "name": name, "namespace": namespace, "labels": labels, "annotations": annotations}})
}

fn subset(random: &mut Random, namespace: &str) -> Value {
    let http = json!({"name": "http", "port": 80, "protocol": "TCP"});
    let ports = match random.below(5) {
        0 => json!([{"port": 9000, "protocol": "TCP"}]),
        1 => json!([http]),
        2 => json!([http, {"name": "dns", "port": 53, "protocol": "UDP"}]),
        3 => json!([{"name": "alt", "port": 81, "protocol": "TCP", "appProtocol": "http"}]),
        _ => {
            json!([{"name": "z", "port": 1, "protocol": "TCP"}, http, {"name": "c", "port": 2, "protocol": "SCTP"}])
        }
    };
    let mut subset = json!({"ports": ports});
    let (ready, others) = (random.below(6), random.below(3));
    // Neither list may be there without the other when it is empty.
    let ready = if ready + others == 0 { 1 } else { ready };
    for (field, count) in [("addresses", ready), ("notReadyAddresses", others)] {
        if count > 0 {
            subset[field] = (0..count).map(|_| address(random, namespace)).collect();
        }
    }
    subset
}

/// From a small pool, so that the same one is met in several places.
fn address(random: &mut Random, namespace: &str) -> Value {
    let number = random.below(12) + 1;
    let ip = if random.chance(70) { format!("10.50.0.{number}") } else { format!("fd00:50::{number:x}") };
    let mut address = json!({"ip": ip});
    // What an address is follows from its number: two records of one address are no subject of this test.
    if number.is_multiple_of(3) {
        address["hostname"] = json!(format!("hand-{number}"));
    }
    if number.is_multiple_of(4) {
        address["nodeName"] = json!("node1");
    }
    if number.is_multiple_of(5) {
        address["targetRef"] = json!({"kind": "Pod", "namespace": namespace, "name": format!("hand-{number}"), "uid": format!("hand-{number}")});
    }
    address
}

/// A slice that somebody else wrote for a Service.
pub fn foreign_slice(random: &mut Random, namespace: &str, service: &str) -> Value {
    let mut labels = json!({"kubernetes.io/service-name": service});
    let name = if random.chance(60) {
        labels["endpointslice.kubernetes.io/managed-by"] = json!("somebody-else");
        format!("{service}-foreign")
    } else {
        format!("{service}-nobody")
    };
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [format!("10.60.0.{}", random.below(9) + 1)], "conditions": {"ready": true}}]})
}

/// A slice that claims to be the slice controller's, but has no owner: as an older Service of the name leaves it.
pub fn orphan_slice(namespace: &str, service: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-orphan"), "namespace": namespace, "labels": {
            "kubernetes.io/service-name": service,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.61.0.1"], "conditions": {"ready": true}}]})
}
