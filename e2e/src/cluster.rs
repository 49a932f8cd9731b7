//! A cluster of real kubelets: nodes with containerd, runc and a CNI bridge, and a whole control plane, in network
//! namespaces of this machine. Pods are real, and so are their probes, their DNS and who else asks the API server.
//!
//! Where a [`crate::Bed`] plays the parts of scheduler, kubelet and Deployment controller, here they are the genuine
//! ones. [`judge`] runs Kubernetes' own end-to-end tests on it.
//!
//! Invariant: dropping a cluster removes all of it, and so does the next bed or `make clean-bed` when it was killed.

pub mod cases;
mod cgroups;
mod control;
mod document;
pub mod install;
pub mod judge;
mod kind;
mod node;
pub mod operations;
mod parts;
mod requests;
pub mod running;
pub mod takeover;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{
    examples,
    kubernetes::Kubernetes,
    netns::Netns,
    network::Network,
    pki,
    plan::{Families, Node},
    processes,
    programs::{Controller, Make, Programmer, Variant},
    record::Record,
    tools::Tools,
    wait,
};

use control::Control;
use install::Install;
use judge::{Court, Judged};
pub use kind::Kind;
use node::{DNS_ADDRESS, Kubelet, Site};
pub use parts::Parts;
use running::{Asker, Running};

/// How long nodes and Pods may take to be ready.
const READY: Duration = Duration::from_mins(2);

/// Zones that nodes are spread over, in turn.
const ZONES: u8 = 3;

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes.
    pub nodes: u8,
    /// Families of the cluster.
    pub families: Families,
    /// Whose endpoint controllers.
    pub controller: Make,
    /// Whose programmers.
    pub programmer: Make,
    /// Which iptables nodes have.
    pub variant: Variant,
    /// How they are installed.
    pub install: Install,
}

impl Options {
    /// As the environment says: `FAIRLEAD_CONTROLLER`, `FAIRLEAD_PROGRAMMER` (`ours` or `genuine`), `FAIRLEAD_IPTABLES`
    /// (`nft` or `legacy`), `FAIRLEAD_INSTALL` (`processes` or `chart`).
    pub fn from_env(nodes: u8) -> Result<Self> {
        Ok(Self {
            nodes,
            families: Families::V4,
            controller: Make::from_env("FAIRLEAD_CONTROLLER")?,
            programmer: Make::from_env("FAIRLEAD_PROGRAMMER")?,
            variant: Variant::from_env()?,
            install: Install::from_env()?,
        })
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// How it was made.
    pub options: Options,
    // Dropped in this order: whatever writes to the API server ends before that.
    programmers: Vec<Programmer>,
    controller: Option<Controller>,
    kubelets: Vec<Kubelet>,
    control: Control,
    network: Network,
    plan: Vec<Node>,
    tools: Tools,
    parts: Parts,
    record: Record,
    began: Instant,
}

impl Cluster {
    /// Brings it up, with the programs under test and DNS, and says what is done as it goes.
    pub fn start(options: Options) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        ensure!((1..=9).contains(&options.nodes), "a cluster has 1 to 9 nodes");
        let began = Instant::now();
        let (tools, parts) = (Tools::find()?, Parts::find()?);
        let record = Record::open()?;
        let plan: Vec<Node> = (1..=options.nodes).map(Node::new).collect();
        let network = Network::build(&record, &plan).context("building the network")?;
        say(began, "namespaces");
        let control =
            Control::start(&record, &network.control_plane, &tools, &parts, &plan, options.families)
                .context("starting the control plane")?;
        say(began, "etcd, kube-apiserver, kube-controller-manager, kube-scheduler");
        let mut cluster = Self {
            options,
            programmers: Vec::new(),
            controller: None,
            kubelets: Vec::new(),
            control,
            network,
            plan,
            tools,
            parts,
            record,
            began,
        };
        let brought_up = cluster.bring_up();
        brought_up.with_context(|| cluster.log_tails(15))?;
        Ok(cluster)
    }

    fn bring_up(&mut self) -> Result<()> {
        self.start_kubelets()?;
        self.await_nodes()?;
        self.say("containerd and kubelet: all nodes are ready");
        match self.options.install {
            Install::Processes => install::start_processes(self)?,
            Install::Chart => install::install_chart(self, install::Await::Ready, &[])?,
        }
        self.say("the programs under test");
        self.start_dns()?;
        self.say("CoreDNS");
        Ok(())
    }

    fn start_kubelets(&mut self) -> Result<()> {
        // For the Pods of a node, and for its daemons.
        let purposes = |node: &Node| [node.name.clone(), format!("daemons-{}", node.name)];
        let purposes: Vec<_> = self.plan.iter().flat_map(purposes).collect();
        let cgroups = cgroups::make(&self.record, &purposes)?;
        let folder = self.parts.scratch().join(&cgroups);
        self.record.note_folder(&folder)?;
        let site = Site {
            record: &self.record,
            parts: &self.parts,
            pki: &self.control.pki,
            cgroups: &cgroups,
            folder: &folder,
            families: self.options.families,
            variant: self.options.variant,
        };
        for (node, namespace) in self.plan.iter().zip(&self.network.nodes) {
            self.kubelets.push(Kubelet::start(site, namespace, node)?);
        }
        Ok(())
    }

    /// Nodes register themselves; their Pod networks and zones are given from outside, as a cloud does.
    fn await_nodes(&mut self) -> Result<()> {
        for node in &self.plan {
            let networks = node.known_pod_networks(self.options.families);
            let patch = json!({
                "metadata": {"labels": {"topology.kubernetes.io/zone": format!("zone{}", (node.number - 1) % ZONES + 1)}},
                "spec": {"podCIDR": networks.first(), "podCIDRs": networks},
            });
            let kubernetes = &self.control.kubernetes;
            let kubelets = &mut self.kubelets;
            wait::until(&format!("{} to be there", node.name), READY, || {
                kubelets.iter_mut().try_for_each(Kubelet::check)?;
                Ok(match kubernetes.merge("Node", "", &node.name, patch.clone()) {
                    Ok(_) => wait::Look::Done(()),
                    Err(error) => wait::Look::NotYet(format!("{error:#}")),
                })
            })?;
        }
        for node in &self.plan {
            self.await_condition("Node", "", &node.name, "Ready")?;
        }
        Ok(())
    }

    fn start_dns(&self) -> Result<()> {
        let path = parts::script("coredns.yaml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let text = text.replace("IMAGE", &self.parts.image("coredns")?).replace("ADDRESS", DNS_ADDRESS);
        for object in examples::parse(&text)? {
            self.kubernetes().apply(&object)?;
        }
        self.await_condition("Deployment", "kube-system", "coredns", "Available")
    }

    /// Fails when one of its programs has died.
    pub fn check(&mut self) -> Result<()> {
        self.control.check()?;
        self.kubelets.iter_mut().try_for_each(Kubelet::check)?;
        if let Some(controller) = &mut self.controller {
            controller.process().check()?;
        }
        self.programmers.iter_mut().try_for_each(|programmer| programmer.process().check())
    }

    /// What the nodes are made of, and their hosts.
    pub fn nodes(&self) -> impl Iterator<Item = (&Node, &Arc<Netns>)> {
        self.plan.iter().zip(&self.network.nodes)
    }

    /// What it is made of.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The genuine programs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Its folder and its logs.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Prints what is done, and when.
    pub fn say(&self, what: &str) {
        say(self.began, what);
    }

    /// The ends of all logs.
    pub fn log_tails(&self, lines: usize) -> String {
        let logs = std::fs::read_dir(self.record.dir().join("logs")).into_iter().flatten().flatten();
        let mut tails: Vec<_> = logs.map(|log| processes::tail(&log.path(), lines)).collect();
        tails.sort();
        tails.extend(self.kubelets.iter().map(|kubelet| kubelet.log_tails(lines)));
        tails.join("\n")
    }
}

impl Judged for Cluster {
    fn court(&self) -> Court<'_> {
        Court {
            record: &self.record,
            host: &self.network.control_plane,
            kubeconfig: self.control.pki.kubeconfig(pki::ADMIN),
            kubectl: self.tools.program("kubectl"),
            parts: &self.parts,
            nodes: self.options.nodes,
        }
    }

    fn check(&mut self) -> Result<()> {
        self.check()
    }

    fn say(&self, what: &str) {
        self.say(what);
    }
}

impl Running for Cluster {
    fn kubernetes(&self) -> &Kubernetes {
        &self.control.kubernetes
    }

    fn addresses(&self) -> Result<Vec<(String, IpAddr)>> {
        Ok(self.plan.iter().map(|node| (node.name.clone(), node.addresses.v4.into())).collect())
    }

    fn fetch(&self, from: Asker<'_>, address: SocketAddr, path: &str) -> Result<String> {
        let host = match from {
            Asker::Outside => Some(&self.network.outside),
            Asker::Node(name) => self.nodes().find(|(node, _)| node.name == name).map(|(_, host)| host),
        };
        running::page(host.context("no such node")?, address, path)
    }
}

fn say(began: Instant, what: &str) {
    println!("[{:6.1}s] {what}", began.elapsed().as_secs_f64());
}
