//! Several hundred Services: dispatch has more than one level, a full load is more than one document.

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Outcome, PodSpec, Port, Protocol,
    bed::SETTLE,
    cases,
    programs::Make,
    suite,
    wait::{self, Look},
};
use serde_json::{Value, json};

const COUNT: usize = 600;

fn main() -> ExitCode {
    suite::run_traced(
        Bed::start_programs,
        cases![every_service_leads_to_its_own_pods_while_others_come_and_go],
    )
}

fn name(n: usize) -> String {
    format!("service-{n:03}")
}

/// Service n has the Pods of group n modulo 3, and no Pods for every tenth.
fn service(n: usize) -> Value {
    let app = if n.is_multiple_of(10) { "nobody".to_owned() } else { format!("group-{}", n % 3) };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name(n)},
        "spec": {"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn pods(n: usize) -> &'static [&'static str] {
    match (n % 10, n % 3) {
        (0, _) => &[],
        (_, 0) => &["a-1", "a-2", "a-3"],
        (_, 1) => &["b-1", "b-2"],
        _ => &["c-1"],
    }
}

fn addresses(bed: &Bed) -> Result<BTreeMap<usize, SocketAddr>> {
    let services: Vec<Value> = bed.kubernetes().list("Service", "default", "")?;
    let address = |service: &Value| {
        let n = service["metadata"]["name"].as_str()?.strip_prefix("service-")?.parse().ok()?;
        let ip = service["spec"]["clusterIP"].as_str()?.parse().ok()?;
        Some((n, SocketAddr::new(ip, 80)))
    };
    Ok(services.iter().filter_map(address).collect())
}

/// The answer comes from one of the Service's Pods, or it is refused if it has none.
fn check(n: usize, address: SocketAddr, outcome: &Outcome) -> Result<()> {
    let right = match outcome {
        Outcome::Answered(answer) => pods(n).contains(&answer.server.as_str()),
        Outcome::Refused => pods(n).is_empty(),
        _ => false,
    };
    ensure!(right, "{} at {address}, wanted {:?}: {outcome}", name(n), pods(n));
    Ok(())
}

/// Looks at each Service until it is right, and at the end once more at all of them.
fn await_all(bed: &Bed, addresses: &BTreeMap<usize, SocketAddr>) -> Result<()> {
    let client = bed.client(From::Node(2))?;
    for (n, address) in addresses {
        wait::until(&format!("{} to lead to its Pods", name(*n)), SETTLE * 3, || {
            let right = check(*n, *address, &client.ask(Protocol::Tcp, *address)?);
            Ok(right.map_or_else(|error| Look::NotYet(format!("{error:#}")), Look::Done))
        })?;
    }
    let targets: Vec<SocketAddr> = addresses.values().copied().collect();
    let outcomes = client.ask_each(Protocol::Tcp, &targets)?;
    addresses.iter().zip(&outcomes).try_for_each(|((n, address), outcome)| check(*n, *address, outcome))
}

fn every_service_leads_to_its_own_pods_while_others_come_and_go(bed: &mut Bed) -> Result<()> {
    for (pod, app, node) in [
        ("a-1", "group-0", 1),
        ("a-2", "group-0", 2),
        ("a-3", "group-0", 1),
        ("b-1", "group-1", 2),
        ("b-2", "group-1", 1),
        ("c-1", "group-2", 2),
    ] {
        bed.add_pod(PodSpec::new(pod, app).on(node).port(Port::tcp(8080)))?;
    }
    let services: Vec<Value> = (0..COUNT).map(service).collect();
    bed.kubernetes().apply_all(&services)?;
    let all = addresses(bed)?;
    assert_eq!(all.len(), COUNT);
    await_all(bed, &all)?;
    let pick = *all.get(&3).context("no service-003")?;
    bed.client(From::Node(1))?.ask_many(Protocol::Tcp, pick, 600)?.check_fair(pods(3))?;

    // A third goes while the rest stays.
    let (gone, kept): (BTreeMap<_, _>, BTreeMap<_, _>) = all.iter().partition(|(n, _)| **n % 3 == 2);
    for n in gone.keys() {
        bed.kubernetes().delete("Service", "default", &name(*n), 0)?;
    }
    await_all(bed, &kept)?;
    for node in 1..=2 {
        wait::until_ok("the rules about deleted Services to go", SETTLE, || {
            let rules = bed.rules_about(node, "-d ")?;
            let left = gone
                .values()
                .find(|address| rules.iter().any(|rule| rule.contains(&format!("-d {}/32 ", address.ip()))));
            ensure!(left.is_none(), "{left:?}");
            Ok(())
        })?;
    }

    // A fresh start finds everything as it should be, and from nothing the same comes out.
    let before = bed.rules(2)?;
    bed.stop_programmer(2)?;
    bed.start_programmer(2, &[])?;
    await_all(bed, &kept)?;
    check_same(bed, &before, "after a restart")?;
    bed.stop_programmer(2)?;
    bed.clean_up(2)?;
    bed.start_programmer(2, &[])?;
    await_all(bed, &kept)?;
    check_same(bed, &before, "after a start from nothing")
}

/// kube-proxy removes chains that are no longer used once an hour only.
fn check_same(bed: &Bed, before: &BTreeMap<String, Vec<String>>, when: &'static str) -> Result<()> {
    match bed.options.programmer {
        Make::Ours => bed.check_rules(2, before).context(when),
        Make::Genuine => Ok(()),
    }
}
