//! Starts in a cluster where our programs cannot work yet: they say so in one line, are not ready, and go on trying.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use fairlead_e2e::{
    Bed, From, chart::Helm, examples, netns::Netns, pki, probe, processes::Process, programs::Make, tools,
    wait,
};
use serde_json::json;

use crate::objects::{configuration, rendered};

const DEADLINE: Duration = Duration::from_secs(20);
/// The programmer's health server, on its node.
pub(crate) const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// A port that nobody listens on.
const NOWHERE: &str = "--master=https://127.0.0.1:9";

fn await_page(netns: &Netns, address: SocketAddr, ready: bool, words: &str) -> Result<()> {
    wait::until_ok(&format!("http://{address}/readyz to say {words:?}"), DEADLINE, || {
        let (status, page) = probe::http_get(netns, address, "/readyz")?;
        ensure!((status == 200) == ready && page.contains(words), "{status} {page}");
        Ok(())
    })
}

/// Lines of a log that say these words.
fn lines<'a>(log: &'a str, words: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(words)).collect()
}

pub(crate) fn a_kube_proxy_that_still_runs_is_named_and_waited_for(bed: &mut Bed) -> Result<()> {
    let netns = bed.node_netns(1)?;
    // The log is that of all programmers of the node.
    let before = std::fs::read_to_string(bed.log("programmer-node1")).unwrap_or_default().len();
    let mut theirs = bed.launch_programmer(1, Make::Genuine, &[])?;
    wait::until_ok("kube-proxy to be healthy", DEADLINE, || {
        let (status, page) = probe::http_get(netns, HEALTH, "/healthz")?;
        ensure!(status == 200, "{status} {page}");
        Ok(())
    })?;
    // On a port of its own it can say why it is not ready; on kube-proxy's, it has no page.
    let elsewhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 10356));
    let mut ours = bed.launch_programmer(1, Make::Ours, &["--healthz-bind-address=0.0.0.0:10356"])?;
    await_page(netns, elsewhere, false, "[-]waiting for other proxies: kube-proxy or another")?;
    wait::until_ok("one line about it", DEADLINE, || {
        let log = ours.log().split_off(before);
        ensure!(lines(&log, "still runs on this node").len() == 1, "{log}");
        ensure!(lines(&log, "watching").is_empty(), "it does not wait: {log}");
        Ok(())
    })?;
    theirs.kill()?;
    await_page(netns, elsewhere, true, "[+]other proxies ok")?;

    // It comes back. Its metrics port is ours by now, so that it is known by what it writes.
    let mut theirs = bed.launch_programmer(1, Make::Genuine, &[])?;
    await_page(netns, elsewhere, true, "[+]other proxies was ok, now: kube-proxy or another")?;
    ensure!(lines(&ours.log().split_off(before), "runs on this node, too").len() == 1, "{}", ours.log());
    wait::until_ok("an Event about the Node", DEADLINE, || {
        let about = "--field-selector=reason=AnotherProxyRuns";
        let found = bed.kubectl(&["get", "events", "--namespace=default", about])?;
        ensure!(found.contains("KUBE-SEP-"), "{found}");
        Ok(())
    })?;
    theirs.kill()?;
    ours.kill()
}

pub(crate) fn an_api_server_that_cannot_be_reached_is_named_and_nobody_is_ready(bed: &mut Bed) -> Result<()> {
    let kubeconfig = format!("--kubeconfig={}", bed.kubeconfig_of(pki::CONTROLLER).display());
    let program = tools::own_program("fairlead-controller")?;
    let args = [kubeconfig, NOWHERE.to_owned()];
    let controller = bed.start_process(From::ControlPlane, "astray", &program, &args, &[])?;
    let programmer = bed.launch_programmer(1, Make::Ours, &[NOWHERE])?;
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    for (mut process, from, address) in
        [(controller, From::ControlPlane, admin), (programmer, From::Node(1), HEALTH)]
    {
        let advice = "check that the API server runs and can be reached from here";
        await_page(bed.namespace(from)?, address, false, advice)?;
        told_once(&process, advice)?;
        process.check()?;
        process.kill()?;
    }
    Ok(())
}

/// A mode of kube-proxy, how something that it leaves on a node is made, and how that is listed.
const LEFT: [(&str, &[&str], &str); 2] = [
    ("ipvs", &["iptables", "--new-chain", "KUBE-IPVS-FILTER"], "KUBE-IPVS-FILTER"),
    ("nftables", &["nft", "add", "table", "ip", "kube-proxy"], "table ip kube-proxy"),
];

/// With nothing but what the chart gives it. (Modes that run leave more: `programmer/tests/leftovers.rs`.)
pub(crate) fn what_the_mode_of_the_values_left_goes_when_rules_are_there(bed: &mut Bed) -> Result<()> {
    let (helm, program) = (Helm::find()?, tools::own_program("fairlead-programmer")?);
    let netns = bed.node_netns(1)?;
    let listed = || netns.output(Command::new("nft").args(["list", "ruleset"]));
    let env = [
        ("KUBECONFIG", bed.kubeconfig_of(pki::PROGRAMMER).display().to_string()),
        ("XTABLES_LOCKFILE", bed.dir().join("xtables.lock").display().to_string()),
    ];
    for (mode, make, left) in LEFT {
        let [name, args @ ..] = make else { bail!("no command") };
        netns.output(Command::new(name).args(args))?;
        ensure!(listed()?.contains(left), "{left} is not there");
        // The conntrack limits are those of the whole machine, and not changed from a bed.
        let values = json!({"apiServer": {"host": "10.0.0.1"}, "programmer": {"config": {
            "mode": mode, "conntrack": {"maxPerCore": 0, "min": 0}}}});
        let objects = examples::parse(&rendered(bed, &helm, "replace", &values)?)?;
        let file = configuration(bed, &objects)?;
        let args =
            [format!("--config={}", file.display()), format!("--hostname-override={}", bed.node(1)?.name)];
        let mut process =
            bed.start_process(From::Node(1), "programmer-of-the-chart", &program, &args, &env)?;
        wait::until_ok(&format!("our rules, and no {left}"), DEADLINE, || {
            let rules = listed()?;
            ensure!(rules.contains("chain KUBE-SERVICES") && !rules.contains(left), "{rules}");
            Ok(())
        })?;
        let log = process.log();
        ensure!(
            lines(&log, &format!("mode {mode} is not implemented: running iptables")).len() == 1,
            "{log}"
        );
        process.kill()?;
    }
    Ok(())
}

/// Once for each kind of objects that is watched, however often it is tried again.
fn told_once(process: &Process, words: &str) -> Result<()> {
    for resource in ["services", "endpointslices"] {
        wait::until_ok(&format!("the log to tell of {resource}"), DEADLINE, || {
            let log = process.log();
            let told =
                lines(&log, words).into_iter().filter(|line| line.contains(&format!("{resource}\""))).count();
            ensure!(told == 1, "{log}");
            Ok(())
        })?;
    }
    Ok(())
}
