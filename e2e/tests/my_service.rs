//! `my-service.yaml`: a ClusterIP Service with a selector, packet by packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, anyhow, ensure};
use fairlead_e2e::{
    Bed, From, Outcome, PodSpec, Port, Protocol,
    bed::SETTLE,
    cases, suite,
    wait::{self, Look},
};
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![
            both_pods_answer_in_fair_shares_and_see_the_pod_that_asks,
            nodes_are_answered_and_seen_by_their_own_address,
            a_pod_reaches_itself_through_its_service,
            udp_and_tcp_of_one_port_are_both_delivered,
            a_flow_of_datagrams_stays_with_its_pod_until_that_is_out,
            endpoints_and_slices_name_the_pods,
            a_pod_that_is_not_ready_gets_nothing_until_it_is,
            a_service_without_ready_pods_refuses_at_once,
            a_terminating_pod_gets_no_new_connections_and_keeps_the_old,
            a_deleted_pod_leaves_its_share_to_the_others,
            a_selector_that_matches_nothing_refuses,
            removing_the_selector_leaves_endpoints_in_place,
            deleting_the_service_removes_its_objects_and_its_rules,
            the_api_server_is_reached_through_its_own_service,
        ],
    )
}

fn up(bed: &mut Bed) -> Result<SocketAddr> {
    bed.apply_example("my-service.yaml")?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    for node in 1..=2 {
        bed.await_servers(From::Node(node), Protocol::Tcp, target, &BOTH)?;
    }
    Ok(target)
}

fn ip(bed: &Bed, pod: &str) -> Result<IpAddr> {
    Ok(bed.pod(pod)?.addresses.v4.into())
}

/// The address a node masquerades to towards one of its own Pods: that of its end of the Pod's link.
fn gateway(bed: &Bed, node: u8) -> Result<IpAddr> {
    Ok(bed.node(node)?.pod(1).v4.into())
}

fn both_pods_answer_in_fair_shares_and_see_the_pod_that_asks(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let tally = bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 400)?;
    tally.check_fair(&BOTH)?;
    assert_eq!(tally.clients(), BTreeSet::from([ip(bed, "client")?]));
    assert_eq!(tally.ports(), BTreeSet::from([8080]));
    Ok(())
}

fn nodes_are_answered_and_seen_by_their_own_address(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    for node in 1..=2 {
        let tally = bed.client(From::Node(node))?.ask_many(Protocol::Tcp, target, 400)?;
        tally.check_fair(&BOTH)?;
        for pod in BOTH {
            let near = bed.pod(pod)?.node.number == node;
            let own = bed.node(node)?.addresses.v4.into();
            let seen = if near { gateway(bed, node)? } else { own };
            ensure!(
                tally.clients_of(pod) == BTreeSet::from([seen]),
                "from node {node}, wanted {seen}: {tally}"
            );
        }
    }
    Ok(())
}

fn a_pod_reaches_itself_through_its_service(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    for pod in BOTH {
        let tally = bed.client(From::Pod(pod))?.ask_many(Protocol::Tcp, target, 200)?;
        tally.check_fair(&BOTH)?;
        let node = bed.pod(pod)?.node.number;
        for other in BOTH {
            // A Pod that saw its own address as the client's would answer itself directly, past the translation.
            let seen = if other == pod { gateway(bed, node)? } else { ip(bed, pod)? };
            ensure!(
                tally.clients_of(other) == BTreeSet::from([seen]),
                "{pod} to {other}, wanted {seen}: {tally}"
            );
        }
    }
    Ok(())
}

fn udp_and_tcp_of_one_port_are_both_delivered(bed: &mut Bed) -> Result<()> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns"}, "spec": {
    "selector": {"app": "dns"},
    "ports": [
        {"name": "udp", "port": 53, "protocol": "UDP", "targetPort": 5353},
        {"name": "tcp", "port": 53, "protocol": "TCP", "targetPort": 5454},
    ]}});
    bed.kubernetes().apply(&service)?;
    for (name, node) in [("dns-1", 1), ("dns-2", 2), ("dns-3", 2)] {
        bed.add_pod(PodSpec::new(name, "dns").on(node).port(Port::udp(5353)).port(Port::tcp(5454)))?;
    }
    bed.add_pod(PodSpec::new("client", "client"))?;
    let target = SocketAddr::new(bed.cluster_ip("dns")?, 53);
    let pods = ["dns-1", "dns-2", "dns-3"];
    for (protocol, port) in [(Protocol::Udp, 5353), (Protocol::Tcp, 5454)] {
        bed.await_servers(From::Pod("client"), protocol, target, &pods)?;
        let tally = bed.client(From::Pod("client"))?.ask_many(protocol, target, 600)?;
        tally.check_fair(&pods)?;
        assert_eq!(tally.ports(), BTreeSet::from([port]));
        assert_eq!(tally.clients(), BTreeSet::from([ip(bed, "client")?]));
    }
    Ok(())
}

/// Of so many flows, all are led to one of two Pods once in a million runs.
const FLOWS: u16 = 21;

fn a_flow_of_datagrams_stays_with_its_pod_until_that_is_out(bed: &mut Bed) -> Result<()> {
    bed.kubernetes()
        .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns"}, "spec": {
        "selector": {"app": "dns"}, "ports": [{"port": 53, "protocol": "UDP", "targetPort": 5353}]}}))?;
    for (name, node) in [("dns-1", 1), ("dns-2", 2)] {
        bed.add_pod(PodSpec::new(name, "dns").on(node).port(Port::udp(5353)))?;
    }
    bed.add_pod(PodSpec::new("client", "client"))?;
    let target = SocketAddr::new(bed.cluster_ip("dns")?, 53);
    bed.await_servers(From::Pod("client"), Protocol::Udp, target, &["dns-1", "dns-2"])?;
    // These ports are none of those that the kernel gives out by itself.
    let led = |bed: &Bed| -> Result<BTreeMap<u16, String>> {
        let client = bed.client(From::Pod("client"))?;
        (20_000..20_000 + FLOWS)
            .map(|port| Ok((port, client.ask_from(port, target)?.answer()?.server)))
            .collect()
    };
    let first = led(bed)?;
    assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 2, "{first:?}");
    assert_eq!(led(bed)?, first);
    // A third Pod is no reason for a flow to move, its own Pod's end is.
    bed.add_pod(PodSpec::new("dns-3", "dns").on(2).port(Port::udp(5353)))?;
    bed.await_servers(From::Pod("client"), Protocol::Udp, target, &["dns-1", "dns-2", "dns-3"])?;
    assert_eq!(led(bed)?, first);
    bed.set_ready("dns-1", false)?;
    wait::until("the flows to dns-1 to be led elsewhere", SETTLE, || {
        let now = led(bed)?;
        for (port, server) in first.iter().filter(|(_, server)| *server != "dns-1") {
            ensure!(now.get(port) == Some(server), "the flow from {port} left {server}: {now:?}");
        }
        let left = now.values().any(|server| server == "dns-1");
        Ok(if left { Look::NotYet(format!("{now:?}")) } else { Look::Done(()) })
    })
}

fn endpoints_and_slices_name_the_pods(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let endpoints = bed.await_endpoints("my-service", &BOTH)?;
    let listed = |list: &Value| -> BTreeSet<String> {
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|address| Some(address["ip"].as_str()?.to_owned()))
            .collect()
    };
    let wanted: BTreeSet<String> =
        BOTH.iter().map(|pod| Ok(ip(bed, pod)?.to_string())).collect::<Result<_>>()?;
    assert_eq!(listed(&endpoints["subsets"][0]["addresses"]), wanted);
    assert_eq!(endpoints["subsets"][0]["ports"][0]["port"], 8080);

    let slices: Vec<Value> =
        bed.kubernetes().list("EndpointSlice", "default", "kubernetes.io/service-name=my-service")?;
    assert_eq!(slices.len(), 1, "{slices:?}");
    let slice = &slices[0];
    assert_eq!(slice["metadata"]["ownerReferences"][0]["name"], "my-service");
    assert_eq!(slice["addressType"], "IPv4");
    let found: BTreeSet<(&str, &str)> = slice["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|endpoint| {
            Some((endpoint["targetRef"]["name"].as_str()?, endpoint["nodeName"].as_str()?))
        })
        .collect();
    assert_eq!(found, BTreeSet::from([("my-app-1", "node1"), ("my-app-2", "node2")]));
    Ok(())
}

fn a_pod_that_is_not_ready_gets_nothing_until_it_is(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.set_ready("my-app-1", false)?;
    for node in 1..=2 {
        bed.await_servers(From::Node(node), Protocol::Tcp, target, &["my-app-2"])?;
    }
    let endpoints = bed.await_endpoints("my-service", &["my-app-2"])?;
    assert_eq!(endpoints["subsets"][0]["notReadyAddresses"][0]["ip"], ip(bed, "my-app-1")?.to_string());
    bed.set_ready("my-app-1", true)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 400)?.check_fair(&BOTH)
}

fn a_service_without_ready_pods_refuses_at_once(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    for pod in BOTH {
        bed.set_ready(pod, false)?;
    }
    for from in [From::Pod("client"), From::Node(1), From::Node(2)] {
        bed.await_outcome(from, Protocol::Tcp, target, &Outcome::Refused)?;
        bed.client(from)?.ask_many(Protocol::Tcp, target, 20)?.check_all(&Outcome::Refused)?;
    }
    bed.set_ready("my-app-2", true)?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["my-app-2"])
}

fn a_terminating_pod_gets_no_new_connections_and_keeps_the_old(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let client = bed.client(From::Pod("client"))?;
    let mut open = Vec::new();
    for _ in 0..40 {
        let mut connection = client.connect(target)?.map_err(|end| anyhow!("no connection: {end}"))?;
        open.push((connection.ask()?.answer()?.server, connection));
    }
    bed.terminate_pod("my-app-1")?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["my-app-2"])?;
    ensure!(open.iter().any(|(server, _)| server == "my-app-1"), "no connection went to my-app-1");
    for (server, connection) in &mut open {
        assert_eq!(connection.ask()?.answer()?.server, *server);
    }
    Ok(())
}

fn a_deleted_pod_leaves_its_share_to_the_others(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.delete_pod("my-app-1")?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["my-app-2"])?;
    bed.add_pod(PodSpec::new("my-app-3", "my-app").on(2).port(Port::tcp(8080)))?;
    bed.add_pod(PodSpec::new("my-app-4", "my-app").on(1).port(Port::tcp(8080)))?;
    let pods = ["my-app-2", "my-app-3", "my-app-4"];
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &pods)?;
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 600)?.check_fair(&pods)
}

fn a_selector_that_matches_nothing_refuses(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let select = |app: &str| json!({"spec": {"selector": {"app": app}}});
    bed.kubernetes().merge("Service", "default", "my-service", select("nobody"))?;
    bed.await_outcome(From::Pod("client"), Protocol::Tcp, target, &Outcome::Refused)?;
    bed.kubernetes().merge("Service", "default", "my-service", select("my-app"))?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &BOTH)
}

/// As upstream: without a selector the objects belong to the user, so nobody takes them away.
fn removing_the_selector_leaves_endpoints_in_place(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.kubernetes().merge("Service", "default", "my-service", json!({"spec": {"selector": null}}))?;
    // Nothing has to happen, so the wait is for something later: the next Service works.
    bed.kubernetes().apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "later"},
        "spec": {"selector": {"app": "my-app"}, "ports": [{"port": 80, "targetPort": 8080}]}}))?;
    let later = SocketAddr::new(bed.cluster_ip("later")?, 80);
    bed.await_servers(From::Pod("client"), Protocol::Tcp, later, &BOTH)?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &BOTH)?;
    ensure!(bed.names("Endpoints")?.contains(&"my-service".to_owned()), "the Endpoints are gone");
    Ok(())
}

fn deleting_the_service_removes_its_objects_and_its_rules(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.kubernetes().delete("Service", "default", "my-service", 0)?;
    wait::until_ok("Endpoints and slices of my-service to go", SETTLE, || {
        let left = [bed.names("Endpoints")?, bed.names("EndpointSlice")?].concat();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    for node in 1..=2 {
        let word = target.ip().to_string();
        wait::until_ok(&format!("the rules about {word} to go from node {node}"), SETTLE, || {
            let rules = bed.rules_about(node, &word)?;
            ensure!(rules.is_empty(), "{rules:?}");
            Ok(())
        })?;
        let pods = bed.rules_about(node, "10.244.")?;
        ensure!(
            pods.iter().all(|rule| rule.contains("10.244.0.0/16")),
            "rules about Pods are left: {pods:?}"
        );
        // The address means nothing any more: nobody answers, nobody refuses.
        let outcome = bed.client(From::Node(node))?.ask(Protocol::Tcp, target)?;
        assert_eq!(outcome, Outcome::TimedOut);
    }
    Ok(())
}

fn the_api_server_is_reached_through_its_own_service(bed: &mut Bed) -> Result<()> {
    bed.add_pod(PodSpec::new("client", "client"))?;
    let target = SocketAddr::new(bed.cluster_ip("kubernetes")?, 443);
    for from in [From::Pod("client"), From::Node(1), From::Node(2)] {
        bed.await_connection(from, target)?;
    }
    Ok(())
}
