//! Starts in a cluster where our programs cannot work yet: they say so in one line, are not ready, and go on trying.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use fairlead_e2e::{Bed, From, netns::Netns, pki, probe, processes::Process, programs::Make, tools, wait};

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
    let log = ours.log().split_off(before);
    ensure!(lines(&log, "still runs on this node").len() == 1, "{log}");
    ensure!(lines(&log, "watching").is_empty(), "it does not wait: {log}");
    theirs.kill()?;
    await_page(netns, elsewhere, true, "[+]other proxies ok")?;
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
