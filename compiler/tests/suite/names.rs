//! Names of chains and texts of probabilities are kube-proxy's.

use fairlead_compiler::{PortKey, Probability, ServicePortName};
use fairlead_objects::{Protocol, ServiceKey};
use serde_json::{Value, json};

use crate::cluster::{Cluster, local, remote};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../fixtures/names-iptables.json")).unwrap()
}

fn parts(text: &str) -> (&str, &str, &str) {
    let (namespace, rest) = text.split_once('/').unwrap();
    let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
    (namespace, name, port)
}

#[test]
fn text_of_service_port_name_has_a_colon_only_with_a_port_name() {
    for vector in vectors()["chains"].as_array().unwrap() {
        let text = vector["servicePortName"].as_str().unwrap();
        let (namespace, name, port) = parts(text);
        let port = PortKey { name: port.into(), protocol: Protocol::Tcp };
        assert_eq!(ServicePortName { service: ServiceKey::new(namespace, name), port }.to_string(), text);
    }
}

/// A Service that needs all five kinds of chains has exactly the chains of the vector.
#[test]
fn chains_are_called_as_in_kube_proxy_for_every_vector() {
    for vector in vectors()["chains"].as_array().unwrap() {
        let (namespace, name, port) = parts(vector["servicePortName"].as_str().unwrap());
        let endpoint: std::net::SocketAddr = vector["endpoint"].as_str().unwrap().parse().unwrap();
        let (mut cluster, ingress) =
            if endpoint.is_ipv4() { (Cluster::v4(), "1.2.3.4") } else { (Cluster::v6(), "2001:db8:9::1") };
        let range = if endpoint.is_ipv4() { "203.0.113.0/24" } else { "2001:db8:5::/64" };
        let protocol = vector["protocol"].as_str().unwrap().to_uppercase();
        let service: fairlead_objects::ServiceObject = fairlead_objects::builders::object(json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"type": "LoadBalancer", "clusterIP": if endpoint.is_ipv4() { "10.96.0.1" } else { "fd00::9" },
                     "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
                     "loadBalancerSourceRanges": [range],
                     "ports": [{"name": port, "port": 443, "protocol": protocol}]},
            "status": {"loadBalancer": {"ingress": [{"ip": ingress}]}}
        }));
        cluster.state.set_service(&service.into());
        let mut slice = crate::cluster::slice(
            cluster.state.family(),
            "s",
            name,
            json!([{"name": port, "port": endpoint.port(), "protocol": protocol}]),
            &[local(&endpoint.ip().to_string())],
        );
        slice.metadata.namespace = Some(namespace.to_owned());
        cluster.state.set_slice(&slice);
        let ruleset = cluster.compile();
        let nat = &ruleset.tables[&fairlead_compiler::Table::Nat];
        for chain in vector["chains"].as_array().unwrap() {
            assert!(nat.contains_key(chain.as_str().unwrap()), "{chain} of {vector}");
        }
    }
}

#[test]
fn probabilities_are_written_as_in_kube_proxy() {
    for (n, text) in vectors()["probabilities"].as_object().unwrap() {
        let n: u32 = n.parse().unwrap();
        let written = Probability::one_in(n);
        assert_eq!(Probability::of_text(text.as_str().unwrap()), Some(written));
        if n > 1 && n < 40_000 {
            assert_eq!(written.to_string(), *text);
        }
    }
}

#[test]
fn comment_with_quotes_and_newlines_stays_one_word() {
    let mut cluster = Cluster::v4();
    cluster.service("svc", json!({"ports": [{"name": "a\" -j ACCEPT\n-A INPUT \\", "port": 80}]}));
    let ruleset = cluster.compile();
    let dump = crate::kernel::reparsed(&ruleset);
    assert!(fairlead_compiler::diff(&dump, &ruleset).put.is_empty());
    assert!(dump.chain(&fairlead_compiler::Table::Filter, "INPUT").unwrap().rules.len() == 4);
    cluster.slice("svc", &[remote("10.180.0.1")]);
    assert!(
        crate::kernel::reparsed(&cluster.compile())
            .chain(&fairlead_compiler::Table::Filter, "INPUT")
            .is_some()
    );
}
