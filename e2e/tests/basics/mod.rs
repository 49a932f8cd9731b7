//! What every variant of iptables has to do in both families: the cases of `basics_nft` and `basics_legacy`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Options, Outcome, PodSpec, Protocol,
    bed::SETTLE,
    cases,
    plan::{self, Addresses, Families},
    programs::Variant,
    suite,
    wait::{self, Look},
};
use fairlead_objects::Family;
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];
const SERVICE: &str = "my-service-dual";
const NODE_PORT: u16 = 30083;

/// Runs the cases on a dual-stack bed of this variant.
pub(crate) fn run(variant: Variant) -> ExitCode {
    suite::run_traced_on(
        || Ok(Options { families: Families::DualStack, variant, ..Options::from_env()? }),
        Bed::start_programs,
        cases![
            cluster_ips_of_both_families_are_answered_in_fair_shares,
            node_ports_of_both_families_are_answered_through_each_node,
            there_is_a_slice_for_each_family,
            a_service_without_ready_pods_refuses_in_both_families,
            a_client_sticks_to_its_pod_in_both_families,
            the_local_policy_keeps_client_addresses_in_both_families,
            load_balancers_of_both_families_are_answered,
            a_service_of_one_family_is_served_in_that_one_only,
            packets_that_go_another_way_than_traced_are_noticed,
            the_rules_are_in_this_variant_only_and_cleanup_removes_them,
        ],
    )
}

fn each(addresses: Addresses) -> [IpAddr; 2] {
    [addresses.v4.into(), addresses.v6.into()]
}

fn up(bed: &mut Bed) -> Result<[SocketAddr; 2]> {
    bed.apply_example("my-service.yaml")?;
    bed.apply_example("dual-stack.yaml")?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let ips = bed.cluster_ips(SERVICE)?;
    let [v4, v6] = ips.as_slice() else { anyhow::bail!("not two cluster IPs: {ips:?}") };
    assert!(v4.is_ipv4() && v6.is_ipv6(), "{ips:?}");
    let targets = [SocketAddr::new(*v4, 80), SocketAddr::new(*v6, 80)];
    for (target, node) in targets.into_iter().flat_map(|target| [(target, 1), (target, 2)]) {
        bed.await_servers(From::Node(node), Protocol::Tcp, target, &BOTH)?;
    }
    Ok(targets)
}

fn cluster_ips_of_both_families_are_answered_in_fair_shares(bed: &mut Bed) -> Result<()> {
    for target in up(bed)? {
        for from in [From::Pod("client"), From::Pod("my-app-1"), From::Node(2)] {
            bed.client(from)?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
        }
        let tally = bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 10)?;
        let client = each(bed.pod("client")?.addresses);
        ensure!(tally.clients().iter().all(|seen| client.contains(seen)), "{tally}");
    }
    Ok(())
}

fn node_ports_of_both_families_are_answered_through_each_node(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    for node in 1..=2 {
        for ip in each(plan::Node::new(node).addresses) {
            let target = SocketAddr::new(ip, NODE_PORT);
            for from in [From::Outside, From::Pod("client")] {
                bed.client(from)?.ask_many(Protocol::Tcp, target, 100)?.check_fair(&BOTH)?;
            }
        }
    }
    Ok(())
}

fn there_is_a_slice_for_each_family(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let labels = format!("kubernetes.io/service-name={SERVICE}");
    let slices: Vec<Value> = bed.kubernetes().list("EndpointSlice", "default", &labels)?;
    let found: BTreeSet<(&str, &str)> = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten().map(move |one| (slice, one)))
        .filter_map(|(slice, one)| Some((slice["addressType"].as_str()?, one["addresses"][0].as_str()?)))
        .collect();
    let [one, two] = BOTH.map(|pod| bed.pod(pod).map(|pod| pod.addresses));
    let wanted: Vec<(&str, String)> = [one?, two?]
        .iter()
        .flat_map(|pod| [("IPv4", pod.v4.to_string()), ("IPv6", pod.v6.to_string())])
        .collect();
    assert_eq!(found, wanted.iter().map(|(family, ip)| (*family, ip.as_str())).collect());
    Ok(())
}

fn a_service_without_ready_pods_refuses_in_both_families(bed: &mut Bed) -> Result<()> {
    let cluster_ips = up(bed)?;
    for pod in BOTH {
        bed.set_ready(pod, false)?;
    }
    let node_ports = each(plan::Node::new(1).addresses).map(|ip| SocketAddr::new(ip, NODE_PORT));
    let inside = cluster_ips.map(|target| (From::Pod("client"), target));
    let outside = node_ports.map(|target| (From::Outside, target));
    for (from, target) in inside.into_iter().chain(outside) {
        bed.await_outcome(from, Protocol::Tcp, target, &Outcome::Refused)?;
        bed.client(from)?.ask_many(Protocol::Tcp, target, 2)?.check_all(&Outcome::Refused)?;
    }
    Ok(())
}

fn a_client_sticks_to_its_pod_in_both_families(bed: &mut Bed) -> Result<()> {
    let targets = up(bed)?;
    bed.kubernetes().merge(
        "Service",
        "default",
        SERVICE,
        json!({"spec": {"sessionAffinity": "ClientIP"}}),
    )?;
    for target in targets {
        let client = bed.client(From::Pod("client"))?;
        wait::until("the client to stick to one Pod", SETTLE, || {
            let tally = client.ask_many(Protocol::Tcp, target, 30)?;
            let stuck = tally.shares().len() == 1;
            Ok(if stuck { Look::Done(()) } else { Look::NotYet(tally.to_string()) })
        })?;
        let tally = client.ask_many(Protocol::Tcp, target, 30)?;
        tally.check_answered()?;
        assert_eq!(tally.shares().len(), 1, "{tally}");
    }
    Ok(())
}

fn the_local_policy_keeps_client_addresses_in_both_families(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    bed.delete_pod("my-app-2")?;
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    bed.kubernetes().merge("Service", "default", SERVICE, local)?;
    let families = each(plan::Node::new(1).addresses).into_iter().zip(each(plan::Node::new(2).addresses));
    for ((near, far), client) in families.zip(each(plan::outside())) {
        let (near, far) = (SocketAddr::new(near, NODE_PORT), SocketAddr::new(far, NODE_PORT));
        bed.await_outcome(From::Outside, Protocol::Tcp, far, &Outcome::TimedOut)?;
        wait::until("the Pod to see the client", SETTLE, || {
            let outcome = bed.client(From::Outside)?.ask(Protocol::Tcp, near)?;
            let right = matches!(&outcome, Outcome::Answered(answer) if answer.client.ip() == client);
            Ok(if right { Look::Done(()) } else { Look::NotYet(outcome.to_string()) })
        })?;
        let tally = bed.client(From::Outside)?.ask_many(Protocol::Tcp, near, 20)?;
        tally.check_fair(&["my-app-1"])?;
        assert_eq!(tally.clients(), BTreeSet::from([client]));
    }
    Ok(())
}

fn load_balancers_of_both_families_are_answered(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let balancers: [IpAddr; 2] = ["203.0.113.10".parse()?, "2001:db8::10".parse()?];
    bed.kubernetes().merge("Service", "default", SERVICE, json!({"spec": {"type": "LoadBalancer"}}))?;
    bed.set_ingress(SERVICE, &balancers)?;
    for ip in balancers {
        bed.route_outside(ip, 2)?;
        let target = SocketAddr::new(ip, 80);
        for from in [From::Outside, From::Pod("client"), From::Node(1)] {
            bed.await_servers(from, Protocol::Tcp, target, &BOTH)?;
            bed.client(from)?.ask_many(Protocol::Tcp, target, 100)?.check_fair(&BOTH)?;
        }
    }
    Ok(())
}

fn a_service_of_one_family_is_served_in_that_one_only(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    bed.kubernetes().apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "six"}, "spec": {
        "type": "NodePort", "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "selector": {"app": "my-app"},
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30084}]}}))?;
    let target = SocketAddr::new(bed.cluster_ip("six")?, 80);
    assert!(target.is_ipv6());
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 100)?.check_fair(&BOTH)?;
    let [v4, v6] = each(plan::Node::new(1).addresses).map(|ip| SocketAddr::new(ip, 30084));
    bed.client(From::Outside)?.ask_many(Protocol::Tcp, v6, 100)?.check_fair(&BOTH)?;
    // The node has no rule about it and nobody listens.
    bed.client(From::Outside)?.ask_many(Protocol::Tcp, v4, 3)?.check_all(&Outcome::Refused)
}

/// The tracer does not look at `mangle`. What a rule there does is a difference that must not go unnoticed.
fn packets_that_go_another_way_than_traced_are_noticed(bed: &mut Bed) -> Result<()> {
    let [target, _] = up(bed)?;
    let program = bed.options.variant.program("iptables");
    let rule = |action: &str| -> Result<String> {
        let ip = target.ip().to_string();
        let words = ["-t", "mangle", action, "PREROUTING", "-d", &ip, "-j", "DROP"];
        bed.node_netns(1)?.output(Command::new(&program).args(words))
    };
    let client = bed.client(From::Pod("client"))?;
    client.ask(Protocol::Tcp, target)?.answer()?;
    rule("-A")?;
    let noticed = [client.ask(Protocol::Tcp, target).map(drop), client.connect(target).map(drop)];
    rule("-D")?;
    for noticed in noticed {
        let error = noticed.err().context("nothing was noticed")?;
        ensure!(format!("{error:#}").contains("the tracer disagrees"), "{error:#}");
    }
    client.ask(Protocol::Tcp, target)?.answer().map(drop)
}

fn the_rules_are_in_this_variant_only_and_cleanup_removes_them(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let (this, other) = match bed.options.variant {
        Variant::Nft => ("nft", "legacy"),
        Variant::Legacy => ("legacy", "nft"),
    };
    let about = |bed: &Bed, variant: &str| -> Result<[usize; 2]> {
        let count = |base: &str| -> Result<usize> {
            let saved = bed.node_netns(1)?.output(&mut Command::new(format!("{base}-{variant}-save")))?;
            Ok(saved.lines().filter(|line| line.contains(SERVICE)).count())
        };
        Ok([count("iptables")?, count("ip6tables")?])
    };
    let [v4, v6] = about(bed, this)?;
    ensure!(v4 > 0 && v6 > 0, "rules in iptables-{this}: {v4} and {v6}");
    assert_eq!(about(bed, other)?, [0, 0]);
    bed.stop_programmer(1)?;
    bed.clean_up(1)?;
    for family in [Family::V4, Family::V6] {
        let left = bed.save(1, family)?;
        ensure!(!left.contains("KUBE-SVC-") && !left.contains("KUBE-SERVICES"), "{left}");
    }
    bed.start_programmer(1, &[])?;
    wait::until_ok("the same rules again", SETTLE, || {
        let now = about(bed, this)?;
        ensure!(now == [v4, v6], "{now:?}");
        Ok(())
    })
}
