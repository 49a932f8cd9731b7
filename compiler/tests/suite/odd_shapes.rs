//! Objects of shapes that an API server lets in, or a file may hold, and nobody expects: what becomes of each.
//!
//! The list for readers is docs/dataplane-odd-shapes.md; the genuine kube-proxy gets the same shapes in e2e's
//! differential run.

use fairlead_compiler::{Outcome, Rulebook, Share, Table, diff, parse};
use fairlead_objects::Protocol;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, NODE, key, local, remote, summary, terminating, unready},
    flows::with_ingress,
    kernel,
};

const VIP: &str = "172.30.0.41";
const POD: &str = "10.0.0.2";
const CLIENT: &str = "203.0.113.2";
const NODE_IP: &str = "192.168.0.2";

fn exposed(name: &str, cluster_ip: &str, more: Value) -> Value {
    let mut spec =
        json!({"type": "NodePort", "clusterIP": cluster_ip, "ports": [{"name": "p80", "port": 80}]});
    fairlead_objects::builders::merge(&mut spec, more);
    spec["selector"] = json!({"app": name});
    spec
}

#[test]
fn service_with_250_ports_serves_each_on_short_chains() {
    let mut cluster = Cluster::v4();
    let port = |i: u32| json!({"name": format!("p{i}"), "port": 1000 + i, "nodePort": 30_000 + i});
    let ports: Vec<Value> = (0..250).map(port).collect();
    cluster.service("svc", exposed("svc", VIP, json!({"externalIPs": ["5.6.7.8"], "ports": ports})));
    // A slice has at most a hundred ports.
    for (n, part) in ports.chunks(100).enumerate() {
        cluster.slice_with(
            &format!("svc-{n}"),
            "svc",
            json!(part),
            &[remote("10.180.0.1"), local("10.180.0.2")],
        );
    }
    let ruleset = cluster.compile();
    assert!(ruleset.tables[&Table::Nat].values().all(|chain| chain.rules.len() <= 49));
    for port in [1000, 1099, 1100, 1249] {
        let both = format!("10.180.0.1:{port}, 10.180.0.2:{port}");
        cluster.assert_flows(&[
            ("cluster IP", POD, VIP, port, &both, false),
            ("external IP", CLIENT, "5.6.7.8", port, &both, true),
            ("node port", CLIENT, NODE_IP, 29_000 + port, &both, true),
        ]);
    }
    assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 1250).0, "");
}

#[test]
fn five_thousand_endpoints_are_equally_likely_with_and_without_affinity() {
    let mut cluster = Cluster::v4();
    for slice in 0..50_u32 {
        let ip = |i: u32| std::net::Ipv4Addr::from(0x0ab4_0000 + slice * 100 + i).to_string();
        let endpoints: Vec<Value> = (0..100).map(|i| remote(&ip(i))).collect();
        cluster.slice_with(&format!("svc-{slice}"), "svc", json!([{"name": "p80", "port": 80}]), &endpoints);
    }
    for affinity in ["None", "ClientIP"] {
        cluster.service("svc", json!({"sessionAffinity": affinity}));
        let trace = cluster.trace(POD, VIP, 80);
        assert_eq!(trace.targets.len(), 5000);
        assert!(trace.targets.iter().all(|target| target.probability == Share::new(1, 5000)), "{affinity}");
    }
}

#[test]
fn five_thousand_endpoints_without_affinity_are_chosen_in_short_chains() {
    for six in [false, true] {
        let mut cluster = if six { Cluster::v6() } else { Cluster::v4() };
        let ip = |i: u32| {
            if six {
                format!("fd00:10:244::{i:x}")
            } else {
                std::net::Ipv4Addr::from(0x0ab4_0000 + i).to_string()
            }
        };
        let endpoints: Vec<Value> = (0..5000).map(|i| remote(&ip(i))).collect();
        cluster.service("svc", if six { json!({"clusterIP": "fd00:96::1"}) } else { json!({}) });
        cluster.slice("svc", &endpoints);
        let ruleset = cluster.compile();
        let longest = ruleset.tables[&Table::Nat].values().map(|chain| chain.rules.len()).max();
        assert!(longest.unwrap() < 150, "{longest:?}");
        kernel::assert_consistent(&fairlead_compiler::Dump::from(&ruleset));
    }
}

/// What a refresh puts and deletes after one of five thousand endpoints was replaced.
fn delta_of_one_in_five_thousand(affinity: &str) -> fairlead_compiler::Delta {
    let mut cluster = Cluster::v4();
    cluster.service("svc", json!({"sessionAffinity": affinity}));
    let ip = |i: u32| std::net::Ipv4Addr::from(0x0ab4_0000 + i).to_string();
    let mut endpoints: Vec<Value> = (0..5000).map(|i| remote(&ip(i))).collect();
    cluster.slice("svc", &endpoints);
    let mut book = Rulebook::new(cluster.config.clone(), cluster.facts.clone());
    let dirty = cluster.state.take_dirty();
    book.refresh(&cluster.state, &dirty);
    book.take_changes();
    endpoints[17] = remote("10.199.0.1");
    cluster.slice("svc", &endpoints);
    let dirty = cluster.state.take_dirty();
    book.refresh(&cluster.state, &dirty);
    assert_eq!(*book.ruleset(), cluster.compile());
    book.take_changes()
}

#[test]
fn one_endpoint_of_five_thousand_changes_the_chains_of_two_groups_only() {
    let delta = delta_of_one_in_five_thousand("None");
    // The policy chain, because sizes changed, and the groups that it left and came to.
    assert!((2..=3).contains(&delta.put.len()) && delta.delete.is_empty(), "{:?}", delta.put.keys());
    assert!(delta.rule_count() < 350, "{} rules", delta.rule_count());
}

#[test]
fn one_endpoint_of_five_thousand_with_affinity_changes_its_own_chains_only() {
    let delta = delta_of_one_in_five_thousand("ClientIP");
    // The policy chain and the new endpoint's; the old endpoint's goes.
    assert_eq!((delta.put.len(), delta.delete.len()), (2, 1));
}

#[test]
fn ingress_address_that_is_the_nodes_own_is_claimed_and_leaves_its_other_ports_alone() {
    let mut cluster = Cluster::v4();
    with_ingress(&mut cluster, "svc", json!({"type": "LoadBalancer"}), json!([{"ip": NODE_IP}]));
    cluster.slice("svc", &[remote("10.180.0.1")]);
    cluster.assert_flows(&[
        ("claimed port", CLIENT, NODE_IP, 80, "10.180.0.1:80", true),
        ("node to itself", NODE_IP, NODE_IP, 80, "10.180.0.1:80", true),
        ("node port", CLIENT, NODE_IP, 3001, "10.180.0.1:80", true),
        ("ssh", CLIENT, NODE_IP, 22, "", false),
    ]);
}

#[test]
fn node_port_is_reached_through_an_own_address_that_declines() {
    // The external chain of a Local policy lets fall through what it has no endpoint for; the node port of another Service on
    // the same number still gets its turn.
    let mut cluster = Cluster::v4();
    let policy = json!({"externalIPs": [NODE_IP], "externalTrafficPolicy": "Local",
                        "ports": [{"name": "p80", "port": 3001}]});
    cluster.service("a", exposed("a", VIP, policy)).slice("a", &[remote("10.180.0.1")]);
    let port = json!({"ports": [{"name": "p80", "port": 80, "nodePort": 3001}]});
    cluster.service("b", exposed("b", "172.30.0.42", port)).slice("b", &[remote("10.180.0.2")]);
    assert_eq!(cluster.flow(Protocol::Tcp, CLIENT, NODE_IP, 3001).0, "10.180.0.2:80");
}

#[test]
fn ingress_addresses_of_special_kinds_make_rules_that_load() {
    let mut cluster = Cluster::v4();
    let special = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "169.254.1.1", "255.255.255.255", "::ffff:192.0.2.7"];
    let ingress: Vec<Value> = special.iter().map(|ip| json!({"ip": ip})).collect();
    with_ingress(&mut cluster, "svc", json!({"type": "LoadBalancer"}), json!(ingress));
    cluster.slice("svc", &[remote("10.180.0.1")]);
    let ruleset = cluster.compile();
    assert!(diff(&kernel::reparsed(&ruleset), &ruleset).is_empty());
    assert!(ruleset.render_document().contains("-d 0.0.0.0/32"), "one address, not all of them");
    cluster.assert_flows(&[
        ("IPv4 in IPv6 clothes", CLIENT, "192.0.2.7", 80, "10.180.0.1:80", true),
        ("another address", CLIENT, "192.0.2.8", 80, "", false),
    ]);
}

#[test]
fn endpoint_listed_twice_counts_once() {
    let (here, there) = (local("10.180.0.1"), remote("10.180.0.2"));
    let leaving = terminating(here.clone(), true);
    let once = ("10.180.0.1:80, 10.180.0.2:80".to_owned(), false);
    let slices: [&[&[Value]]; 5] = [
        &[&[here.clone(), there.clone(), here.clone()]],
        &[&[here.clone(), there.clone()], std::slice::from_ref(&here)],
        &[&[leaving.clone(), here.clone(), there.clone()]],
        &[&[here.clone(), there.clone(), leaving.clone()]],
        &[std::slice::from_ref(&leaving), &[there.clone(), here.clone()]],
    ];
    for slices in slices {
        let mut cluster = Cluster::v4();
        cluster.service("svc", json!({}));
        for (n, endpoints) in slices.iter().enumerate() {
            let ports = json!([{"name": "p80", "port": 80}]);
            cluster.slice_with(&format!("svc-{n}"), "svc", ports, endpoints);
        }
        let trace = cluster.trace(POD, VIP, 80);
        assert_eq!(summary(&trace), once, "{slices:?}");
        assert!(trace.targets.iter().all(|target| target.probability == Share::new(1, 2)));
    }
}

#[test]
fn endpoint_listed_twice_is_what_the_last_listing_says() {
    for (first, second, output) in [
        (unready(remote("10.180.0.1")), remote("10.180.0.1"), "10.180.0.1:80"),
        (remote("10.180.0.1"), unready(remote("10.180.0.1")), "REJECT"),
        // What is on its way out never replaces what is not.
        (unready(remote("10.180.0.1")), terminating(remote("10.180.0.1"), true), "REJECT"),
    ] {
        let mut cluster = Cluster::v4();
        cluster.service("svc", json!({})).slice("svc", &[first, second]);
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, output);
    }
}

#[test]
fn endpoint_in_two_slices_is_what_the_last_slice_by_name_says_whichever_came_last() {
    let (ready, not) = ([remote("10.180.0.1")], [unready(remote("10.180.0.1"))]);
    for order in [["a", "b"], ["b", "a"]] {
        let mut cluster = Cluster::v4();
        cluster.service("svc", json!({}));
        for name in order {
            let endpoints = if name == "a" { &ready } else { &not };
            cluster.slice_with(name, "svc", json!([{"name": "p80", "port": 80}]), endpoints);
        }
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, "REJECT", "{order:?}");
        cluster.state.remove_slice("ns", "b");
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, "10.180.0.1:80", "{order:?}");
    }
}

#[test]
fn endpoint_that_is_the_node_is_served_like_any_other() {
    let mut cluster = Cluster::v4();
    cluster.service(
        "svc",
        exposed("svc", VIP, json!({"ports": [{"name": "p80", "port": 80, "nodePort": 3001}]})),
    );
    cluster.slice("svc", &[local(NODE_IP)]);
    cluster.assert_flows(&[
        ("pod to cluster IP", POD, VIP, 80, "192.168.0.2:80", false),
        ("node to cluster IP, which is itself", NODE_IP, VIP, 80, "192.168.0.2:80", true),
        ("node to its own node port", NODE_IP, NODE_IP, 3001, "192.168.0.2:80", true),
        // Delivered here: nothing leaves that could be masqueraded.
        ("client to node port", CLIENT, NODE_IP, 3001, "192.168.0.2:80", false),
    ]);
}

#[test]
fn own_cluster_ip_as_external_ip_stays_a_cluster_ip() {
    let mut cluster = Cluster::v4();
    let spec =
        exposed("svc", VIP, json!({"externalIPs": [VIP, VIP, "5.6.7.8"], "externalTrafficPolicy": "Local"}));
    cluster.service("svc", spec).slice("svc", &[local("10.180.0.1"), remote("10.180.0.2")]);
    let both = "10.180.0.1:80, 10.180.0.2:80";
    cluster.assert_flows(&[
        ("pod to cluster IP", POD, VIP, 80, both, false),
        ("client to cluster IP", CLIENT, VIP, 80, both, true),
        ("client to external IP", CLIENT, "5.6.7.8", 80, "10.180.0.1:80", false),
    ]);
    let document = cluster.compile().render_document();
    let rules = document.lines().filter(|line| line.contains("external IP") && line.contains(VIP));
    assert_eq!(rules.count(), 1, "{document}");
}

#[test]
fn cluster_ip_that_another_service_claims_stays_with_its_owner() {
    for claimant in ["aaa", "zzz"] {
        let mut cluster = Cluster::v4();
        cluster.service("mmm", json!({})).slice("mmm", &[remote("10.180.0.1")]);
        let claim = json!({"externalIPs": [VIP]});
        cluster
            .service(claimant, exposed(claimant, "172.30.0.99", claim))
            .slice(claimant, &[remote("10.180.0.2")]);
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, "10.180.0.1:80", "{claimant}");
        let ingress = json!([{"ip": VIP}]);
        let balanced = json!({"type": "LoadBalancer", "clusterIP": "172.30.0.99"});
        with_ingress(&mut cluster, claimant, balanced, ingress);
        assert_eq!(cluster.flow(Protocol::Tcp, CLIENT, VIP, 80).0, "10.180.0.1:80", "{claimant}");
        // Where its owner has no such port, the claim is good.
        let other = json!({"externalIPs": [VIP], "ports": [{"name": "p80", "port": 81}]});
        cluster.service(claimant, exposed(claimant, "172.30.0.99", other));
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 81).0, "10.180.0.2:80", "{claimant}");
    }
}

#[test]
fn external_ip_and_port_of_two_services_belong_to_the_first_by_name_whoever_came_first() {
    for order in [["a", "b"], ["b", "a"]] {
        let mut cluster = Cluster::v4();
        for name in order {
            let (ip, endpoint) =
                if name == "a" { ("172.30.0.1", "10.180.0.1") } else { ("172.30.0.2", "10.180.0.2") };
            let spec = exposed(name, ip, json!({"externalIPs": ["5.6.7.8"]}));
            cluster.service(name, spec).slice(name, &[remote(endpoint)]);
        }
        assert_eq!(cluster.flow(Protocol::Tcp, CLIENT, "5.6.7.8", 80).0, "10.180.0.1:80");
        // Without endpoints it has no claim to make.
        cluster.slice("a", &[]);
        assert_eq!(cluster.flow(Protocol::Tcp, CLIENT, "5.6.7.8", 80).0, "10.180.0.2:80");
        cluster.state.remove_service(&key("a"));
        assert_eq!(cluster.flow(Protocol::Tcp, CLIENT, "5.6.7.8", 80).0, "10.180.0.2:80");
    }
}

#[test]
fn one_node_port_for_three_protocols_is_three_node_ports() {
    let mut cluster = Cluster::v4();
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 53, "nodePort": 30_053});
    let ports = json!([port("t", "TCP"), port("u", "UDP"), port("s", "SCTP")]);
    cluster.service("dns", exposed("dns", VIP, json!({"ports": ports})));
    let targets = json!([{"name": "t", "port": 1}, {"name": "u", "protocol": "UDP", "port": 2},
                         {"name": "s", "protocol": "SCTP", "port": 3}]);
    cluster.slice_with("dns-1", "dns", targets, &[remote("10.180.0.1")]);
    for (protocol, output) in
        [(Protocol::Tcp, "10.180.0.1:1"), (Protocol::Udp, "10.180.0.1:2"), (Protocol::Sctp, "10.180.0.1:3")]
    {
        assert_eq!(cluster.flow(protocol, CLIENT, NODE_IP, 30_053).0, output);
    }
}

#[test]
fn ports_0_are_no_ports() {
    let mut cluster = Cluster::v4();
    let ports = json!([{"name": "zero", "port": 0}, {"name": "p80", "port": 80, "nodePort": 0}]);
    cluster.service("svc", exposed("svc", VIP, json!({"ports": ports})));
    let targets = json!([{"name": "zero", "port": 8080}, {"name": "p80", "port": 0}, {"name": "all"}]);
    cluster.slice_with("svc-1", "svc", targets, &[remote("10.180.0.1")]);
    cluster.assert_flows(&[
        ("port 0", POD, VIP, 0, "", false),
        ("target port 0 is no endpoint", POD, VIP, 80, "REJECT", false),
        ("node port 0 is none", CLIENT, NODE_IP, 0, "", false),
    ]);
    assert!(!cluster.compile().render_document().contains("--dport 0 "));
}

#[test]
fn affinity_timeout_of_0_is_a_second() {
    let mut cluster = Cluster::v4();
    let timeout = json!({"clientIP": {"timeoutSeconds": 0}});
    cluster.service("svc", json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": timeout}));
    cluster.slice("svc", &[remote("10.180.0.1")]);
    assert!(cluster.compile().render_document().contains("--rcheck --seconds 1 --reap"));
}

#[test]
fn port_name_or_number_given_twice_is_one_port() {
    let mut cluster = Cluster::v4();
    let twice = json!([{"name": "p80", "port": 80}, {"name": "p80", "port": 81}]);
    cluster.service("svc", json!({"ports": twice})).slice("svc", &[remote("10.180.0.1")]);
    cluster.assert_flows(&[
        ("the last of a name counts", POD, VIP, 81, "10.180.0.1:80", false),
        ("and the first is gone", POD, VIP, 80, "", false),
    ]);
    let same_number = json!([{"name": "b", "port": 80}, {"name": "a", "port": 80}]);
    cluster.service("svc", json!({"ports": same_number}));
    let targets = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    cluster.slice_with("svc-1", "svc", targets, &[remote("10.180.0.1")]);
    assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, "10.180.0.1:1", "the first by name");
}

#[test]
fn slices_of_no_service_make_no_rule_until_it_comes() {
    let mut cluster = Cluster::v4();
    let nothing = cluster.compile();
    cluster.slice("svc", &[remote("10.180.0.1")]);
    cluster.slice_with("nameless", "", json!([{"name": "p80", "port": 80}]), &[remote("10.180.0.9")]);
    assert_eq!(cluster.compile(), nothing);
    cluster.service("svc", json!({}));
    assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, "10.180.0.1:80");
    cluster.state.remove_service(&key("svc"));
    assert_eq!(cluster.compile(), nothing);
}

#[test]
fn leftovers_of_the_other_family_are_not_looked_at() {
    let mut cluster = Cluster::v4();
    let spec = exposed(
        "svc",
        VIP,
        json!({"type": "LoadBalancer", "externalIPs": ["2001:db8::7", "5.6.7.8"],
        "loadBalancerSourceRanges": ["2001:db8::/32"]}),
    );
    with_ingress(&mut cluster, "svc", spec, json!([{"ip": "2001:db8::8"}, {"ip": "1.2.3.4"}]));
    cluster.slice(
        "svc",
        &[
            remote("fd00::1"),
            remote("10.180.0.1"),
            json!({"addresses": []}),
            json!({"addresses": ["not an address", "10.180.0.9"]}),
            json!({"addresses": ["10.180.0.2", "10.180.0.3"]}),
        ],
    );
    let document = cluster.compile().render_document();
    assert!(!document.contains("2001:db8") && !document.contains("fd00"), "{document}");
    let both = "10.180.0.1:80, 10.180.0.2:80";
    cluster.assert_flows(&[
        ("external IP", CLIENT, "5.6.7.8", 80, both, true),
        ("ranges of the other family restrict nobody here", CLIENT, "1.2.3.4", 80, both, true),
    ]);
    // A Service that left a family keeps its slices there for a moment.
    let mut moved = Cluster::v6();
    moved.service("svc", json!({"clusterIP": VIP, "clusterIPs": [VIP], "ipFamilies": ["IPv4"]}));
    moved.slice("svc", &[remote("fd00:10::1")]);
    assert_eq!(moved.compile(), Cluster::v6().compile());
}

#[test]
fn addresses_with_leading_zeros_are_those_without() {
    let mut cluster = Cluster::v4();
    let spec = exposed("svc", "172.030.000.041", json!({"externalIPs": ["005.006.007.008", "5.6.7.8"]}));
    cluster.service("svc", spec).slice("svc", &[remote("010.180.000.001"), remote("10.180.0.1")]);
    let trace = cluster.trace(CLIENT, "5.6.7.8", 80);
    assert_eq!(summary(&trace), ("10.180.0.1:80".to_owned(), true), "{:?}", trace.targets);
    assert_eq!(trace.targets[0].probability, Share::ALL);
}

#[test]
fn hostile_strings_stay_inside_comments_or_out_of_the_rules() {
    let hostile = [
        "x\" -j DROP\n-A FORWARD -j DROP\nCOMMIT\n*nat\n",
        "x\\",
        "$(reboot) `reboot` ; reboot",
        "--to-destination 6.6.6.6:6 -j DNAT",
        "\u{0}\u{1b}[31m\u{202e}näme",
        &"long".repeat(500),
        "",
        "'",
    ];
    for text in hostile {
        let mut cluster = Cluster::v4();
        let ports = json!([{"name": text, "port": 80, "nodePort": 3001, "appProtocol": text}]);
        let spec = json!({"clusterIP": VIP, "type": "LoadBalancer", "ports": ports, "sessionAffinity": "ClientIP",
                          "externalIPs": ["5.6.7.8", text], "loadBalancerSourceRanges": ["203.0.113.0/24", text],
                          "trafficDistribution": text});
        let object: fairlead_objects::ServiceObject = fairlead_objects::builders::object(json!({
            "metadata": {"namespace": "ns", "name": format!("svc{text}"), "annotations": {"service.kubernetes.io/topology-mode": text, text: text},
                         "labels": {text: text}},
            "spec": spec, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4", "hostname": text}, {"ip": text}]}}
        }));
        cluster.state.set_service(&object.into());
        let endpoint = json!({"addresses": ["10.180.0.1"], "nodeName": text, "hostname": text,
                              "hints": {"forZones": [{"name": text}]}});
        let bad = json!({"addresses": [text], "nodeName": NODE});
        cluster.slice_with(
            &format!("s{text}"),
            &format!("svc{text}"),
            json!([{"name": text, "port": 80}]),
            &[endpoint, bad],
        );
        let ruleset = cluster.compile();
        let document = ruleset.render_document();
        assert!(diff(&parse(&document).unwrap(), &ruleset).is_empty(), "{document}");
        for line in document.lines() {
            assert!(["*", ":", "-A", "-I", "COMMIT"].iter().any(|start| line.starts_with(start)), "{line:?}");
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            // The limit of iptables-restore on a line.
            assert!(line.len() < 1024, "{line:?}");
        }
        cluster.assert_flows(&[
            ("cluster IP", POD, VIP, 80, "10.180.0.1:80", false),
            ("load balancer", CLIENT, "1.2.3.4", 80, "10.180.0.1:80", true),
            ("node port", CLIENT, NODE_IP, 3001, "10.180.0.1:80", true),
        ]);
    }
}

#[test]
fn service_that_says_everything_at_once_compiles_in_any_order_to_the_same() {
    let mut cluster = Cluster::v4();
    let spec = exposed(
        "svc",
        VIP,
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "healthCheckNodePort": 3001, "externalIPs": [VIP, NODE_IP, "1.2.3.4"],
        "loadBalancerSourceRanges": ["192.168.0.0/16", "192.168.0.0/16"],
        "ports": [{"name": "p80", "port": 80, "nodePort": 3001}]}),
    );
    with_ingress(&mut cluster, "svc", spec, json!([{"ip": "1.2.3.4"}, {"ip": VIP}, {"ip": NODE_IP}]));
    cluster.slice("svc", &[remote("10.180.0.1")]);
    let trace = |from: &str, to: &str| cluster.trace(from, to, 80).outcome;
    assert_eq!(trace(POD, "1.2.3.4"), Outcome::Accepted, "Pods reach what is elsewhere, by the external IP");
    assert_eq!(trace(CLIENT, "1.2.3.4"), Outcome::Dropped, "clients outside do not");
    // The cluster IP has no local endpoint, but is an external IP, too.
    assert_eq!(trace(POD, VIP), Outcome::Accepted);
    kernel::assert_consistent(&kernel::reparsed(&cluster.compile()));
}
