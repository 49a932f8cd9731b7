//! Whether the comparison notices faults: worlds that are right on both sides, and one fault in ours.
//!
//! Invariant: each fault is noticed by the comparison of the sides, or by the planner, for what follows from uids.

use std::collections::BTreeSet;

use fairlead_planner::EndpointsPlan;
use serde_json::{Value, json};

use super::{
    compare::Comparison,
    complaints::Complaints,
    facts,
    state::{self, Made, Written},
    takeover,
};

/// A side whose uids begin so: two Services with two Pods, one of them not ready, and what a controller writes for them; and
/// a Service with Endpoints made by hand. The Pods have different numbers for the port of the Service `named`.
fn side(side: &str) -> (Made, Written) {
    let uid = |of: &str| format!("{side}-{of}");
    let meta = |name: &str, of: &str| json!({"name": name, "namespace": "here", "uid": uid(of)});
    let pod = |name: &str, ip: &str, number: u16, ready: &str| {
        let mut metadata = meta(name, name);
        metadata["labels"] = json!({"app": "web"});
        let ports = json!([{"name": "own", "containerPort": number, "protocol": "TCP"}]);
        json!({"metadata": metadata, "spec": {"nodeName": "node1", "containers": [{"name": "main", "ports": ports}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready}]}})
    };
    let mut web = meta("web", "web");
    web["labels"] = json!({"team": "one"});
    let ports = json!([{"name": "a", "port": 80, "targetPort": 8080, "protocol": "TCP"},
        {"name": "b", "port": 90, "targetPort": 9090, "protocol": "TCP", "appProtocol": "h2c"}]);
    let web = json!({"metadata": web, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
        "ipFamilies": ["IPv4"], "selector": {"app": "web"}, "ports": ports, "trafficDistribution": "PreferSameNode"}});
    let mut named = web.clone();
    named["metadata"] = meta("named", "named");
    named["spec"]["ports"] = json!([{"name": "own", "port": 80, "targetPort": "own", "protocol": "TCP"}]);
    let hand = json!({"metadata": meta("hand", "hand-service"), "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.11",
        "clusterIPs": ["10.96.0.11"], "ipFamilies": ["IPv4"], "ports": [{"port": 80, "protocol": "TCP"}]}});
    let node = json!({"metadata": {"name": "node1", "uid": uid("node1"), "labels": {"topology.kubernetes.io/zone": "east"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let made = Made {
        services: vec![web, named, hand],
        pods: vec![pod("one", "10.1.0.1", 1001, "True"), pod("two", "10.1.0.2", 1002, "False")],
        nodes: vec![node],
    };
    let mut by_hand = meta("hand", "hand");
    by_hand["annotations"] = json!({"note": "this"});
    let by_hand = json!({"metadata": by_hand, "subsets": [
        {"addresses": [{"ip": "10.50.0.1"}], "ports": [{"name": "z", "port": 1, "protocol": "TCP"}]},
        {"addresses": [{"ip": "10.50.0.2"}], "ports": [{"name": "y", "port": 2, "protocol": "TCP"}]}]});
    let mut written = Written { endpoints: vec![by_hand], slices: Vec::new() };
    for (_, plan, _) in takeover::plans(&made, &written, &here()).unwrap() {
        if let EndpointsPlan::Create(endpoints) = &plan.endpoints {
            written.endpoints.push(json!(endpoints));
        }
        let slices = plan.slices.create.iter().chain(&plan.mirror.create);
        written.slices.extend(slices.map(|slice| json!(slice)));
    }
    for (at, object) in written.endpoints.iter_mut().chain(&mut written.slices).enumerate() {
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(uid(&format!("written-{at}")));
        }
        metadata["resourceVersion"] = json!(at.to_string());
    }
    (made, written)
}

fn here() -> BTreeSet<String> {
    BTreeSet::from(["here".to_owned()])
}

/// Whether a test of two such sides notices something: how ours differs from the genuine one, or from the plan.
fn notices(fault: impl Fn(&mut Written)) -> [bool; 2] {
    let sides = [side("kcm"), side("ours")];
    let [(made_kcm, kcm), (made, mut ours)] = sides;
    fault(&mut ours);
    let compared = |made: &Made, written: &Written| state::comparable(made, written, &here(), |_| true);
    let (kcm, there) = (compared(&made_kcm, &kcm), compared(&made, &ours));
    let mut comparison = Comparison::default();
    comparison.note(&there, facts::of(&made), Complaints::new());
    let differs = !comparison.differences(&kcm, &there).is_empty();
    [differs, !takeover::unwanted(&made, &ours, &here()).unwrap().is_empty()]
}

fn endpoints<'w>(written: &'w mut Written, name: &str) -> &'w mut Value {
    written.endpoints.iter_mut().find(|object| object["metadata"]["name"] == name).unwrap()
}

fn slice<'w>(written: &'w mut Written, service: &str) -> &'w mut Value {
    let mut slices = written.slices.iter_mut();
    slices.find(|object| object["metadata"]["labels"]["kubernetes.io/service-name"] == service).unwrap()
}

#[test]
fn two_sides_that_are_right_are_equal() {
    let nothing = |_: &mut Written| {};
    assert_eq!(notices(nothing), [false, false]);
    let (_, written) = side("kcm");
    assert_eq!((written.endpoints.len(), written.slices.len()), (3, 5));
}

#[test]
fn every_fault_is_noticed() {
    type Fault = fn(&mut Written);
    let faults: &[(&str, Fault)] = &[
        ("Endpoints are missing", |ours| ours.endpoints.retain(|it| it["metadata"]["name"] != "web")),
        ("a slice is missing", |ours| {
            drop(ours.slices.pop());
        }),
        ("a slice is there twice", |ours| {
            let mut copy = slice(ours, "web").clone();
            copy["metadata"]["name"] = json!("web-copy");
            ours.slices.push(copy);
        }),
        ("an endpoint is dropped", |ours| {
            drop(slice(ours, "web")["endpoints"].as_array_mut().unwrap().pop());
        }),
        ("an address is dropped", |ours| {
            drop(endpoints(ours, "web")["subsets"][0]["notReadyAddresses"].take());
        }),
        ("an address is another", |ours| {
            slice(ours, "web")["endpoints"][0]["addresses"][0] = json!("10.1.0.9");
        }),
        ("a condition is flipped", |ours| {
            slice(ours, "web")["endpoints"][0]["conditions"]["ready"] = json!(false);
        }),
        ("a condition is missing", |ours| {
            drop(
                slice(ours, "web")["endpoints"][0]["conditions"]
                    .as_object_mut()
                    .unwrap()
                    .remove("terminating"),
            );
        }),
        ("a zone is missing", |ours| {
            drop(slice(ours, "web")["endpoints"][0]["zone"].take());
        }),
        ("a node is another", |ours| slice(ours, "web")["endpoints"][1]["nodeName"] = json!("node2")),
        ("a hint is missing", |ours| {
            drop(slice(ours, "web")["endpoints"][0]["hints"].take());
        }),
        ("a hint is another", |ours| {
            slice(ours, "web")["endpoints"][0]["hints"]["forNodes"][0]["name"] = json!("node2");
        }),
        ("a reference is another", |ours| {
            slice(ours, "web")["endpoints"][0]["targetRef"]["uid"] = json!("ours-two");
        }),
        ("a label is missing", |ours| {
            drop(endpoints(ours, "web")["metadata"]["labels"].as_object_mut().unwrap().remove("team"));
        }),
        ("a label is too much", |ours| slice(ours, "web")["metadata"]["labels"]["more"] = json!("")),
        ("an annotation is missing", |ours| {
            drop(slice(ours, "hand")["metadata"]["annotations"].take());
        }),
        ("an annotation is too much", |ours| {
            slice(ours, "web")["metadata"]["annotations"] = json!({"a": "b"});
        }),
        ("an owner is another", |ours| {
            slice(ours, "web")["metadata"]["ownerReferences"][0]["uid"] = json!("ours-hand-service");
        }),
        ("an owner does not block", |ours| {
            slice(ours, "hand")["metadata"]["ownerReferences"][0]["blockOwnerDeletion"] = json!(false);
        }),
        ("a port is another", |ours| slice(ours, "web")["ports"][0]["port"] = json!(1)),
        ("a port lacks its appProtocol", |ours| {
            for port in slice(ours, "web")["ports"].as_array_mut().unwrap() {
                drop(port.as_object_mut().unwrap().remove("appProtocol"));
            }
        }),
        ("ports are in another order", |ours| slice(ours, "web")["ports"].as_array_mut().unwrap().reverse()),
        ("ports of Endpoints are in another order", |ours| {
            endpoints(ours, "web")["subsets"][0]["ports"].as_array_mut().unwrap().reverse();
        }),
        ("subsets are in another order", |ours| {
            endpoints(ours, "named")["subsets"].as_array_mut().unwrap().reverse();
        }),
        ("addresses trade places", |ours| {
            let subsets = endpoints(ours, "named")["subsets"].as_array_mut().unwrap();
            let first = subsets[0]["ports"].take();
            subsets[0]["ports"] = subsets[1]["ports"].take();
            subsets[1]["ports"] = first;
        }),
        ("the manager is another", |ours| {
            slice(ours, "web")["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = json!("me");
        }),
        ("endpoints are dealt over two slices", |ours| {
            let mut other = slice(ours, "web").clone();
            other["metadata"]["name"] = json!("web-other");
            other["endpoints"].as_array_mut().unwrap().remove(0);
            drop(slice(ours, "web")["endpoints"].as_array_mut().unwrap().pop());
            ours.slices.push(other);
        }),
    ];
    for (what, fault) in faults {
        assert!(notices(fault).contains(&true), "{what}");
    }
}
