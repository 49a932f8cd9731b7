//! Flows of kube-proxy's own unit tests, by their names, where they are about traffic policies, terminating endpoints and hints.

use fairlead_compiler::Detector;
use fairlead_objects::Protocol;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, NODE, local, remote, terminating, unready},
    flows::with_ingress,
};

const POD: &str = "10.0.0.2";
const CLIENT: &str = "203.0.113.2";
const NODE_IP: &str = "192.168.0.2";
const VIP: &str = "172.30.0.41";
const EXTERNAL: &str = "192.168.99.22";
const BALANCER: &str = "1.2.3.4";

fn exposed(spec: Value, endpoints: &[Value]) -> Cluster {
    let mut cluster = Cluster::v4();
    let mut base = json!({"type": "LoadBalancer", "externalIPs": [EXTERNAL]});
    fairlead_objects::builders::merge(&mut base, spec);
    with_ingress(&mut cluster, "svc1", base, json!([{"ip": BALANCER}]));
    cluster.slice("svc1", endpoints);
    cluster
}

#[test]
fn external_traffic_policy_local() {
    let cluster =
        exposed(json!({"externalTrafficPolicy": "Local"}), &[remote("10.180.0.1"), local("10.180.2.1")]);
    let (both, one) = ("10.180.0.1:80, 10.180.2.1:80", "10.180.2.1:80");
    cluster.assert_flows(&[
        ("pod to cluster IP", POD, VIP, 80, both, false),
        ("pod to external IP", POD, EXTERNAL, 80, both, false),
        ("pod to load balancer", POD, BALANCER, 80, both, false),
        ("pod to node port", POD, NODE_IP, 3001, both, false),
        ("client to external IP", CLIENT, EXTERNAL, 80, one, false),
        ("client to load balancer", CLIENT, BALANCER, 80, one, false),
        ("client to node port", CLIENT, NODE_IP, 3001, one, false),
        ("node to load balancer", NODE_IP, BALANCER, 80, both, true),
        ("node to node port", NODE_IP, NODE_IP, 3001, both, true),
    ]);
}

#[test]
fn external_traffic_policy_cluster() {
    let cluster =
        exposed(json!({"externalTrafficPolicy": "Cluster"}), &[remote("10.180.0.1"), local("10.180.2.1")]);
    let both = "10.180.0.1:80, 10.180.2.1:80";
    cluster.assert_flows(&[
        ("pod to cluster IP", POD, VIP, 80, both, false),
        ("pod to external IP", POD, EXTERNAL, 80, both, true),
        ("pod to load balancer", POD, BALANCER, 80, both, true),
        ("pod to node port", POD, NODE_IP, 3001, both, true),
        ("client to external IP", CLIENT, EXTERNAL, 80, both, true),
        ("client to load balancer", CLIENT, BALANCER, 80, both, true),
        ("client to node port", CLIENT, NODE_IP, 3001, both, true),
    ]);
}

#[test]
fn local_policies_without_local_endpoints_drop_what_comes_from_outside() {
    let cluster = exposed(json!({"externalTrafficPolicy": "Local"}), &[remote("10.180.0.1")]);
    cluster.assert_flows(&[
        ("pod to load balancer", POD, BALANCER, 80, "10.180.0.1:80", false),
        ("node to node port", NODE_IP, NODE_IP, 3001, "10.180.0.1:80", true),
        ("client to load balancer", CLIENT, BALANCER, 80, "DROP", false),
        ("client to external IP", CLIENT, EXTERNAL, 80, "DROP", false),
        ("client to node port", CLIENT, NODE_IP, 3001, "DROP", false),
    ]);
}

#[test]
fn internal_traffic_policy() {
    let (a, b, c) = ("10.0.1.1", "10.0.1.2", "10.0.1.3");
    for (policy, endpoints, output) in [
        ("Cluster", [local(a), remote(b), remote(c)], "10.0.1.1:80, 10.0.1.2:80, 10.0.1.3:80"),
        ("Local", [local(a), remote(b), remote(c)], "10.0.1.1:80"),
        ("Local", [local(a), local(b), remote(c)], "10.0.1.1:80, 10.0.1.2:80"),
        ("Local", [remote(a), remote(b), remote(c)], "DROP"),
    ] {
        let mut cluster = Cluster::v4();
        cluster.service("svc1", json!({"internalTrafficPolicy": policy})).slice("svc1", &endpoints);
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80), (output.to_owned(), false), "{policy}");
        cluster.state.remove_slice("ns", "svc1-1");
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80), ("REJECT".to_owned(), false));
    }
}

/// The endpoints of the four cases of TestTerminatingEndpointsTrafficPolicy*.
fn terminating_cases() -> [Vec<Value>; 4] {
    let ips = ["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5"];
    [
        vec![
            local(ips[0]),
            local(ips[1]),
            terminating(local(ips[2]), true),
            terminating(local(ips[3]), false),
            remote(ips[4]),
        ],
        vec![
            terminating(local(ips[1]), true),
            terminating(local(ips[2]), false),
            terminating(remote(ips[3]), true),
            terminating(remote(ips[4]), false),
        ],
        vec![terminating(remote(ips[0]), true)],
        vec![terminating(local(ips[0]), false), unready(local(ips[1])), terminating(remote(ips[2]), false)],
    ]
}

#[test]
fn terminating_endpoints_traffic_policy_local() {
    let [ready, only_terminating, elsewhere, unusable] = terminating_cases();
    for (endpoints, pod, client) in [
        (ready, "10.0.1.1:80, 10.0.1.2:80, 10.0.1.5:80", "10.0.1.1:80, 10.0.1.2:80"),
        (only_terminating, "10.0.1.2:80, 10.0.1.4:80", "10.0.1.2:80"),
        (elsewhere, "10.0.1.1:80", "DROP"),
        (unusable, "REJECT", "REJECT"),
    ] {
        let mut cluster = exposed(json!({"externalTrafficPolicy": "Local"}), &endpoints);
        cluster.assert_flows(&[
            ("pod to cluster IP", POD, VIP, 80, pod, false),
            ("client to load balancer", CLIENT, BALANCER, 80, client, false),
        ]);
        cluster.state.remove_slice("ns", "svc1-1");
        cluster.assert_flows(&[
            ("pod to cluster IP", POD, VIP, 80, "REJECT", false),
            ("client to load balancer", CLIENT, BALANCER, 80, "REJECT", false),
        ]);
    }
}

#[test]
fn terminating_endpoints_traffic_policy_cluster() {
    let [ready, only_terminating, elsewhere, unusable] = terminating_cases();
    for (endpoints, output) in [
        (ready, "10.0.1.1:80, 10.0.1.2:80, 10.0.1.5:80"),
        (only_terminating, "10.0.1.2:80, 10.0.1.4:80"),
        (elsewhere, "10.0.1.1:80"),
        (unusable, "REJECT"),
    ] {
        let cluster = exposed(json!({}), &endpoints);
        let masquerade = output != "REJECT";
        cluster.assert_flows(&[
            ("pod to cluster IP", POD, VIP, 80, output, false),
            ("client to load balancer", CLIENT, BALANCER, 80, output, masquerade),
        ]);
    }
}

/// The four tables of TestInternalExternalMasquerade: what is masqueraded, by settings.
#[test]
fn internal_external_masquerade() {
    for (all, detector) in [(false, true), (false, false), (true, true), (true, false)] {
        for external in ["Cluster", "Local"] {
            for internal in ["Cluster", "Local"] {
                let spec = json!({"externalTrafficPolicy": external, "internalTrafficPolicy": internal});
                let mut cluster = exposed(spec, &[local("10.180.0.1"), remote("10.180.1.1")]);
                cluster.config.masquerade_all = all;
                if !detector {
                    cluster.config.detector = Detector::None;
                }
                assert_masquerade(&cluster, all, detector, external == "Local", internal == "Local");
            }
        }
    }
}

fn assert_masquerade(
    cluster: &Cluster,
    all: bool,
    detector: bool,
    external_local: bool,
    internal_local: bool,
) {
    let (both, one) = ("10.180.0.1:80, 10.180.1.1:80", "10.180.0.1:80");
    let inside = if internal_local { one } else { both };
    let outside = if external_local { one } else { both };
    let from_pod = if external_local && !detector { one } else { both };
    cluster.assert_flows(&[
        ("pod to cluster IP", POD, VIP, 80, inside, all),
        ("node to cluster IP", NODE_IP, VIP, 80, inside, all || detector),
        ("client to cluster IP", CLIENT, VIP, 80, inside, all || detector),
        ("pod to node port", POD, NODE_IP, 3001, from_pod, !external_local),
        ("node to node port", NODE_IP, NODE_IP, 3001, both, true),
        ("loopback to node port", "127.0.0.1", "127.0.0.1", 3001, both, true),
        ("client to node port", CLIENT, NODE_IP, 3001, outside, !external_local),
        ("pod to load balancer", POD, BALANCER, 80, from_pod, !external_local),
        ("node to load balancer", NODE_IP, BALANCER, 80, both, true),
        ("client to load balancer", CLIENT, BALANCER, 80, outside, !external_local),
    ]);
}

fn hinted(mut endpoint: Value, zones: &[&str], nodes: &[&str]) -> Value {
    let names = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
    endpoint["hints"] = json!({"forZones": names(zones), "forNodes": names(nodes)});
    endpoint
}

#[test]
fn hints_are_honoured_only_if_every_ready_endpoint_has_them() {
    let (a, b) = ("10.1.2.3", "10.1.2.4");
    let both = "10.1.2.3:80, 10.1.2.4:80";
    for (name, zone, endpoints, output) in [
        (
            "zone",
            Some("z1"),
            vec![hinted(remote(a), &["z1"], &[]), hinted(remote(b), &["z2"], &[])],
            "10.1.2.3:80",
        ),
        ("no zone here", None, vec![hinted(remote(a), &["z1"], &[]), hinted(remote(b), &["z2"], &[])], both),
        ("one without", Some("z1"), vec![hinted(remote(a), &["z1"], &[]), remote(b)], both),
        (
            "none for us",
            Some("z3"),
            vec![hinted(remote(a), &["z1"], &[]), hinted(remote(b), &["z2"], &[])],
            both,
        ),
        (
            "node before zone",
            Some("z1"),
            vec![hinted(remote(a), &["z1"], &["x"]), hinted(remote(b), &["z2"], &[NODE])],
            "10.1.2.4:80",
        ),
        (
            "unready ones do not count",
            Some("z1"),
            vec![
                hinted(remote(a), &["z1"], &[]),
                hinted(remote(b), &["z2"], &[]),
                unready(remote("10.1.2.5")),
            ],
            "10.1.2.3:80",
        ),
        (
            "terminating ones need none while others are ready",
            Some("z1"),
            vec![
                hinted(remote(a), &["z1"], &[]),
                hinted(remote(b), &["z2"], &[]),
                terminating(remote("10.1.2.5"), true),
            ],
            "10.1.2.3:80",
        ),
        (
            "terminating ones ignore hints",
            Some("z1"),
            vec![
                terminating(hinted(remote(a), &["z1"], &[]), true),
                terminating(hinted(remote(b), &["z2"], &[]), true),
            ],
            both,
        ),
    ] {
        let mut cluster = Cluster::v4();
        cluster.facts.zone = zone.map(Into::into);
        cluster.service("svc1", json!({})).slice("svc1", &endpoints);
        assert_eq!(cluster.flow(Protocol::Tcp, POD, VIP, 80).0, output, "{name}");
    }
}
