//! Kernels that lack a match or a target: rules do without it, and Services go on working.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_compiler::{Config, Delta, Dump, Host, Packet, Table, cleanup, diff, trace};
use fairlead_objects::Protocol;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, local, packet, remote},
    kernel::{apply, assert_consistent, reparsed, virgin},
};

/// What may be missing, how to say so, and the words that no rule may hold then.
type Switch = (&'static str, fn(&mut Config), &'static [&'static str]);

const SWITCHES: [Switch; 11] = [
    ("bpf", |config| config.bpf = false, &["bpf"]),
    ("recent", |config| config.recent = false, &["recent"]),
    ("statistic", |config| config.statistic = false, &["statistic"]),
    ("nfacct", |config| config.nfacct = false, &["nfacct"]),
    ("random-fully", |config| config.random_fully = false, &["--random-fully"]),
    ("comment", |config| config.comments = false, &["comment"]),
    ("conntrack", |config| (config.conn_state, config.bpf) = (false, false), &["ctstate"]),
    ("mark", |config| config.marks = false, &["-m mark", "-j MARK"]),
    ("addrtype", |config| config.address_types = false, &["addrtype"]),
    ("reject", |config| config.reject = false, &["REJECT"]),
    ("masquerade", |config| config.masquerade = false, &["MASQUERADE"]),
];

/// Services of all kinds: with and without endpoints, policies, affinity.
fn cluster() -> Cluster {
    let mut cluster = Cluster::v4();
    let with = |ip: &str, spec: Value| {
        let mut all = json!({"clusterIP": ip});
        fairlead_objects::builders::merge(&mut all, spec);
        all
    };
    let node_port = json!({"type": "NodePort", "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]});
    cluster.service("plain", with("172.30.0.1", json!({})));
    cluster.service("port", with("172.30.0.2", node_port));
    let affine = json!({"sessionAffinity": "ClientIP",
                        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    cluster.service("affine", with("172.30.0.3", affine));
    let balancer = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                          "externalIPs": ["5.6.7.8"],
                          "ports": [{"name": "p80", "port": 80, "nodePort": 30081}]});
    cluster.service("balancer", with("172.30.0.4", balancer));
    let empty = json!({"type": "NodePort", "ports": [{"name": "p80", "port": 80, "nodePort": 30082}]});
    cluster.service("empty", with("172.30.0.5", empty));
    for name in ["plain", "port", "affine", "balancer"] {
        cluster.slice(name, &[local("10.180.0.1"), remote("10.180.0.2"), remote("10.180.0.3")]);
    }
    cluster
}

/// What every kernel has to do for these Services, whatever it lacks.
fn assert_works(cluster: &Cluster, name: &str) {
    let all = "10.180.0.1:80, 10.180.0.2:80, 10.180.0.3:80";
    let dump = Dump::from(&cluster.compile());
    let host = Host::from(&cluster.facts);
    for (from, to, port, endpoints) in [
        ("10.180.0.9", "172.30.0.1", 80, all),
        ("192.168.0.2", "172.30.0.2", 80, all),
        ("1.2.3.4", "192.168.0.2", 30080, all),
        ("1.2.3.4", "192.168.1.2", 30080, all),
        ("10.180.0.9", "172.30.0.3", 80, all),
        ("192.168.0.2", "192.168.0.2", 30081, all),
        ("1.2.3.4", "192.168.0.2", 30081, "10.180.0.1:80"),
        ("1.2.3.4", "5.6.7.8", 80, "10.180.0.1:80"),
        ("10.180.0.9", "5.6.7.8", 80, all),
        ("10.180.0.9", "172.30.0.5", 80, ""),
        ("1.2.3.4", "192.168.0.2", 30082, ""),
        ("1.2.3.4", "8.8.8.8", 53, ""),
    ] {
        let mut reached = BTreeSet::new();
        for source_port in (32_768..61_000).step_by(500) {
            let packet = Packet { source_port, ..packet(Protocol::Tcp, from, to, port, &host) };
            let traced = trace(&dump, &packet, &host);
            let foreign = to == "8.8.8.8";
            assert!(
                !foreign || (traced.outcome.as_str(), traced.masquerade) == ("no match", false),
                "{name}"
            );
            let refused = endpoints.is_empty() && !foreign;
            assert!(
                !refused || ["rejected", "dropped"].contains(&traced.outcome.as_str()),
                "{name}: {to}:{port}"
            );
            reached.extend(traced.targets.iter().map(|to| format!("{}:{}", to.address, to.port)));
        }
        let reached: Vec<_> = reached.into_iter().collect();
        assert_eq!(reached.join(", "), endpoints, "{name}: {from} -> {to}:{port}");
    }
}

#[test]
fn whatever_is_missing_is_not_written_and_services_go_on_working() {
    let mut poor = cluster();
    for (name, switch, words) in SWITCHES {
        let mut cluster = cluster();
        let complete = cluster.compile().render_document();
        switch(&mut cluster.config);
        switch(&mut poor.config);
        let ruleset = cluster.compile();
        let document = ruleset.render_document();
        for word in words {
            assert!(complete.contains(word), "{name}: nothing shows that {word} is gone");
            assert!(!document.contains(word), "{name}: {word} in\n{document}");
        }
        assert!(diff(&reparsed(&ruleset), &ruleset).is_empty(), "{name}");
        assert_consistent(&Dump::from(&ruleset));
        assert_works(&cluster, name);
    }
    assert_works(&poor, "everything");
    let document = poor.compile().render_document();
    assert!(
        SWITCHES.iter().flat_map(|(_, _, words)| *words).all(|word| !document.contains(word)),
        "{document}"
    );
}

#[test]
fn source_ports_of_clients_spread_over_the_endpoints_evenly() {
    for count in [2, 3, 7, 100] {
        let mut cluster = Cluster::v4();
        cluster.config.statistic = false;
        let endpoints: Vec<_> = (1..=count).map(|n| remote(&format!("10.180.0.{n}"))).collect();
        cluster.service("svc", json!({})).slice("svc", &endpoints);
        let (dump, host) = (Dump::from(&cluster.compile()), Host::from(&cluster.facts));
        let mut clients = BTreeMap::<_, u16>::new();
        let ports = (32_768..61_000).step_by(7);
        let asked = u16::try_from(ports.len()).unwrap();
        for source_port in ports {
            let packet =
                Packet { source_port, ..packet(Protocol::Tcp, "10.0.0.9", "172.30.0.41", 80, &host) };
            let targets = trace(&dump, &packet, &host).targets;
            assert_eq!(targets.len(), 1, "{source_port}: {targets:?}");
            *clients.entry(targets[0].address).or_default() += 1;
        }
        assert_eq!(clients.len(), usize::from(count));
        let fair = asked / count;
        assert!(clients.values().all(|n| n.abs_diff(fair) <= 2), "{count}: {fair} {clients:?}");
    }
}

#[test]
fn without_marks_only_what_goes_to_services_is_masqueraded() {
    let mut cluster = cluster();
    cluster.config.marks = false;
    cluster.assert_flows(&[
        ("to a Service", "1.2.3.4", "192.168.0.2", 30081, "10.180.0.1:80", true),
        ("elsewhere", "10.180.0.9", "8.8.8.8", 53, "", false),
    ]);
    cluster.config.conn_state = false;
    cluster.config.bpf = false;
    cluster.assert_flows(&[
        ("to a Service", "1.2.3.4", "192.168.0.2", 30081, "10.180.0.1:80", false),
        ("elsewhere", "10.180.0.9", "8.8.8.8", 53, "", false),
    ]);
}

#[test]
fn loopback_is_not_opened_when_it_cannot_be_protected() {
    let mut cluster = cluster();
    (cluster.config.conn_state, cluster.config.bpf) = (false, false);
    let ruleset = cluster.compile();
    assert!(ruleset.chain(&Table::Filter, "KUBE-FIREWALL").unwrap().shared);
    assert!(!cluster.config.localhost_node_ports_active(ruleset.family));
    assert_eq!(cluster.flow(Protocol::Tcp, "127.0.0.1", "127.0.0.1", 30080).0, "");
}

#[test]
fn cleanup_knows_the_rules_of_every_kernel() {
    for (name, switch, _) in SWITCHES {
        let mut cluster = cluster();
        switch(&mut cluster.config);
        let ruleset = cluster.compile();
        let mut installed = virgin(&ruleset);
        apply(&mut installed, &Delta::everything(&ruleset));
        let delta = cleanup(&installed);
        assert!(delta.put.is_empty(), "{name}: {:?} are still used", delta.put.keys());
        apply(&mut installed, &delta);
        let chains = installed.tables.values().flat_map(BTreeMap::iter);
        let left = chains.filter(|(_, chain)| chain.policy.is_none()).map(|(chain, _)| chain.as_str());
        assert!(left.clone().all(|chain| chain == "KUBE-FIREWALL"), "{name}: {:?}", left.collect::<Vec<_>>());
    }
}
