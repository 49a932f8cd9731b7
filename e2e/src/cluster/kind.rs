//! A cluster of kind, on a Docker of its own in namespaces of this machine: with the chart installed and no kube-proxy, or
//! as kind makes it, with kube-proxy and all controllers.

mod machine;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    install::{self, NAMESPACE, RELEASE},
    judge::{Court, Judged},
    parts,
    running::{Asker, Running, page},
    say,
};
use crate::{chart::Helm, kubernetes::Kubernetes, programs::Make, tools::Tools};

use machine::Machine;

/// kind's name for the cluster, and ours for the image of its nodes.
const NAME: &str = "fairlead";
const IMAGE: &str = "fairlead/kind-node";
/// kind's names for its nodes.
pub(super) const CONTROL_PLANE: &str = "fairlead-control-plane";
/// See [`CONTROL_PLANE`].
pub(super) const WORKER: &str = "fairlead-worker";
/// The network that kind gives to Pods unless told otherwise.
const POD_NETWORK: &str = "10.244.0.0/16";
const READY: Duration = Duration::from_mins(3);

/// A running cluster.
#[derive(Debug)]
pub struct Kind {
    kubernetes: Kubernetes,
    nodes: Vec<String>,
    tools: Tools,
    machine: Machine,
    began: Instant,
}

impl Kind {
    /// Brings it up with these programs in charge of Services, and says what is done as it goes.
    pub fn start(make: Make) -> Result<Self> {
        let began = Instant::now();
        let tools = Tools::find()?;
        let machine = Machine::start()?;
        say(began, "dockerd");
        let (kubernetes, nodes) = create(&machine, make, began).with_context(|| machine.log_tails())?;
        let kind = Self { kubernetes, nodes, tools, machine, began };
        kind.set_up(make).with_context(|| kind.machine.log_tails())?;
        Ok(kind)
    }

    fn set_up(&self, make: Make) -> Result<()> {
        self.join_pods()?;
        for archive in install::archives()? {
            let archive = archive.display().to_string();
            self.machine.run("kind", &["load", "image-archive", &archive, "--name", NAME])?;
        }
        self.say("CNI plugins, images of the programs under test");
        if make == Make::Ours {
            self.install_chart()?;
            self.say("helm install");
        }
        // Tests want Pods on every node.
        self.kubectl(&["taint", "nodes", CONTROL_PLANE, "node-role.kubernetes.io/control-plane-"])?;
        self.await_rollout("deployment/coredns", "kube-system")?;
        self.say("CoreDNS");
        Ok(())
    }

    /// kind's own plugin comes as an image; a bridge of Debian's and a route to each other node do as well.
    fn join_pods(&self) -> Result<()> {
        for node in &self.nodes {
            let network = self.kubectl(&["get", "node", node, "--output=jsonpath={.spec.podCIDR}"])?;
            let config = format!(
                r#"{{"cniVersion": "0.4.0", "name": "ptp", "plugins": [{{"type": "ptp", "ipMasq": false, "mtu": 1500,
                "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{network}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
                {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
            );
            let write = format!("cat > /etc/cni/net.d/10-ptp.conflist <<'C'\n{config}\nC\n");
            self.on_node(node, &write)?;
            let via = self.address(node)?;
            for other in self.nodes.iter().filter(|other| *other != node) {
                self.on_node(other, &format!("ip route replace {network} via {via}"))?;
            }
        }
        self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"]).map(drop)
    }

    /// Runs lines of bash on a node.
    pub(super) fn on_node(&self, node: &str, lines: &str) -> Result<String> {
        self.machine.run("docker", &["exec", node, "bash", "-euo", "pipefail", "-c", lines])
    }

    fn address(&self, node: &str) -> Result<IpAddr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let found = self.machine.run("docker", &["inspect", "--format", format, node])?;
        found.trim().parse().with_context(|| format!("{node} has the address {found:?}"))
    }

    fn install_chart(&self) -> Result<()> {
        let settings = [
            format!("apiServer.host={}", self.address(CONTROL_PLANE)?),
            format!("programmer.config.clusterCIDR={POD_NETWORK}"),
            "programmer.config.conntrack.maxPerCore=0".to_owned(),
            "programmer.config.conntrack.min=0".to_owned(),
            "image.pullPolicy=Never".to_owned(),
        ];
        let chart = install::chart_folder()?;
        let args = ["install", RELEASE, &chart, "--namespace", NAMESPACE, "--set", &settings.join(",")];
        Helm::find()?.run_on(&self.machine.host, &kubeconfig(&self.machine), &args)?;
        self.await_rollout("daemonset/fairlead-programmer", NAMESPACE)?;
        self.await_rollout("deployment/fairlead-controller", NAMESPACE)
    }

    fn await_rollout(&self, what: &str, namespace: &str) -> Result<()> {
        self.kubectl(&["rollout", "status", what, "--namespace", namespace, "--timeout=180s"]).map(drop)
    }
}

fn kubeconfig(machine: &Machine) -> PathBuf {
    machine.record.dir().join("kind.kubeconfig")
}

/// A cluster whose nodes cannot reach each other's Pods yet.
fn create(machine: &Machine, make: Make, began: Instant) -> Result<(Kubernetes, Vec<String>)> {
    // Of a run that was killed.
    machine.run("kind", &["delete", "cluster", "--name", NAME])?;
    import_node_image(machine, began)?;
    let config = match make {
        Make::Ours => "kind/kind.yaml",
        Make::Genuine => "kind/genuine.yaml",
    };
    let config = parts::script(config).display().to_string();
    machine.run(
        "kind",
        &["create", "cluster", "--name", NAME, "--image", IMAGE, "--config", &config, "--wait", "0s"],
    )?;
    let access = machine.run("kind", &["get", "kubeconfig", "--name", NAME])?;
    fs::write(kubeconfig(machine), &access)?;
    let nodes = machine.run("kind", &["get", "nodes", "--name", NAME])?;
    let mut nodes: Vec<String> = nodes.lines().map(str::to_owned).collect();
    nodes.sort();
    say(began, "kind create cluster");
    Ok((Kubernetes::connect(&machine.host, &access)?, nodes))
}

/// Docker keeps it from run to run.
fn import_node_image(machine: &Machine, began: Instant) -> Result<()> {
    if machine.run("docker", &["image", "inspect", IMAGE]).is_ok() {
        return Ok(());
    }
    let root = machine.parts.kind()?.1.join("rootfs").display().to_string();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let import = format!(
        "tar -C {root} -c . | docker import --change 'ENTRYPOINT [\"/usr/local/bin/entrypoint\",\"/sbin/init\"]' \
         --change 'ENV container=docker' --change 'ENV {path}' - {IMAGE}"
    );
    machine.run("bash", &["-o", "pipefail", "-c", &import])?;
    say(began, "the image of its nodes");
    Ok(())
}

impl Judged for Kind {
    fn court(&self) -> Court<'_> {
        Court {
            record: &self.machine.record,
            host: &self.machine.host,
            kubeconfig: kubeconfig(&self.machine),
            kubectl: self.tools.program("kubectl"),
            parts: &self.machine.parts,
            nodes: 2,
        }
    }

    fn check(&mut self) -> Result<()> {
        self.machine.check()
    }

    fn say(&self, what: &str) {
        say(self.began, what);
    }
}

impl Running for Kind {
    fn kubernetes(&self) -> &Kubernetes {
        &self.kubernetes
    }

    fn addresses(&self) -> Result<Vec<(String, IpAddr)>> {
        self.nodes.iter().map(|node| Ok((node.clone(), self.address(node)?))).collect()
    }

    fn fetch(&self, from: Asker<'_>, address: SocketAddr, path: &str) -> Result<String> {
        match from {
            Asker::Outside => page(&self.machine.host, address, path),
            Asker::Node(node) => {
                self.on_node(node, &format!("curl --silent --fail --max-time 5 http://{address}{path}"))
            }
        }
    }
}
