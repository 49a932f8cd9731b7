//! Documents of a few states, word by word.

use serde_json::json;

use crate::{
    cluster::{Cluster, local, remote, terminating},
    flows::with_ingress,
};

/// Every kind of rule that there is. Also what the fixtures of real tools hold.
pub(crate) fn everything(six: bool) -> Cluster {
    let mut cluster = if six { Cluster::v6() } else { Cluster::v4() };
    // The counters do not exist where the fixtures were made.
    cluster.config.nfacct = false;
    let ip = |four: &'static str, six_text: &'static str| if six { six_text } else { four };
    let (a, b, c) =
        (ip("10.180.0.1", "fd00:10::1"), ip("10.180.0.2", "fd00:10::2"), ip("10.180.0.3", "fd00:10::3"));
    cluster
        .service("plain", json!({"clusterIP": ip("10.96.0.1", "fd00:96::1")}))
        .slice("plain", &[remote(a), local(b)]);
    cluster
        .service("three", json!({"clusterIP": ip("10.96.0.2", "fd00:96::2")}))
        .slice("three", &[remote(a), local(b), remote(c)]);
    cluster.service("none", json!({"clusterIP": ip("10.96.0.3", "fd00:96::3")}));
    cluster
        .service(
            "nowhere",
            json!({"clusterIP": ip("10.96.0.4", "fd00:96::4"), "internalTrafficPolicy": "Local"}),
        )
        .slice("nowhere", &[remote(a)]);
    let affinity = json!({"clusterIP": ip("10.96.0.5", "fd00:96::5"), "sessionAffinity": "ClientIP",
                          "ports": [{"name": "p80", "port": 80, "protocol": "UDP"}]});
    cluster.service("sticky", affinity);
    let udp = json!([{"name": "p80", "port": 53, "protocol": "UDP"}]);
    cluster.slice_with("sticky-1", "sticky", udp, &[remote(a), remote(b)]);
    let outside = json!({"type": "LoadBalancer", "clusterIP": ip("10.96.0.6", "fd00:96::6"),
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000, "externalIPs": [ip("198.51.100.1", "2001:db8:98::1")],
        "loadBalancerSourceRanges": [ip("192.168.0.0/16", "2001:db8::/64")],
        "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]});
    with_ingress(&mut cluster, "outside", outside, json!([{"ip": ip("192.0.2.1", "2001:db8:2::1")}]));
    cluster.slice("outside", &[local(a), remote(b), terminating(remote(c), true)]);
    let away = json!({"type": "NodePort", "clusterIP": ip("10.96.0.7", "fd00:96::7"), "externalTrafficPolicy": "Local",
        "externalIPs": [ip("198.51.100.2", "2001:db8:98::2")], "ports": [{"name": "p80", "port": 80, "nodePort": 30081}]});
    cluster.service("away", away).slice("away", &[remote(a)]);
    cluster
}

#[test]
fn document_without_services() {
    insta::assert_snapshot!(Cluster::v4().compile().render_document());
}

#[test]
fn document_of_every_kind_of_rule_ipv4() {
    insta::assert_snapshot!(everything(false).compile().render_document());
}

#[test]
fn document_of_every_kind_of_rule_ipv6() {
    insta::assert_snapshot!(everything(true).compile().render_document());
}

#[test]
fn document_without_bpf() {
    let mut cluster = everything(false);
    cluster.config.bpf = false;
    insta::assert_snapshot!(cluster.compile().render_document());
}

#[test]
fn document_of_a_tree() {
    let mut cluster = Cluster::v4();
    for i in 0..60 {
        let spec =
            json!({"clusterIP": format!("10.96.{}.{i}", i % 3), "ports": [{"name": "p80", "port": 80}]});
        cluster.service(&format!("svc-{i}"), spec);
    }
    insta::assert_snapshot!(cluster.compile().render_document());
}
