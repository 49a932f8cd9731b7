//! The bed: a cluster in network namespaces, and everything a test does with it.
//!
//! Invariants: dropping a bed removes all of it. The bed plays the parts that a real cluster has beside the programs
//! under test: scheduler, kubelet and the Deployment controller.

mod client;
mod pods;
mod rules;
mod tracing;
mod traffic;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    control_plane::{BASE_CONTROLLERS, ControlPlane, Setup},
    examples,
    kubernetes::Kubernetes,
    netns::Netns,
    network::Network,
    pki,
    plan::{Families, Node},
    pod::{self, Pod},
    processes::{self, Process, Start},
    programs::{Controller, Make, Place, Programmer, Variant},
    record::Record,
    servers::{Protocol, Server},
    tools::Tools,
    wait,
};

pub use client::{Client, Connection};
pub use tracing::Agreement;
use tracing::Tracer;

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
    /// The nodes' iptables.
    pub variant: Variant,
    /// Whether etcd holds objects as JSON, for people to read, and not as protocol buffers.
    pub readable_storage: bool,
    /// Whether the API server notes who writes Endpoints, slices and leases.
    pub audited: bool,
}

impl Options {
    /// Two nodes, IPv4. `FAIRLEAD_CONTROLLER=genuine` and `FAIRLEAD_PROGRAMMER=genuine` replace one of our programs by
    /// the one it stands in for, `FAIRLEAD_IPTABLES=legacy` gives the nodes the older iptables.
    pub fn from_env() -> Result<Self> {
        Ok(Self {
            nodes: 2,
            families: Families::V4,
            controllers: BASE_CONTROLLERS.to_owned(),
            controller: Make::from_env("FAIRLEAD_CONTROLLER")?,
            programmer: Make::from_env("FAIRLEAD_PROGRAMMER")?,
            variant: Variant::from_env()?,
            readable_storage: false,
            audited: false,
        })
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From<'a> {
    /// In a Pod, by its name or `namespace/name`.
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
    ports: Vec<u16>,
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
    outside_routes: BTreeMap<IpAddr, u8>,
    tracer: Tracer,
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
        let json = if options.readable_storage { "json" } else { "vnd.kubernetes.protobuf" };
        let setup = Setup {
            families: options.families,
            controllers: &options.controllers,
            media_type: &format!("application/{json}"),
            audited: options.audited,
        };
        let control_plane = ControlPlane::start_as(&record, &network.control_plane, &tools, &setup)
            .context("starting the control plane")?;
        let bed = Self {
            options,
            controller: None,
            programmers: BTreeMap::new(),
            pods: BTreeMap::new(),
            last_addresses: BTreeMap::new(),
            externals: Vec::new(),
            outside_routes: BTreeMap::new(),
            tracer: Tracer::default(),
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

    /// Starts somebody's programmer on the n-th node, from 1, and does not wait for it.
    pub fn launch_programmer(&self, node: u8, make: Make, extra: &[&str]) -> Result<Process> {
        Programmer::launch(self.place(), self.node_netns(node)?, self.node(node)?, make, extra)
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
        let namespace = self.namespace(from)?;
        Process::start(&self.record, namespace, &Start { name, program, args, env })
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// Kills the API server, as a crash would; then it is down.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.control_plane.kill_api_server()
    }

    /// Starts the API server again, with `extra` flags until the next time, and waits until it is ready.
    pub fn restart_api_server(&mut self, extra: &[&str]) -> Result<()> {
        self.control_plane.restart_api_server(&self.record, extra)
    }

    /// Client of the API server, with all rights.
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.control_plane.kubernetes
    }

    /// Runs kubectl on the control plane's host.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_from(From::ControlPlane, args)
    }

    /// Runs kubectl anywhere, with all rights. It asks the control plane's host unless `args` name another `--server`.
    pub fn kubectl_from(&self, from: From<'_>, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.program("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.record.dir()).args(args);
        for proxy in processes::PROXIES {
            command.env_remove(proxy);
        }
        self.namespace(from)?.output(&mut command)
    }

    /// Writes the addresses of a load balancer into a Service's status.
    pub fn set_ingress(&self, service: &str, ips: &[IpAddr]) -> Result<()> {
        let (namespace, name) = pod::split(service);
        let ingress: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"loadBalancer": {"ingress": ingress}});
        self.kubernetes().merge_status("Service", namespace, name, status).map(drop)
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

    /// Where a program's output goes.
    pub fn log(&self, program: &str) -> PathBuf {
        self.record.log(program)
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

    /// The namespace that a client is in.
    pub fn namespace(&self, from: From<'_>) -> Result<&Arc<Netns>> {
        Ok(match from {
            From::Pod(name) => &self.pod(name)?.netns,
            From::Node(number) => self.node_netns(number)?,
            From::Outside => &self.network.outside,
            From::External(address) => {
                let found = self.externals.iter().find(|external| external.address == address);
                &found.with_context(|| format!("no server at {address}"))?.netns
            }
            From::ControlPlane => &self.network.control_plane,
        })
    }

    /// Gives the client outside a route: packets for `address` go to the n-th node, as those of a load balancer do.
    /// It goes with [`Bed::reset`].
    pub fn route_outside(&mut self, address: IpAddr, node: u8) -> Result<()> {
        let via = self.node(node)?.addresses;
        let (via, length): (IpAddr, u8) =
            if address.is_ipv4() { (via.v4.into(), 32) } else { (via.v6.into(), 128) };
        self.network.outside.ip(&format!("route replace {address}/{length} via {via}\n"))?;
        self.outside_routes.insert(address, node);
        Ok(())
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
        self.externals.push(External { address, ports: ports.to_vec(), netns, servers });
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

    /// Removes all Pods, Deployments, Services, Endpoints and EndpointSlices but the API server's own, and waits until
    /// they are gone. Namespaces stay.
    pub fn reset(&mut self) -> Result<()> {
        for (_, pod) in std::mem::take(&mut self.pods) {
            self.end_pod(&pod)?;
        }
        let kinds = ["Deployment", "Service", "Endpoints", "EndpointSlice", "Pod"];
        wait::until_ok("the namespaces to be empty", SETTLE, || {
            let mut left = Vec::new();
            for kind in kinds {
                for (namespace, name) in self.named(kind, "")? {
                    self.kubernetes().delete(kind, &namespace, &name, 0)?;
                    left.push(format!("{kind} {namespace}/{name}"));
                }
            }
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        for (address, _) in std::mem::take(&mut self.outside_routes) {
            self.network.outside.ip(&format!("route del {address}\n"))?;
        }
        // Nor do connections of one case meet those of the next.
        for node in &self.network.nodes {
            for family in ["ipv4", "ipv6"] {
                node.output(Command::new("conntrack").args(["-F", "-f", family]))?;
            }
        }
        self.tracer.forget();
        Ok(())
    }

    /// The names of the objects of a kind in the namespace `default`, without the API server's own.
    pub fn names(&self, kind: &str) -> Result<Vec<String>> {
        Ok(self.named(kind, "default")?.into_iter().map(|(_, name)| name).collect())
    }

    /// Namespaces and names of the objects of a kind, without the API server's own.
    fn named(&self, kind: &str, namespace: &str) -> Result<Vec<(String, String)>> {
        let objects: Vec<Value> = self.kubernetes().list(kind, namespace, "")?;
        let text = |object: &Value, field: &str| Some(object["metadata"][field].as_str()?.to_owned());
        let names =
            objects.iter().filter_map(|object| Some((text(object, "namespace")?, text(object, "name")?)));
        Ok(names.filter(|(namespace, name)| (&**namespace, &**name) != ("default", "kubernetes")).collect())
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
            variant: self.options.variant,
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
