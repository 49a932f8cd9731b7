//! Properties over random series of changes.

use std::collections::BTreeSet;

use fairlead_compiler::{
    Delta, Dump, Host, Outcome, Rulebook, Share, Table, cleanup, compile, diff, is_service_chain, trace,
};
use fairlead_objects::{Family, Protocol};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, NODE, key, packet},
    kernel,
};

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Service(u8, ServiceShape),
    RemoveService(u8),
    Slice(u8, u8, Vec<EndpointShape>),
    RemoveSlice(u8, u8),
}

#[derive(Clone, Debug)]
pub(crate) struct ServiceShape {
    /// Picks among a few cluster IPs, near each other and far.
    address: u16,
    ports: u8,
    external_local: bool,
    internal_local: bool,
    affinity: bool,
    node_port: bool,
    external_ip: Option<u8>,
    ingress: bool,
    ranges: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct EndpointShape {
    ip: u8,
    here: bool,
    /// Ready; serving and terminating; or neither.
    state: u8,
}

pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        6 => (any::<u8>(), service_shape()).prop_map(|(i, shape)| Change::Service(i % 60, shape)),
        2 => any::<u8>().prop_map(|i| Change::RemoveService(i % 60)),
        6 => (any::<u8>(), 0..2_u8, prop::collection::vec(endpoint_shape(), 0..5))
            .prop_map(|(i, slice, endpoints)| Change::Slice(i % 60, slice, endpoints)),
        1 => (any::<u8>(), 0..2_u8).prop_map(|(i, slice)| Change::RemoveSlice(i % 60, slice)),
    ];
    prop::collection::vec(change, 1..150)
}

fn service_shape() -> impl Strategy<Value = ServiceShape> {
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), any::<bool>());
    let more = (prop::option::weighted(0.2, 0..3_u8), prop::bool::weighted(0.2), prop::bool::weighted(0.5));
    (any::<u16>(), 1..4_u8, flags, more).prop_map(|(address, ports, flags, more)| ServiceShape {
        address,
        ports,
        external_local: flags.0,
        internal_local: flags.1,
        affinity: flags.2,
        node_port: flags.3,
        external_ip: more.0,
        ingress: more.1,
        ranges: more.2,
    })
}

fn endpoint_shape() -> impl Strategy<Value = EndpointShape> {
    (0..20_u8, any::<bool>(), 0..4_u8).prop_map(|(ip, here, state)| EndpointShape { ip, here, state })
}

fn cluster_ip(family: Family, i: u8, shape: &ServiceShape) -> String {
    // Unique per Service; the shape moves it between a dense and a sparse range.
    match (family, shape.address % 3) {
        (Family::V4, 0) => format!("10.96.0.{i}"),
        (Family::V4, _) => format!("10.{}.{}.{i}", 97 + shape.address % 5, shape.address % 251),
        (Family::V6, 0) => format!("fd00:10:96::{i:x}"),
        (Family::V6, _) => format!("fd00:10:96:{:x}::{i:x}", 1 + shape.address),
    }
}

fn spec(family: Family, i: u8, shape: &ServiceShape) -> Value {
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    let ports: Vec<_> = (0..shape.ports)
        .map(|port| {
            let protocol = ["TCP", "UDP", "SCTP"][usize::from(port % 3)];
            let node_port = if shape.node_port { 30_000 + u16::from(i) * 3 + u16::from(port) } else { 0 };
            json!({"name": format!("p{port}"), "port": 80, "protocol": protocol, "nodePort": node_port})
        })
        .collect();
    let external = shape.external_ip.map(|n| match family {
        Family::V4 => format!("198.51.100.{n}"),
        Family::V6 => format!("2001:db8:98::{n:x}"),
    });
    let range = match family {
        Family::V4 => "203.0.113.0/24",
        Family::V6 => "2001:db8:113::/48",
    };
    json!({
        "type": "LoadBalancer", "clusterIP": cluster_ip(family, i, shape), "ports": ports,
        "externalTrafficPolicy": policy(shape.external_local), "internalTrafficPolicy": policy(shape.internal_local),
        "sessionAffinity": if shape.affinity { "ClientIP" } else { "None" },
        "externalIPs": external.into_iter().collect::<Vec<_>>(),
        "loadBalancerSourceRanges": if shape.ranges { json!([range]) } else { json!([]) },
    })
}

fn endpoint(family: Family, shape: &EndpointShape) -> Value {
    let ip = match family {
        Family::V4 => format!("10.180.0.{}", shape.ip),
        Family::V6 => format!("fd00:10::{:x}", shape.ip),
    };
    let conditions = match shape.state {
        0 | 1 => json!({"ready": true, "serving": true, "terminating": false}),
        2 => json!({"ready": false, "serving": true, "terminating": true}),
        _ => json!({"ready": false, "serving": false, "terminating": false}),
    };
    json!({"addresses": [ip], "nodeName": if shape.here { NODE } else { "other" }, "conditions": conditions})
}

pub(crate) fn apply(cluster: &mut Cluster, change: &Change) {
    let family = cluster.state.family();
    match change {
        Change::Service(i, shape) => {
            let mut service = crate::cluster::service(family, &format!("s{i}"), spec(family, *i, shape));
            if shape.ingress {
                let ip = match family {
                    Family::V4 => format!("192.0.2.{i}"),
                    Family::V6 => format!("2001:db8:2::{i:x}"),
                };
                service.ingress_ips =
                    vec![fairlead_objects::IngressIp { ip: ip.parse().unwrap(), proxy_mode: false }];
            }
            cluster.state.set_service(&service);
        }
        Change::RemoveService(i) => cluster.state.remove_service(&key(&format!("s{i}"))),
        Change::Slice(i, slice, endpoints) => {
            let ports = json!([{"name": "p0", "port": 8080}, {"name": "p1", "port": 8081, "protocol": "UDP"},
                               {"name": "p2", "port": 8082, "protocol": "SCTP"}]);
            let endpoints: Vec<_> = endpoints.iter().map(|shape| endpoint(family, shape)).collect();
            cluster.slice_with(&format!("s{i}-{slice}"), &format!("s{i}"), ports, &endpoints);
        }
        Change::RemoveSlice(i, slice) => cluster.state.remove_slice("ns", &format!("s{i}-{slice}")),
    }
}

pub(crate) fn cluster(six: bool, bpf: bool) -> Cluster {
    let mut cluster = if six { Cluster::v6() } else { Cluster::v4() };
    cluster.config.bpf = bpf;
    // Crossed now and then by the scripts.
    cluster.config.comment_limit = 60;
    cluster
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the changes are grouped into refreshes, the ruleset is what a fresh compilation gives, and the deltas lead
    /// the kernel there without ever breaking a jump.
    #[test]
    fn partial_after_full_equals_full(script in changes(), every in 1..12_usize, six: bool, bpf: bool) {
        let mut cluster = cluster(six, bpf);
        let mut book = Rulebook::new(cluster.config.clone(), cluster.facts.clone());
        let mut installed = kernel::virgin(book.ruleset());
        kernel::apply(&mut installed, &Delta::everything(book.ruleset()));
        book.take_changes();
        for changes in script.chunks(every) {
            for change in changes {
                apply(&mut cluster, change);
            }
            let dirty = cluster.state.take_dirty();
            book.refresh(&cluster.state, &dirty);
            for batch in book.take_changes().batches(if every % 2 == 0 { 3 } else { 1000 }) {
                kernel::apply(&mut installed, &batch);
            }
        }
        let fresh = compile(&cluster.state, &cluster.config, &cluster.facts);
        prop_assert_eq!(book.ruleset(), &fresh);
        prop_assert!(diff(&installed, &fresh).is_empty());
    }

    /// Rules are read back as they were written; names fit and are unique by construction of the map.
    #[test]
    fn parse_of_render_is_the_identity(script in changes(), six: bool, bpf: bool) {
        let mut cluster = cluster(six, bpf);
        for change in &script {
            apply(&mut cluster, change);
        }
        let ruleset = cluster.compile();
        let dump = kernel::reparsed(&ruleset);
        for (table, chains) in &ruleset.tables {
            for (name, chain) in chains {
                prop_assert_eq!(&dump.chain(table, name.as_str()).unwrap().rules, &chain.rules);
                prop_assert!(name.as_str().len() <= 28);
            }
        }
        prop_assert!(diff(&dump, &ruleset).is_empty());
        kernel::assert_consistent(&dump);
    }

    /// Whatever the damage, the difference repairs it; and cleaning up leaves nothing of ours.
    #[test]
    fn diff_repairs_and_cleanup_removes(script in changes(), damage in prop::collection::vec((any::<u16>(), 0..4_u8), 0..8)) {
        let mut cluster = cluster(false, true);
        for change in &script {
            apply(&mut cluster, change);
        }
        let ruleset = cluster.compile();
        let mut installed = Dump::from(&ruleset);
        for (at, kind) in damage {
            break_something(&mut installed, at.into(), kind);
        }
        let repair = diff(&installed, &ruleset);
        kernel::apply(&mut installed, &repair);
        prop_assert!(diff(&installed, &ruleset).is_empty());
        let removal = cleanup(&installed);
        kernel::apply(&mut installed, &removal);
        for table in [Table::Filter, Table::Nat] {
            for (name, chain) in &installed.tables[&table] {
                prop_assert!(name.as_str() == "KUBE-FIREWALL" || chain.policy.is_some(), "{} is left", name);
                prop_assert!(!is_service_chain(&table, name));
            }
        }
        prop_assert_eq!(installed.chain(&Table::Nat, "PREROUTING").unwrap().rules.len(), 0);
    }

    /// The tracer reaches exactly the eligible endpoints, each equally often, and with a Local policy only those here.
    #[test]
    fn every_frontend_reaches_the_eligible_endpoints_equally(script in changes(), six: bool, bpf: bool) {
        let mut cluster = cluster(six, bpf);
        for change in &script {
            apply(&mut cluster, change);
        }
        let (dump, host) = (Dump::from(&cluster.compile()), Host::from(&cluster.facts));
        let client = if six { "2001:db8:113::5" } else { "203.0.113.5" };
        let pod = if six { "fd00:10::ff" } else { "10.9.9.9" };
        let node = cluster.facts.node_ip.to_string();
        for (service, ports) in cluster.state.services() {
            let endpoints = cluster.state.endpoints(service);
            for port in ports {
                let empty = Vec::new();
                let endpoints = endpoints.get(&port.name.port).unwrap_or(&empty);
                let check = |from: &str, to: &str, number: u16, local: bool| {
                    let trace = trace(&dump, &packet(port.protocol(), from, to, number, &host), &host);
                    let wanted = eligible(endpoints, local);
                    let got: BTreeSet<_> = trace.targets.iter().map(|t| std::net::SocketAddr::new(t.address, t.port)).collect();
                    prop_assert_eq!(&got, &wanted, "{} {} -> {}:{}", port.name, from, to, number);
                    let share = Share::new(1, wanted.len() as u64);
                    prop_assert!(trace.targets.iter().all(|target| target.probability == share));
                    let refused = if eligible(endpoints, false).is_empty() { Outcome::Rejected } else { Outcome::Dropped };
                    let outcome = if wanted.is_empty() { refused } else { Outcome::Accepted };
                    prop_assert_eq!(trace.outcome, outcome);
                    Ok(())
                };
                check(pod, &port.cluster_ip.to_string(), port.port, port.internal_local)?;
                if port.node_port != 0 {
                    check(client, &node, port.node_port, port.external_local)?;
                    check(pod, &node, port.node_port, false)?;
                }
                for ip in &port.load_balancer_ips {
                    check(client, &ip.to_string(), port.port, port.external_local)?;
                }
            }
        }
    }
}

/// What a policy allows, written down independently of the compiler.
fn eligible(endpoints: &[fairlead_compiler::Endpoint], local: bool) -> BTreeSet<std::net::SocketAddr> {
    let reachable = || endpoints.iter().filter(|e| !local || e.node.as_deref() == Some(NODE));
    let ready: BTreeSet<_> = reachable().filter(|e| e.ready).map(|e| e.address).collect();
    if ready.is_empty() {
        reachable().filter(|e| e.serving && e.terminating).map(|e| e.address).collect()
    } else {
        ready
    }
}

/// Damage that others may do.
fn break_something(installed: &mut Dump, at: usize, kind: u8) {
    let table = if at.is_multiple_of(2) { Table::Nat } else { Table::Filter };
    let chains = installed.tables.get_mut(&table).unwrap();
    let name = chains.keys().nth(at % chains.len()).unwrap().clone();
    let chain = chains.get_mut(&name).unwrap();
    match kind {
        0 => chain.rules.clear(),
        1 => drop(chain.rules.pop()),
        2 if chain.policy.is_none() => {
            drop(chains.remove(&name));
            // Whoever deletes a chain must have removed the jumps to it.
            for chain in chains.values_mut() {
                chain.rules.retain(|rule| rule.next_chain() != Some(&name));
            }
        }
        _ => {
            let stale = fairlead_compiler::ChainName::from("KUBE-SVC-AAAAAAAAAAAAAAAA");
            installed.tables.get_mut(&Table::Nat).unwrap().entry(stale).or_default();
        }
    }
}

#[test]
fn protocols_of_one_port_number_do_not_mix() {
    let mut cluster = cluster(false, true);
    let shape = ServiceShape {
        address: 0,
        ports: 2,
        external_local: false,
        internal_local: false,
        affinity: false,
        node_port: false,
        external_ip: None,
        ingress: false,
        ranges: false,
    };
    apply(&mut cluster, &Change::Service(1, shape));
    apply(&mut cluster, &Change::Slice(1, 0, vec![EndpointShape { ip: 1, here: true, state: 0 }]));
    assert_eq!(cluster.flow(Protocol::Tcp, "10.9.9.9", "10.96.0.1", 80).0, "10.180.0.1:8080");
    assert_eq!(cluster.flow(Protocol::Udp, "10.9.9.9", "10.96.0.1", 80).0, "10.180.0.1:8081");
    assert_eq!(cluster.flow(Protocol::Sctp, "10.9.9.9", "10.96.0.1", 80).0, "");
}
