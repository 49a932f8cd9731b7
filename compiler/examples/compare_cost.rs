//! What a comparison costs: so many Services with two endpoints each, as kube-proxy installs them, against our rules.
//!
//! `cargo run --release -p fairlead-compiler --example compare_cost -- 10000`

#![allow(clippy::expect_used, reason = "a tool for developers")]

use std::{fmt::Write as _, time::Instant};

use fairlead_compiler::{
    Config, Detector, Dump, NodeFacts, ProxyState, Rulebook, ServicePort, Subject, compare, parse,
};
use fairlead_objects::{EndpointSlice, Family, NodeName, Service, builders};
use serde_json::json;

const HEAD: &str = ":PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
    :KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n";
const TAIL: &str = "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
    -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
    -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n-A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
    -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";

fn name(n: usize) -> String {
    format!("service-{n}")
}

fn cluster_ip(n: usize) -> String {
    format!("10.96.{}.{}", n / 250, n % 250 + 1)
}

fn endpoints(n: usize) -> [String; 2] {
    [10, 11].map(|net| format!("{net}.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, n % 250 + 1))
}

fn service(n: usize) -> Service {
    let ip = cluster_ip(n);
    builders::service(&name(n), json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}))
}

fn slice(n: usize) -> EndpointSlice {
    let [a, b] = endpoints(n);
    builders::slice(&format!("{}-1", name(n)), &name(n), 8080, &[(&a, "node-a", true), (&b, "node-b", true)])
}

/// As `iptables-save` prints what kube-proxy installs.
fn installed(services: usize) -> String {
    let (mut chains, mut dispatch, mut rules) = (String::new(), String::new(), String::new());
    for n in 0..services {
        let (ip, text) = (cluster_ip(n), format!("default/{}", name(n)));
        let to = format!("-d {ip}/32 -p tcp -m comment --comment \"{text} cluster IP\" -m tcp --dport 80");
        // Writing to a String cannot fail.
        _ = writeln!(chains, ":KUBE-SVC-{n} - [0:0]\n:KUBE-SEP-{n}A - [0:0]\n:KUBE-SEP-{n}B - [0:0]");
        _ = writeln!(dispatch, "-A KUBE-SERVICES {to} -j KUBE-SVC-{n}");
        _ = writeln!(rules, "-A KUBE-SVC-{n} ! -s 10.0.0.0/7 {to} -j KUBE-MARK-MASQ");
        let half = "-m statistic --mode random --probability 0.50000000000";
        _ = writeln!(rules, "-A KUBE-SVC-{n} {half} -j KUBE-SEP-{n}A\n-A KUBE-SVC-{n} -j KUBE-SEP-{n}B");
        for (endpoint, letter) in endpoints(n).iter().zip(["A", "B"]) {
            let comment = format!("-m comment --comment {text}");
            _ = writeln!(rules, "-A KUBE-SEP-{n}{letter} -s {endpoint}/32 {comment} -j KUBE-MARK-MASQ");
            let dnat = format!("-j DNAT --to-destination {endpoint}:8080");
            _ = writeln!(rules, "-A KUBE-SEP-{n}{letter} -p tcp {comment} -m tcp {dnat}");
        }
    }
    format!("*nat\n{HEAD}{chains}{dispatch}{TAIL}{rules}COMMIT\n")
}

fn timed<T>(what: &str, job: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = job();
    println!("{what}: {} ms", start.elapsed().as_millis());
    result
}

fn main() {
    let services = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let config =
        Config { detector: Detector::Cidr("10.0.0.0/7".parse().expect("a network")), ..Config::default() };
    let facts = NodeFacts {
        name: NodeName::new("node-a"),
        zone: None,
        node_ip: [192, 168, 0, 2].into(),
        addresses: vec!["192.168.0.2/24".parse().expect("a network")],
        family: Family::V4,
    };
    let mut state = ProxyState::new(Family::V4);
    for n in 0..services {
        state.set_service(&service(n));
        state.set_slice(&slice(n));
    }
    let mut book = Rulebook::new(config.clone(), facts.clone());
    let dirty = state.take_dirty();
    timed("our rules", || book.refresh(&state, &dirty));
    let text = installed(services);
    println!("installed: {} rules, {} KiB", text.matches("\n-A ").count(), text.len() / 1024);
    let dump: Dump = timed("parse", || parse(&text)).expect("what was just written");
    let desired = book.ruleset();
    let subject = Subject { installed: &dump, desired, state: &state, config: &config, facts: &facts };
    let found = timed("compare", || compare(subject));
    let ports = state.services().map(|(_, ports): (_, &[ServicePort])| ports.len()).sum::<usize>();
    println!(
        "{} Services, {ports} ports, {} frontends, {} packets through both, {} differences",
        found.services,
        found.frontends,
        found.packets,
        found.differences.len()
    );
}
