//! `nodeport.yaml`: clients outside the cluster reach Pods through a port of any node.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use fairlead_e2e::{Bed, From, Outcome, PodSpec, Protocol, bed::SETTLE, cases, suite, wait};

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![
            clients_outside_are_answered_by_all_pods_through_each_node,
            pods_and_nodes_reach_the_node_port_too,
            the_loopback_address_of_a_node_serves_node_ports,
            the_cluster_ip_of_a_node_port_service_works,
            a_node_port_without_ready_pods_refuses,
            deleting_the_service_closes_the_node_port,
        ],
    )
}

fn at(bed: &Bed, node: u8) -> Result<SocketAddr> {
    Ok(SocketAddr::new(bed.node(node)?.addresses.v4.into(), 30080))
}

fn up(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    bed.apply_example("nodeport.yaml")?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    for node in 1..=2 {
        bed.await_servers(From::Outside, Protocol::Tcp, at(bed, node)?, &BOTH)?;
    }
    Ok(())
}

/// What a Pod sees of a client that a node masquerades: the address of the link that the node sends by.
fn masqueraded(bed: &Bed, node: u8, pod: &str) -> Result<IpAddr> {
    let near = bed.pod(pod)?.node.number == node;
    let node = bed.node(node)?;
    Ok(if near { node.pod(1).v4.into() } else { node.addresses.v4.into() })
}

fn clients_outside_are_answered_by_all_pods_through_each_node(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    for node in 1..=2 {
        let tally = bed.client(From::Outside)?.ask_many(Protocol::Tcp, at(bed, node)?, 400)?;
        tally.check_fair(&BOTH)?;
        for pod in BOTH {
            let seen = masqueraded(bed, node, pod)?;
            ensure!(
                tally.clients_of(pod) == BTreeSet::from([seen]),
                "node {node}, {pod}, wanted {seen}: {tally}"
            );
        }
    }
    Ok(())
}

fn pods_and_nodes_reach_the_node_port_too(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    for from in [From::Pod("client"), From::Pod("my-app-1"), From::Node(1), From::Node(2)] {
        for node in 1..=2 {
            bed.client(from)?.ask_many(Protocol::Tcp, at(bed, node)?, 200)?.check_fair(&BOTH)?;
        }
    }
    Ok(())
}

fn the_loopback_address_of_a_node_serves_node_ports(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let target = SocketAddr::from((Ipv4Addr::LOCALHOST, 30080));
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)
}

fn the_cluster_ip_of_a_node_port_service_works(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let target = SocketAddr::new(bed.cluster_ip("my-service-nodeport")?, 80);
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)
}

fn a_node_port_without_ready_pods_refuses(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    for pod in BOTH {
        bed.set_ready(pod, false)?;
    }
    for node in 1..=2 {
        let target = at(bed, node)?;
        bed.await_outcome(From::Outside, Protocol::Tcp, target, &Outcome::Refused)?;
        bed.client(From::Outside)?.ask_many(Protocol::Tcp, target, 20)?.check_all(&Outcome::Refused)?;
        // A node without any rule would refuse as well: the rule itself must have done it.
        let rules = bed.rules_about(node, "REJECT")?;
        let hit = rules.iter().any(|rule| !rule.starts_with("[0:0]"));
        ensure!(hit, "no REJECT rule was hit on node {node}: {rules:?}");
    }
    Ok(())
}

fn deleting_the_service_closes_the_node_port(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    bed.kubernetes().delete("Service", "default", "my-service-nodeport", 0)?;
    for node in 1..=2 {
        wait::until_ok(&format!("the rules about port 30080 to go from node {node}"), SETTLE, || {
            let rules = bed.rules_about(node, "30080")?;
            ensure!(rules.is_empty(), "{rules:?}");
            Ok(())
        })?;
        // The node answers for itself again.
        bed.await_outcome(From::Outside, Protocol::Tcp, at(bed, node)?, &Outcome::Refused)?;
    }
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)
}
