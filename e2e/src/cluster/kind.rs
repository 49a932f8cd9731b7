//! A cluster of kind, on a Docker of its own in namespaces of this machine, with the chart installed and no kube-proxy.
//!
//! Invariant: as for [`super::Cluster`], dropping it removes all of it; only Docker's images stay, outside the clone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    cgroups,
    install::{self, NAMESPACE, RELEASE},
    judge::{Court, Judged},
    node::UNSHARE,
    parts::{self, Parts},
    say,
};
use crate::{
    chart::Helm,
    netns::Netns,
    processes::{self, Process, Start},
    record::Record,
    tools::Tools,
    wait,
};

/// kind's name for the cluster, and ours for the image of its nodes.
const NAME: &str = "fairlead";
const IMAGE: &str = "fairlead/kind-node";
/// The network that kind gives to Pods unless told otherwise.
const POD_NETWORK: &str = "10.244.0.0/16";
const READY: Duration = Duration::from_mins(3);

/// Settings of the whole machine that kubelet changes in a node of kind, where nothing can be in front of them.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// A running cluster.
#[derive(Debug)]
pub struct Kind {
    machine: Process,
    folder: PathBuf,
    host: Arc<Netns>,
    tools: Tools,
    parts: Parts,
    record: Record,
    began: Instant,
}

impl Kind {
    /// Brings it up, with the chart installed, and says what is done as it goes.
    pub fn start() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let began = Instant::now();
        let (tools, parts) = (Tools::find()?, Parts::find()?);
        let record = Record::open()?;
        let host = Arc::new(Netns::create(&record, "docker")?);
        let (machine, folder) = start_machine(&record, &parts, &host)?;
        let mut kind = Self { machine, folder, host, tools, parts, record, began };
        let brought_up = kind.bring_up();
        brought_up.with_context(|| kind.log_tails())?;
        Ok(kind)
    }

    fn bring_up(&mut self) -> Result<()> {
        wait::until("dockerd to answer", READY, || {
            self.machine.check()?;
            Ok(match self.run("docker", &["version"]) {
                Ok(_) => wait::Look::Done(()),
                Err(error) => wait::Look::NotYet(format!("{error:#}")),
            })
        })?;
        // Of a run that was killed.
        self.run("kind", &["delete", "cluster", "--name", NAME])?;
        self.say("dockerd");
        self.import_node_image()?;
        let config = parts::script("kind/kind.yaml").display().to_string();
        self.run(
            "kind",
            &["create", "cluster", "--name", NAME, "--image", IMAGE, "--config", &config, "--wait", "0s"],
        )?;
        fs::write(self.kubeconfig(), self.run("kind", &["get", "kubeconfig", "--name", NAME])?)?;
        self.say("kind create cluster");
        self.join_pods()?;
        for archive in install::archives()? {
            let archive = archive.display().to_string();
            self.run("kind", &["load", "image-archive", &archive, "--name", NAME])?;
        }
        self.say("CNI plugins, images of the programs under test");
        self.install_chart()?;
        self.say("helm install");
        // Tests want Pods on every node.
        self.kubectl(&["taint", "nodes", &Self::first(), "node-role.kubernetes.io/control-plane-"])?;
        self.kubectl(&[
            "rollout",
            "status",
            "deployment/coredns",
            "--namespace",
            "kube-system",
            "--timeout=180s",
        ])?;
        self.say("CoreDNS");
        Ok(())
    }

    /// Docker keeps it from run to run.
    fn import_node_image(&self) -> Result<()> {
        if self.run("docker", &["image", "inspect", IMAGE]).is_ok() {
            return Ok(());
        }
        let root = self.parts.kind()?.1.join("rootfs").display().to_string();
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let import = format!(
            "tar -C {root} -c . | docker import --change 'ENTRYPOINT [\"/usr/local/bin/entrypoint\",\"/sbin/init\"]' \
             --change 'ENV container=docker' --change 'ENV {path}' - {IMAGE}"
        );
        self.run("bash", &["-c", &import])?;
        self.say("the image of its nodes");
        Ok(())
    }

    /// kind's own plugin comes as an image; a bridge of Debian's and a route to each other node do as well.
    fn join_pods(&self) -> Result<()> {
        let nodes = self.nodes()?;
        for node in &nodes {
            let network = self.kubectl(&["get", "node", node, "--output=jsonpath={.spec.podCIDR}"])?;
            let config = format!(
                r#"{{"cniVersion": "0.4.0", "name": "ptp", "plugins": [{{"type": "ptp", "ipMasq": false, "mtu": 1500,
                "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{network}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
                {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
            );
            let write = format!("cat > /etc/cni/net.d/10-ptp.conflist <<'C'\n{config}\nC\n");
            self.run("docker", &["exec", node, "sh", "-c", &write])?;
            let via = self.address(node)?;
            for other in nodes.iter().filter(|other| *other != node) {
                self.run("docker", &["exec", other, "ip", "route", "replace", &network, "via", &via])?;
            }
        }
        self.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s"]).map(drop)
    }

    fn nodes(&self) -> Result<Vec<String>> {
        let mut nodes: Vec<String> =
            self.run("kind", &["get", "nodes", "--name", NAME])?.lines().map(str::to_owned).collect();
        nodes.sort();
        Ok(nodes)
    }

    /// The node with the control plane.
    fn first() -> String {
        format!("{NAME}-control-plane")
    }

    fn address(&self, node: &str) -> Result<String> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        Ok(self.run("docker", &["inspect", "--format", format, node])?.trim().to_owned())
    }

    fn install_chart(&self) -> Result<()> {
        let settings = [
            format!("apiServer.host={}", self.address(&Self::first())?),
            format!("programmer.config.clusterCIDR={POD_NETWORK}"),
            "programmer.config.conntrack.maxPerCore=0".to_owned(),
            "programmer.config.conntrack.min=0".to_owned(),
            "image.pullPolicy=Never".to_owned(),
        ];
        let chart = install::chart_folder()?;
        let args = ["install", RELEASE, &chart, "--namespace", NAMESPACE, "--set", &settings.join(",")];
        Helm::find()?.run_on(&self.host, &self.kubeconfig(), &args)?;
        for what in ["daemonset/fairlead-programmer", "deployment/fairlead-controller"] {
            self.kubectl(&["rollout", "status", what, "--namespace", NAMESPACE, "--timeout=180s"])?;
        }
        Ok(())
    }

    fn kubeconfig(&self) -> PathBuf {
        self.record.dir().join("kind.kubeconfig")
    }

    /// Runs kubectl with all rights.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.program("kubectl"));
        command.env("KUBECONFIG", self.kubeconfig()).args(args);
        for proxy in processes::PROXIES {
            command.env_remove(proxy);
        }
        self.host.output(&mut command)
    }

    /// Runs a program on Docker's machine.
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let (kind, built) = self.parts.kind()?;
        let docker = built.join("docker/usr");
        let path =
            [docker.join("bin"), kind.with_file_name(""), std::env::var("PATH").unwrap_or_default().into()];
        let path = path.map(|folder| folder.display().to_string()).join(":");
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.machine.first_child()?.to_string(),
                "--mount",
                "--pid",
                "--uts",
                "--ipc",
                "--",
                program,
            ])
            .args(args)
            .env("PATH", path)
            .env("DOCKER_HOST", "unix:///run/docker.sock")
            .env("HOME", "/run");
        for proxy in processes::PROXIES {
            command.env_remove(proxy);
        }
        self.host.output(&mut command)
    }

    fn log_tails(&self) -> String {
        let docker = processes::tail(&self.folder.join("dockerd.log"), 20);
        format!("{}\n{docker}", self.machine.log_tail(10))
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        // What is left of it would be started again with dockerd.
        drop(self.run("kind", &["delete", "cluster", "--name", NAME]));
    }
}

fn start_machine(record: &Record, parts: &Parts, host: &Netns) -> Result<(Process, PathBuf)> {
    let built = parts.kind()?.1;
    let cgroups = cgroups::make(record, &["daemons".to_owned(), "containers".to_owned()])?;
    SETTINGS.iter().try_for_each(|setting| record.note_setting(&Path::new("/proc/sys").join(setting)))?;
    // On a disk: overlays of overlays, or of what is in memory, have their limits.
    let folder = parts.scratch().join(&cgroups);
    record.note_folder(&folder)?;
    fs::create_dir_all(&folder)?;
    let path = |path: &Path| path.display().to_string();
    let mut args: Vec<String> = UNSHARE.split(' ').map(str::to_owned).collect();
    args.extend([
        path(&parts::script("kind/machine.sh")),
        path(&folder),
        cgroups,
        path(&built.join("docker-data")),
        path(&built.join("docker")),
        path(parts.node()),
    ]);
    let unshare = PathBuf::from("unshare");
    let start = Start { name: "docker", program: &unshare, args: &args, env: &[] };
    Ok((Process::start(record, host, &start)?, folder))
}

impl Judged for Kind {
    fn court(&self) -> Court<'_> {
        Court {
            record: &self.record,
            host: &self.host,
            kubeconfig: self.kubeconfig(),
            kubectl: self.tools.program("kubectl"),
            parts: &self.parts,
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
