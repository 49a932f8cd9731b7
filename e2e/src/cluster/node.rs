//! A node: namespaces with containerd and kubelet in them, which `e2e/cluster/node.sh` starts.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::parts::{self, Parts};
use crate::{
    netns::Netns,
    pki::Pki,
    plan::{self, Families},
    processes::{Process, Start, tail},
    programs::Variant,
    record::Record,
};

/// The cluster's DNS.
pub(super) const DNS_ADDRESS: &str = "10.96.0.10";

/// The namespaces of a node beside its network, and its end with the program that made them.
pub(super) const UNSHARE: &str =
    "--mount --pid --uts --ipc --fork --kill-child --mount-proc --propagation private";

/// Bridged packets meet the rules as routed ones do, as on any node.
const BRIDGED: &[(&str, &str)] = &[
    ("bridge/bridge-nf-call-iptables", "1"),
    ("bridge/bridge-nf-call-ip6tables", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
];

/// What a node needs to know of its cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'a> {
    /// Logs and leftovers.
    pub(super) record: &'a Record,
    /// What nodes are made of.
    pub(super) parts: &'a Parts,
    /// Keys.
    pub(super) pki: &'a Pki,
    /// The cluster's cgroups.
    pub(super) cgroups: &'a str,
    /// Where the nodes' folders are; it is in the record.
    pub(super) folder: &'a Path,
    /// Families of the cluster.
    pub(super) families: Families,
    /// The iptables of kubelet and of the network plugin.
    pub(super) variant: Variant,
}

/// A running node.
#[derive(Debug)]
pub(super) struct Kubelet {
    process: Process,
    folder: PathBuf,
    name: String,
    args: Vec<String>,
}

impl Kubelet {
    /// Starts it; it registers itself in its own time.
    pub(super) fn start(site: Site<'_>, namespace: &Netns, node: &plan::Node) -> Result<Self> {
        let folder = site.folder.join(&node.name);
        fs::create_dir_all(&folder)?;
        // kubelet cannot see the record: /run is its own.
        let files = [("ca.crt", "ca.crt".to_owned())].into_iter().chain(
            [("kubelet.crt", "crt"), ("kubelet.key", "key"), ("kubeconfig", "kubeconfig")]
                .map(|(to, ending)| (to, format!("{}.{ending}", node.name))),
        );
        for (to, from) in files {
            fs::copy(site.pki.path(&from), folder.join(to))?;
        }
        fs::write(folder.join("resolv.conf"), format!("nameserver {}\n", plan::control_plane().v4))?;
        fs::write(folder.join("kubelet.yaml"), configuration(&folder, site.cgroups, node).to_string())?;
        namespace.sysctl(BRIDGED)?;
        let addresses: Vec<String> =
            node.addresses.known(site.families).iter().map(IpAddr::to_string).collect();
        let path = |path: PathBuf| path.display().to_string();
        let iptables = site.variant.in_front(folder.join("iptables"))?;
        let mut args: Vec<String> = UNSHARE.split(' ').map(str::to_owned).collect();
        args.extend([
            path(parts::script("node.sh")),
            node.name.clone(),
            path(folder.clone()),
            site.cgroups.to_owned(),
            path(site.parts.store()),
            path(site.parts.node().to_owned()),
            path(site.parts.program("kubelet")),
            node.known_pod_networks(site.families).join(","),
            addresses.join(","),
            iptables.map(path).unwrap_or_default(),
        ]);
        let process = boot(site.record, namespace, &node.name, &args)?;
        Ok(Self { process, folder, name: node.name.clone(), args })
    }

    /// Ends it without a word to anybody, as a power cut would.
    pub(super) fn lose(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again, with what is on its disk.
    pub(super) fn restart(&mut self, record: &Record, namespace: &Netns) -> Result<()> {
        self.process = boot(record, namespace, &self.name, &self.args)?;
        Ok(())
    }

    /// Fails, with the ends of its logs, when it is no longer running.
    pub(super) fn check(&mut self) -> Result<()> {
        self.process.check().with_context(|| self.log_tails(20))
    }

    /// The node's process 1, as this machine knows it.
    pub(super) fn init(&self) -> Result<u32> {
        self.process.first_child()
    }

    /// The ends of kubelet's and containerd's logs.
    pub(super) fn log_tails(&self, lines: usize) -> String {
        format!(
            "{}\n{}\n{}",
            self.process.log_tail(lines),
            tail(&self.folder.join("containerd.log"), lines),
            tail(&self.folder.join("kubelet.log"), lines)
        )
    }
}

fn boot(record: &Record, namespace: &Netns, name: &str, args: &[String]) -> Result<Process> {
    let unshare = PathBuf::from("unshare");
    Process::start(record, namespace, &Start { name, program: &unshare, args, env: &[] })
}

/// KubeletConfiguration; JSON is YAML.
fn configuration(folder: &Path, cgroups: &str, node: &plan::Node) -> Value {
    let file = |name: &str| folder.join(name).display().to_string();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroups}/{}", node.name),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": file("kubelet.crt"),
        "tlsPrivateKeyFile": file("kubelet.key"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": file("resolv.conf"),
        "failSwapOn": false,
        // The disk is the machine's, however full that is.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%",
            "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": false,
        "nodeStatusUpdateFrequency": "5s",
    })
}
