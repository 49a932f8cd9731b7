//! Trees of dispatch chains: short chains, every frontend reached, small deltas.

use std::collections::BTreeSet;

use fairlead_compiler::{Comment, Delta, Dump, Host, Rule, Rulebook, Table, Target, compile, trace};
use fairlead_objects::Protocol;
use serde_json::json;

use crate::{
    cluster::{Cluster, key, packet, remote, summary},
    kernel,
};

/// What a bucket may hold, and the two rules that mark.
const LONGEST: usize = 50;

/// Spread over 10.96.0.0/12, some dense and some sparse; the same every time.
fn address(i: u32) -> String {
    let scattered = i.wrapping_mul(2_654_435_761) >> 12;
    let host = if i.is_multiple_of(3) { i } else { scattered & 0xf_ffff };
    std::net::Ipv4Addr::from(0x0a60_0000 + host).to_string()
}

fn big(services: u32) -> Cluster {
    let mut cluster = Cluster::v4();
    for i in 0..services {
        let name = format!("svc-{i}");
        let node_port = 30_000 + i;
        let port =
            json!([{"name": "p80", "port": 80 + i % 7, "nodePort": if i % 2 == 0 { node_port } else { 0 }}]);
        cluster.service(&name, json!({"type": "NodePort", "clusterIP": address(i), "ports": port}));
        if i % 5 != 0 {
            let ip = std::net::Ipv4Addr::from(0x0aff_0000 + i).to_string();
            cluster.slice(&name, &[remote(&ip)]);
        }
    }
    cluster
}

#[test]
fn no_chain_is_long_and_every_entry_is_reached_with_two_thousand_addresses() {
    let cluster = big(2_000);
    let ruleset = cluster.compile();
    for (table, chains) in &ruleset.tables {
        for (name, chain) in chains {
            assert!(chain.rules.len() <= LONGEST, "{table} {name} has {} rules", chain.rules.len());
            assert!(name.as_str().len() <= 28, "{name}");
        }
    }
    let (dump, host) = (Dump::from(&ruleset), Host::from(&cluster.facts));
    kernel::assert_consistent(&dump);
    let flow = |to: &str, port: u32| {
        let port = u16::try_from(port).unwrap();
        let trace = trace(&dump, &packet(Protocol::Tcp, "203.0.113.2", to, port, &host), &host);
        assert!(trace.path.len() < 20, "{to}:{port} meets {} rules", trace.path.len());
        summary(&trace).0
    };
    for i in (0..2_000_u32).rev().take(1_000) {
        let endpoint = std::net::Ipv4Addr::from(0x0aff_0000 + i);
        let output = if i % 5 == 0 { "REJECT".to_owned() } else { format!("{endpoint}:80") };
        assert_eq!(flow(&address(i), 80 + i % 7), output, "service {i}");
        if i % 2 == 0 {
            assert_eq!(flow("192.168.0.2", 30_000 + i), output, "node port of service {i}");
        }
    }
    assert_eq!(flow("8.8.8.8", 80), "");
}

#[test]
fn one_address_with_many_ports_gets_a_port_level() {
    let mut cluster = Cluster::v4();
    let ports: Vec<_> = (0..300).map(|i| json!({"name": format!("p{i}"), "port": 1000 + i})).collect();
    cluster.service("svc", json!({"ports": ports}));
    cluster.slice_with("s", "svc", json!(ports), &[remote("10.180.0.1")]);
    let ruleset = cluster.compile();
    assert!(ruleset.tables[&Table::Nat].values().all(|chain| chain.rules.len() <= LONGEST));
    for port in [1000, 1150, 1299] {
        assert_eq!(
            cluster.flow(Protocol::Tcp, "10.0.0.2", "172.30.0.41", port).0,
            format!("10.180.0.1:{port}")
        );
    }
    assert_eq!(cluster.flow(Protocol::Tcp, "10.0.0.2", "172.30.0.41", 1300).0, "");
}

#[test]
fn many_claims_to_one_port_of_one_address_do_not_recurse_for_ever() {
    let mut cluster = Cluster::v4();
    for i in 0..100 {
        let spec = json!({"clusterIP": format!("172.30.1.{i}"), "externalIPs": ["5.6.7.8"]});
        cluster.service(&format!("svc-{i:03}"), spec).slice(&format!("svc-{i:03}"), &[remote("10.180.0.1")]);
    }
    assert_eq!(cluster.flow(Protocol::Tcp, "203.0.113.2", "5.6.7.8", 80).0, "10.180.0.1:80");
}

/// 200 Services with two endpoints each, in one network of cluster IPs; one of the addresses is an external one of another, too.
fn dense() -> Cluster {
    let mut cluster = Cluster::v4();
    for i in 0..200 {
        let name = format!("svc-{i}");
        cluster.service(
            &name,
            json!({"clusterIP": format!("10.96.0.{i}"), "ports": [{"name": "p80", "port": 80}]}),
        );
        cluster.slice(&name, &[remote(&format!("10.255.0.{i}")), remote(&format!("10.255.1.{i}"))]);
    }
    cluster.service("guest", json!({"clusterIP": "10.97.0.1", "externalIPs": ["10.96.0.7", "10.96.0.250"]}));
    cluster.slice("guest", &[remote("10.255.2.1")]);
    cluster
}

#[test]
fn cluster_ips_of_a_network_share_the_rules_that_mark_clients_from_outside() {
    let cluster = dense();
    let ruleset = cluster.compile();
    let marks = |rule: &Rule| rule.next_chain().is_some_and(|chain| chain.as_str() == "KUBE-MARK-MASQ");
    let inlined = |name: &str| name.starts_with("KUBE-SVC-10.96.");
    let marking: Vec<_> = ruleset.tables[&Table::Nat]
        .iter()
        .filter(|(name, chain)| inlined(name.as_str()) && chain.rules.iter().any(marks))
        .map(|(name, chain)| (name.as_str(), chain))
        .collect();
    let [("KUBE-SVC-10.96.0.0/24", chain)] = marking[..] else { panic!("{marking:?}") };
    assert!(marks(chain.rules.first().unwrap()));
    assert_eq!(chain.rules.iter().filter(|rule| marks(rule)).count(), 1);
    cluster.assert_flows(&[
        ("outside to cluster IP", "203.0.113.2", "10.96.0.7", 80, "10.255.0.7:80, 10.255.1.7:80", true),
        ("pod to cluster IP", "10.0.0.2", "10.96.0.7", 80, "10.255.0.7:80, 10.255.1.7:80", false),
        ("outside to another port", "203.0.113.2", "10.96.0.7", 81, "", false),
        ("outside to no Service", "203.0.113.2", "10.96.0.201", 80, "", false),
        ("pod to an external IP among them", "10.0.0.2", "10.96.0.250", 80, "10.255.2.1:80", true),
    ]);
}

#[test]
fn each_service_marks_for_itself_where_cluster_ips_are_far_apart() {
    let mut cluster = Cluster::v4();
    for i in 0..200 {
        let name = format!("svc-{i}");
        cluster
            .service(&name, json!({"clusterIP": format!("{i}.1.1.1")}))
            .slice(&name, &[remote("10.180.0.1")]);
    }
    let ruleset = cluster.compile();
    let clears = ruleset.tables[&Table::Nat].iter().filter(|(name, chain)| {
        let clears = |rule: &Rule| matches!(rule.target, Some(Target::SetMark(mark)) if mark.value == 0);
        name.as_str().starts_with("KUBE-SVC-") && chain.rules.iter().any(clears)
    });
    assert_eq!(clears.count(), 0);
    assert!(cluster.flow(Protocol::Tcp, "203.0.113.2", "7.1.1.1", 80).1);
}

#[test]
fn endpoints_of_a_large_cluster_carry_no_comments_but_the_first_of_a_service() {
    let mut cluster = dense();
    cluster.config.comment_limit = 100;
    let ruleset = cluster.compile();
    let dnats = ruleset.tables[&Table::Nat].values().flat_map(|chain| &chain.rules);
    let dnats: Vec<_> = dnats.filter(|rule| rule.to_string().contains("-d 10.96.0.8/32")).collect();
    let comments: Vec<_> = dnats.iter().map(|rule| rule.comment.as_ref().map(Comment::as_str)).collect();
    assert_eq!(comments, [Some("ns/svc-8:p80 cluster IP"), None]);
}

#[test]
fn node_port_rule_stays_last() {
    let ruleset = big(500).compile();
    let rules = &ruleset.chain(&Table::Nat, "KUBE-SERVICES").unwrap().rules;
    assert_eq!(rules.iter().next_back().unwrap().next_chain().unwrap().as_str(), "KUBE-NODEPORTS");
}

/// One endpoint more rewrites the chain of its Service, or its leaf, and nothing else.
#[test]
fn delta_of_one_change_is_small_among_two_thousand_services() {
    let mut cluster = big(2_000);
    let mut book = Rulebook::new(cluster.config.clone(), cluster.facts.clone());
    let dirty = cluster.state.take_dirty();
    book.refresh(&cluster.state, &dirty);
    let full = book.take_changes();
    assert!(full.rule_count() > 4_000);
    for endpoints in [&[remote("10.9.9.1"), remote("10.9.9.2")][..], &[], &[remote("10.9.9.3")]] {
        cluster.slice("svc-7", endpoints);
        let dirty = cluster.state.take_dirty();
        book.refresh(&cluster.state, &dirty);
        let delta = book.take_changes();
        assert!((1..=6).contains(&delta.chain_count()), "{} chains", delta.chain_count());
        assert!(delta.rule_count() < 150, "{} rules", delta.rule_count());
    }
    cluster.slice("svc-7", &[remote("10.9.9.3")]);
    assert!(cluster.state.take_dirty().is_empty());
}

#[test]
fn tree_shrinks_back_to_what_few_services_need() {
    let mut cluster = big(600);
    let mut book = Rulebook::new(cluster.config.clone(), cluster.facts.clone());
    book.refresh(&cluster.state, &cluster.state.clone().take_dirty());
    let mut installed = kernel::virgin(book.ruleset());
    kernel::apply(&mut installed, &Delta { hook: book.ruleset().jumps.clone(), ..book.take_changes() });
    let gone: BTreeSet<_> = (3..600).map(|i| key(&format!("svc-{i}"))).collect();
    for name in &gone {
        cluster.state.remove_service(name);
        book.refresh(&cluster.state, &[name.clone()].into());
    }
    kernel::apply(&mut installed, &book.take_changes());
    assert_eq!(*book.ruleset(), compile(&cluster.state, &cluster.config, &cluster.facts));
    assert!(!book.ruleset().tables[&Table::Nat].keys().any(|name| name.as_str().contains('/')));
}

#[test]
fn batches_are_consistent_at_every_prefix() {
    let mut cluster = big(800);
    let mut book = Rulebook::new(cluster.config.clone(), cluster.facts.clone());
    book.refresh(&cluster.state, &cluster.state.clone().take_dirty());
    let first = Delta { hook: book.ruleset().jumps.clone(), ..book.take_changes() };
    let mut installed = kernel::virgin(book.ruleset());
    let batches = first.batches(50);
    assert!(batches.len() > 5);
    for batch in &batches {
        kernel::apply(&mut installed, batch);
    }
    for i in 0..800 {
        cluster.state.remove_service(&key(&format!("svc-{i}")));
    }
    let dirty = cluster.state.take_dirty();
    book.refresh(&cluster.state, &dirty);
    for batch in book.take_changes().batches(1) {
        kernel::apply(&mut installed, &batch);
    }
    assert!(fairlead_compiler::diff(&installed, book.ruleset()).put.is_empty());
}
