//! The steps of the demo, an example each.
//!
//! Invariant: a step that does not find what it tells fails; so does one whose packets go another way than the tracer
//! finds in the rules (see [`fairlead_e2e::bed::Client`]).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Result, ensure};
use fairlead_e2e::{Bed, From, Outcome, PodSpec, Protocol, bed::SETTLE, wait};

use crate::{
    paper,
    scene::{apply, ask, ask_in_vain, ask_sticky, kubectl, objects, rules, slices, stored, trace},
};

/// In order. Later steps use what earlier ones made.
pub(crate) const ALL: [fn(&mut Bed) -> Result<()>; 12] = [
    my_service,
    kubia,
    external_service,
    node_port,
    load_balancer,
    session_affinity,
    traffic_policy,
    namespaces,
    api_server,
    names_only,
    dual_stack,
    no_endpoints,
];

const MY_APP: [&str; 2] = ["my-app-1", "my-app-2"];
const CLIENT: From<'static> = From::Pod("client");
const EXTERNALS: [Ipv4Addr; 2] = [Ipv4Addr::new(11, 11, 11, 11), Ipv4Addr::new(22, 22, 22, 22)];
const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

fn my_service(bed: &mut Bed) -> Result<()> {
    paper::title("1. my-service: a Service in front of two Pods, port 80 -> 8080");
    apply(bed, "my-service.yaml")?;
    let target = cluster_ip(bed, "my-service", 80)?;
    for node in 1..=2 {
        bed.await_servers(From::Node(node), Protocol::Tcp, target, &MY_APP)?;
    }
    kubectl(bed, &["get", "pods", "-o", "wide", "-l", "app=my-app"])?;
    objects(bed, "my-service")?;
    println!("The Service as etcd holds it:");
    stored(bed, "my-service")?;
    rules(bed, "my-service")?;
    println!("What these rules do with a packet of the Pod `client`:");
    trace(bed, "client", target)?;
    println!("And what the kernel does with real ones:");
    ask(bed, "the Pod `client` on node1", CLIENT, target, &MY_APP)?;
    ask(bed, "node2 itself", From::Node(2), target, &MY_APP)?;
    ask(bed, "my-app-1, which is one of the endpoints", From::Pod("my-app-1"), target, &MY_APP)
}

fn kubia(bed: &mut Bed) -> Result<()> {
    paper::title("2. kubia: two ports, targeted by the names that the Pods give them");
    apply(bed, "kubia.yaml")?;
    let pods = ["kubia-1", "kubia-2", "kubia-3"];
    for port in [80, 443] {
        bed.await_servers(CLIENT, Protocol::Tcp, cluster_ip(bed, "kubia", port)?, &pods)?;
    }
    objects(bed, "kubia")?;
    for (port, container) in [(80, 8080), (443, 8443)] {
        let target = cluster_ip(bed, "kubia", port)?;
        ask(bed, "the Pod `client`", CLIENT, target, &pods)?;
        let ports = bed.client(CLIENT)?.ask_many(Protocol::Tcp, target, 100)?.ports();
        ensure!(ports == BTreeSet::from([container]), "port {port} led to container ports {ports:?}");
        println!("    port {port} leads to container port {container}");
    }
    Ok(())
}

fn external_service(bed: &mut Bed) -> Result<()> {
    paper::title("3. external-service: no selector, Endpoints 11.11.11.11 and 22.22.22.22 written by hand");
    for address in EXTERNALS {
        bed.add_external(address, &[80])?;
    }
    apply(bed, "external-service.yaml")?;
    let target = cluster_ip(bed, "external-service", 80)?;
    let servers = ["11.11.11.11", "22.22.22.22"];
    bed.await_servers(CLIENT, Protocol::Tcp, target, &servers)?;
    objects(bed, "external-service")?;
    ask(bed, "the Pod `client`", CLIENT, target, &servers)
}

fn node_port(bed: &mut Bed) -> Result<()> {
    paper::title("4. NodePort 30080: clients outside the cluster, through either node");
    apply(bed, "nodeport.yaml")?;
    ask_through_nodes(bed, 30080)?;
    rules(bed, "my-service-nodeport")
}

fn load_balancer(bed: &mut Bed) -> Result<()> {
    paper::title("5. LoadBalancer: node port 30123, and the balancer's address from the status");
    apply(bed, "loadbalancer.yaml")?;
    bed.set_ingress("my-service-loadbalancer", &[BALANCER.into()])?;
    kubectl(bed, &["get", "service", "my-service-loadbalancer"])?;
    bed.route_outside(BALANCER.into(), 2)?;
    ask_through_nodes(bed, 30123)?;
    let target = SocketAddr::from((BALANCER, 80));
    for (who, from) in [
        ("a host outside, which the balancer leads to node2", From::Outside),
        ("the Pod `client`, which needs no balancer", CLIENT),
    ] {
        bed.await_servers(from, Protocol::Tcp, target, &MY_APP)?;
        ask(bed, who, from, target, &MY_APP)?;
    }
    Ok(())
}

fn ask_through_nodes(bed: &Bed, port: u16) -> Result<()> {
    for number in 1..=2 {
        let target = node(bed, number, port)?;
        bed.await_servers(From::Outside, Protocol::Tcp, target, &MY_APP)?;
        ask(bed, "a host outside the cluster", From::Outside, target, &MY_APP)?;
    }
    Ok(())
}

fn session_affinity(bed: &mut Bed) -> Result<()> {
    paper::title("6. sessionAffinity ClientIP: one client, one Pod");
    apply(bed, "session-affinity.yaml")?;
    let target = cluster_ip(bed, "my-service-sticky", 80)?;
    await_rules(bed, "my-service-sticky", "-m recent")?;
    for n in 1..=4 {
        let name = format!("visitor-{n}");
        bed.add_pod(PodSpec::new(&name, "visitor"))?;
        ask_sticky(bed, &name, From::Pod(&name), target)?;
    }
    Ok(())
}

fn traffic_policy(bed: &mut Bed) -> Result<()> {
    paper::title("7. externalTrafficPolicy: one Pod on node1; Cluster on port 30081, Local on port 30082");
    apply(bed, "traffic-policy.yaml")?;
    let pod = ["policy-1"];
    for number in 1..=2 {
        bed.await_servers(From::Outside, Protocol::Tcp, node(bed, number, 30081)?, &pod)?;
        bed.await_servers(From::Node(number), Protocol::Tcp, node(bed, number, 30082)?, &pod)?;
    }
    let who = "a host outside, 172.30.0.100";
    println!("Cluster: every node answers, and the Pod sees the node.");
    for number in 1..=2 {
        ask(bed, who, From::Outside, node(bed, number, 30081)?, &pod)?;
    }
    println!(
        "Local: the node with the Pod answers, and the Pod sees the client. The other node keeps silent."
    );
    ask(bed, who, From::Outside, node(bed, 1, 30082)?, &pod)?;
    ask_in_vain(bed, who, From::Outside, node(bed, 2, 30082)?, &Outcome::TimedOut)
}

fn namespaces(bed: &mut Bed) -> Result<()> {
    paper::title("8. Two Services of one name, in two namespaces");
    apply(bed, "namespaces.yaml")?;
    kubectl(bed, &["get", "services", "--all-namespaces", "--field-selector", "metadata.name=shop"])?;
    for shop in ["blue/shop", "green/shop"] {
        let (target, pod) = (cluster_ip(bed, shop, 80)?, format!("{shop}-1"));
        bed.await_servers(CLIENT, Protocol::Tcp, target, &[&pod])?;
        ask(bed, &format!("the Pod `client`, that is {shop}"), CLIENT, target, &[&pod])?;
    }
    Ok(())
}

fn api_server(bed: &mut Bed) -> Result<()> {
    paper::title("9. kubernetes: the API server over TLS, at the cluster IP of its own Service");
    let server = format!("--server=https://{}:443", bed.cluster_ip("kubernetes")?);
    let args = [&server, "get", "endpointslice", "kubernetes"];
    paper::command(&format!("kubectl {}     # in the Pod `client`", args.join(" ")));
    println!("{}", bed.kubectl_from(CLIENT, &args)?.trim_end());
    Ok(())
}

fn names_only(bed: &mut Bed) -> Result<()> {
    paper::title("10. Headless and ExternalName: names without rules");
    apply(bed, "headless.yaml")?;
    apply(bed, "external-name.yaml")?;
    wait::until_ok("the slice of my-service-headless", SETTLE, || {
        let names = bed.names("EndpointSlice")?;
        ensure!(names.iter().any(|name| name.starts_with("my-service-headless-")), "{names:?}");
        Ok(())
    })?;
    kubectl(bed, &["get", "service", "my-service-headless", "my-alias"])?;
    slices(bed, "my-service-headless")?;
    for (service, number) in
        [("my-service-headless", 1), ("my-service-headless", 2), ("my-alias", 1), ("my-alias", 2)]
    {
        let found = bed.rules_about(number, service)?;
        ensure!(found.is_empty(), "rules about {service} on node {number}: {found:?}");
    }
    println!("Rules about them on node1 and node2: none.");
    Ok(())
}

fn dual_stack(bed: &mut Bed) -> Result<()> {
    paper::title("11. Dual stack: two cluster IPs, a slice for each family");
    apply(bed, "dual-stack.yaml")?;
    let ips = bed.cluster_ips("my-service-dual")?;
    for ip in &ips {
        bed.await_servers(CLIENT, Protocol::Tcp, SocketAddr::new(*ip, 80), &MY_APP)?;
    }
    slices(bed, "my-service-dual")?;
    for ip in ips {
        ask(bed, "the Pod `client`", CLIENT, SocketAddr::new(ip, 80), &MY_APP)?;
    }
    let target = SocketAddr::new(IpAddr::from(bed.node(2)?.addresses.v6), 30083);
    bed.await_servers(From::Outside, Protocol::Tcp, target, &MY_APP)?;
    ask(bed, "a host outside the cluster", From::Outside, target, &MY_APP)
}

fn no_endpoints(bed: &mut Bed) -> Result<()> {
    paper::title("12. No Pod is ready: refused at once, not left waiting");
    let target = cluster_ip(bed, "my-service", 80)?;
    for pod in MY_APP {
        bed.set_ready(pod, false)?;
    }
    ask_in_vain(bed, "the Pod `client`", CLIENT, target, &Outcome::Refused)?;
    objects(bed, "my-service")?;
    for pod in MY_APP {
        bed.set_ready(pod, true)?;
    }
    bed.await_servers(CLIENT, Protocol::Tcp, target, &MY_APP)?;
    println!("Both are ready again, and answer.");
    Ok(())
}

fn cluster_ip(bed: &Bed, service: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(bed.cluster_ip(service)?, port))
}

fn node(bed: &Bed, number: u8, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(bed.node(number)?.addresses.v4.into(), port))
}

/// Waits for rules about a Service on node1 that have these words, and name both Pods of my-app.
fn await_rules(bed: &Bed, service: &str, words: &str) -> Result<()> {
    wait::until_ok(&format!("the rules about {service}"), SETTLE, || {
        let found = bed.rules_about(1, service)?.join("\n");
        for pod in MY_APP {
            let address = bed.pod(pod)?.addresses.v4.to_string();
            ensure!(found.contains(words) && found.contains(&address), "{found}");
        }
        Ok(())
    })
}
