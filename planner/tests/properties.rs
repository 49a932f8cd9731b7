//! What must hold for any cluster: plans converge at once, satisfy the checker, and do not depend on order.
//!
//! [`World::sync`] checks every plan and asserts that planning again after executing it gives nothing.

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{
    Endpoints, Node, Pod, Service,
    builders::{node, object, pod_with, service},
};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};
use world::{MIRROR, SLICES, World, pods};

fn any_service() -> impl Strategy<Value = Service> {
    let families = select(vec![
        json!({}),
        json!({"ipFamilies": ["IPv6"], "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]}),
        json!({"ipFamilies": ["IPv6", "IPv4"]}),
        json!({"ipFamilies": null, "clusterIP": "None", "clusterIPs": null}),
        json!({"ipFamilies": null, "clusterIP": null, "clusterIPs": null}),
    ]);
    let ports = select(vec![
        json!([{"port": 80, "targetPort": 8080}]),
        json!([{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "targetPort": "http", "protocol": "UDP"}]),
        json!([{"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 81, "targetPort": 9}]),
        json!([]),
    ]);
    let distribution = select(vec![json!(null), json!("PreferClose"), json!("PreferSameNode")]);
    let selector = prop_oneof![9 => Just(json!({"app": "web"})), 1 => Just(json!(null))];
    let (uid, topology) = (select(vec!["uid-web", "uid-another"]), select(vec!["", "Auto"]));
    let flags = (any::<bool>(), prop::bool::weighted(0.1), any::<bool>(), topology);
    (families, ports, distribution, selector, uid, flags).prop_map(
        |(mut spec, ports, distribution, selector, uid, flags)| {
            let (publish, terminating, labelled, topology) = flags;
            spec["ports"] = ports;
            spec["trafficDistribution"] = distribution;
            spec["selector"] = selector;
            spec["publishNotReadyAddresses"] = json!(publish);
            let mut service = service("web", spec);
            service.terminating = terminating;
            service.uid = uid.into();
            service.annotations.insert("service.kubernetes.io/topology-mode".into(), topology.into());
            if labelled {
                service.labels.insert("l".into(), "1".into());
            }
            service
        },
    )
}

fn any_pods(count: usize) -> impl Strategy<Value = Vec<Pod>> {
    let ips = select(vec![
        json!([]),
        json!(["10.0.0.IP"]),
        json!(["fd00::IP"]),
        json!(["10.0.0.IP", "fd00::IP"]),
        json!(["127.0.0.IP", "fd00::IP"]),
        json!(["fe80::IP"]),
    ]);
    let port = select(vec![8080, 9090]);
    let node = prop_oneof![
        9 => select(vec![json!("n1"), json!("n2"), json!("n3"), json!("n4")]),
        1 => select(vec![json!("bare"), json!("missing"), json!(null)])
    ];
    let phase = prop_oneof![8 => Just("Running"), 1 => Just("Failed"), 1 => Just("Succeeded")];
    let one = (ips, 1..4_u8, port, node, phase, any::<bool>(), prop::bool::weighted(0.2), any::<bool>());
    vec(prop_oneof![1 => Just(None), 3 => one.prop_map(Some)], 0..count).prop_map(|pods| {
        let made = pods.into_iter().enumerate().filter_map(|(i, pod)| Some((i, pod?)));
        made.map(|(i, (ips, ip, port, node, phase, ready, terminating, udp))| {
            let ips: Vec<Value> = ips
                .as_array()
                .unwrap()
                .iter()
                .map(|text| json!({"ip": text.as_str().unwrap().replace("IP", &ip.to_string())}))
                .collect();
            let mut ports = vec![json!({"name": "http", "containerPort": port})];
            if udp {
                ports.push(json!({"name": "http", "containerPort": port, "protocol": "UDP"}));
            }
            let patch = json!({"status": {"phase": phase, "podIP": null, "podIPs": ips},
                               "spec": {"nodeName": node, "containers": [{"ports": ports}]}});
            Pod { ready, terminating, ..pod_with(&format!("pod-{i}"), "web", "n1", "", patch) }
        })
        .collect()
    })
}

/// Nodes `n1` to `n4`, and often one without a zone.
fn any_nodes() -> impl Strategy<Value = BTreeMap<Arc<str>, Node>> {
    let zone = select(vec!["z1", "z1", "z2", "z3", "z4"]);
    let one = (zone, select(vec!["1", "1", "250m", "3", "7.5"]), prop::bool::weighted(0.9));
    (vec(one, 4), any::<bool>()).prop_map(|(nodes, bare)| {
        let named = (1..).map(|i| format!("n{i}")).zip(nodes);
        let mut all: BTreeMap<Arc<str>, Node> = named
            .map(|(name, (zone, cpu, ready))| {
                let made =
                    Node { allocatable_cpu: Some(cpu.into()), ready, ..node(&name, "192.168.0.1", zone) };
                (Arc::from(name), made)
            })
            .collect();
        if bare {
            all.insert("bare".into(), Node { ready: false, ..node("bare", "192.168.0.2", "") });
        }
        all
    })
}

fn any_endpoints() -> impl Strategy<Value = Endpoints> {
    let address = select(vec![
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.10",
        "010.0.0.3",
        "fd00::1",
        "fd00::2",
        "::ffff:10.0.0.4",
        "127.0.0.1",
        "bad",
    ]);
    let port = select(vec![
        json!({"name": "a", "port": 80}),
        json!({"name": "a", "port": 83}),
        json!({"name": "b", "port": 81, "protocol": "UDP"}),
        json!({"name": "c", "port": 82, "appProtocol": "h2c"}),
    ]);
    let addresses = || vec(address.clone().prop_map(|ip| json!({"ip": ip})), 0..4);
    let subset = (addresses(), addresses(), vec(port, 0..3)).prop_map(|(ready, not_ready, ports)| {
        json!({"addresses": ready, "notReadyAddresses": not_ready, "ports": ports})
    });
    (vec(subset, 0..3), any::<bool>()).prop_map(|(subsets, annotated)| {
        let annotations = if annotated { json!({"a": "1"}) } else { json!(null) };
        object(json!({"metadata": {"namespace": "default", "name": "web", "uid": "uid-ep", "resourceVersion": "1",
                                   "annotations": annotations}, "subsets": subsets}))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_converge_whatever_changes(
        steps in vec((any_service(), any_pods(14), 1..5_usize, prop::option::weighted(0.8, any_nodes())), 1..5),
    ) {
        let mut world = World::new(steps[0].0.clone());
        for (service, pods, max, nodes) in steps {
            world.service = Some(service);
            world.pods = pods;
            world.limits.endpoints_per_slice = max;
            world.nodes = nodes;
            world.sync();
        }
        world.service = None;
        world.sync();
        prop_assert!(world.slices.is_empty() && world.endpoints.is_none() && world.remembered.is_empty());
    }

    #[test]
    fn topology_hints_converge_whatever_changes(
        steps in vec((any_nodes(), vec((1..5_u8, prop::bool::weighted(0.8)), 2..30), 1..8_usize), 1..6),
    ) {
        let mut service = service("web", json!({}));
        service.annotations.insert("service.kubernetes.io/topology-mode".into(), "Auto".into());
        let mut world = World::new(service).only(SLICES);
        for (nodes, places, max) in steps {
            world.nodes = Some(nodes);
            world.limits.endpoints_per_slice = max;
            world.pods = pods(0, places.len());
            for (pod, (node, ready)) in world.pods.iter_mut().zip(places) {
                pod.node = Some(format!("n{node}").into());
                pod.ready = ready;
            }
            let plan = world.sync();
            let state = &plan.topology;
            prop_assert_eq!(state.hinted.len() + state.refused.len(), 1);
            let hinted: usize = state.hinted.values().flat_map(BTreeMap::values).sum();
            let ready = world.pods.iter().filter(|pod| pod.ready).count();
            prop_assert!(hinted == 0 || hinted == ready);
        }
    }

    #[test]
    fn order_of_the_input_changes_nothing(
        service in any_service(),
        pods in any_pods(14),
        other in any_pods(14),
        swaps in vec((0..14_usize, 0..14_usize), 1..20),
    ) {
        let mut world = World::new(service).with_pods(other);
        world.limits.endpoints_per_slice = 2;
        world.sync();
        world.pods = pods;
        let plan = world.plan();
        for (a, b) in swaps {
            let (pods, slices) = (world.pods.len(), world.slices.len());
            if pods > 0 {
                world.pods.swap(a % pods, b % pods);
            }
            if slices > 0 {
                world.slices.swap(a % slices, b % slices);
            }
        }
        prop_assert_eq!(plan, world.plan());
    }

    #[test]
    fn pods_that_are_added_cost_as_few_writes_as_they_can(
        before in 0..40_usize,
        added in 1..40_usize,
        max in 1..12_usize,
    ) {
        let mut world = World::new(service("web", json!({}))).with_pods(pods(0, before));
        world.limits.endpoints_per_slice = max;
        world.sync();
        world.pods = pods(0, before + added);
        let plan = world.sync();
        prop_assert!(world.sizes().iter().all(|size| *size <= max));
        prop_assert_eq!(world.sizes().iter().sum::<usize>(), before + added);
        prop_assert!(plan.slices.create.len() + plan.slices.update.len() <= added.div_ceil(max));
        prop_assert_eq!(plan.slices.delete.len(), 0);
    }

    #[test]
    fn mirrors_converge_whatever_changes(steps in vec(prop::option::weighted(0.9, any_endpoints()), 1..5)) {
        let mut world = World::new(service("web", json!({"selector": null}))).only(MIRROR);
        for endpoints in steps {
            world.endpoints = endpoints;
            world.sync();
        }
        world.endpoints = None;
        world.sync();
        prop_assert!(world.slices.is_empty());
    }
}
