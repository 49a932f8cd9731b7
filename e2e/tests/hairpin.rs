//! Packets of a Pod to itself by way of a Service, where the node forwards nothing by itself.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Command, ExitCode},
};

use anyhow::Result;
use fairlead_e2e::{Bed, From, PodSpec, Port, Protocol, cases, servers::Server, suite};
use serde_json::json;

fn main() -> ExitCode {
    suite::run_traced(
        |bed| {
            bed.start_programs()?;
            // As container engines set it. What is not expressly accepted does not leave a Pod's node.
            for node in 1..=2 {
                bed.node_netns(node)?.output(Command::new("iptables").args(["-P", "FORWARD", "DROP"]))?;
            }
            Ok(())
        },
        cases![
            a_pod_alone_behind_its_service_reaches_itself_when_forwarding_is_dropped,
            one_of_three_pods_reaches_itself_when_forwarding_is_dropped,
            loopback_traffic_of_a_node_is_not_masqueraded,
        ],
    )
}

fn serve(bed: &mut Bed, pods: u8) -> Result<SocketAddr> {
    bed.kubernetes().apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mirror"}, "spec": {
        "selector": {"app": "mirror"},
        "ports": [
            {"name": "tcp", "port": 80, "targetPort": 8080},
            {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"},
        ]}}),
    )?;
    for n in 1..=pods {
        bed.add_pod(
            PodSpec::new(&format!("mirror-{n}"), "mirror").port(Port::tcp(8080)).port(Port::udp(8080)),
        )?;
    }
    Ok(SocketAddr::new(bed.cluster_ip("mirror")?, 80))
}

fn a_pod_alone_behind_its_service_reaches_itself_when_forwarding_is_dropped(bed: &mut Bed) -> Result<()> {
    let target = serve(bed, 1)?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        bed.await_servers(From::Pod("mirror-1"), protocol, target, &["mirror-1"])?;
        let tally = bed.client(From::Pod("mirror-1"))?.ask_many(protocol, target, 50)?;
        tally.check_answered()?;
        assert_eq!(tally.clients(), BTreeSet::from([IpAddr::from(bed.node(1)?.pod(1).v4)]), "{tally}");
    }
    Ok(())
}

/// With three endpoints the rules are of another shape than with one. Requests to the two other Pods are dropped by
/// the policy, as they are with kube-proxy: accepting Pod traffic is the network plugin's business.
fn one_of_three_pods_reaches_itself_when_forwarding_is_dropped(bed: &mut Bed) -> Result<()> {
    let target = serve(bed, 3)?;
    let pods = ["mirror-1", "mirror-2", "mirror-3"];
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &pods)?;
    for name in ["mirror-2", "mirror-3"] {
        bed.set_ready(name, false)?;
    }
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["mirror-1"])?;
    bed.client(From::Pod("mirror-1"))?.ask_many(Protocol::Tcp, target, 50)?.check_fair(&["mirror-1"])
}

fn loopback_traffic_of_a_node_is_not_masqueraded(bed: &mut Bed) -> Result<()> {
    let target = serve(bed, 1)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["mirror-1"])?;
    let own = [Ipv4Addr::LOCALHOST, bed.node(1)?.addresses.v4];
    for (address, protocol) in own.into_iter().flat_map(|ip| [(ip, Protocol::Tcp), (ip, Protocol::Udp)]) {
        let address = SocketAddr::from((address, 9999));
        let _server = Server::start(bed.node_netns(1)?, "node", protocol, address)?;
        let answer = bed.client(From::Node(1))?.ask(protocol, address)?.answer()?;
        assert_eq!(
            answer.client.ip(),
            address.ip(),
            "{protocol}: a packet of the node to itself was changed"
        );
    }
    Ok(())
}
