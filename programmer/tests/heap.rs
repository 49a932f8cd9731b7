//! What Services cost a node in memory: bytes on the heap for each, counted by an allocator that knows every block.
//!
//! Objects come in as text, as an API server sends them on a watch, and through the same types as in the daemon. What is kept
//! is counted when all rules are compiled and handed over to be written, the most while that went on.
//!
//! One test: the allocator counts for the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fmt, net::Ipv4Addr};

use fairlead_compiler::{Config, Detector, Dump, NodeFacts, ProxyState, Rulebook, diff, render};
use fairlead_daemon::watch::Event;
use fairlead_objects::{Family, NodeName};
use fairlead_programmer::{
    census::Census,
    conntrack::Demand,
    feed::{Change, Services, Slices},
};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// As many as make it a large cluster, where endpoints have no comments.
const SERVICES: u32 = 1_000;
/// As the agent writes them on nft.
const SERVICES_PER_RESTORE: usize = 500;

/// The n-th of some addresses.
fn address(first: [u8; 4], n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(first)) + n)
}

fn metadata(namespace: u32, name: &str, labels: &Value) -> Value {
    json!({"namespace": format!("team-{namespace}"), "name": name, "uid": format!("0f8fad5b-d9cb-469f-a165-{name}"),
        "resourceVersion": "123456789", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels})
}

fn service(n: u32, kind: &str, protocol: &str) -> String {
    let (name, ip) = (format!("checkout-{n}"), address([10, 96, 1, 0], n * 6));
    let port = json!({"name": "http", "port": 80, "protocol": protocol, "targetPort": "http"});
    let mut spec = json!({"type": kind, "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "selector": {"app.kubernetes.io/name": name}, "ports": [port]});
    let mut status = json!({});
    if kind == "LoadBalancer" {
        spec["ports"][0]["nodePort"] = json!(30_000 + n);
        status = json!({"loadBalancer": {"ingress": [{"ip": address([198, 51, 0, 0], n)}]}});
    }
    let labels = json!({"app.kubernetes.io/name": name});
    json!({"metadata": metadata(n % 50, &name, &labels), "spec": spec, "status": status}).to_string()
}

/// With two endpoints.
fn slice(n: u32, protocol: &str) -> String {
    let name = format!("checkout-{n}");
    let endpoint = |ip: Ipv4Addr| {
        json!({"addresses": [ip], "nodeName": format!("worker-{}", u32::from(ip) % 100),
            "conditions": {"ready": true, "serving": true, "terminating": false}})
    };
    let endpoints: Vec<_> = (0..2).map(|i| endpoint(address([10, 200, 0, 0], n * 2 + i))).collect();
    let labels = json!({"kubernetes.io/service-name": name});
    json!({"metadata": metadata(n % 50, &format!("{name}-x7k2p"), &labels), "addressType": "IPv4",
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": protocol}]})
    .to_string()
}

/// Bytes for each Service.
struct Cost {
    /// When all rules are written.
    kept: usize,
    /// At the worst moment before.
    peak: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes per Service, at most {} before", self.kept, self.peak)
    }
}

fn take_in(state: &mut ProxyState, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Service(service) => state.set_service(&service),
            Change::Slice(slice) => state.set_slice(&slice),
            _ => unreachable!("objects are only set"),
        }
    }
}

/// What the agent does at a start, with everything that it keeps of one family.
fn cost(kind: &str, protocol: &str) -> Cost {
    let pods = "10.200.0.0/16".parse().unwrap();
    let config = Config { detector: Detector::Cidr(pods), ..Config::default() };
    let facts = NodeFacts {
        name: NodeName::new("worker-1"),
        zone: None,
        node_ip: [192, 168, 0, 2].into(),
        addresses: Vec::new(),
        family: Family::V4,
    };
    // Where a block was asked for is not looked at: a short way back is found soon.
    let _profiler = dhat::Profiler::builder().testing().trim_backtraces(Some(4)).build();
    let (mut services, mut slices) = (Services::default(), Slices::default());
    let mut state = ProxyState::new(Family::V4);
    for n in 0..SERVICES {
        let event = Event::InitApply(serde_json::from_str(&service(n, kind, protocol)).unwrap());
        take_in(&mut state, services.changes(event));
    }
    for n in 0..SERVICES {
        let event = Event::InitApply(serde_json::from_str(&slice(n, protocol)).unwrap());
        take_in(&mut state, slices.changes(event));
    }
    let dirty = state.take_dirty();
    let mut book = Rulebook::new(config.clone(), facts.clone());
    book.refresh(&state, &dirty);
    book.forget_changes();
    let census = Census::of(&state, &facts);
    let mut demand = Demand::default();
    demand.refresh(&state, &dirty);
    drop(dirty);
    let delta = diff(&Dump::default(), book.ruleset());
    let batches = delta.batches(SERVICES_PER_RESTORE);
    let written: usize = batches.iter().map(|batch| render(batch).len()).sum();
    drop(batches);
    drop(demand.verdicts(&config, Vec::new()));
    demand.settle();
    let heap = dhat::HeapStats::get();
    drop((services, slices, state, book, census, demand));
    let count = SERVICES as usize;
    assert!(written > 200 * count, "{written} bytes are not the rules of all Services");
    Cost { kept: heap.curr_bytes / count, peak: heap.max_bytes / count }
}

/// A tenth above what it was when this was written.
#[test]
fn services_of_two_endpoints_stay_within_their_budget() {
    let budgets = [
        ("ClusterIP", "TCP", 1_860, 2_520),
        ("ClusterIP", "UDP", 2_200, 2_900),
        // Has chains of its own, and a node port.
        ("LoadBalancer", "TCP", 3_830, 4_650),
    ];
    let mut exceeded = false;
    for (kind, protocol, kept, peak) in budgets {
        let cost = cost(kind, protocol);
        println!("{kind} over {protocol}: {cost}; the budget is {kept} and {peak}");
        exceeded |= cost.kept > kept || cost.peak > peak;
    }
    assert!(!exceeded, "see above");
}
