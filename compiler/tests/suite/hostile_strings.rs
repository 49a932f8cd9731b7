//! Whatever strings an API server may send, in whatever field, they never change what a restore document means.
//!
//! Every string that objects have is replaced, so fields that nobody reads today are covered when somebody will.

use fairlead_compiler::{Delta, Rulebook, Ruleset, diff, parse, render};
use fairlead_objects::{EndpointSlice, Family, ServiceObject};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::cluster::Cluster;

/// What means something to `iptables-restore`, to a shell, or to a terminal.
const PIECES: [&str; 30] = [
    "\"",
    "'",
    "\\",
    "\n",
    "\r",
    "\t",
    "\0",
    "\u{1b}[31m",
    "\u{7f}",
    "\u{85}",
    "\u{2028}",
    "\u{202e}",
    " ",
    "#",
    ";",
    "$(id)",
    "`id`",
    "%s",
    "*nat",
    "COMMIT",
    ":KUBE-SERVICES - [0:0]",
    "-A KUBE-SERVICES",
    " -j DROP",
    "-F",
    "! ",
    "--comment",
    "--to-destination 6.6.6.6:6",
    "näme",
    "10.0.0.7",
    "long enough to be cut somewhere ",
];

fn text() -> impl Strategy<Value = String> {
    let pieces =
        prop::collection::vec(prop::sample::select(&PIECES[..]), 0..12).prop_map(|pieces| pieces.concat());
    prop_oneof![3 => pieces, 1 => any::<String>(), 1 => "[ -~]{0,300}"]
}

/// Fields whose strings are of a closed set: anything else is no such object, and refused as a whole.
const CLOSED: [&str; 2] = ["protocol", "ipFamilies"];

/// Replaces the strings of `value` by those of `texts`, again and again: all, or every other.
fn replace(value: &mut Value, texts: &mut impl Iterator<Item = Option<String>>) {
    match value {
        Value::String(string) => {
            if let Some(text) = texts.next().flatten() {
                *string = text;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| replace(value, texts)),
        Value::Object(fields) => {
            for (name, value) in &mut *fields {
                if !CLOSED.contains(&name.as_str()) {
                    replace(value, texts);
                }
            }
            // Keys of labels and annotations, too.
            for name in ["labels", "annotations", "selector"] {
                if let Some(Value::Object(map)) = fields.get_mut(name) {
                    map.extend(texts.next().flatten().map(|key| (key, json!("x"))));
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A Service that has a chain of every kind, and a value in every field.
fn service(number: u8, family: Family, local: bool) -> Value {
    let (cluster, external, ingress, range) = match family {
        Family::V4 => (format!("172.30.0.{number}"), "5.6.7.8", "1.2.3.4", "203.0.113.0/24"),
        Family::V6 => (format!("fd00:172:30::{number:x}"), "2001:db8::8", "2001:db8::4", "2001:db8:113::/48"),
    };
    json!({
        "metadata": {"namespace": "ns", "name": format!("svc-{number}"), "uid": "uid", "labels": {"app": "web"},
            "annotations": {"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/anything": "x"}},
        "spec": {"type": "LoadBalancer", "clusterIP": cluster, "clusterIPs": [cluster], "ipFamilies": [family.as_str()],
            "selector": {"app": "web"}, "externalIPs": [external], "loadBalancerSourceRanges": [range],
            "externalTrafficPolicy": if local { "Local" } else { "Cluster" }, "internalTrafficPolicy": "Cluster",
            "sessionAffinity": if local { "ClientIP" } else { "None" }, "externalName": "example.com",
            "loadBalancerClass": "class", "trafficDistribution": "PreferClose", "healthCheckNodePort": 31_000,
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30_000 + u16::from(number),
                       "targetPort": "web", "appProtocol": "http"},
                      {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"}]},
        "status": {"loadBalancer": {"ingress": [{"ip": ingress, "hostname": "example.com", "ipMode": "VIP"}]}}
    })
}

fn slice(number: u8, family: Family) -> Value {
    let ips = match family {
        Family::V4 => ["10.180.0.1", "10.180.0.2"],
        Family::V6 => ["fd00:10::1", "fd00:10::2"],
    };
    let endpoint = |ip: &str| {
        json!({"addresses": [ip], "nodeName": "test-node", "hostname": "pod", "zone": "a",
            "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "test-node"}]},
            "targetRef": {"kind": "Pod", "namespace": "ns", "name": "pod", "uid": "uid"}})
    };
    json!({
        "metadata": {"namespace": "ns", "name": format!("slice-{number}"), "annotations": {"x": "y"},
            "labels": {"kubernetes.io/service-name": format!("svc-{number}")}},
        "addressType": family.as_str(), "endpoints": [endpoint(ips[0]), endpoint(ips[1])],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"},
                  {"name": "dns", "port": 5353, "protocol": "UDP"}]
    })
}

/// What `iptables-restore` is given for a ruleset has a line for each thing in it, and no other.
fn line_count(ruleset: &Ruleset) -> usize {
    let chains = |chains: &std::collections::BTreeMap<_, fairlead_compiler::Chain>| {
        chains.values().map(|chain| 1 + chain.rules.len()).sum::<usize>()
    };
    ruleset.tables.values().map(|table| 2 + chains(table)).sum::<usize>() + ruleset.jumps.len()
}

fn assert_plain(document: &str) -> Result<(), TestCaseError> {
    for line in document.lines() {
        let is_known =
            ["*", ":", "-A KUBE-", "-I ", "-X KUBE-", "COMMIT"].iter().any(|start| line.starts_with(start));
        prop_assert!(is_known, "{line:?}");
        prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
        // The limit of iptables-restore on a line.
        prop_assert!(line.len() < 1024, "{line:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_string_of_an_object_changes_what_a_document_means(
        texts in prop::collection::vec(prop::option::weighted(0.7, text()), 1..40), six: bool, bpf: bool, silent: bool,
    ) {
        let mut cluster = if six { Cluster::v6() } else { Cluster::v4() };
        cluster.config.bpf = bpf;
        let family = cluster.state.family();
        let mut book = Rulebook::new(cluster.config.clone(), cluster.facts.clone());
        book.take_changes();
        // All strings replaced; only those that are no keys, so that rules are made; none.
        let mut texts = texts.into_iter().cycle();
        for number in 1..=3 {
            let (mut service, mut slice) = (service(number, family, number == 2), slice(number, family));
            match number {
                1 => {
                    replace(&mut service, &mut texts);
                    replace(&mut slice, &mut texts);
                }
                2 => {
                    let name = texts.next().flatten().unwrap_or_default();
                    let port = texts.next().flatten().unwrap_or_default();
                    let of_port = |ports: &mut Value| ports[0]["name"] = json!(port);
                    service["metadata"]["name"] = json!(name);
                    slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(name);
                    of_port(&mut service["spec"]["ports"]);
                    of_port(&mut slice["ports"]);
                }
                _ => {}
            }
            let (Ok(service), Ok(slice)) = (
                serde_json::from_value::<ServiceObject>(service),
                serde_json::from_value::<EndpointSlice>(slice),
            ) else {
                prop_assert!(number == 1, "only what has other strings may be no object");
                continue;
            };
            cluster.state.set_service(&service.into());
            if !silent || number != 2 {
                cluster.state.set_slice(&slice);
            }
            let dirty = cluster.state.take_dirty();
            book.refresh(&cluster.state, &dirty);
            let delta = book.take_changes();
            assert_plain(&render(&delta))?;
        }
        let ruleset = cluster.compile();
        let document = ruleset.render_document();
        assert_plain(&document)?;
        prop_assert_eq!(document.lines().count(), line_count(&ruleset));
        let dump = parse(&document).unwrap();
        for (table, chains) in &ruleset.tables {
            let ours = dump.tables[table].keys().filter(|name| name.as_str().starts_with("KUBE-"));
            prop_assert!(ours.eq(chains.keys()));
            for (name, chain) in chains {
                prop_assert_eq!(&dump.chain(table, name.as_str()).unwrap().rules, &chain.rules);
            }
        }
        prop_assert!(diff(&dump, &ruleset).is_empty());
        prop_assert_eq!(render(&Delta::everything(&ruleset)), document);
    }
}
