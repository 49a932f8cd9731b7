//! The bed: a cluster in network namespaces, and everything a test does with it.
//!
//! Invariants: dropping a bed removes all of it. The bed plays the parts that a real cluster has beside the programs
//! under test: scheduler, kubelet and the Deployment controller.

mod pods;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    control_plane::{BASE_CONTROLLERS, ControlPlane},
    examples,
    kubernetes::Kubernetes,
    netns::Netns,
    network::Network,
    pki,
    plan::{Families, Node},
    pod::Pod,
    probe::Client,
    processes::{self, Process, Start},
    programs::{Controller, Make, Place, Programmer},
    record::Record,
    servers::{Protocol, Server},
    tools::Tools,
    wait,
};

/// How long a change may take from the API to the kernel before a test gives up on it.
pub const SETTLE: Duration = Duration::from_secs(20);

/// How a bed is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes.
    pub nodes: u8,
    /// Families of the cluster.
    pub families: Families,
    /// The controllers that kube-controller-manager runs.
    pub controllers: String,
    /// Whose endpoint controllers [`Bed::start_programs`] starts.
    pub controller: Make,
    /// Whose programmer [`Bed::start_programs`] starts on each node.
    pub programmer: Make,
}

impl Options {
    /// Two nodes, IPv4. `FAIRLEAD_CONTROLLER=genuine` and `FAIRLEAD_PROGRAMMER=genuine` replace one of our programs by
    /// the one it stands in for.
    pub fn from_env() -> Result<Self> {
        Ok(Self {
            nodes: 2,
            families: Families::V4,
            controllers: BASE_CONTROLLERS.to_owned(),
            controller: Make::from_env("FAIRLEAD_CONTROLLER")?,
            programmer: Make::from_env("FAIRLEAD_PROGRAMMER")?,
        })
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From<'a> {
    /// In a Pod of the namespace `default`.
    Pod(&'a str),
    /// On the n-th node, from 1.
    Node(u8),
    /// On a host outside the cluster.
    Outside,
    /// On the host of a server outside the cluster, by that server's address.
    External(Ipv4Addr),
    /// On the control plane's host.
    ControlPlane,
}

#[derive(Debug)]
struct External {
    address: Ipv4Addr,
    netns: Arc<Netns>,
    #[expect(dead_code, reason = "servers answer as long as somebody holds them")]
    servers: Vec<Server>,
}

/// A running bed.
#[derive(Debug)]
pub struct Bed {
    /// How it was made.
    pub options: Options,
    // Dropped in this order: what sends traffic or requests goes before what answers them, the record last.
    controller: Option<Controller>,
    programmers: BTreeMap<u8, Programmer>,
    pods: BTreeMap<(String, String), Pod>,
    last_addresses: BTreeMap<u8, u8>,
    externals: Vec<External>,
    control_plane: ControlPlane,
    network: Network,
    plan: Vec<Node>,
    tools: Tools,
    record: Record,
}

impl Bed {
    /// Starts the cluster: network, control plane, Node objects. No program under test runs yet.
    pub fn start(options: Options) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let tools = Tools::find()?;
        let record = Record::open()?;
        let plan: Vec<Node> = (1..=options.nodes).map(Node::new).collect();
        let network = Network::build(&record, &plan).context("building the network")?;
        let control_plane = ControlPlane::start(
            &record,
            &network.control_plane,
            &tools,
            options.families,
            &options.controllers,
        )
        .context("starting the control plane")?;
        let bed = Self {
            options,
            controller: None,
            programmers: BTreeMap::new(),
            pods: BTreeMap::new(),
            last_addresses: BTreeMap::new(),
            externals: Vec::new(),
            control_plane,
            network,
            plan,
            tools,
            record,
        };
        for node in &bed.plan {
            bed.kubernetes().apply(&node_object(node, bed.options.families))?;
        }
        bed.await_default_namespace()?;
        Ok(bed)
    }

    /// The API server makes the namespace `default` a moment after it is ready.
    fn await_default_namespace(&self) -> Result<()> {
        wait::until_ok("the namespace `default`", SETTLE, || {
            let found: Option<Value> = self.kubernetes().get("Namespace", "", "default")?;
            found.context("not there")
        })
        .map(drop)
    }

    /// Starts the programs under test, as the options say whose: one controller, and a programmer on each node.
    pub fn start_programs(&mut self) -> Result<()> {
        self.start_controller(&[])?;
        for number in 1..=self.options.nodes {
            self.start_programmer(number, &[])?;
        }
        Ok(())
    }

    /// Starts the controller, with more flags.
    pub fn start_controller(&mut self, extra: &[&str]) -> Result<()> {
        let make = self.options.controller;
        self.controller = Some(Controller::start(self.place(), &self.network.control_plane, make, extra)?);
        Ok(())
    }

    /// Starts the programmer of the n-th node, from 1, with more flags.
    pub fn start_programmer(&mut self, node: u8, extra: &[&str]) -> Result<()> {
        let plan = self.node(node)?;
        let started =
            Programmer::start(self.place(), self.node_netns(node)?, plan, self.options.programmer, extra)?;
        self.programmers.insert(node, started);
        Ok(())
    }

    /// Asks the controller to end and waits for that.
    pub fn stop_controller(&mut self) -> Result<()> {
        self.controller.take().context("no controller runs")?.stop()
    }

    /// Asks the programmer of the n-th node to end and waits for that.
    pub fn stop_programmer(&mut self, node: u8) -> Result<()> {
        self.programmers.remove(&node).context("no programmer runs there")?.stop()
    }

    /// Runs the programmer's `--cleanup` on the n-th node.
    pub fn clean_up(&self, node: u8) -> Result<String> {
        Programmer::clean_up(self.place(), self.node_netns(node)?, self.node(node)?, self.options.programmer)
    }

    /// The running controller.
    pub fn controller(&mut self) -> Result<&mut Controller> {
        self.controller.as_mut().context("no controller runs")
    }

    /// The running programmer of the n-th node.
    pub fn programmer(&mut self, node: u8) -> Result<&mut Programmer> {
        self.programmers.get_mut(&node).context("no programmer runs there")
    }

    /// Fails when one of the bed's programs, or one under test, has died.
    pub fn check(&mut self) -> Result<()> {
        self.control_plane.check()?;
        if let Some(controller) = &mut self.controller {
            controller.process().check()?;
        }
        self.programmers.values_mut().try_for_each(|programmer| programmer.process().check())
    }

    /// Starts any program anywhere, with an environment on top of this process' own.
    pub fn start_process(
        &self,
        from: From<'_>,
        name: &str,
        program: &Path,
        args: &[String],
        env: &[(&str, String)],
    ) -> Result<Process> {
        let namespace = self.client(from)?.namespace();
        Process::start(&self.record, namespace, &Start { name, program, args, env })
    }

    /// Client of the API server, with all rights.
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.control_plane.kubernetes
    }

    /// Runs kubectl on the control plane's host.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.program("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.record.dir()).args(args);
        self.network.control_plane.output(&mut command)
    }

    /// An identity's kubeconfig.
    pub fn kubeconfig_of(&self, identity: pki::Identity) -> PathBuf {
        self.control_plane.pki.kubeconfig(identity)
    }

    /// A kubeconfig with all rights, for use on the control plane's host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.pki.kubeconfig(pki::ADMIN)
    }

    /// The bed's folder under `/run/fairlead`.
    pub fn dir(&self) -> &Path {
        self.record.dir()
    }

    /// The genuine programs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// What the n-th node is made of, from 1.
    pub fn node(&self, number: u8) -> Result<&Node> {
        self.plan.iter().find(|node| node.number == number).with_context(|| format!("no node {number}"))
    }

    /// The namespace of the n-th node, from 1.
    pub fn node_netns(&self, number: u8) -> Result<&Arc<Netns>> {
        self.network.nodes.get(usize::from(number) - 1).with_context(|| format!("no node {number}"))
    }

    /// A client somewhere.
    pub fn client(&self, from: From<'_>) -> Result<Client<'_>> {
        Ok(Client::new(match from {
            From::Pod(name) => &self.pod(name)?.netns,
            From::Node(number) => self.node_netns(number)?,
            From::Outside => &self.network.outside,
            From::External(address) => {
                let found = self.externals.iter().find(|external| external.address == address);
                &found.with_context(|| format!("no server at {address}"))?.netns
            }
            From::ControlPlane => &self.network.control_plane,
        }))
    }

    /// A server outside the cluster, at an address that nodes and Pods have a route to.
    pub fn add_external(&mut self, address: Ipv4Addr, ports: &[u16]) -> Result<()> {
        let number = u8::try_from(self.externals.len())?;
        let netns = self.network.add_external(&self.record, number, address)?;
        let mut servers = Vec::new();
        for port in ports {
            let at = SocketAddr::new(address.into(), *port);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                servers.push(Server::start(&netns, &address.to_string(), protocol, at)?);
            }
        }
        self.externals.push(External { address, netns, servers });
        Ok(())
    }

    /// Applies the objects of an example, and makes the Pods of its Deployments, spread over the nodes.
    pub fn apply_example(&mut self, name: &str) -> Result<()> {
        for object in examples::objects(name)? {
            self.kubernetes().apply(&object)?;
            self.make_pods_of(&object)?;
        }
        Ok(())
    }

    /// Removes all Pods, Deployments, Services, Endpoints and EndpointSlices of the namespace `default` but the API
    /// server's own, and waits until they are gone.
    pub fn reset(&mut self) -> Result<()> {
        for (_, pod) in std::mem::take(&mut self.pods) {
            self.end_pod(&pod)?;
        }
        let kinds = ["Deployment", "Service", "Endpoints", "EndpointSlice", "Pod"];
        wait::until_ok("the namespace `default` to be empty", SETTLE, || {
            let mut left = Vec::new();
            for kind in kinds {
                for name in self.names(kind)? {
                    self.kubernetes().delete(kind, "default", &name, 0)?;
                    left.push(format!("{kind} {name}"));
                }
            }
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        // Nor do connections of one case meet those of the next.
        self.network
            .nodes
            .iter()
            .try_for_each(|node| node.output(Command::new("conntrack").arg("-F")).map(drop))
    }

    /// The names of the objects of a kind in the namespace `default`, without the API server's own.
    pub fn names(&self, kind: &str) -> Result<Vec<String>> {
        let objects: Vec<Value> = self.kubernetes().list(kind, "default", "")?;
        let names = objects.iter().filter_map(|object| object.pointer("/metadata/name")?.as_str());
        Ok(names.filter(|name| *name != "kubernetes").map(str::to_owned).collect())
    }

    /// The lines of the n-th node's `iptables-save --counters` that mention `word`.
    pub fn rules_about(&self, node: u8, word: &str) -> Result<Vec<String>> {
        let saved = self.node_netns(node)?.output(Command::new("iptables-save").arg("--counters"))?;
        Ok(saved.lines().filter(|line| line.contains(word)).map(str::to_owned).collect())
    }

    /// The rules of the n-th node by `table chain`, in order and without counters. Built-in chains without rules are
    /// left out: whether they are listed depends on whether anybody ever looked at their table. The rules of those that
    /// have some are sorted: which jump stands above which depends on who came last.
    pub fn rules(&self, node: u8) -> Result<BTreeMap<String, Vec<String>>> {
        let mut table = String::new();
        let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut own = BTreeSet::new();
        for line in self.rules_about(node, "")? {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            } else if let Some((_, rule)) = line.split_once("] -A ") {
                let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                chains.entry(format!("{table} {chain}")).or_default().push(rule.to_owned());
            } else if let Some((chain, _)) = line.split_once(" - [") {
                let chain = format!("{table} {}", chain.trim_start_matches(':'));
                own.insert(chain.clone());
                chains.entry(chain).or_default();
            }
        }
        for (_, rules) in chains.iter_mut().filter(|(chain, _)| !own.contains(*chain)) {
            rules.sort();
        }
        Ok(chains)
    }

    /// Fails when the rules of the n-th node are not these any more, and says which differ.
    pub fn check_rules(&self, node: u8, before: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let now = self.rules(node)?;
        let differ = now.keys().chain(before.keys()).filter(|chain| now.get(*chain) != before.get(*chain));
        let differ: BTreeSet<&String> = differ.collect();
        let show =
            |chain: &&String| format!("{chain}: was {:?}, is {:?}", before.get(*chain), now.get(*chain));
        ensure!(
            differ.is_empty(),
            "other rules:\n{}",
            differ.iter().map(show).collect::<Vec<_>>().join("\n")
        );
        Ok(())
    }

    /// The ends of the logs of the programs under test, and the last lines of the others.
    pub fn log_tails(&self) -> String {
        let logs = std::fs::read_dir(self.record.dir().join("logs")).into_iter().flatten().flatten();
        let mut logs: Vec<(usize, PathBuf)> = logs
            .map(|log| {
                let name = log.file_name();
                let cluster = ["etcd.log", "kube-apiserver.log", "kube-controller-manager.log"];
                (if cluster.iter().any(|quiet| name == *quiet) { 3 } else { 25 }, log.path())
            })
            .collect();
        logs.sort();
        logs.iter().map(|(lines, path)| processes::tail(path, *lines)).collect::<Vec<_>>().join("\n")
    }

    fn place(&self) -> Place<'_> {
        Place {
            record: &self.record,
            tools: &self.tools,
            pki: &self.control_plane.pki,
            families: self.options.families,
        }
    }
}

fn node_object(node: &Node, families: Families) -> Value {
    let networks = node.known_pod_networks(families);
    let addresses: Vec<Value> = node
        .addresses
        .known(families)
        .into_iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .chain([json!({"type": "Hostname", "address": node.name})])
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {
            "kubernetes.io/hostname": node.name,
            "topology.kubernetes.io/zone": format!("zone{}", node.number),
        }},
        "spec": {"podCIDR": networks.first(), "podCIDRs": networks},
        "status": {
            "addresses": addresses,
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "250"},
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "250"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Bed"}],
        },
    })
}
