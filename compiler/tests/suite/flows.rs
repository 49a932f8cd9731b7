//! Packet flows of kube-proxy's own unit tests, by their names, where they are about frontends.

use std::net::IpAddr;

use fairlead_compiler::{Detector, Dump, Host, Outcome, Share, Table, Tracer};
use fairlead_objects::{Protocol, builders};
use serde_json::{Value, json};

use crate::cluster::{Cluster, local, packet, remote};

const POD: &str = "10.0.0.2";
const OTHER_POD: &str = "10.180.0.2";
const CLIENT: &str = "203.0.113.2";
const NODE_IP: &str = "192.168.0.2";
const VIP: &str = "172.30.0.41";

/// A Service that is reachable in every way.
fn everywhere(policy: &str) -> Value {
    json!({
        "type": "LoadBalancer", "externalTrafficPolicy": policy, "externalIPs": ["192.168.99.11", "5.6.7.8"],
        "ports": [{"name": "p80", "port": 80, "nodePort": 3001}]
    })
}

/// `set_service` with an ingress address, which stands in the status.
pub(crate) fn with_ingress(cluster: &mut Cluster, name: &str, spec: Value, ingress: Value) {
    let mut base = json!({"clusterIP": VIP, "ports": [{"name": "p80", "port": 80, "nodePort": 3001}]});
    builders::merge(&mut base, spec);
    let object: fairlead_objects::ServiceObject = builders::object(json!({
        "metadata": {"namespace": "ns", "name": name}, "spec": base, "status": {"loadBalancer": {"ingress": ingress}}
    }));
    cluster.state.set_service(&object.into());
}

#[test]
fn no_endpoints_reject() {
    let mut cluster = Cluster::v4();
    with_ingress(&mut cluster, "svc1", everywhere("Cluster"), json!([{"ip": "1.2.3.4"}]));
    cluster.assert_flows(&[
        ("pod to cluster IP", POD, VIP, 80, "REJECT", false),
        ("host to cluster IP", NODE_IP, VIP, 80, "REJECT", false),
        ("client to node's external IP", CLIENT, "192.168.99.11", 80, "REJECT", false),
        ("client to external IP", CLIENT, "5.6.7.8", 80, "REJECT", false),
        ("pod to node port", POD, NODE_IP, 3001, "REJECT", false),
        ("client to node port", CLIENT, NODE_IP, 3001, "REJECT", false),
        ("host to its node port", NODE_IP, NODE_IP, 3001, "REJECT", false),
        ("client to load balancer", CLIENT, "1.2.3.4", 80, "REJECT", false),
        ("another port", CLIENT, "1.2.3.4", 81, "", false),
    ]);
}

#[test]
fn cluster_ip_general() {
    let mut cluster = Cluster::v4();
    cluster.service("svc1", json!({"ports": [{"name": "http", "port": 80}]}));
    cluster.slice_with("svc1-a", "svc1", json!([{"name": "http", "port": 80}]), &[local("10.180.0.1")]);
    cluster.service(
        "svc2",
        json!({"clusterIP": "172.30.0.42", "ports": [
            {"name": "http", "port": 80}, {"name": "https", "port": 443},
            {"name": "dns-udp", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53},
            {"name": "dns-sctp", "protocol": "SCTP", "port": 53}]}),
    );
    let ports = json!([
        {"name": "http", "port": 8080}, {"name": "https", "port": 443}, {"name": "dns-udp", "protocol": "UDP", "port": 53},
        {"name": "dns-tcp", "protocol": "TCP", "port": 5353}, {"name": "dns-sctp", "protocol": "SCTP", "port": 5354}]);
    cluster.slice_with("svc2-a", "svc2", ports, &[local("10.180.0.1"), remote("10.180.2.1")]);
    cluster.assert_flows(&[
        ("plain", OTHER_POD, VIP, 80, "10.180.0.1:80", false),
        ("hairpin", "10.180.0.1", VIP, 80, "10.180.0.1:80", true),
        ("several endpoints", OTHER_POD, "172.30.0.42", 443, "10.180.0.1:443, 10.180.2.1:443", false),
        ("target port", OTHER_POD, "172.30.0.42", 80, "10.180.0.1:8080, 10.180.2.1:8080", false),
        ("from outside", CLIENT, VIP, 80, "10.180.0.1:80", true),
        ("port of another service", OTHER_POD, VIP, 443, "", false),
    ]);
    for (protocol, output) in [
        (Protocol::Udp, "10.180.0.1:53, 10.180.2.1:53"),
        (Protocol::Tcp, "10.180.0.1:5353, 10.180.2.1:5353"),
        (Protocol::Sctp, "10.180.0.1:5354, 10.180.2.1:5354"),
    ] {
        assert_eq!(cluster.flow(protocol, OTHER_POD, "172.30.0.42", 53), (output.to_owned(), false));
    }
    assert_eq!(cluster.flow(Protocol::Udp, OTHER_POD, VIP, 80), (String::new(), false), "wrong protocol");
}

#[test]
fn load_balancer() {
    let mut cluster = Cluster::v4();
    let spec = json!({"type": "LoadBalancer",
        "loadBalancerSourceRanges": ["192.168.0.0/24", " 203.0.113.0/25", "2001:db8::/32"]});
    with_ingress(&mut cluster, "svc1", spec, json!([{"ip": "1.2.3.4"}, {"ip": "5.6.7.8"}]));
    cluster.slice("svc1", &[remote("10.180.0.1")]);
    cluster.assert_flows(&[
        ("pod to cluster IP", OTHER_POD, VIP, 80, "10.180.0.1:80", false),
        ("client to node port", CLIENT, NODE_IP, 3001, "10.180.0.1:80", true),
        ("node port bypasses the ranges", "203.0.113.200", NODE_IP, 3001, "10.180.0.1:80", true),
        ("accepted client", CLIENT, "1.2.3.4", 80, "10.180.0.1:80", true),
        ("accepted client, other address", CLIENT, "5.6.7.8", 80, "10.180.0.1:80", true),
        ("blocked client", "203.0.113.130", "1.2.3.4", 80, "DROP", false),
        ("blocked client, other address", "203.0.113.130", "5.6.7.8", 80, "DROP", false),
        ("pod is blocked", OTHER_POD, "1.2.3.4", 80, "DROP", false),
        ("pod is blocked, other address", OTHER_POD, "5.6.7.8", 80, "DROP", false),
        ("node is in a range", NODE_IP, "1.2.3.4", 80, "10.180.0.1:80", true),
        ("node uses the address as its source", "1.2.3.4", "1.2.3.4", 80, "10.180.0.1:80", true),
        ("node uses the other address as its source", "1.2.3.4", "5.6.7.8", 80, "10.180.0.1:80", true),
    ]);
}

#[test]
fn load_balancer_ingress_route_type_proxy() {
    for (mode, output) in
        [(json!("Proxy"), ""), (json!("VIP"), "10.180.0.1:80"), (Value::Null, "10.180.0.1:80")]
    {
        let mut cluster = Cluster::v4();
        let spec = json!({"type": "LoadBalancer", "ports": [{"name": "p80", "port": 80}]});
        with_ingress(&mut cluster, "svc1", spec, json!([{"ip": "1.2.3.4", "ipMode": mode}]));
        cluster.slice("svc1", &[remote("10.180.0.1")]);
        assert_eq!(
            cluster.flow(Protocol::Tcp, CLIENT, "1.2.3.4", 80),
            (output.to_owned(), !output.is_empty())
        );
    }
}

#[test]
fn bad_ips_are_rewritten_canonically() {
    let mut cluster = Cluster::v4();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "172.30.0.041", "externalIPs": ["192.168.099.022"],
                      "loadBalancerSourceRanges": ["203.0.113.000/025"]});
    with_ingress(&mut cluster, "svc1", spec, json!([{"ip": "001.002.003.004"}]));
    cluster.slice("svc1", &[remote("10.180.00.001")]);
    let document = cluster.compile().render_document();
    for sloppy in ["041", "099", "022", "003", "025", ".001"] {
        assert!(!document.contains(sloppy), "{sloppy}");
    }
    cluster.assert_flows(&[
        ("cluster IP", POD, VIP, 80, "10.180.0.1:80", false),
        ("external IP", CLIENT, "192.168.99.22", 80, "10.180.0.1:80", true),
        ("load balancer", CLIENT, "1.2.3.4", 80, "10.180.0.1:80", true),
        ("load balancer, blocked", "203.0.113.129", "1.2.3.4", 80, "DROP", false),
    ]);
}

fn node_port_cluster(mut cluster: Cluster, pod: &str) -> Cluster {
    cluster.service(
        "svc1",
        json!({"type": "NodePort", "ports": [{"name": "p80", "port": 80, "nodePort": 3001}]}),
    );
    cluster.slice("svc1", &[remote(pod)]);
    cluster
}

#[test]
fn node_ports_ipv4() {
    let to = "10.180.0.1:80";
    for (localhost, addresses, loopback, second) in [
        (true, &[][..], to, to),
        (false, &[][..], "", to),
        (false, &["127.0.0.1/32"][..], "", ""),
        (true, &["192.168.0.0/24", "192.168.99.0/24", "2001:db8::/64"][..], "", ""),
        (true, &["127.0.0.0/8", "192.168.1.0/24"][..], to, to),
    ] {
        let mut cluster = node_port_cluster(Cluster::v4(), "10.180.0.1");
        cluster.config.localhost_node_ports = localhost;
        cluster.config.node_port_addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        let first = if cluster.config.accepts_node_ports(NODE_IP.parse().unwrap()) { to } else { "" };
        cluster.assert_flows(&[
            ("pod to cluster IP", OTHER_POD, VIP, 80, to, false),
            ("client to primary address", CLIENT, NODE_IP, 3001, first, !first.is_empty()),
            ("client to another address", CLIENT, "192.168.1.2", 3001, second, !second.is_empty()),
            ("node to loopback", "127.0.0.1", "127.0.0.1", 3001, loopback, !loopback.is_empty()),
            ("client to another host", CLIENT, "192.168.0.3", 3001, "", false),
        ]);
    }
}

#[test]
fn node_ports_ipv6() {
    let to = "[fd00:10::1]:80";
    for (localhost, addresses, second) in [
        (true, &[][..], to),
        (false, &[][..], to),
        (false, &["2001:db8::/64", "::1/128", "10.0.0.0/8"][..], ""),
    ] {
        let mut cluster = node_port_cluster(Cluster::v6(), "fd00:10::1");
        cluster.config.localhost_node_ports = localhost;
        cluster.config.node_port_addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        cluster.assert_flows(&[
            ("pod to cluster IP", "fd00:10::2", "fd00:172:30::41", 80, to, false),
            ("hairpin", "fd00:10::1", "fd00:172:30::41", 80, to, true),
            ("client to primary address", "2600:5200::1", "2001:db8::1", 3001, to, true),
            ("client to another address", "2600:5200::1", "2001:db8:1::2", 3001, second, !second.is_empty()),
            ("node to loopback", "::1", "::1", 3001, "", false),
        ]);
    }
}

#[test]
fn localhost_rule_is_written_iff_node_ports_are_open_on_loopback() {
    let mut cluster = node_port_cluster(Cluster::v4(), "10.180.0.1");
    let document = cluster.compile().render_document();
    assert!(document.contains(
        "-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment ns/svc1:p80 -m tcp --dport 3001 \
         -m nfacct --nfacct-name localhost_nps_accepted_pkts -j KUBE-EXT-"
    ));
    assert!(document.contains(
        "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
         -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
    ));
    cluster.config.localhost_node_ports = false;
    let ruleset = cluster.compile();
    let document = ruleset.render_document();
    assert!(!document.contains("localhost_nps_accepted_pkts") && !document.contains("-A KUBE-FIREWALL"));
    assert!(ruleset.chain(&Table::Filter, "KUBE-FIREWALL").unwrap().shared);
    assert!(document.contains("! -d 127.0.0.0/8"));
}

#[test]
fn health_check_node_port() {
    let mut cluster = Cluster::v4();
    cluster.config.node_port_addresses = vec!["127.0.0.0/8".parse().unwrap()];
    let spec =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30000});
    with_ingress(&mut cluster, "svc1", spec, json!([{"ip": "1.2.3.4"}]));
    let rule = "-A KUBE-NODEPORTS -p tcp -m comment --comment \"ns/svc1:p80 health check node port\" \
                -m tcp --dport 30000 -j ACCEPT";
    assert!(cluster.compile().render_document().contains(rule));
    cluster.service("svc1", json!({"type": "LoadBalancer", "healthCheckNodePort": 30000}));
    assert!(!cluster.compile().render_document().contains("health check node port"));
}

#[test]
fn drop_invalid_rule() {
    for (liberal_tcp, nfacct, rule) in [
        (false, false, Some("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP")),
        (
            false,
            true,
            Some(
                "-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP",
            ),
        ),
        (true, false, None),
    ] {
        let mut cluster = Cluster::v4();
        (cluster.config.liberal_tcp, cluster.config.nfacct) = (liberal_tcp, nfacct);
        let document = cluster.compile().render_document();
        assert_eq!(document.lines().find(|line| line.contains("INVALID")), rule);
    }
}

#[test]
fn masquerade_rule() {
    for (random_fully, target) in [(true, "-j MASQUERADE --random-fully"), (false, "-j MASQUERADE")] {
        let mut cluster = Cluster::v4();
        cluster.config.random_fully = random_fully;
        let document = cluster.compile().render_document();
        let rules: Vec<_> =
            document.lines().filter(|line| line.starts_with("-A KUBE-POSTROUTING")).skip(1).collect();
        assert_eq!(
            rules,
            [
                "-A KUBE-POSTROUTING -m mark ! --mark 0x004000/0x004000 -j RETURN".to_owned(),
                "-A KUBE-POSTROUTING -j MARK --xor-mark 0x004000".to_owned(),
                format!(
                    "-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" {target}"
                ),
            ]
        );
    }
}

#[test]
fn shares_of_endpoints_are_equal() {
    let mut cluster = Cluster::v4();
    let endpoints: Vec<_> = (1..=7).map(|i| remote(&format!("10.180.0.{i}"))).collect();
    cluster.service("svc1", json!({})).slice("svc1", &endpoints);
    for (bpf, affinity) in [(true, "None"), (false, "None"), (true, "ClientIP"), (false, "ClientIP")] {
        cluster.config.bpf = bpf;
        cluster.service("svc1", json!({"sessionAffinity": affinity}));
        let trace = cluster.trace(POD, VIP, 80);
        assert_eq!(trace.targets.len(), 7);
        assert!(trace.targets.iter().all(|target| target.probability == Share::new(1, 7)));
        assert_eq!(trace.shares, [(Outcome::Accepted, Share::ALL)].into());
    }
}

#[test]
fn affinity_recalls_before_it_chooses_and_remembers_the_choice() {
    let mut cluster = Cluster::v4();
    let spec =
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    cluster.service("svc1", spec).slice("svc1", &[remote("10.180.0.1"), remote("10.180.0.2")]);
    let document = cluster.compile().render_document();
    let svc = document.lines().filter(|line| line.starts_with("-A KUBE-SVC-")).collect::<Vec<_>>();
    assert_eq!(
        svc.iter().filter(|line| line.contains("--rcheck --seconds 60 --reap --name KUBE-SEP-")).count(),
        2
    );
    let recall = svc.iter().rposition(|line| line.contains("--rcheck")).unwrap();
    assert!(recall < svc.iter().position(|line| line.contains("statistic")).unwrap());
    let sep = document.lines().filter(|line| line.starts_with("-A KUBE-SEP-")).collect::<Vec<_>>();
    assert!(sep.len() == 2 && sep.iter().all(|line| line.contains("-m recent --set --name KUBE-SEP-")));
}

#[test]
fn hairpin_is_one_rule_for_all_endpoints_or_one_per_endpoint_without_bpf() {
    let mut cluster = Cluster::v4();
    let endpoints: Vec<_> = (1..=5).map(|i| remote(&format!("10.180.0.{i}"))).collect();
    cluster.service("svc1", json!({})).slice("svc1", &endpoints);
    let with = cluster.compile();
    let from_itself = cluster.trace("10.180.0.3", VIP, 80);
    let masqueraded: Vec<IpAddr> =
        from_itself.targets.iter().filter(|target| target.masquerade).map(|target| target.address).collect();
    assert_eq!(masqueraded, ["10.180.0.3".parse::<IpAddr>().unwrap()]);
    cluster.config.bpf = false;
    let without = cluster.compile();
    assert!(with.rule_count(&Table::Nat) + 5 <= without.rule_count(&Table::Nat));
    assert!(!without.render_document().contains("bytecode"));
    let targets = cluster.trace("10.180.0.3", VIP, 80).targets;
    assert_eq!(targets, from_itself.targets);
}

#[test]
fn hairpin_is_forwarded_where_the_policy_is_drop() {
    let mut cluster = Cluster::v4();
    cluster.service("svc1", json!({})).slice("svc1", &[remote("10.180.0.1")]);
    let text = cluster.compile().render_document();
    let text = text.replace("*filter\n", "*filter\n:FORWARD DROP [0:0]\n");
    let dump = fairlead_compiler::parse(&text).unwrap();
    let host = Host::from(&cluster.facts);
    let outcome = |from: &str| {
        let packet = packet(Protocol::Tcp, from, VIP, 80, &host);
        crate::cluster::summary(&fairlead_compiler::trace(&dump, &packet, &host))
    };
    assert_eq!(outcome("10.180.0.1"), ("10.180.0.1:80".to_owned(), true));
    assert_eq!(outcome(OTHER_POD).0, "DROP");
    assert_eq!(outcome(CLIENT).0, "10.180.0.1:80");
}

#[test]
fn loopback_traffic_is_no_hairpin() {
    let cluster = Cluster::v4();
    assert_eq!(cluster.flow(Protocol::Tcp, "127.0.0.1", "127.0.0.1", 8080), (String::new(), false));
}

#[test]
fn detector_of_interfaces_masquerades_what_comes_from_elsewhere() {
    let mut cluster = Cluster::v4();
    cluster.service("svc1", json!({})).slice("svc1", &[remote("10.180.0.1")]);
    let host = Host::from(&cluster.facts);
    for detector in [Detector::Bridge("cbr0".into()), Detector::Prefix("cb".into())] {
        cluster.config.detector = detector;
        let dump = Dump::from(&cluster.compile());
        for (interface, masquerade) in [("cbr0", false), ("eth0", true)] {
            let mut packet = packet(Protocol::Tcp, POD, VIP, 80, &host);
            packet.origin = fairlead_compiler::Origin::Interface(Some(interface.to_owned()));
            assert_eq!(fairlead_compiler::trace(&dump, &packet, &host).masquerade, masquerade, "{interface}");
        }
    }
}

#[test]
fn two_claims_to_one_address_are_settled_by_name() {
    let mut cluster = Cluster::v4();
    let spec = |ip: &str| json!({"clusterIP": ip, "externalIPs": ["5.6.7.8"]});
    cluster.service("b", spec("172.30.0.1")).slice("b", &[remote("10.180.0.1")]);
    cluster.service("a", spec("172.30.0.2")).slice("a", &[remote("10.180.0.2")]);
    assert_eq!(cluster.flow(Protocol::Tcp, CLIENT, "5.6.7.8", 80).0, "10.180.0.2:80");
}

#[test]
fn an_invalid_packet_meets_no_rule_of_nat() {
    let mut cluster = Cluster::v4();
    cluster.service("svc1", json!({})).slice("svc1", &[remote("10.180.0.1")]);
    let host = Host::from(&cluster.facts);
    for (liberal_tcp, outcome) in [(false, Outcome::Dropped), (true, Outcome::NoMatch)] {
        cluster.config.liberal_tcp = liberal_tcp;
        let (dump, sent) = (Dump::from(&cluster.compile()), packet(Protocol::Tcp, POD, VIP, 80, &host));
        let tracer = Tracer::new(&dump);
        assert_eq!(tracer.fate(&sent, &host).outcomes.keys().collect::<Vec<_>>(), [&Outcome::Accepted]);
        let fate = tracer.fate_of_invalid(&sent, &host);
        assert_eq!(fate.outcomes.keys().collect::<Vec<_>>(), [&outcome]);
        assert!(!fate.masquerade);
    }
}
