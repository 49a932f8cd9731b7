//! How the programs under test come into a cluster: as plain processes on its hosts, or as its users have them, from
//! images by the Helm chart.

use std::{
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, READY};
use crate::{
    chart::{self, Helm},
    pki,
    plan::{self, Families},
    programs::{Controller, Make, Place, Programmer},
    service_accounts, tools, wait,
};

/// The way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Install {
    /// Processes on the hosts.
    #[default]
    Processes,
    /// `helm install`, with the images of `make image`, or those in the folder `FAIRLEAD_IMAGES`.
    Chart,
}

impl Install {
    /// From the environment variable `FAIRLEAD_INSTALL`: `chart`, or `processes`, which is also the default.
    pub fn from_env() -> Result<Self> {
        match std::env::var("FAIRLEAD_INSTALL").as_deref() {
            Ok("chart") => Ok(Self::Chart),
            Ok("processes") | Err(_) => Ok(Self::Processes),
            Ok(other) => bail!("FAIRLEAD_INSTALL={other}: expected `processes` or `chart`"),
        }
    }
}

/// The release's name, and the namespace that it is in.
const RELEASE: &str = "fairlead";
const NAMESPACE: &str = chart::NAMESPACE;

/// Starts the programs under test as processes: one controller beside the API server, a programmer on every node.
pub(super) fn start_processes(cluster: &mut Cluster) -> Result<()> {
    let control = &cluster.control;
    service_accounts::establish(&control.kubernetes, &control.pki)?;
    let place = Place {
        record: &cluster.record,
        tools: &cluster.tools,
        pki: &control.pki,
        families: Families::V4,
        variant: cluster.options.variant,
    };
    let host = &cluster.network.control_plane;
    cluster.controller = Some(Controller::start(place, host, cluster.options.controller, &[])?);
    for (node, namespace) in cluster.plan.iter().zip(&cluster.network.nodes) {
        cluster.programmers.push(Programmer::start(place, namespace, node, cluster.options.programmer, &[])?);
    }
    Ok(())
}

/// Installs the chart, and waits until all of its Pods are ready.
pub(super) fn install_chart(cluster: &Cluster) -> Result<()> {
    let ours = [cluster.options.controller, cluster.options.programmer];
    ensure!(ours == [Make::Ours; 2], "the chart installs Fairlead's programs, not the genuine ones");
    import_images(cluster)?;
    cluster.say("images of the programs under test");
    let folder = chart::folder();
    let values = [
        format!("apiServer.host={}", plan::control_plane().v4),
        format!("programmer.config.clusterCIDR={}", plan::cluster_networks(Families::V4)),
        // The conntrack limits are those of the whole machine, and not changed from a node in it.
        "programmer.config.conntrack.maxPerCore=0".to_owned(),
        "programmer.config.conntrack.min=0".to_owned(),
        "image.pullPolicy=Never".to_owned(),
    ];
    let folder = folder.to_str().context("a path that is no text")?;
    helm(cluster, &["install", RELEASE, folder, "--namespace", NAMESPACE, "--set", &values.join(",")])?;
    await_programs(cluster)
}

/// Runs Helm on the control plane's host, with all rights.
pub fn helm(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let kubeconfig = cluster.control.pki.kubeconfig(pki::ADMIN);
    Helm::find()?.run_on(&cluster.network.control_plane, &kubeconfig, args)
}

/// Waits until the controller's replicas and every node's programmer are ready.
pub fn await_programs(cluster: &Cluster) -> Result<()> {
    for (kind, wanted, ready) in
        [("Deployment", "replicas", "readyReplicas"), ("DaemonSet", "desiredNumberScheduled", "numberReady")]
    {
        wait::until_ok(&format!("the release's {kind} to be ready"), READY, || {
            let labels = format!("app.kubernetes.io/instance={RELEASE}");
            let found: Vec<Value> = cluster.kubernetes().list(kind, NAMESPACE, &labels)?;
            let status = &found.first().context("not there")?["status"];
            ensure!(status[wanted].as_u64() > Some(0) && status[wanted] == status[ready], "{status}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Puts the archives of `make image` into every node's store.
fn import_images(cluster: &Cluster) -> Result<()> {
    let archives = archives()?;
    for kubelet in &cluster.kubelets {
        for archive in &archives {
            let mut ctr = Command::new("nsenter");
            ctr.args(["--target", &kubelet.init()?.to_string(), "--mount", "--pid", "--"])
                .arg(cluster.parts.node().join("usr/bin/ctr"))
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(archive);
            cluster.network.control_plane.output(&mut ctr)?;
        }
    }
    Ok(())
}

fn archives() -> Result<Vec<PathBuf>> {
    // Of the cargo profile's parent: `make image` writes to target/images.
    let programs = tools::own_program("cluster")?;
    let built = || programs.ancestors().nth(2).unwrap_or(&programs).join("images");
    let folder = std::env::var_os("FAIRLEAD_IMAGES").map_or_else(built, PathBuf::from);
    let found = fs::read_dir(&folder)
        .with_context(|| format!("no images in {}: run `make image`", folder.display()))?;
    let mut archives: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).collect();
    archives.retain(|path| path.extension().is_some_and(|ending| ending == "tar"));
    archives.sort();
    ensure!(!archives.is_empty(), "no images in {}: run `make image`", folder.display());
    Ok(archives)
}
