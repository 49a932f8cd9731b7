//! The canonical form of subsets and its exact order, beyond upstream's own test (`upstream/repack.rs`).

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

use fairlead_objects::{EndpointSubset, builders::object};
use fairlead_planner::repack;
use serde_json::{Value, json};

fn subsets(value: &Value) -> Vec<EndpointSubset> {
    object(value.clone())
}

fn check(cases: &[(&str, Value, Value)]) {
    for (name, given, expected) in cases {
        let packed = repack(&subsets(given));
        let mut sorted = packed.clone();
        let mut expected = subsets(expected);
        let by_text = |subset: &EndpointSubset| serde_json::to_string(subset).unwrap();
        sorted.sort_by_key(by_text);
        expected.sort_by_key(by_text);
        assert_eq!(sorted, expected, "{name}");
        assert_eq!(repack(&packed), packed, "{name}: repacking again changes nothing");
    }
}

fn at(ip: &str) -> Value {
    json!({"ip": ip})
}

fn of(ip: &str, uid: &str) -> Value {
    json!({"ip": ip, "targetRef": {"uid": uid}})
}

fn port(number: i32) -> Value {
    json!({"name": format!("p{number}"), "port": number, "protocol": "TCP"})
}

#[test]
fn nothing_stays_nothing_and_ports_without_addresses_vanish() {
    check(&[
        ("empty", json!([]), json!([])),
        ("empty subset", json!([{}]), json!([])),
        ("only ports", json!([{"ports": [port(111)]}]), json!([])),
        ("only address", json!([{"addresses": [at("1.2.3.4")]}]), json!([{"addresses": [at("1.2.3.4")]}])),
        (
            "only not ready address",
            json!([{"notReadyAddresses": [at("1.2.3.4")]}]),
            json!([{"notReadyAddresses": [at("1.2.3.4")]}]),
        ),
        (
            "port without number keeps the addresses",
            json!([{"addresses": [at("1.2.3.4")], "ports": [{"name": "x", "port": 0}]}]),
            json!([{"addresses": [at("1.2.3.4")]}]),
        ),
    ]);
}

#[test]
fn addresses_are_merged_by_address_and_uid() {
    check(&[
        (
            "same twice",
            json!([{"addresses": [at("1.2.3.4"), at("1.2.3.4")], "ports": [port(111)]}]),
            json!([{"addresses": [at("1.2.3.4")], "ports": [port(111)]}]),
        ),
        (
            "uids distinguish",
            json!([{"addresses": [of("1.2.3.4", "b"), at("1.2.3.4"), of("1.2.3.4", "a")], "ports": [port(111)]}]),
            json!([{"addresses": [at("1.2.3.4"), of("1.2.3.4", "a"), of("1.2.3.4", "b")], "ports": [port(111)]}]),
        ),
        (
            "not ready wins",
            json!([{"addresses": [at("1.2.3.4")], "ports": [port(111)]},
                   {"notReadyAddresses": [at("1.2.3.4")], "ports": [port(111)]}]),
            json!([{"notReadyAddresses": [at("1.2.3.4")], "ports": [port(111)]}]),
        ),
        (
            "not ready wins per port",
            json!([{"addresses": [at("1.2.3.4")], "ports": [port(111), port(222)]},
                   {"notReadyAddresses": [at("1.2.3.4")], "ports": [port(111)]}]),
            json!([{"notReadyAddresses": [at("1.2.3.4")], "ports": [port(111)]},
                   {"addresses": [at("1.2.3.4")], "ports": [port(222)]}]),
        ),
        (
            "byte order",
            json!([{"addresses": [at("10.0.0.9"), at("10.0.0.10")], "ports": [port(111)]}]),
            json!([{"addresses": [at("10.0.0.10"), at("10.0.0.9")], "ports": [port(111)]}]),
        ),
    ]);
}

#[test]
fn ports_with_the_same_addresses_are_grouped() {
    let jumbled = json!([
        {"addresses": [at("1.2.3.4")], "ports": [port(222)]},
        {"addresses": [at("1.2.3.4"), at("1.2.3.5")], "ports": [port(111)]},
        {"addresses": [at("1.2.3.5")], "ports": [port(222), port(333)]},
    ]);
    let packed = repack(&subsets(&jumbled));
    let mut shapes: Vec<(usize, usize)> = packed.iter().map(|s| (s.addresses.len(), s.ports.len())).collect();
    shapes.sort_unstable();
    assert_eq!(shapes, [(1, 1), (2, 2)]);
    check(&[
        (
            "same port in two subsets",
            json!([{"addresses": [at("1.2.3.4")], "ports": [port(111)]}, {"addresses": [at("1.2.3.5")], "ports": [port(111)]}]),
            json!([{"addresses": [at("1.2.3.4"), at("1.2.3.5")], "ports": [port(111)]}]),
        ),
        (
            "the portless address coincides with a port's",
            json!([{"addresses": [at("1.2.3.4")]}, {"addresses": [at("1.2.3.4")], "ports": [port(111)]}]),
            json!([{"addresses": [at("1.2.3.4")], "ports": [port(111)]}]),
        ),
        (
            "the portless address differs from a port's",
            json!([{"addresses": [at("1.2.3.5")]}, {"addresses": [at("1.2.3.4")], "ports": [port(111)]}]),
            json!([{"addresses": [at("1.2.3.5")]}, {"addresses": [at("1.2.3.4")], "ports": [port(111)]}]),
        ),
        (
            "different protocols are different ports",
            json!([{"addresses": [at("1.2.3.4")], "ports": [{"port": 53, "protocol": "UDP"}]},
                   {"addresses": [at("1.2.3.5")], "ports": [{"port": 53, "protocol": "TCP"}]}]),
            json!([{"addresses": [at("1.2.3.4")], "ports": [{"port": 53, "protocol": "UDP"}]},
                   {"addresses": [at("1.2.3.5")], "ports": [{"port": 53, "protocol": "TCP"}]}]),
        ),
    ]);
}

#[test]
fn ports_with_an_app_protocol_are_another_one_in_each_subset() {
    let grpc = json!({"name": "grpc", "port": 81, "protocol": "TCP", "appProtocol": "grpc"});
    let given = json!([
        {"addresses": [at("10.0.0.1")], "ports": [grpc]},
        {"addresses": [at("10.0.0.2")], "notReadyAddresses": [at("10.0.0.1")], "ports": [grpc]},
        {"addresses": [at("10.0.0.1")], "ports": [grpc]},
    ]);
    let mut repacked = repack(&subsets(&given));
    repacked.sort_by_key(|subset| subset.not_ready_addresses.len());
    // The first and the third have the same addresses, so they are one subset; the port is listed once.
    let expected = json!([
        {"addresses": [at("10.0.0.1")], "ports": [grpc]},
        {"addresses": [at("10.0.0.2")], "notReadyAddresses": [at("10.0.0.1")], "ports": [grpc]},
    ]);
    assert_eq!(repacked, subsets(&expected));
}

#[test]
fn order_is_that_of_upstreams_digests() {
    let a = json!({"ip": "10.0.0.1", "nodeName": "n1",
                   "targetRef": {"kind": "Pod", "namespace": "ns", "name": "pod-a", "uid": "uid-a"}});
    let http = json!({"name": "http", "port": 8080, "protocol": "TCP"});
    let https = json!({"name": "https", "port": 8443, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"});
    let dns = json!({"name": "", "port": 53, "protocol": "UDP"});
    let given = json!([
        {"addresses": [a], "ports": [http, https, dns]},
        {"addresses": [at("10.0.0.10"), at("10.0.0.9")], "ports": [http, dns]},
        {"notReadyAddresses": [at("10.0.0.9")], "ports": [http]},
    ]);
    let expected = json!([
        {"addresses": [a, at("10.0.0.10"), at("10.0.0.9")], "ports": [dns]},
        {"addresses": [a], "ports": [https]},
        {"addresses": [a, at("10.0.0.10")], "notReadyAddresses": [at("10.0.0.9")], "ports": [http]},
    ]);
    assert_eq!(repack(&subsets(&given)), subsets(&expected));
}
