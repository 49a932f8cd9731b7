//! From kube-proxy in a mode that Fairlead does not have to the chart, which is told of that mode.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{CLIENT, SETTLE, clean_up, report};
use crate::{
    cluster::{
        Cluster,
        install::{self, NAMESPACE, RELEASE, helm},
        requests::Load,
        running::Running,
    },
    netns::Netns,
    programs::Make,
    wait,
};

/// kube-proxy's tables on a node.
fn tables(host: &Netns) -> Result<Vec<String>> {
    let listed = host.output(Command::new("nft").args(["list", "tables"]))?;
    Ok(listed.lines().filter(|table| table.ends_with(" kube-proxy")).map(str::to_owned).collect())
}

/// Begins and ends when nothing is installed, and no rule is on any node.
pub(super) fn take_over_from_nftables(cluster: &mut Cluster) -> Result<()> {
    install::start_as(cluster, Make::Genuine, Make::Genuine, &["--proxy-mode=nftables"])?;
    Load::start_on(cluster, CLIENT)?;
    for (node, host) in cluster.nodes() {
        ensure!(!tables(host)?.is_empty(), "kube-proxy has no table on {}", node.name);
    }
    install::install_chart(cluster, install::Await::Running, &["programmer.config.mode=nftables"])?;
    install::stop_processes(cluster)?;
    install::await_programs(cluster)?;
    for (node, host) in cluster.nodes() {
        wait::until_ok(&format!("kube-proxy's tables to be gone from {}", node.name), SETTLE, || {
            let left = tables(host)?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
    }
    let load = Load { cluster };
    load.follow_a_change(3)?;
    let log = cluster.kubectl(&["logs", "daemonset/fairlead-programmer", "--namespace", NAMESPACE])?;
    ensure!(log.contains("mode nftables is not implemented: running iptables"), "{log}");
    let asked = load.end()?;
    helm(cluster, &["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"])?;
    clean_up(cluster).context("after the chart")?;
    report(cluster, asked);
    Ok(())
}
