//! Another proxy's rules against ours: silence where packets fare the same, and what is told where they do not.
//!
//! The other proxy is the compiler without xt_bpf, whose rules have kube-proxy's shape: a chain for each endpoint, and a mark
//! for each hairpin.

use std::collections::BTreeSet;

use fairlead_compiler::{
    Comparison, Config, Detector, Difference, Discord, Dump, Excuse, Fate, FrontendKind, Host, ProxyState,
    Subject, Tracer, compare, compile, parse, trace,
};
use fairlead_objects::{Family, Protocol};
use proptest::prelude::*;
use serde_json::json;

use crate::{
    cluster::{Cluster, local, packet, remote, terminating, unready},
    flows::with_ingress,
    properties::{apply, changes, cluster},
};

/// The other proxy's rules, as text to be edited.
fn other(cluster: &Cluster) -> String {
    of_other(&cluster.state, &Config { bpf: false, ..cluster.config.clone() }, cluster)
}

fn of_other(state: &ProxyState, config: &Config, cluster: &Cluster) -> String {
    compile(state, config, &cluster.facts).render_document()
}

fn against(cluster: &Cluster, installed: &Dump) -> Comparison {
    compare(Subject {
        installed,
        desired: &cluster.compile(),
        state: &cluster.state,
        config: &cluster.config,
        facts: &cluster.facts,
    })
}

fn differences(cluster: &Cluster, installed: &str) -> Vec<Difference> {
    against(cluster, &parse(installed).unwrap()).differences
}

/// Frontend, how it differs and who sees that, in short.
fn told(differences: &[Difference]) -> Vec<(String, &'static str, usize)> {
    let one = |difference: &Difference| {
        (
            format!("{} {}", difference.owner(), difference.frontend),
            difference.discord.as_str(),
            difference.clients.len(),
        )
    };
    differences.iter().map(one).collect()
}

/// A load balancer for one network, with a node port and an external IP, and a Service that nobody serves.
fn shop() -> Cluster {
    let mut cluster = Cluster::v4();
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["5.6.7.8"], "loadBalancerSourceRanges": ["192.0.2.0/25"],
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000});
    with_ingress(&mut cluster, "shop", spec, json!([{"ip": "1.2.3.4"}]));
    cluster.slice("shop", &[local("10.180.0.1"), remote("10.180.2.1")]);
    cluster.service("empty", json!({"clusterIP": "172.30.0.50"}));
    cluster
}

/// Cuts out or replaces, and sees to it that there was something.
fn edited(text: &str, find: &str, replace: &str) -> String {
    assert!(text.contains(find), "{find:?} is not in {text}");
    text.replace(find, replace)
}

#[test]
fn rules_of_another_shape_that_do_the_same_are_no_difference() {
    let cluster = shop();
    let comparison = against(&cluster, &parse(&other(&cluster)).unwrap());
    assert_eq!(told(&comparison.differences), []);
    assert_eq!(comparison.services, 2);
    // Cluster IPs, external IP, load balancer, and node port and health check port on three addresses.
    assert_eq!(comparison.frontends, 2 + 1 + 1 + 3 + 3);
    // From three clients each, of which loopback has one, and from endpoints.
    assert!(comparison.packets > 8 * 3 + 2, "{comparison:?}");
}

#[test]
fn edits_are_told_by_frontend_and_client() {
    let cluster = shop();
    let rules = other(&cluster);
    let named = |line: &str| {
        let line = rules.lines().find(|rule| rule.contains(line)).unwrap();
        format!("{line}\n")
    };
    let cluster_ip = "ns/shop:p80 cluster IP 172.30.0.41:80/TCP".to_owned();

    let moved = edited(&rules, "10.180.2.1:80", "10.180.2.1:81");
    let found = told(&differences(&cluster, &moved));
    assert!(found.iter().all(|(_, discord, _)| *discord == "targets"), "{found:?}");
    assert!(found.contains(&(cluster_ip.clone(), "targets", 2)), "{found:?}");

    let unmarked = edited(&rules, &named("! -s 10.0.0.0/8 -d 172.30.0.41/32"), "");
    assert_eq!(told(&differences(&cluster, &unmarked)), [(cluster_ip, "masquerade", 2)]);

    let biased = edited(&rules, "--probability 0.5000000000", "--probability 0.3000000000");
    let found = told(&differences(&cluster, &biased));
    assert!(found.iter().all(|(_, discord, _)| *discord == "shares"), "{found:?}");

    let hairpin = edited(&rules, &named("-s 10.180.0.1/32"), "");
    let found = differences(&cluster, &hairpin);
    assert!(found.iter().all(|one| one.discord == Discord::Masquerade), "{found:#?}");
    assert!(
        found.iter().all(|one| one.to_string().contains("the endpoint itself (10.180.0.1)")),
        "{found:#?}"
    );

    let open = edited(&rules, "-s 192.0.2.0/25", "-s 198.51.100.0/24");
    let found = told(&differences(&cluster, &open));
    let balancer = "ns/shop:p80 load balancer IP 1.2.3.4:80/TCP";
    assert!(
        !found.is_empty() && found.iter().all(|one| one.0 == balancer && one.1 == "outcome"),
        "{found:?}"
    );

    let silent = edited(&rules, &named("ns/empty:p80 has no endpoints"), "");
    let [refused] = &differences(&cluster, &silent)[..] else { panic!() };
    assert_eq!(
        refused.to_string(),
        "ns/empty:p80, cluster IP 172.30.0.50:80/TCP, from a Pod here (10.255.255.254) and \
        this node (192.168.0.2) and outside (203.0.113.9): installed: no match; ours: rejected"
    );
}

#[test]
fn affinity_that_ends_sooner_or_leads_elsewhere_or_is_missing_is_told() {
    let mut cluster = Cluster::v4();
    cluster.service(
        "shop",
        json!({"sessionAffinity": "ClientIP", "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"name": "p80", "port": 80, "nodePort": 3001}]}),
    );
    cluster.slice("shop", &[local("10.180.0.1"), remote("10.180.2.1")]);
    let rules = other(&cluster);
    assert_eq!(told(&differences(&cluster, &rules)), []);

    let chains: BTreeSet<&str> =
        rules.split_ascii_whitespace().filter(|word| word.starts_with("KUBE-SEP-")).collect();
    let [first, second] = chains.into_iter().collect::<Vec<_>>()[..] else { panic!("{rules}") };
    let without = |part: &str| {
        assert!(rules.contains(part), "{part:?} is not in {rules}");
        let kept: Vec<&str> = rules.lines().filter(|line| !line.contains(part)).collect();
        kept.join("\n") + "\n"
    };
    // Those whom a list has are led back before chance has its say.
    let (recalls, choices): (Vec<&str>, Vec<&str>) =
        rules.lines().partition(|line| line.contains("--rcheck"));
    let choices = choices.join("\n");
    let late = format!("{}\n{}\nCOMMIT\n", choices.strip_suffix("\nCOMMIT").unwrap(), recalls.join("\n"));
    for (what, installed) in [
        ("sooner", edited(&rules, "--seconds 10800", "--seconds 600")),
        ("never", without("--rcheck")),
        ("one never", without(&format!("--rcheck --seconds 10800 --reap --name {first}"))),
        ("not remembered", edited(&rules, &format!("-m recent --set --name {first} "), "")),
        (
            "another's list",
            edited(&rules, &format!("--set --name {first}"), &format!("--set --name {second}")),
        ),
        ("too late", late),
    ] {
        let found = differences(&cluster, &installed);
        assert!(!found.is_empty(), "{what}: {installed}");
        assert!(found.iter().all(|one| one.discord == Discord::Affinity), "{what}: {found:#?}");
    }
    let found = differences(&cluster, &edited(&rules, "--seconds 10800", "--seconds 600"));
    let text = found.iter().find(|one| one.frontend.kind == FrontendKind::ClusterIp).unwrap().to_string();
    assert!(
        text.contains("remembered for 600 s; ours: accepted: ") && text.ends_with("remembered for 10800 s"),
        "{text}"
    );
}

#[test]
fn what_a_proxy_forgot_to_remove_is_told_with_its_former_owner() {
    let mut cluster = shop();
    let before = other(&cluster);
    cluster.state.remove_service(&crate::cluster::key("empty"));
    let [left] = &differences(&cluster, &before)[..] else { panic!() };
    assert_eq!(left.owner(), "ns/empty:p80");
    assert_eq!(
        (left.frontend.to_string().as_str(), left.discord),
        ("place of no Service 172.30.0.50:80/TCP", Discord::Outcome)
    );
    assert_eq!((left.theirs.to_string().as_str(), left.ours.to_string().as_str()), ("rejected", "no match"));
}

#[test]
fn a_proxy_with_other_settings_is_found_out() {
    let cluster = shop();
    let with = |change: fn(&mut Config)| {
        let mut config = Config { bpf: false, ..cluster.config.clone() };
        change(&mut config);
        differences(&cluster, &of_other(&cluster.state, &config, &cluster))
    };
    let all = with(|config| config.masquerade_all = true);
    assert!(all.iter().any(|one| one.discord == Discord::Masquerade), "{all:#?}");
    // Narrower, wider and elsewhere.
    for network in ["10.0.0.0/16", "0.0.0.0/1", "192.0.2.0/24"] {
        let mut config = Config { bpf: false, ..cluster.config.clone() };
        config.detector = Detector::Cidr(network.parse().unwrap());
        let found = differences(&cluster, &of_other(&cluster.state, &config, &cluster));
        assert!(found.iter().any(|one| one.discord == Discord::Masquerade), "{network}: {found:#?}");
    }
    let few = with(|config| config.node_port_addresses = vec!["192.168.0.0/24".parse().unwrap()]);
    assert!(few.iter().any(|one| one.frontend.to_string() == "node port 192.168.1.2:3001/TCP"), "{few:#?}");
}

#[test]
fn pods_told_by_an_interface_or_by_their_network_are_the_same_pods() {
    let mut cluster = shop();
    let by_network = other(&cluster);
    cluster.config.detector = Detector::Bridge("cbr0".into());
    let by_bridge = other(&cluster);
    assert_eq!(told(&differences(&cluster, &by_bridge)), []);
    assert_eq!(told(&differences(&cluster, &by_network)), []);
    cluster.config.detector = Detector::Cidr("10.0.0.0/8".parse().unwrap());
    assert_eq!(told(&differences(&cluster, &by_bridge)), []);
}

#[test]
fn rules_of_others_than_the_proxy_stand_on_both_sides() {
    let cluster = shop();
    let firewall = "*filter\n:FORWARD DROP [0:0]\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:WALL - [0:0]\n-A FORWARD -j WALL\n\
        -A WALL -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n";
    let plain = other(&cluster);
    assert_eq!(told(&differences(&cluster, &format!("{firewall}{plain}"))), []);
}

#[test]
fn what_kube_proxy_leaves_to_chance_is_excused() {
    let mut cluster = Cluster::v4();
    for (name, ip) in [("a", "172.30.0.1"), ("b", "172.30.0.2")] {
        cluster.service(name, json!({"clusterIP": ip, "externalIPs": ["5.6.7.8"]}));
    }
    cluster.slice("a", &[remote("10.180.0.1")]).slice("b", &[remote("10.180.0.2")]);
    let mut flipped = Cluster::v4();
    flipped.service("b", json!({"clusterIP": "172.30.0.2", "externalIPs": ["5.6.7.8"]}));
    flipped.service("a", json!({"clusterIP": "172.30.0.1"}));
    flipped.slice("a", &[remote("10.180.0.1")]).slice("b", &[remote("10.180.0.2")]);
    let found = differences(&cluster, &other(&flipped));
    assert!(!found.is_empty());
    assert!(found.iter().all(|one| one.excuse == Some(Excuse::Disputed)), "{found:#?}");

    let mut cluster = Cluster::v4();
    cluster.service("c", json!({}));
    let ports = || json!([{"name": "p80", "port": 80}]);
    cluster.slice_with("c-1", "c", ports(), &[remote("10.180.0.1")]);
    let first = other(&cluster);
    cluster.slice_with("c-2", "c", ports(), &[unready(remote("10.180.0.1"))]);
    let found = differences(&cluster, &first);
    assert!(!found.is_empty());
    assert!(found.iter().all(|one| one.excuse == Some(Excuse::Contradiction)), "{found:#?}");
    // What terminates gives way on both sides.
    cluster.slice_with("c-2", "c", ports(), &[terminating(remote("10.180.0.1"), true)]);
    assert!(!cluster.state.has_contradicting_slices(&crate::cluster::key("c")));
    assert_eq!(told(&differences(&cluster, &first)), []);
}

#[test]
fn thousands_of_endpoints_are_compared() {
    let mut cluster = Cluster::v4();
    cluster.service("big", json!({}));
    for slice in 0..20_u8 {
        let endpoints: Vec<_> = (0..100).map(|n| remote(&format!("10.180.{slice}.{n}"))).collect();
        cluster.slice_with(&format!("big-{slice}"), "big", json!([{"name": "p80", "port": 80}]), &endpoints);
    }
    let rules = other(&cluster);
    assert_eq!(told(&differences(&cluster, &rules)), []);
    let less = edited(&rules, "--to-destination 10.180.3.3:80", "--to-destination 10.180.3.4:80");
    assert!(differences(&cluster, &less).iter().all(|one| one.discord == Discord::Targets));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two shapes of the same rules never differ, whatever the Services; and fates are those of the traces.
    #[test]
    fn shapes_of_the_same_rules_never_differ(script in changes(), six: bool) {
        let mut cluster = cluster(six, true);
        for change in &script {
            apply(&mut cluster, change);
        }
        let installed = parse(&other(&cluster)).unwrap();
        prop_assert_eq!(told(&against(&cluster, &installed).differences), []);

        let host = Host::from(&cluster.facts);
        let tracer = Tracer::new(&installed);
        let client = if six { "2001:db8:113::5" } else { "203.0.113.5" };
        let nodes = [cluster.facts.node_ip];
        for port in cluster.state.services().flat_map(|(_, ports)| ports) {
            let places = [(port.cluster_ip, port.port), (nodes[0], port.node_port)];
            for (address, number) in places {
                let packet = packet(port.protocol(), client, &address.to_string(), number, &host);
                prop_assert_eq!(tracer.fate(&packet, &host), Fate::from(&trace(&installed, &packet, &host)));
            }
        }
    }
}

#[test]
fn families_are_compared_by_their_own_clients() {
    let mut cluster = Cluster::v6();
    cluster.service(
        "six",
        json!({"type": "NodePort", "ports": [{"name": "p80", "port": 80, "nodePort": 3001}]}),
    );
    cluster.slice("six", &[remote("fd00:10::2:1")]);
    let rules = other(&cluster);
    assert_eq!(told(&differences(&cluster, &rules)), []);
    let found = differences(&cluster, &edited(&rules, "[fd00:10::2:1]:80", "[fd00:10::2:2]:80"));
    let sources = found.iter().flat_map(|one| &one.clients);
    assert!(
        sources.clone().count() > 3 && sources.clone().all(|client| Family::of(client.address) == Family::V6)
    );
    assert!(found.iter().all(|one| one.frontend.protocol == Protocol::Tcp));
}
