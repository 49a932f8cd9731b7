//! `loadbalancer.yaml`: the address of a load balancer and a node port; and external IPs, which come in the same way.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::Result;
use fairlead_e2e::{Bed, From, Outcome, PodSpec, Protocol, cases, suite};
use serde_json::json;

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];
const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const EVERYWHERE: [From<'static>; 5] =
    [From::Pod("client"), From::Pod("my-app-1"), From::Node(1), From::Node(2), From::Outside];

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![
            the_ingress_ip_is_answered_by_all_pods_wherever_the_client_is,
            the_node_port_of_a_load_balancer_is_answered_through_each_node,
            an_ingress_ip_without_ready_pods_refuses,
            an_ingress_ip_is_nobodys_before_and_after_it_is_in_the_status,
            external_ips_are_answered_wherever_the_client_is,
        ],
    )
}

fn up(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    bed.apply_example("loadbalancer.yaml")?;
    bed.add_pod(PodSpec::new("client", "client"))
}

fn balanced(bed: &mut Bed) -> Result<SocketAddr> {
    up(bed)?;
    bed.set_ingress("my-service-loadbalancer", &[IpAddr::from(BALANCER)])?;
    let target = SocketAddr::from((BALANCER, 80));
    for node in 1..=2 {
        bed.await_servers(From::Node(node), Protocol::Tcp, target, &BOTH)?;
    }
    Ok(target)
}

fn the_ingress_ip_is_answered_by_all_pods_wherever_the_client_is(bed: &mut Bed) -> Result<()> {
    let target = balanced(bed)?;
    for node in 1..=2 {
        bed.route_outside(BALANCER.into(), node)?;
        bed.client(From::Outside)?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
    }
    for from in EVERYWHERE {
        bed.client(from)?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
    }
    // Only the port of the Service is anybody's.
    let other = SocketAddr::from((BALANCER, 8080));
    assert_eq!(bed.client(From::Pod("client"))?.ask(Protocol::Tcp, other)?, Outcome::TimedOut);
    Ok(())
}

fn the_node_port_of_a_load_balancer_is_answered_through_each_node(bed: &mut Bed) -> Result<()> {
    balanced(bed)?;
    for node in 1..=2 {
        let target = SocketAddr::new(bed.node(node)?.addresses.v4.into(), 30123);
        for from in EVERYWHERE {
            bed.client(from)?.ask_many(Protocol::Tcp, target, 100)?.check_fair(&BOTH)?;
        }
    }
    Ok(())
}

/// As upstream: packets of a node itself meet the rules about external addresses only when these are its own, so they
/// leave for an address that is nobody's.
fn check_refused(bed: &Bed, target: SocketAddr) -> Result<()> {
    for from in [From::Pod("client"), From::Pod("my-app-1"), From::Outside] {
        bed.await_outcome(from, Protocol::Tcp, target, &Outcome::Refused)?;
        bed.client(from)?.ask_many(Protocol::Tcp, target, 10)?.check_all(&Outcome::Refused)?;
    }
    assert_eq!(bed.client(From::Node(1))?.ask(Protocol::Tcp, target)?, Outcome::TimedOut);
    Ok(())
}

fn an_ingress_ip_without_ready_pods_refuses(bed: &mut Bed) -> Result<()> {
    let target = balanced(bed)?;
    bed.route_outside(BALANCER.into(), 2)?;
    for pod in BOTH {
        bed.set_ready(pod, false)?;
    }
    check_refused(bed, target)
}

fn an_ingress_ip_is_nobodys_before_and_after_it_is_in_the_status(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let target = SocketAddr::from((BALANCER, 80));
    let cluster_ip = SocketAddr::new(bed.cluster_ip("my-service-loadbalancer")?, 80);
    bed.await_servers(From::Node(1), Protocol::Tcp, cluster_ip, &BOTH)?;
    assert_eq!(bed.client(From::Node(1))?.ask(Protocol::Tcp, target)?, Outcome::TimedOut);
    bed.set_ingress("my-service-loadbalancer", &[IpAddr::from(BALANCER)])?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    bed.set_ingress("my-service-loadbalancer", &[])?;
    bed.await_outcome(From::Node(1), Protocol::Tcp, target, &Outcome::TimedOut)?;
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, cluster_ip, 100)?.check_fair(&BOTH)
}

fn external_ips_are_answered_wherever_the_client_is(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let external = json!({"spec": {"externalIPs": [EXTERNAL]}});
    bed.kubernetes().merge("Service", "default", "my-service", external)?;
    bed.route_outside(EXTERNAL.into(), 1)?;
    let target = SocketAddr::from((EXTERNAL, 80));
    for from in EVERYWHERE {
        bed.await_servers(from, Protocol::Tcp, target, &BOTH)?;
        bed.client(from)?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
    }
    for pod in BOTH {
        bed.set_ready(pod, false)?;
    }
    check_refused(bed, target)
}
