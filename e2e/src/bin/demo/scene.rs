//! What every step of the demo does: apply an example, show objects and rules, send requests.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{Bed, From, Outcome, Protocol, examples, probe::Tally, programs::Make, tools};
use fairlead_objects::Family;
use serde_json::Value;

use crate::paper;

const REQUESTS: usize = 400;

/// Applies an example. The bed makes the Pods of its Deployments: no kubelet or scheduler runs here.
pub(crate) fn apply(bed: &mut Bed, example: &str) -> Result<()> {
    let path = examples::path(example);
    paper::command(&format!("kubectl apply -f manifests/examples/{example}"));
    println!("{}", bed.kubectl(&["apply", "-f", &path.display().to_string()])?);
    for object in examples::objects(example)? {
        bed.make_pods_of(&object)?;
    }
    Ok(())
}

/// Runs kubectl on the control plane's host and shows command and output.
pub(crate) fn kubectl(bed: &Bed, args: &[&str]) -> Result<()> {
    paper::command(&format!("kubectl {}", args.join(" ")));
    println!("{}", bed.kubectl(args)?);
    Ok(())
}

/// A Service, its Endpoints and its slices.
pub(crate) fn objects(bed: &Bed, service: &str) -> Result<()> {
    kubectl(bed, &["get", "service,endpoints", service])?;
    slices(bed, service)
}

/// The slices of a Service.
pub(crate) fn slices(bed: &Bed, service: &str) -> Result<()> {
    kubectl(bed, &["get", "endpointslices", "-l", &format!("kubernetes.io/service-name={service}")])
}

/// The Service's object as etcd holds it, but for the book that the API server keeps of who set which field.
pub(crate) fn stored(bed: &Bed, service: &str) -> Result<()> {
    let key = format!("/registry/services/specs/default/{service}");
    paper::command(&format!(
        "etcdctl get --print-value-only {key} | jq 'del(.metadata.managedFields, .metadata.annotations)'"
    ));
    let mut etcdctl = Command::new(bed.tools().program("etcdctl"));
    let text = bed.client(From::ControlPlane)?.namespace().output(etcdctl.args([
        "get",
        "--print-value-only",
        &key,
    ]))?;
    let mut object: Value = serde_json::from_str(&text).context("etcd does not hold JSON")?;
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
        metadata.remove("annotations");
    }
    println!("{}\n", serde_json::to_string_pretty(&object)?);
    Ok(())
}

/// What `fairlead trace` says about a packet from a Pod on node1 through the rules that are installed there.
pub(crate) fn trace(bed: &Bed, pod: &str, target: SocketAddr) -> Result<()> {
    let rules = bed.dir().join("node1.rules");
    fs::write(&rules, bed.save(1, Family::of(target.ip()))?)?;
    let (from, node) = (bed.pod(pod)?.addresses.v4, bed.node(1)?.addresses.v4);
    let flags = format!("--node-ip {node} --from {from} --to {target}/TCP");
    paper::command(&format!("iptables-save | fairlead trace --rules - {flags}"));
    let output = Command::new(tools::own_program("fairlead")?)
        .args(["trace", "--rules", "-"])
        .args(flags.split(' '))
        .stdin(fs::File::open(&rules)?)
        .output()?;
    ensure!(output.status.success(), "fairlead trace: {}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Requests to a target whose servers are known: the share each got, and the addresses it saw.
pub(crate) fn ask(bed: &Bed, who: &str, from: From<'_>, target: SocketAddr, servers: &[&str]) -> Result<()> {
    let tally = bed.client(from)?.ask_many(Protocol::Tcp, target, REQUESTS)?;
    show(who, target, &tally);
    tally.check_fair(servers)
}

/// The same from a client that is led to one server only, whichever that is.
pub(crate) fn ask_sticky(bed: &Bed, who: &str, from: From<'_>, target: SocketAddr) -> Result<()> {
    let tally = bed.client(from)?.ask_many(Protocol::Tcp, target, 100)?;
    show(who, target, &tally);
    tally.check_answered()?;
    ensure!(tally.shares().len() == 1, "{who} was led about: {tally}");
    Ok(())
}

/// Requests that come to an end without an answer.
pub(crate) fn ask_in_vain(
    bed: &Bed,
    who: &str,
    from: From<'_>,
    target: SocketAddr,
    end: &Outcome,
) -> Result<()> {
    bed.await_outcome(from, Protocol::Tcp, target, end)?;
    let outcome = bed.client(from)?.ask(Protocol::Tcp, target)?;
    ensure!(outcome == *end, "{target} from {who}: {outcome}, and not {end}");
    println!("{target} from {who}: {outcome}");
    Ok(())
}

fn show(who: &str, target: SocketAddr, tally: &Tally) {
    println!("{} requests to {target} from {who}:", tally.outcomes.len());
    print!("{}", shares(tally));
}

/// A line per server.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
fn shares(tally: &Tally) -> String {
    let total = tally.outcomes.len();
    let line = |(server, count): (String, u64)| {
        let percent = count as f64 * 100.0 / total as f64;
        let bar = paper::bar(usize::try_from(count).unwrap_or(total), total);
        let seen: Vec<String> = tally.clients_of(&server).iter().map(IpAddr::to_string).collect();
        format!("    {server:<12} {count:>5}  {percent:>5.1} %  {bar}  saw {}\n", seen.join(", "))
    };
    tally.shares().into_iter().map(line).collect()
}

/// The rules of node1 that concern a Service: those that name it, and the chains they lead to.
pub(crate) fn rules(bed: &Bed, service: &str) -> Result<()> {
    println!("The rules about {service} on node1:");
    let saved = bed.rules_about(1, "")?;
    paper::block(&excerpt(&saved, service, bed.cluster_ip(service)?).context("no rule is about it")?);
    Ok(())
}

fn excerpt(saved: &[String], service: &str, ip: IpAddr) -> Option<String> {
    let marks = [
        format!("default/{service}:"),
        format!("default/{service} "),
        format!("default/{service}\""),
        format!("{ip}/32"),
    ];
    let concerns = |rule: &str| marks.iter().any(|mark| rule.contains(mark));
    let rules: Vec<&str> = saved.iter().filter_map(|line| Some(line.split_once("] ")?.1)).collect();
    let chain = |rule: &&str| rule.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for rule in rules.iter().filter(|rule| concerns(rule)) {
        wanted.extend(
            rule.split_once(" -j ")
                .map(|(_, target)| target.split(' ').next().unwrap_or_default().to_owned()),
        );
    }
    wanted.retain(|name| name.starts_with("KUBE-SVC") || name.starts_with("KUBE-EXT"));
    let found: Vec<&str> =
        rules.iter().copied().filter(|rule| concerns(rule) || wanted.contains(&chain(rule))).collect();
    (!found.is_empty()).then(|| found.join("\n"))
}

/// The names of controller and programmer.
pub(crate) fn programs(bed: &Bed) -> (&'static str, &'static str) {
    let controller = match bed.options.controller {
        Make::Ours => "fairlead-controller",
        Make::Genuine => "kube-controller-manager's endpoint controllers",
    };
    let programmer = match bed.options.programmer {
        Make::Ours => "fairlead-programmer",
        Make::Genuine => "kube-proxy",
    };
    (controller, programmer)
}
