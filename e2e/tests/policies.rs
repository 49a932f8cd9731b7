//! `session-affinity.yaml` and `traffic-policy.yaml`: which endpoints a client may be led to, and what becomes of its
//! address; and terminating endpoints as the last resort.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Outcome, PodSpec, Port, Protocol,
    bed::{Client, SETTLE},
    cases, plan,
    probe::Span,
    suite,
    wait::{self, Look},
};
use serde_json::json;

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];
/// All of them are led to one of two Pods once in a million runs.
const CLIENTS: usize = 21;
const TIMEOUT: Duration = Duration::from_secs(2);
/// The kernel counts time in ticks.
const TICKS: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![
            a_client_is_led_to_the_same_pod_and_clients_are_spread,
            a_client_stays_until_the_timeout_has_passed_and_then_goes_anywhere,
            a_client_that_is_forgotten_is_noticed,
            a_client_moves_on_when_its_pod_is_gone,
            local_external_policy_keeps_the_client_address_and_is_silent_elsewhere,
            local_external_policy_serves_pods_and_nodes_themselves_everywhere,
            cluster_external_policy_answers_everywhere_and_shows_the_node,
            local_internal_policy_serves_only_clients_beside_the_pod,
            terminating_pods_serve_while_nobody_else_does,
        ],
    )
}

fn sticky(bed: &mut Bed) -> Result<SocketAddr> {
    bed.apply_example("my-service.yaml")?;
    bed.apply_example("session-affinity.yaml")?;
    let target = SocketAddr::new(bed.cluster_ip("my-service-sticky")?, 80);
    // Whoever waits on the sticky Service is led to one Pod only: the plain one is programmed before or with it.
    let plain = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    for node in 1..=2 {
        bed.await_servers(From::Node(node), Protocol::Tcp, plain, &BOTH)?;
        wait::until_ok("both endpoints of my-service-sticky", SETTLE, || {
            let rules = bed.rules_about(node, "my-service-sticky")?;
            let ips = BOTH.map(|pod| bed.pod(pod).map(|pod| format!("{}:8080", pod.addresses.v4)));
            for ip in ips {
                let ip = ip?;
                ensure!(rules.iter().any(|rule| rule.contains(&ip)), "no rule about {ip}: {rules:?}");
            }
            Ok(())
        })?;
    }
    Ok(target)
}

fn a_client_is_led_to_the_same_pod_and_clients_are_spread(bed: &mut Bed) -> Result<()> {
    let target = sticky(bed)?;
    let mut first = BTreeSet::new();
    for n in 1..=CLIENTS {
        let name = format!("client-{n}");
        let node = if n.is_multiple_of(2) { 2 } else { 1 };
        bed.add_pod(PodSpec::new(&name, "client").on(node))?;
        let tally = bed.client(From::Pod(&name))?.ask_many(Protocol::Tcp, target, 10)?;
        tally.check_answered()?;
        let servers: Vec<String> = tally.shares().into_keys().collect();
        let [server] = servers.as_slice() else { anyhow::bail!("{name} was led about: {tally}") };
        first.insert(server.clone());
    }
    assert_eq!(first, BTreeSet::from(BOTH.map(str::to_owned)));
    Ok(())
}

/// A client's Pod, and the time in which it was last led there.
fn ask_in_time(client: &Client<'_>, target: SocketAddr) -> Result<(String, Span)> {
    let (outcome, span) = Span::of(|| client.ask(Protocol::Tcp, target));
    Ok((outcome?.answer()?.server, span))
}

/// Beside what is asserted here, every request is held against the tracer: within the timeout it knows one end only.
fn a_client_stays_until_the_timeout_has_passed_and_then_goes_anywhere(bed: &mut Bed) -> Result<()> {
    let target = sticky(bed)?;
    let timeout =
        json!({"spec": {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": TIMEOUT.as_secs()}}}});
    bed.kubernetes().merge("Service", "default", "my-service-sticky", timeout)?;
    wait::until_ok("rules with the new timeout", SETTLE, || {
        let rules = bed.rules_about(1, &format!("--seconds {} ", TIMEOUT.as_secs()))?;
        ensure!(rules.len() == BOTH.len(), "{rules:?}");
        Ok(())
    })?;
    let names: Vec<String> = (1..=CLIENTS).map(|n| format!("client-{n}")).collect();
    for name in &names {
        bed.add_pod(PodSpec::new(name, "client"))?;
    }
    let clients: Vec<Client<'_>> =
        names.iter().map(|name| bed.client(From::Pod(name))).collect::<Result<_>>()?;
    let mut led = Vec::new();
    for client in &clients {
        // Each request lets the time begin anew. Should this process be held up for so long that it cannot tell whether
        // the timeout had passed, nothing is said about that request.
        led.push(wait::until("a request within the timeout", SETTLE, || {
            let (first, began) = ask_in_time(client, target)?;
            let (second, again) = ask_in_time(client, target)?;
            if again.until.duration_since(began.from) >= TIMEOUT {
                return Ok(Look::NotYet("it took too long".to_owned()));
            }
            ensure!(first == second, "led to {first} and, within the timeout, to {second}");
            Ok(Look::Done((second, again.until)))
        })?);
    }
    let last = led.iter().map(|(_, until)| *until).max().context("no clients")?;
    wait::until_true("the timeout to pass", SETTLE, || last.elapsed() > TIMEOUT + TICKS, String::new)?;
    let mut moved = 0;
    for (client, (server, _)) in clients.iter().zip(&led) {
        moved += usize::from(ask_in_time(client, target)?.0 != *server);
    }
    ensure!(moved > 0, "after the timeout, all {CLIENTS} clients were led where they were led before");
    Ok(())
}

/// That a test fails when rules come and go in a way that makes the kernel forget its clients.
fn a_client_that_is_forgotten_is_noticed(bed: &mut Bed) -> Result<()> {
    let target = sticky(bed)?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let client = bed.client(From::Pod("client"))?;
    client.ask_many(Protocol::Tcp, target, 2)?.check_answered()?;
    let words = ["-c", "for list in /proc/net/xt_recent/*; do echo / > $list; done"];
    bed.node_netns(1)?.output(Command::new("sh").args(words))?;
    let error = client.ask(Protocol::Tcp, target).err().context("nothing was noticed")?;
    ensure!(format!("{error:#}").contains("forgot"), "{error:#}");
    Ok(())
}

fn a_client_moves_on_when_its_pod_is_gone(bed: &mut Bed) -> Result<()> {
    let target = sticky(bed)?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let first = bed.client(From::Pod("client"))?.ask(Protocol::Tcp, target)?.answer()?.server;
    bed.delete_pod(&first)?;
    let other = BOTH.into_iter().find(|pod| *pod != first).context("no other Pod")?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &[other])?;
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 20)?.check_fair(&[other])
}

fn at(node: u8, port: u16) -> SocketAddr {
    SocketAddr::new(plan::Node::new(node).addresses.v4.into(), port)
}

/// Node port 30081 is that of `policy-cluster`, 30082 that of `policy-local`; the one Pod is on node 1.
fn policies(bed: &mut Bed) -> Result<()> {
    bed.apply_example("traffic-policy.yaml")?;
    for node in 1..=2 {
        bed.await_servers(From::Outside, Protocol::Tcp, at(node, 30081), &["policy-1"])?;
        bed.await_servers(From::Node(node), Protocol::Tcp, at(node, 30082), &["policy-1"])?;
    }
    Ok(())
}

fn check_seen(bed: &Bed, from: From<'_>, target: SocketAddr, seen: impl Into<IpAddr>) -> Result<()> {
    let tally = bed.client(from)?.ask_many(Protocol::Tcp, target, 40)?;
    tally.check_fair(&["policy-1"])?;
    assert_eq!(tally.clients(), BTreeSet::from([seen.into()]), "{from:?} to {target}");
    Ok(())
}

fn local_external_policy_keeps_the_client_address_and_is_silent_elsewhere(bed: &mut Bed) -> Result<()> {
    policies(bed)?;
    check_seen(bed, From::Outside, at(1, 30082), plan::outside().v4)?;
    assert_eq!(bed.client(From::Outside)?.ask(Protocol::Tcp, at(2, 30082))?, Outcome::TimedOut);
    // It is a rule that is silent, not a node without one: that would refuse.
    let rules = bed.rules_about(2, "DROP")?;
    let hit = rules.iter().any(|rule| rule.contains("policy-local") && !rule.starts_with("[0:0]"));
    ensure!(hit, "no DROP rule was hit: {rules:?}");
    Ok(())
}

/// As upstream: clients of the cluster are served as if the policy were `Cluster`, by any node.
fn local_external_policy_serves_pods_and_nodes_themselves_everywhere(bed: &mut Bed) -> Result<()> {
    policies(bed)?;
    bed.add_pod(PodSpec::new("near", "client"))?;
    bed.add_pod(PodSpec::new("far", "client").on(2))?;
    let [near, far] = ["near", "far"].map(|pod| bed.pod(pod).map(|pod| pod.addresses.v4));
    check_seen(bed, From::Pod("near"), at(1, 30082), near?)?;
    check_seen(bed, From::Pod("far"), at(2, 30082), far?)?;
    check_seen(bed, From::Node(2), at(2, 30082), plan::Node::new(2).addresses.v4)
}

fn cluster_external_policy_answers_everywhere_and_shows_the_node(bed: &mut Bed) -> Result<()> {
    policies(bed)?;
    check_seen(bed, From::Outside, at(1, 30081), plan::Node::new(1).pod(1).v4)?;
    check_seen(bed, From::Outside, at(2, 30081), plan::Node::new(2).addresses.v4)
}

fn local_internal_policy_serves_only_clients_beside_the_pod(bed: &mut Bed) -> Result<()> {
    policies(bed)?;
    let local = json!({"spec": {"internalTrafficPolicy": "Local"}});
    bed.kubernetes().merge("Service", "default", "policy-cluster", local)?;
    bed.add_pod(PodSpec::new("near", "client"))?;
    bed.add_pod(PodSpec::new("far", "client").on(2))?;
    let target = SocketAddr::new(bed.cluster_ip("policy-cluster")?, 80);
    for from in [From::Pod("far"), From::Node(2)] {
        bed.await_outcome(from, Protocol::Tcp, target, &Outcome::TimedOut)?;
    }
    assert_eq!(bed.client(From::Pod("far"))?.ask(Protocol::Tcp, target)?, Outcome::TimedOut);
    let near = bed.pod("near")?.addresses.v4;
    check_seen(bed, From::Pod("near"), target, near)?;
    check_seen(bed, From::Node(1), target, plan::Node::new(1).pod(1).v4)
}

fn terminating_pods_serve_while_nobody_else_does(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    bed.add_pod(PodSpec::new("client", "client"))?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &BOTH)?;
    bed.terminate_pod("my-app-1")?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["my-app-2"])?;
    bed.terminate_pod("my-app-2")?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &BOTH)?;
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 200)?.check_fair(&BOTH)?;
    bed.add_pod(PodSpec::new("my-app-3", "my-app").on(2).port(Port::tcp(8080)))?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["my-app-3"])?;
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 50)?.check_fair(&["my-app-3"])
}
