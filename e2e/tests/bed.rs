//! The bed itself: what it starts works before any program under test is there.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, ensure};
use fairlead_e2e::{
    Bed, From, Options, Outcome, PodSpec, Port, Protocol, cases, plan, plan::Families, suite,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    suite::run(
        |_| Ok(()),
        cases![
            pods_reach_each_other_and_see_true_addresses_across_nodes,
            closed_ports_refuse_and_unknown_addresses_stay_silent,
            clients_outside_reach_nodes_and_not_pods,
            servers_outside_answer_pods_and_nodes_at_their_address,
            readiness_is_written_to_the_object_when_flipped,
            deleted_pods_are_gone_from_the_api_and_from_the_network,
            no_namespace_has_a_way_out,
            namespaces_are_deleted_and_garbage_is_collected,
            a_dual_stack_cluster_has_addresses_of_both_families,
            nobody_writes_endpoints_while_no_program_under_test_runs,
        ],
    )
}

fn at(bed: &Bed, pod: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(bed.pod(pod)?.addresses.v4.into(), port))
}

fn two_pods(bed: &mut Bed) -> Result<()> {
    bed.add_pod(PodSpec::new("one", "x").on(1).port(Port::tcp(8080)).port(Port::udp(8080)))?;
    bed.add_pod(PodSpec::new("two", "x").on(2).port(Port::tcp(8080)).port(Port::udp(8080)))
}

fn pods_reach_each_other_and_see_true_addresses_across_nodes(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (from, to) in [("one", "two"), ("two", "one"), ("one", "one")] {
            let answer = bed.client(From::Pod(from))?.ask(protocol, at(bed, to, 8080)?)?.answer()?;
            assert_eq!(answer.server, to);
            assert_eq!(answer.client.ip(), bed.pod(from)?.addresses.v4);
        }
        let answer = bed.client(From::Node(1))?.ask(protocol, at(bed, "two", 8080)?)?.answer()?;
        assert_eq!(answer.client.ip(), plan::Node::new(1).addresses.v4);
    }
    let target = SocketAddr::new(bed.pod("two")?.addresses.v6.into(), 8080);
    let refused = bed.client(From::Pod("one"))?.ask(Protocol::Tcp, target)?;
    assert_eq!(refused, Outcome::Refused, "IPv6 is routed, and no server listens there in an IPv4 cluster");
    Ok(())
}

fn closed_ports_refuse_and_unknown_addresses_stay_silent(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    let client = bed.client(From::Pod("one"))?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_eq!(client.ask(protocol, at(bed, "two", 81)?)?, Outcome::Refused);
        let nowhere = SocketAddr::from((Ipv4Addr::new(10, 96, 77, 77), 80));
        assert_eq!(client.ask(protocol, nowhere)?, Outcome::TimedOut);
    }
    Ok(())
}

fn clients_outside_reach_nodes_and_not_pods(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    let client = bed.client(From::Outside)?;
    let node = SocketAddr::new(plan::Node::new(1).addresses.v4.into(), 30080);
    assert_eq!(client.ask(Protocol::Tcp, node)?, Outcome::Refused);
    let pod = client.ask(Protocol::Tcp, at(bed, "one", 8080)?)?;
    assert!(matches!(pod, Outcome::Unreachable(_)), "{pod}");
    Ok(())
}

fn servers_outside_answer_pods_and_nodes_at_their_address(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    let address = Ipv4Addr::new(33, 33, 33, 33);
    bed.add_external(address, &[80])?;
    let target = SocketAddr::from((address, 80));
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let answer = bed.client(From::Pod("two"))?.ask(protocol, target)?.answer()?;
        assert_eq!(
            (answer.server.as_str(), answer.client.ip()),
            ("33.33.33.33", bed.pod("two")?.addresses.v4.into())
        );
        bed.client(From::Node(1))?.ask(protocol, target)?.answer()?;
    }
    Ok(())
}

fn readiness_is_written_to_the_object_when_flipped(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    let ready = |bed: &Bed| -> Result<Value> {
        let pod: Option<Value> = bed.kubernetes().get("Pod", "default", "one")?;
        let conditions = pod.context("no Pod")?["status"]["conditions"].take();
        let found =
            conditions.as_array().into_iter().flatten().find(|condition| condition["type"] == "Ready");
        Ok(found.context("no condition")?["status"].clone())
    };
    assert_eq!(ready(bed)?, "True");
    bed.set_ready("one", false)?;
    assert_eq!(ready(bed)?, "False");
    bed.set_ready("one", true)?;
    assert_eq!(ready(bed)?, "True");
    Ok(())
}

fn deleted_pods_are_gone_from_the_api_and_from_the_network(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    let target = at(bed, "two", 8080)?;
    let mut open =
        bed.client(From::Pod("one"))?.connect(target)?.map_err(|end| anyhow!("no connection: {end}"))?;
    open.ask()?.answer()?;
    bed.terminate_pod("two")?;
    let object: Value =
        bed.kubernetes().get("Pod", "default", "two")?.context("a terminating Pod is still there")?;
    assert!(object["metadata"]["deletionTimestamp"].is_string());
    open.ask()?.answer().context("a terminating Pod still answers")?;
    bed.delete_pod("two")?;
    assert_eq!(bed.kubernetes().get::<Value>("Pod", "default", "two")?, None);
    let gone = bed.client(From::Pod("one"))?.ask(Protocol::Tcp, target)?;
    assert!(!matches!(gone, Outcome::Answered(_)), "{gone}");
    Ok(())
}

fn no_namespace_has_a_way_out(bed: &mut Bed) -> Result<()> {
    two_pods(bed)?;
    let internet = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 80));
    for from in [From::Pod("one"), From::Node(1), From::Outside, From::ControlPlane] {
        let outcome = bed.client(from)?.ask(Protocol::Tcp, internet)?;
        ensure!(matches!(outcome, Outcome::TimedOut | Outcome::Unreachable(_)), "{from:?}: {outcome}");
    }
    Ok(())
}

fn namespaces_are_deleted_and_garbage_is_collected(bed: &mut Bed) -> Result<()> {
    let kubernetes = bed.kubernetes();
    kubernetes.apply(&fairlead_e2e::kubernetes::namespace("short-lived"))?;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "namespace": "short-lived"}});
    let uid = kubernetes.apply(&owner)?["metadata"]["uid"].clone();
    let dependent = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "namespace": "short-lived",
        "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]}});
    kubernetes.apply(&dependent)?;
    kubernetes.delete("ConfigMap", "short-lived", "owner", 0)?;
    let gone = |kind: &str, namespace: &str, name: &str| {
        fairlead_e2e::wait::until_ok(&format!("{kind} {name} to go"), fairlead_e2e::bed::SETTLE, || {
            ensure!(kubernetes.get::<Value>(kind, namespace, name)?.is_none(), "it is still there");
            Ok(())
        })
    };
    gone("ConfigMap", "short-lived", "owned")?;
    kubernetes.delete("Namespace", "", "short-lived", 0)?;
    gone("Namespace", "", "short-lived")
}

/// A bed of its own, beside the one that is there.
fn a_dual_stack_cluster_has_addresses_of_both_families(_: &mut Bed) -> Result<()> {
    let mut bed = Bed::start(Options { families: Families::DualStack, ..Options::from_env()? })?;
    two_pods(&mut bed)?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "both"}, "spec": {
        "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "x"}, "ports": [{"port": 80}]}});
    let service = bed.kubernetes().apply(&service)?;
    assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let pod: Value = bed.kubernetes().get("Pod", "default", "one")?.context("no Pod")?;
    let addresses = bed.pod("one")?.addresses;
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": addresses.v4}, {"ip": addresses.v6}]));
    let target = SocketAddr::new(bed.pod("two")?.addresses.v6.into(), 8080);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let answer = bed.client(From::Pod("one"))?.ask(protocol, target)?.answer()?;
        assert_eq!((answer.server.as_str(), answer.client.ip()), ("two", addresses.v6.into()));
    }
    Ok(())
}

fn nobody_writes_endpoints_while_no_program_under_test_runs(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    // The garbage collector has seen the Service when it has acted on something made after it.
    namespaces_are_deleted_and_garbage_is_collected(bed)?;
    assert_eq!(bed.names("Endpoints")?, Vec::<String>::new());
    assert_eq!(bed.names("EndpointSlice")?, Vec::<String>::new());
    Ok(())
}
