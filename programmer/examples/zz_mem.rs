//! Temporary.
#![allow(warnings, clippy::all, clippy::pedantic)]
use std::{fs, sync::Arc, time::{Duration, Instant}, collections::BTreeSet};
use fairlead_objects::{Family, Protocol, builders, NodeName};
use fairlead_programmer::{conntrack::Demand, census::Census};
use fairlead_compiler::*;
use serde_json::json;
fn live() -> f64 { let i = unsafe { libc::mallinfo2() }; (i.uordblks + i.hblkhd) as f64 / 1048576.0 }
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let mut last = live();
    let mut step = |what: &str| { let now = live(); eprintln!("{what}: {:+.1} MiB (live {now:.1})", now - last); last = now; };
    let mut state = ProxyState::new(Family::V4);
    for i in 0..n {
        let ip = format!("10.96.{}.{}", i / 250, i % 250 + 1);
        let s = builders::service(&format!("service-{i}"), json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "UDP"}]}));
        state.set_service(&s);
    }
    step("services");
    for i in 0..n {
        let e = [("10.0.0.1", "node-a", true), ("10.0.0.2", "node-a", true)];
        let mut s = builders::slice(&format!("service-{i}"), &format!("service-{i}"), 8080, &e);
        for p in &mut s.ports { p.protocol = Some(Protocol::Udp); }
        state.set_slice(&s);
    }
    step("slices");
    let dirty = state.take_dirty();
    step("dirty");
    let node = NodeFacts { name: NodeName::new("node1"), zone: None, node_ip: [192,168,0,2].into(), addresses: vec![], family: Family::V4 };
    let config = Config { detector: Detector::Cidr("10.244.0.0/16".parse().unwrap()), ..Config::default() };
    let mut book = Rulebook::new(config.clone(), node.clone());
    book.refresh(&state, &dirty);
    step("rulebook");
    let mut d = Demand::default();
    d.refresh(&state, &dirty);
    step("demand");
    let v = d.verdicts(&Config::default(), vec![]);
    step("verdicts");
    drop(v); d.settle();
    step("verdicts gone");
    drop(dirty);
    step("dirty gone");
    drop(book.take_changes());
    step("changes taken");
    let delta = diff(&Dump::default(), book.ruleset());
    step("delta");
    let b = delta.batches(500);
    step("batches");
    drop(b);
    step("batches gone");
    let ruleset = book.ruleset().clone();
    step("one more ruleset");
    eprintln!("sizes: Rule {} Match {} Chain {} ServicePort {} ServiceKey {} chains {} rules {}", size_of::<Rule>(), size_of::<Match>(), size_of::<Chain>(), size_of::<ServicePort>(), size_of::<fairlead_objects::ServiceKey>(), ruleset.tables.values().map(|t| t.len()).sum::<usize>(), ruleset.rule_count(&Table::Nat));
}
