//! `make demo`: a two-node cluster comes up on this machine, Fairlead's two programs run on it, and the four examples
//! of `manifests/examples/` are shown from the object to the packet. It ends by itself, cleans up, and its exit code
//! says whether everything was as it should be.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{Bed, From, Options, Outcome, PodSpec, Protocol, examples, probe::Tally, programs::Make};

const REQUESTS: usize = 1000;
const EXTERNALS: [Ipv4Addr; 2] = [Ipv4Addr::new(11, 11, 11, 11), Ipv4Addr::new(22, 22, 22, 22)];

fn main() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("demo: run it as root: it makes network namespaces and rules inside them (sudo make demo)");
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    match run() {
        Ok(()) => {
            println!("\nAll of it is gone again. Done in {:.0?}.", began.elapsed());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    title("A cluster of two nodes, in network namespaces of this machine");
    let began = Instant::now();
    let mut bed = Bed::start(Options::from_env()?)?;
    let shown = show(&mut bed, began.elapsed());
    if shown.is_err() {
        eprintln!("{}", bed.log_tails());
    }
    shown
}

fn show(bed: &mut Bed, took: Duration) -> Result<()> {
    println!(
        "etcd, kube-apiserver and kube-controller-manager (without its endpoint controllers) are up in {took:.1?}."
    );
    kubectl(bed, &["get", "nodes", "-o", "wide"])?;
    bed.start_programs()?;
    let (controller, programmer) = programs(bed);
    println!("Running: {controller} beside the API server, {programmer} on node1 and on node2.");
    bed.add_pod(PodSpec::new("client", "client"))?;
    my_service(bed)?;
    kubia(bed)?;
    external_service(bed)?;
    node_port(bed)?;
    no_endpoints(bed)?;
    clean_end(bed)
}

fn my_service(bed: &mut Bed) -> Result<()> {
    title("1. my-service: a Service in front of two Pods, port 80 -> 8080");
    apply(bed, "my-service.yaml")?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    let pods = ["my-app-1", "my-app-2"];
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &pods)?;
    kubectl(bed, &["get", "pods", "-o", "wide", "-l", "app=my-app"])?;
    objects(bed, "my-service")?;
    rules(bed, "my-service")?;
    ask(bed, "the Pod `client` on node1", From::Pod("client"), target, &pods)?;
    ask(bed, "node2 itself", From::Node(2), target, &pods)?;
    ask(bed, "my-app-1, which is one of the endpoints", From::Pod("my-app-1"), target, &pods)
}

fn kubia(bed: &mut Bed) -> Result<()> {
    title("2. kubia: two ports, targeted by the names that the Pods give them");
    apply(bed, "kubia.yaml")?;
    let ip = bed.cluster_ip("kubia")?;
    let pods = ["kubia-1", "kubia-2", "kubia-3"];
    for port in [80, 443] {
        bed.await_servers(From::Pod("client"), Protocol::Tcp, SocketAddr::new(ip, port), &pods)?;
    }
    objects(bed, "kubia")?;
    for (port, container) in [(80, 8080), (443, 8443)] {
        let target = SocketAddr::new(ip, port);
        ask(bed, "the Pod `client`", From::Pod("client"), target, &pods)?;
        let ports = bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, 100)?.ports();
        ensure!(ports == BTreeSet::from([container]), "port {port} led to container ports {ports:?}");
        println!("    port {port} leads to container port {container}");
    }
    Ok(())
}

fn external_service(bed: &mut Bed) -> Result<()> {
    title("3. external-service: no selector, Endpoints 11.11.11.11 and 22.22.22.22 written by hand");
    for address in EXTERNALS {
        bed.add_external(address, &[80])?;
    }
    apply(bed, "external-service.yaml")?;
    let target = SocketAddr::new(bed.cluster_ip("external-service")?, 80);
    let servers = ["11.11.11.11", "22.22.22.22"];
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &servers)?;
    objects(bed, "external-service")?;
    ask(bed, "the Pod `client`", From::Pod("client"), target, &servers)
}

fn node_port(bed: &mut Bed) -> Result<()> {
    title("4. NodePort 30080: clients outside the cluster, through either node");
    apply(bed, "nodeport.yaml")?;
    let pods = ["my-app-1", "my-app-2"];
    for number in 1..=2 {
        let target = SocketAddr::new(bed.node(number)?.addresses.v4.into(), 30080);
        bed.await_servers(From::Outside, Protocol::Tcp, target, &pods)?;
        ask(bed, "a host outside the cluster", From::Outside, target, &pods)?;
    }
    rules(bed, "my-service-nodeport")
}

fn no_endpoints(bed: &mut Bed) -> Result<()> {
    title("5. No Pod is ready: refused at once, not left waiting");
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    for pod in ["my-app-1", "my-app-2"] {
        bed.set_ready(pod, false)?;
    }
    bed.await_outcome(From::Pod("client"), Protocol::Tcp, target, &Outcome::Refused)?;
    println!("{target} from the Pod `client`: {}", Outcome::Refused);
    bed.set_ready("my-app-2", true)?;
    bed.await_servers(From::Pod("client"), Protocol::Tcp, target, &["my-app-2"])?;
    println!("my-app-2 is ready again, and answers alone.");
    Ok(())
}

fn clean_end(bed: &mut Bed) -> Result<()> {
    title("The end: Services go, and with them Endpoints, slices and rules");
    bed.reset()?;
    for number in 1..=bed.options.nodes {
        bed.stop_programmer(number)?;
        bed.clean_up(number)?;
        let left = bed.rules_about(number, "default/")?;
        ensure!(left.is_empty(), "rules left on node {number}: {left:?}");
    }
    bed.stop_controller()?;
    let (controller, programmer) = programs(bed);
    println!(
        "{controller} and {programmer} have ended; `{programmer} --cleanup` left no Service rule on either node."
    );
    Ok(())
}

fn programs(bed: &Bed) -> (&'static str, &'static str) {
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

fn title(text: &str) {
    println!("\n=== {text}\n");
}

/// The bed makes the Pods of the Deployments: no kubelet or scheduler runs here.
fn apply(bed: &mut Bed, example: &str) -> Result<()> {
    let path = examples::path(example);
    println!("$ kubectl apply -f manifests/examples/{example}");
    print!("{}", bed.kubectl(&["apply", "-f", &path.display().to_string()])?);
    println!();
    for object in examples::objects(example)? {
        bed.make_pods_of(&object)?;
    }
    Ok(())
}

fn kubectl(bed: &Bed, args: &[&str]) -> Result<()> {
    println!("$ kubectl {}", args.join(" "));
    println!("{}", bed.kubectl(args)?);
    Ok(())
}

fn objects(bed: &Bed, service: &str) -> Result<()> {
    kubectl(bed, &["get", "service,endpoints", service])?;
    kubectl(bed, &["get", "endpointslices", "-l", &format!("kubernetes.io/service-name={service}")])
}

/// Requests, the share each server got, and the addresses it saw them come from.
fn ask(bed: &Bed, who: &str, from: From<'_>, target: SocketAddr, servers: &[&str]) -> Result<()> {
    let tally = bed.client(from)?.ask_many(Protocol::Tcp, target, REQUESTS)?;
    println!("{REQUESTS} requests to {target} from {who}:");
    print!("{}", shares(&tally));
    tally.check_fair(servers)
}

/// A line per server.
#[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
fn shares(tally: &Tally) -> String {
    let total = tally.outcomes.len();
    let line = |(server, count): (String, u64)| {
        let percent = count as f64 * 100.0 / total as f64;
        let bar = "#".repeat(usize::try_from(count).unwrap_or(total) * 40 / total);
        let seen: Vec<String> = tally.clients_of(&server).iter().map(IpAddr::to_string).collect();
        format!("    {server:<12} {count:>5}  {percent:>5.1} %  {bar:<24}  saw {}\n", seen.join(", "))
    };
    tally.shares().into_iter().map(line).collect()
}

/// The rules of node1 that concern a Service: those that name it, and the chains they lead to.
fn rules(bed: &Bed, service: &str) -> Result<()> {
    println!("The rules about {service} on node1 (from iptables-save):");
    let saved = bed.rules_about(1, "")?;
    let found = excerpt(&saved, service, bed.cluster_ip(service)?).context("no rule is about it")?;
    println!("{found}");
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
    let lines: Vec<String> = rules
        .iter()
        .filter(|rule| concerns(rule) || wanted.contains(&chain(rule)))
        .map(|rule| format!("    {rule}"))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n") + "\n")
}
