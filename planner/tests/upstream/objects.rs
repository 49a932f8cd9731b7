//! What is written into slices, field by field.

use std::collections::BTreeMap;

use fairlead_objects::{
    Conditions, Endpoint, EndpointSlice, Family, Pod,
    builders::{merge, node, object, pod, pod_with, service},
};
use fairlead_planner::is_topology_auto;
use serde_json::{Value, json};

use crate::{
    rows,
    world::{SLICES, World, actions, pods},
};

const HEADLESS: &str = "service.kubernetes.io/headless";

fn world(spec: Value) -> World {
    World::new(service("web", spec)).only(SLICES)
}

fn headless() -> Value {
    json!({"clusterIP": "None", "clusterIPs": ["None"]})
}

/// Labels of a slice besides those that every slice of `web` has, which are checked.
fn own_labels(slice: &EndpointSlice) -> BTreeMap<String, String> {
    let mut labels = slice.metadata.labels.clone().unwrap();
    assert_eq!(labels.remove("kubernetes.io/service-name").as_deref(), Some("web"));
    let manager = labels.remove("endpointslice.kubernetes.io/managed-by");
    assert_eq!(manager.as_deref(), Some("endpointslice-controller.k8s.io"));
    labels
}

#[test]
fn TestNewEndpointSlice() {
    let forged = json!({"kubernetes.io/service-name": "bad", "endpointslice.kubernetes.io/managed-by": "bad", HEADLESS: "bad", "foo": "bar"});
    let cases = [
        ("no labels", json!({}), json!({}), json!({})),
        ("one label", json!({}), json!({"foo": "bar"}), json!({"foo": "bar"})),
        ("headless", headless(), json!({}), json!({HEADLESS: ""})),
        ("headless with labels", headless(), json!({"foo": "bar"}), json!({HEADLESS: "", "foo": "bar"})),
        ("several labels", json!({}), json!({"a": "1", "b": "2"}), json!({"a": "1", "b": "2"})),
        ("forged labels", json!({}), forged, json!({"foo": "bar"})),
    ];
    for (case, spec, labels, expected) in rows("TestNewEndpointSlice", cases) {
        let mut world = world(spec);
        world.service_mut().labels = object(labels);
        world.service_mut().annotations.insert("not".into(), "copied".into());
        world.sync();
        let metadata = &world.slices[0].metadata;
        assert_eq!(json!(own_labels(&world.slices[0])), expected, "{case}");
        assert_eq!(metadata.annotations, None);
        assert_eq!(metadata.generate_name.as_deref(), Some("web-"));
        let owner = json!({"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "uid-web",
                           "controller": true, "blockOwnerDeletion": true});
        assert_eq!(json!(metadata.owner_references), json!([owner]));
    }
}

#[test]
fn TestPodToEndpoint() {
    let ready = pod("a", "web", "n1", "10.0.0.1");
    let state =
        |ready: bool, terminating: bool| Pod { ready, terminating, ..pod("a", "web", "n1", "10.0.0.1") };
    let publish = json!({"publishNotReadyAddresses": true});
    let dual = pod_with(
        "a",
        "web",
        "n1",
        "",
        json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}),
    );
    let named =
        pod_with("a", "web", "n1", "10.0.0.1", json!({"spec": {"hostname": "h", "subdomain": "web"}}));
    let v6 = json!({"ipFamilies": ["IPv6"], "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]});
    let bare = |patch: Value| {
        let mut endpoint = json!({"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "z1",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": "uid-a"}});
        merge(&mut endpoint, patch);
        endpoint
    };
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let cases = [
        ("ready", json!({}), ready.clone(), bare(json!({}))),
        ("ready, published regardless", publish.clone(), ready.clone(), bare(json!({}))),
        ("not ready", json!({}), state(false, false), bare(conditions(false, false, false))),
        (
            "not ready, published regardless",
            publish,
            state(false, false),
            bare(conditions(true, false, false)),
        ),
        ("node with zone", json!({}), ready, bare(json!({"zone": "z1"}))),
        ("v4 of several", json!({}), dual.clone(), bare(json!({}))),
        ("v6 of several", v6, dual, bare(json!({"addresses": ["fd00::1"]}))),
        ("host name", json!({}), named, bare(json!({"hostname": "h"}))),
        ("terminating, ready", json!({}), state(true, true), bare(conditions(false, true, true))),
        ("terminating, not ready", json!({}), state(false, true), bare(conditions(false, false, true))),
    ];
    for (case, spec, pod, expected) in rows("TestPodToEndpoint", cases) {
        let mut world = world(spec).with_pods([pod]);
        world.sync();
        assert_eq!(json!(world.slices[0].endpoints), json!([expected]), "{case}");
    }
}

#[test]
fn TestServiceControllerKey() {
    let cases = [
        ("no labels", json!(null), None),
        ("empty label", json!({"kubernetes.io/service-name": ""}), None),
        ("label", json!({"kubernetes.io/service-name": "web"}), Some("ns/web")),
    ];
    for (case, labels, expected) in rows("TestServiceControllerKey", cases) {
        let slice =
            json!({"metadata": {"name": "s", "namespace": "ns", "labels": labels}, "addressType": "IPv4"});
        let key = object::<EndpointSlice>(slice).service_key().map(|key| key.to_string());
        assert_eq!(key.as_deref(), expected, "{case}");
    }
}

/// The ports of the only slice.
fn ports(ports: Value, patch: Value) -> Value {
    let mut world = world(json!({"ports": ports})).with_pods([pod_with("a", "web", "n1", "10.0.0.1", patch)]);
    world.sync();
    let [slice] = &world.slices[..] else { panic!("one slice") };
    let mut ports = slice.ports.clone();
    ports.sort();
    json!(ports)
}

#[test]
fn TestGetEndpointPorts() {
    let number = json!([{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"},
                        {"name": "grpc", "port": 81, "targetPort": 8081, "protocol": "TCP", "appProtocol": "example.com/grpc"}]);
    let name = json!([{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]);
    let at = |number: i32| json!([{"name": "web", "containerPort": number, "protocol": "TCP"}]);
    let main = json!({"spec": {"containers": [{"ports": at(8080)}]}});
    let sidecar = |main: Value| {
        json!({"spec": {"containers": [{"ports": main}],
        "initContainers": [{"restartPolicy": "Always", "ports": at(9090)}]}})
    };
    let one = |number: i32| json!([{"name": "http", "port": number, "protocol": "TCP"}]);
    let both = json!([{"name": "grpc", "port": 8081, "protocol": "TCP", "appProtocol": "example.com/grpc"},
                      {"name": "http", "port": 8080, "protocol": "TCP"}]);
    let cases = [
        ("application protocol", number, json!({}), both),
        ("name", name.clone(), main, one(8080)),
        ("name in a sidecar", name.clone(), sidecar(json!([])), one(9090)),
        ("name in both", name, sidecar(at(8080)), one(8080)),
    ];
    for (case, service, pod, expected) in rows("TestGetEndpointPorts", cases) {
        assert_eq!(ports(service, pod), expected, "{case}");
    }
}

#[test]
fn TestFindPort() {
    let named = |protocol: &str| json!({"name": "p", "containerPort": 11, "protocol": protocol});
    let main = |ports: Value| json!({"spec": {"containers": [{"ports": ports}]}});
    let on_host = json!({"name": "p", "containerPort": 11, "protocol": "TCP", "hostPort": 93});
    let on_host_ip =
        json!({"name": "p", "containerPort": 11, "protocol": "TCP", "hostPort": 93, "hostIP": "10.9.9.9"});
    let negative = json!({"name": "p", "containerPort": -1, "protocol": "TCP"});
    let two = json!({"spec": {"containers": [{"ports": [{"name": "q", "containerPort": 22}]}, {"ports": [named("UDP"), named("TCP")]}]}});
    let twice = json!({"spec": {"containers": [{"ports": [named("TCP")]}, {"ports": [{"name": "p", "containerPort": 22}]}]}});
    let init = |restart: Value, main: Value| {
        json!({"spec": {"containers": [{"ports": main}],
        "initContainers": [{"restartPolicy": restart, "ports": [{"name": "p", "containerPort": 33}]}]}})
    };
    let (p, always) = (json!("p"), json!("Always"));
    let cases = [
        ("number", json!(93), main(json!([])), Some(93)),
        ("number, whatever the ports", json!(93), main(json!([named("TCP")])), Some(93)),
        ("no ports", p.clone(), main(json!([])), None),
        ("no port of that name", json!("q"), main(json!([named("TCP")])), None),
        ("name", p.clone(), main(json!([named("TCP")])), Some(11)),
        ("protocol differs", p.clone(), main(json!([named("UDP")])), None),
        ("protocol differs, then not", p.clone(), main(json!([named("UDP"), named("TCP")])), Some(11)),
        ("second container", p.clone(), two, Some(11)),
        ("host port", p.clone(), main(json!([on_host])), Some(11)),
        ("host address", p.clone(), main(json!([on_host_ip])), Some(11)),
        ("negative", p.clone(), main(json!([negative])), Some(-1)),
        ("two containers, the first wins", p.clone(), twice, Some(11)),
        ("sidecar", p.clone(), init(always.clone(), json!([])), Some(33)),
        ("init container that ends", p.clone(), init(json!(null), json!([])), None),
        ("container wins over sidecar", p, init(always, json!([named("TCP")])), Some(11)),
    ];
    for (case, target, pod, expected) in rows("TestFindPort", cases) {
        let found = ports(json!([{"port": 80, "targetPort": target, "protocol": "TCP"}]), pod);
        let found: Vec<_> = found.as_array().unwrap().iter().map(|port| port["port"].as_i64()).collect();
        assert_eq!(found, expected.map(Some).into_iter().collect::<Vec<_>>(), "{case}");
    }
}

#[test]
fn TestSetEndpointSliceLabels() {
    let forged = json!({"kubernetes.io/service-name": "bad", "endpointslice.kubernetes.io/managed-by": "bad", HEADLESS: "bad"});
    let mut forged_and_more = forged.clone();
    forged_and_more["foo"] = json!("bar");
    let (none, foo, mark) = (json!({}), json!({"foo": "bar"}), json!({HEADLESS: ""}));
    let both = json!({"foo": "bar", HEADLESS: ""});
    // Labels that the slice has besides the usual ones, the Service's, whether it is headless; whether the slice is written
    // and what it has then.
    let cases = [
        ("no labels", none.clone(), none.clone(), false, false, none.clone()),
        ("the Service's are new", none.clone(), foo.clone(), false, true, foo.clone()),
        ("the same", foo.clone(), foo.clone(), false, false, foo.clone()),
        ("the Service's are gone", foo.clone(), none.clone(), false, true, none.clone()),
        ("another value", json!({"foo": "old"}), foo.clone(), false, true, foo.clone()),
        ("more on the slice", json!({"foo": "bar", "x": "y"}), foo.clone(), false, true, foo.clone()),
        ("headless, the same", mark.clone(), none.clone(), true, false, mark.clone()),
        ("headless with labels, the same", both.clone(), foo.clone(), true, false, both.clone()),
        ("headless, labels are new", mark.clone(), foo.clone(), true, true, both),
        // Deviation: upstream repairs this label only when it writes the slice for another reason.
        ("became headless", none.clone(), none.clone(), true, true, mark.clone()),
        ("is not headless any more", mark, none.clone(), false, true, none.clone()),
        ("forged", none.clone(), forged, false, false, none.clone()),
        ("forged and more", none, forged_and_more, false, true, foo),
    ];
    for (case, stored, labels, is_headless, written, expected) in rows("TestSetEndpointSliceLabels", cases) {
        let mut world = world(if is_headless { headless() } else { json!({}) }).with_pods(pods(1, 1));
        world.sync();
        world.slices[0].metadata.labels.as_mut().unwrap().remove(HEADLESS);
        world.slices[0].metadata.labels.as_mut().unwrap().extend(object::<BTreeMap<_, _>>(stored));
        world.service_mut().labels = object(labels);
        assert_eq!(actions(&world.sync().slices), (0, usize::from(written), 0), "{case}");
        assert_eq!(json!(own_labels(&world.slices[0])), expected, "{case}");
    }
}

#[test]
fn TestSupportedServiceAddressType() {
    let spec =
        |families: Value, ip: Value| json!({"ipFamilies": families, "clusterIP": ip, "clusterIPs": null});
    let (v4, v6, both) = (vec![Family::V4], vec![Family::V6], Family::ALL.to_vec());
    let (a, b, none) = (json!("10.0.0.9"), json!("fd00::9"), json!("None"));
    let cases = [
        ("v4", spec(json!(["IPv4"]), a.clone()), v4.clone()),
        ("v6", spec(json!(["IPv6"]), b.clone()), v6.clone()),
        ("v4 and v6", spec(json!(["IPv4", "IPv6"]), a.clone()), both.clone()),
        ("v6 and v4", spec(json!(["IPv6", "IPv4"]), b.clone()), both.clone()),
        ("v4, headless", spec(json!(["IPv4"]), none.clone()), v4.clone()),
        ("v6, headless", spec(json!(["IPv6"]), none.clone()), v6.clone()),
        ("both, headless", spec(json!(["IPv4", "IPv6"]), none.clone()), both.clone()),
        ("nothing, cluster IP of v4", spec(json!(null), a), v4),
        ("nothing, cluster IP of v6", spec(json!(null), b), v6),
        ("nothing, headless", spec(json!(null), none), both),
    ];
    for (case, spec, expected) in rows("TestSupportedServiceAddressType", cases) {
        let mut world = world(spec);
        world.sync();
        let mut found: Vec<_> = world.slices.iter().filter_map(|slice| slice.address_type.family()).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{case}");
    }
}

#[test]
fn Test_hintsEnabled() {
    let cases = [
        (None, None, false),
        (Some("Auto"), None, true),
        (Some("auto"), None, true),
        (Some("AUTO"), None, false),
        (Some("aUto"), None, false),
        (Some(" Auto"), None, false),
        (Some("Disabled"), None, false),
        (Some("disabled"), None, false),
        (Some(""), None, false),
        (Some("unknown"), None, false),
        (None, Some("Auto"), true),
        (None, Some("auto"), true),
        (None, Some("AUTO"), false),
        (None, Some("disabled"), false),
        (None, Some("unknown"), false),
        (Some("Auto"), Some("disabled"), false),
        (Some("Auto"), Some(""), false),
        (Some("disabled"), Some("Auto"), true),
        (Some("Auto"), Some("auto"), true),
    ];
    for (mode, deprecated, expected) in rows("Test_hintsEnabled", cases) {
        let mut service = service("web", json!({}));
        let mut annotate = |key: &str, value: Option<&str>| {
            service.annotations.extend(value.map(|value| (key.into(), value.into())));
        };
        annotate("service.kubernetes.io/topology-mode", mode);
        annotate("service.kubernetes.io/topology-aware-hints", deprecated);
        assert_eq!(is_topology_auto(&service), expected, "{mode:?} {deprecated:?}");
    }
}

#[test]
fn TestShouldSetHostname() {
    let spec =
        |hostname: Value, subdomain: Value| json!({"spec": {"hostname": hostname, "subdomain": subdomain}});
    let cases = [
        ("all match", spec(json!("h"), json!("web")), Some("h")),
        ("no host name", spec(json!(null), json!("web")), None),
        ("another subdomain", spec(json!("h"), json!("other")), None),
        ("no subdomain", spec(json!("h"), json!(null)), None),
    ];
    for (case, patch, expected) in rows("TestShouldSetHostname", cases) {
        let mut world = world(json!({})).with_pods([pod_with("a", "web", "n1", "10.0.0.1", patch)]);
        world.sync();
        assert_eq!(world.slices[0].endpoints[0].hostname.as_deref(), expected, "{case}");
    }
}

#[test]
fn TestEndpointsEqualBeyondHash() {
    type Damage = fn(&mut Endpoint);
    let cases: [(&str, Damage, bool); 9] = [
        ("the same", |_| {}, true),
        ("version of the Pod", |e| e.target_ref.as_mut().unwrap().resource_version = "5".to_owned(), true),
        ("uid of the Pod", |e| e.target_ref.as_mut().unwrap().uid = "another".to_owned(), false),
        ("node", |e| e.node_name = Some("n9".to_owned()), false),
        ("no node", |e| e.node_name = None, false),
        ("zone", |e| e.zone = Some("z9".to_owned()), false),
        ("no zone", |e| e.zone = None, false),
        ("condition", |e| e.conditions.terminating = Some(true), false),
        ("condition unknown", |e| e.conditions = Conditions { terminating: None, ..e.conditions }, false),
    ];
    for (case, damage, equal) in rows("TestEndpointsEqualBeyondHash", cases) {
        let mut world = world(json!({})).with_pods(pods(1, 1));
        world.nodes = Some([("n1".into(), node("n1", "192.168.0.1", "z1"))].into());
        world.sync();
        damage(&mut world.slices[0].endpoints[0]);
        let plan = world.sync().slices;
        assert_eq!(
            (actions(&plan), plan.updated),
            ((0, usize::from(!equal), 0), usize::from(!equal)),
            "{case}"
        );
    }
}
