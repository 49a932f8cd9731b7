//! The programmer as a program: restarts, crashes, `--cleanup`.

use std::{collections::BTreeSet, net::SocketAddr, process::Command, process::ExitCode};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{Bed, From, Outcome, PodSpec, Port, Protocol, bed::SETTLE, cases, suite, wait};
use serde_json::json;

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];

fn main() -> ExitCode {
    suite::run(
        |bed| bed.start_controller(&[]),
        cases![
            traffic_goes_on_while_the_programmer_is_down,
            a_restart_leaves_nothing_of_what_was_deleted_meanwhile,
            a_crash_leaves_nothing_stale_either,
            cleanup_removes_all_of_ours_and_nothing_else,
            a_start_is_an_event_of_the_node,
        ],
    )
}

fn up(bed: &mut Bed) -> Result<SocketAddr> {
    // An earlier case may have failed half way.
    drop(bed.stop_programmer(1));
    bed.start_programmer(1, &[])?;
    bed.apply_example("my-service.yaml")?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    Ok(target)
}

fn traffic_goes_on_while_the_programmer_is_down(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let before = bed.rules(1)?;
    bed.stop_programmer(1)?;
    bed.check_rules(1, &before)?;
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
    bed.start_programmer(1, &[])?;
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
    bed.check_rules(1, &before).context("a restart without any change changes no rule")?;
    bed.stop_programmer(1)
}

/// While the programmer is down: my-service goes, another Service comes.
fn change_meanwhile(bed: &mut Bed) -> Result<SocketAddr> {
    bed.kubernetes().delete("Service", "default", "my-service", 0)?;
    bed.kubernetes().apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "other"},
        "spec": {"selector": {"app": "other"}, "ports": [{"port": 80, "targetPort": 8080}]}}))?;
    bed.add_pod(PodSpec::new("other-1", "other").on(2).port(Port::tcp(8080)))?;
    Ok(SocketAddr::new(bed.cluster_ip("other")?, 80))
}

fn check_after(bed: &mut Bed, old: SocketAddr, new: SocketAddr) -> Result<()> {
    bed.start_programmer(1, &[])?;
    bed.await_servers(From::Node(1), Protocol::Tcp, new, &["other-1"])?;
    wait::until_ok("the rules about my-service to go", SETTLE, || {
        let left: Vec<String> = bed.rules_about(1, "")?;
        let pods: Vec<String> =
            BOTH.iter().map(|pod| Ok(bed.pod(pod)?.addresses.v4.to_string())).collect::<Result<_>>()?;
        let words = [vec![old.ip().to_string(), "my-service".to_owned()], pods].concat();
        let stale: Vec<&String> = left
            .iter()
            .filter(|line| words.iter().any(|word| line.split([' ', '/', ':', '"']).any(|w| w == word)))
            .collect();
        ensure!(stale.is_empty(), "{stale:?}");
        Ok(())
    })?;
    assert_eq!(bed.client(From::Node(1))?.ask(Protocol::Tcp, old)?, Outcome::TimedOut);
    // What was written after a restart is what a node that never saw my-service would have.
    let now = bed.rules(1)?;
    bed.stop_programmer(1)?;
    bed.clean_up(1)?;
    bed.start_programmer(1, &[])?;
    bed.await_servers(From::Node(1), Protocol::Tcp, new, &["other-1"])?;
    bed.check_rules(1, &now)?;
    bed.stop_programmer(1)
}

fn a_restart_leaves_nothing_of_what_was_deleted_meanwhile(bed: &mut Bed) -> Result<()> {
    let old = up(bed)?;
    bed.stop_programmer(1)?;
    let new = change_meanwhile(bed)?;
    check_after(bed, old, new)
}

fn a_crash_leaves_nothing_stale_either(bed: &mut Bed) -> Result<()> {
    let old = up(bed)?;
    bed.programmer(1)?.process().kill()?;
    drop(bed.stop_programmer(1));
    let new = change_meanwhile(bed)?;
    check_after(bed, old, new)
}

fn cleanup_removes_all_of_ours_and_nothing_else(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_programmer(1));
    bed.clean_up(1)?;
    // What others have on a node: rules of an administrator, chains of kubelet.
    for line in [
        "-t nat -N ADMIN",
        "-t nat -A ADMIN -d 192.0.2.7/32 -j RETURN",
        "-t nat -I PREROUTING -j ADMIN",
        "-t filter -A INPUT -s 192.0.2.9/32 -j DROP",
        "-t mangle -N KUBE-KUBELET-CANARY",
    ] {
        bed.node_netns(1)?.output(Command::new("iptables").args(line.split(' ')))?;
    }
    // kubelet owns KUBE-FIREWALL as well, so whether that one stays is not ours to say.
    let others = |bed: &Bed| -> Result<BTreeSet<String>> {
        let chains = bed.rules(1)?.into_iter();
        let lines = chains.flat_map(|(chain, rules)| {
            let rules: Vec<String> = rules.iter().map(|rule| format!("{chain} {rule}")).collect();
            [vec![chain], rules].concat()
        });
        let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        let lines = lines.filter(|line| !built_in.iter().any(|name| line.ends_with(&format!(" {name}"))));
        Ok(lines.filter(|line| !line.contains("KUBE-FIREWALL")).collect())
    };
    let before = others(bed)?;
    assert!(before.len() >= 5, "{before:?}");
    let target = up(bed)?;
    assert!(others(bed)?.is_superset(&before));
    bed.stop_programmer(1)?;
    bed.clean_up(1)?;
    assert_eq!(others(bed)?, before);
    assert_eq!(bed.client(From::Node(1))?.ask(Protocol::Tcp, target)?, Outcome::TimedOut);
    // A second run has nothing to do and does not mind.
    bed.clean_up(1)?;
    assert_eq!(others(bed)?, before);
    Ok(())
}

fn a_start_is_an_event_of_the_node(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let name = bed.node(1)?.name.clone();
    let about =
        format!("--field-selector=reason=Starting,involvedObject.kind=Node,involvedObject.name={name}");
    wait::until_ok("an Event on the node", SETTLE, || {
        let found = bed.kubectl(&["get", "events", "--namespace=default", "--output=wide", &about])?;
        ensure!(found.contains("Normal") && found.contains("fairlead-programmer"), "{found}");
        Ok(())
    })?;
    bed.stop_programmer(1)
}
