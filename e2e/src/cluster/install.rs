//! How the programs under test come into a cluster: as plain processes on its hosts, or as its users have them, from
//! images by the Helm chart.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, READY, running::Running};
use crate::{
    chart::{self, Helm},
    pki, plan,
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

/// The release's name; [`NAMESPACE`] is where it is.
pub const RELEASE: &str = "fairlead";
/// See [`RELEASE`].
pub const NAMESPACE: &str = chart::NAMESPACE;

/// Starts the programs under test as processes: one controller beside the API server, a programmer on every node.
pub(super) fn start_processes(cluster: &mut Cluster) -> Result<()> {
    service_accounts::establish(&cluster.control.kubernetes, &cluster.control.pki)?;
    start_as(cluster, cluster.options.controller, cluster.options.programmer, &[])
}

/// As [`start_processes`], of these makes; ours need their accounts. `extra` flags are for the programmers.
pub(super) fn start_as(
    cluster: &mut Cluster,
    controller: Make,
    programmer: Make,
    extra: &[&str],
) -> Result<()> {
    let place = place(cluster);
    let controller = Controller::start(place, &cluster.network.control_plane, controller, &[])?;
    let programmers =
        cluster.nodes().map(|(node, host)| Programmer::start(place, host, node, programmer, extra));
    let programmers = programmers.collect::<Result<_>>()?;
    (cluster.controller, cluster.programmers) = (Some(controller), programmers);
    Ok(())
}

/// Ends what [`start_as`] has started.
pub(super) fn stop_processes(cluster: &mut Cluster) -> Result<()> {
    cluster.controller.take().context("no controller runs")?.stop()?;
    std::mem::take(&mut cluster.programmers).into_iter().try_for_each(Programmer::stop)
}

/// What programs that are started as processes need to know.
pub(super) fn place(cluster: &Cluster) -> Place<'_> {
    Place {
        record: &cluster.record,
        tools: &cluster.tools,
        pki: &cluster.control.pki,
        families: cluster.options.families,
        variant: cluster.options.variant,
    }
}

/// What to wait for after `helm install`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Await {
    /// All Pods are ready.
    Ready,
    /// All Pods run; they may be waiting for others to leave.
    Running,
}

/// Installs the chart, with `more` values.
pub(super) fn install_chart(cluster: &Cluster, until: Await, more: &[&str]) -> Result<()> {
    import_images(cluster)?;
    cluster.say("images of the programs under test");
    let networks = plan::cluster_networks(cluster.options.families);
    let values = [
        format!("apiServer.host={}", plan::control_plane().v4),
        format!("programmer.config.clusterCIDR={}", networks.replace(',', r"\,")),
        // The conntrack limits are those of the whole machine, and not changed from a node in it.
        "programmer.config.conntrack.maxPerCore=0".to_owned(),
        "programmer.config.conntrack.min=0".to_owned(),
        "image.pullPolicy=Never".to_owned(),
    ];
    let folder = chart_folder()?;
    let values = [&values.each_ref().map(String::as_str), more].concat().join(",");
    helm(cluster, &["install", RELEASE, &folder, "--namespace", NAMESPACE, "--set", &values])?;
    if until == Await::Ready { await_programs(cluster) } else { await_running(cluster) }
}

/// Where the chart is, as text.
pub(super) fn chart_folder() -> Result<String> {
    chart::folder().into_os_string().into_string().ok().context("a path that is no text")
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

fn await_running(cluster: &Cluster) -> Result<()> {
    wait::until_ok("the Pods of the release to run", READY, || {
        let labels = format!("app.kubernetes.io/instance={RELEASE}");
        let pods: Vec<Value> = cluster.kubernetes().list("Pod", NAMESPACE, &labels)?;
        let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        // A programmer on each node, and two controllers.
        let wanted = usize::from(cluster.options.nodes) + 2;
        ensure!(running == wanted, "{running} of {wanted} run");
        Ok(())
    })
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

/// The archives of the images, sorted.
pub(super) fn archives() -> Result<Vec<PathBuf>> {
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
