//! The canonical form of subsets (upstream's RepackSubsets).

use fairlead_objects::{EndpointSubset, builders::object};
use fairlead_planner::repack;
use serde_json::{Value, json};

use crate::rows;

/// Reads `ADDRESS.. : PORT..`; an address with `!` is not ready, and `@uid` refers to a Pod.
fn subset(text: &str) -> Value {
    let (addresses, ports) = text.split_once(':').unwrap_or((text, ""));
    let address = |text: &str| {
        let text = text.trim_start_matches('!');
        let (number, uid) = text.split_once('@').map_or((text, None), |(number, uid)| (number, Some(uid)));
        let v6 = number.strip_prefix('v').map(|number| format!("beef::{number}"));
        let ip = v6.unwrap_or_else(|| format!("1.2.3.{number}"));
        uid.map_or_else(|| json!({"ip": ip}), |uid| json!({"ip": ip, "targetRef": {"uid": uid}}))
    };
    let list = |ready: bool| -> Value {
        addresses.split_whitespace().filter(|text| text.starts_with('!') != ready).map(address).collect()
    };
    let ports: Value =
        ports.split_whitespace().map(|port| json!({"port": port.parse::<i32>().unwrap()})).collect();
    json!({"addresses": list(true), "notReadyAddresses": list(false), "ports": ports})
}

fn subsets(text: &[&str]) -> Vec<EndpointSubset> {
    object(text.iter().map(|text| subset(text)).collect())
}

#[test]
fn TestPackSubsets() {
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 33] = [
        ("nothing", &[], &[]),
        ("empty", &[""], &[]),
        ("no addresses", &[":111"], &[]),
        ("no ports", &["4"], &["4"]),
        ("no ports, not ready", &["!4"], &["!4"]),
        ("one of each", &["4 : 111"], &["4 : 111"]),
        ("one of each, v6", &["v4 : 111"], &["v4 : 111"]),
        ("one not ready", &["!4 : 111"], &["!4 : 111"]),
        ("one with uid", &["4@a : 111"], &["4@a : 111"]),
        ("one not ready with uid", &["!4@a : 111"], &["!4@a : 111"]),
        ("empty uid", &["4@ : 111"], &["4@ : 111"]),
        ("empty uid, not ready", &["!4@ : 111"], &["!4@ : 111"]),
        ("two addresses", &["4 5 : 111"], &["4 5 : 111"]),
        ("two addresses of either kind", &["4 !5 : 111"], &["4 !5 : 111"]),
        ("the same address of either kind", &["4 !4 : 111"], &["!4 : 111"]),
        ("two ports", &["4 : 111 222"], &["4 : 111 222"]),
        ("the same address twice", &["4 4 : 111"], &["4 : 111"]),
        ("the same address twice, v6", &["v4 v4 : 111"], &["v4 : 111"]),
        ("the same address with two uids", &["4@a 4@b : 111"], &["4@a 4@b : 111"]),
        ("the same address with two uids, of either kind", &["4@a !4@b : 111"], &["4@a !4@b : 111"]),
        ("the same port twice", &["4 : 111 111"], &["4 : 111"]),
        ("two sets, same address and port", &["4 : 111", "4 : 111"], &["4 : 111"]),
        ("two sets, same of either kind", &["4 : 111", "!4 : 111"], &["!4 : 111"]),
        ("two sets, two ports", &["4 : 111", "4 : 222"], &["4 : 111 222"]),
        ("two sets, same uid, two ports", &["4@a : 111", "4@a : 222"], &["4@a : 111 222"]),
        (
            "two sets, same uid, two ports, of either kind",
            &["4@a : 111", "!4@a : 222"],
            &["4@a : 111", "!4@a : 222"],
        ),
        ("two sets, two addresses", &["4 : 111", "5 : 111"], &["4 5 : 111"]),
        ("two sets, two uids", &["4@a : 111", "4@b : 111"], &["4@a 4@b : 111"]),
        ("two sets, with uid and without", &["4@a : 111", "4 : 111"], &["4 4@a : 111"]),
        ("in the wrong order", &["5@b 5@a : 111", "4 5 : 111"], &["4 5 5@a 5@b : 111"]),
        (
            "in the wrong order, of either kind",
            &["5@b !5@a : 111", "4 !5 : 111", "!6 : 111"],
            &["4 5@b !5 !5@a !6 : 111"],
        ),
        ("two of each", &["4 : 111", "5 : 222"], &["4 : 111", "5 : 222"]),
        (
            "jumbled",
            &["4 : 222", "4 5 : 111", "6 : 222 333", "5 : 333"],
            &["4 5 : 111", "4 6 : 222", "5 6 : 333"],
        ),
    ];
    for (case, given, expected) in rows("TestPackSubsets", cases) {
        let packed = repack(&subsets(given));
        assert_eq!(repack(&packed), packed, "{case}: repacking again changes nothing");
        let [mut found, mut expected] = [packed, subsets(expected)];
        for subset in found.iter_mut().chain(&mut expected) {
            // The order of ports and subsets is that of digests, and has a test of its own.
            subset.ports.sort();
        }
        let by_port = |subset: &EndpointSubset| subset.ports.first().map(|port| port.port);
        found.sort_by_key(by_port);
        expected.sort_by_key(by_port);
        assert_eq!(found, expected, "{case}");
    }
}
