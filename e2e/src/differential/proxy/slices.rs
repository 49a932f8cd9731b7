//! Random EndpointSlices of a Service: endpoints here, there and nowhere, in every condition, with and without hints.
//!
//! kube-proxy reads the slices of a Service in no particular order. What depends on that order is not made: an endpoint
//! that two slices have in different conditions is terminating in all but one, and not in that one.

use serde_json::{Map, Value, json};

use crate::differential::controller::random::Random;

/// Slices of each family that a Service may have.
const SLICES: usize = 3;

/// The hints of one slice's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hinting {
    None,
    Zones,
    Nodes,
    Both,
    /// One endpoint has none, and so none count.
    Gaps,
}

/// The slices of a Service with these ports.
pub(super) fn slices(namespace: &str, service: &str, ports: &[Value], random: &mut Random) -> Vec<Value> {
    let mut slices = Vec::new();
    for family in ["IPv4", "IPv6"] {
        let hinting = random.one_of([
            Hinting::None,
            Hinting::None,
            Hinting::None,
            Hinting::Zones,
            Hinting::Nodes,
            Hinting::Both,
            Hinting::Gaps,
        ]);
        let count = random.one_of([0, 1, 1, 1, 2, SLICES]);
        let few = random.chance(40);
        let mut shared: Vec<Value> = Vec::new();
        for n in 0..count {
            let mut endpoints = endpoints(family, n, few, hinting, random);
            if n == 0 && count > 1 {
                shared = endpoints.iter().filter(|_| random.chance(30)).map(late).collect();
            } else if count == 1 && random.chance(20) {
                twice(&mut endpoints, random);
            }
            if n > 0 {
                endpoints.extend(shared.iter().filter(|_| random.chance(40)).cloned());
            }
            slices.push(slice(
                namespace,
                service,
                family,
                n,
                &slice_ports(ports, n, random),
                &endpoints,
                random,
            ));
        }
    }
    slices
}

/// The same endpoint, but on its way out, so that it is certain to lose against the original; one that is already on its
/// way out stays as it is.
fn late(endpoint: &Value) -> Value {
    let mut late = endpoint.clone();
    if late["conditions"]["terminating"] != true {
        late["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    }
    late
}

/// Lists an endpoint again in other conditions: the last that is not terminating counts.
fn twice(endpoints: &mut Vec<Value>, random: &mut Random) {
    if let Some(mut again) = random.pick(endpoints).cloned() {
        again["conditions"] = conditions(random);
        endpoints.push(again);
    }
}

fn slice(
    namespace: &str,
    service: &str,
    family: &str,
    n: usize,
    ports: &[Value],
    endpoints: &[Value],
    random: &mut Random,
) -> Value {
    let mut labels = Map::new();
    if !random.chance(3) {
        labels.insert("kubernetes.io/service-name".into(), json!(service));
    }
    if random.chance(3) {
        labels.insert("service.kubernetes.io/headless".into(), json!(""));
    }
    let name = format!("{service}-{}-{n}", family.to_lowercase());
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    })
}

/// By name and protocol; each slice may lead to another number.
fn slice_ports(ports: &[Value], n: usize, random: &mut Random) -> Vec<Value> {
    let mut made = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        if random.chance(6) {
            continue;
        }
        let protocol = if random.chance(4) { "UDP".into() } else { port["protocol"].clone() };
        let number = 8000 + index + if random.chance(20) { 100 * n } else { 0 };
        let number = if random.chance(2) { Value::Null } else { json!(number) };
        let name = port.get("name").cloned().unwrap_or_else(|| json!(""));
        made.push(json!({"name": name, "protocol": protocol, "port": number}));
    }
    if random.chance(10) {
        made.push(json!({"name": "stray", "protocol": "TCP", "port": 9999}));
    }
    made
}

/// Endpoints of the n-th slice: no address is in two of them.
fn endpoints(family: &str, n: usize, few: bool, hinting: Hinting, random: &mut Random) -> Vec<Value> {
    let four = family == "IPv4";
    let pod = |node: usize, host: usize| {
        if four { format!("10.244.{node}.{host}") } else { format!("fd00:244:0:{node}::{host:x}") }
    };
    let mut pool: Vec<(String, Option<&str>)> = Vec::new();
    for host in (2 + n..12).step_by(SLICES) {
        pool.push((pod(1, host), Some("node1")));
        pool.push((pod(2, host), Some("node2")));
        pool.push((pod(3, host), Some("node3")));
    }
    let hosts = if four {
        ["172.30.0.11", "172.30.0.12", "203.0.113.50"]
    } else {
        ["fd00:30::b", "fd00:30::c", "2001:db8:113::50"]
    };
    // The node itself, another node, and a stranger without a node.
    pool.push((hosts[n % hosts.len()].to_owned(), [Some("node1"), Some("node2"), None][n % hosts.len()]));
    let chance = if few { 12 } else { 40 };
    let mut endpoints = Vec::new();
    for (address, node) in pool {
        if !random.chance(chance) {
            continue;
        }
        let mut endpoint = json!({"addresses": [address], "conditions": conditions(random)});
        if let Some(node) = node.filter(|_| !random.chance(5)) {
            endpoint["nodeName"] = json!(node);
        }
        if let Some(hints) = hints(hinting, random) {
            endpoint["hints"] = hints;
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn conditions(random: &mut Random) -> Value {
    match random.below(100) {
        0..55 => json!({"ready": true, "serving": true, "terminating": false}),
        55..60 => json!({}),
        60..72 => json!({"ready": false, "serving": false, "terminating": false}),
        72..88 => json!({"ready": false, "serving": true, "terminating": true}),
        88..94 => json!({"ready": false, "serving": false, "terminating": true}),
        94..97 => json!({"ready": true, "serving": true, "terminating": true}),
        _ => json!({"ready": false, "terminating": true}),
    }
}

fn hints(hinting: Hinting, random: &mut Random) -> Option<Value> {
    let zones = json!([{"name": random.one_of(["zone1", "zone2", "zone1", "zone3"])}]);
    let nodes = json!([{"name": random.one_of(["node1", "node2"])}]);
    match hinting {
        Hinting::None => None,
        Hinting::Gaps if random.chance(30) => None,
        Hinting::Zones | Hinting::Gaps => Some(json!({"forZones": zones})),
        Hinting::Nodes => Some(json!({"forNodes": nodes})),
        Hinting::Both => Some(json!({"forZones": zones, "forNodes": nodes})),
    }
}
