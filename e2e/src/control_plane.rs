//! etcd, the API server and a kube-controller-manager that leaves Services alone.
//!
//! Invariants: they listen inside the control plane's namespace only; their data is in the bed's folder. The three
//! endpoint controllers of kube-controller-manager are off, because that is what Fairlead replaces.

use std::{fs, path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    kubernetes::Kubernetes,
    netns::Netns,
    pki::{self, Pki},
    plan::{self, Families},
    processes::{PROXIES, Process, Start},
    record::Record,
    service_accounts,
    tools::Tools,
    wait::{self, Look},
};

const START_DEADLINE: Duration = Duration::from_mins(1);

/// The controllers that a bed needs whatever it tests: deletion of namespaces, and of what a deleted owner leaves.
pub const BASE_CONTROLLERS: &str = "namespace-controller,garbage-collector-controller";

/// The controllers that Fairlead replaces.
pub const ENDPOINT_CONTROLLERS: &str =
    "endpoints-controller,endpointslice-controller,endpointslice-mirroring-controller";

/// How a control plane is made.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Families of the cluster.
    pub families: Families,
    /// The controllers that kube-controller-manager runs.
    pub controllers: &'a str,
    /// What the API server stores objects as.
    pub media_type: &'a str,
    /// Whether the API server notes who writes Endpoints, slices and leases ([`ControlPlane::audit_log`]).
    pub audited: bool,
}

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    /// Client of the API server, with all rights.
    pub kubernetes: Kubernetes,
    /// Keys and kubeconfigs.
    pub pki: Pki,
    // Stopped in this order: nobody gets to complain that the one before it went away.
    controllers: Process,
    api_server: Process,
    etcd: Process,
    api_server_args: Vec<String>,
    namespace: Arc<Netns>,
    tools: Tools,
    audit_log: PathBuf,
}

impl ControlPlane {
    /// Starts it; `controllers` is the list for kube-controller-manager.
    pub fn start(
        record: &Record,
        namespace: &Arc<Netns>,
        tools: &Tools,
        families: Families,
        controllers: &str,
    ) -> Result<Self> {
        let media_type = "application/vnd.kubernetes.protobuf";
        Self::start_as(record, namespace, tools, &Setup { families, controllers, media_type, audited: false })
    }

    /// As [`ControlPlane::start`], with all that can be chosen.
    pub fn start_as(
        record: &Record,
        namespace: &Arc<Netns>,
        tools: &Tools,
        setup: &Setup<'_>,
    ) -> Result<Self> {
        let etcd = start_etcd(record, namespace, tools)?;
        let addresses = plan::control_plane();
        let names = [[127, 0, 0, 1].into(), plan::KUBERNETES_SERVICE.into(), addresses.v6.into()];
        let pki = Pki::make(&record.dir().join("pki"), addresses.v4.into(), &names)?;
        let audit_log = record.dir().join("audit.log");
        let mut api_server_args = api_server_args(setup, &pki);
        if setup.audited {
            let policy = record.dir().join("audit-policy.json");
            fs::write(&policy, audit_policy().to_string())?;
            api_server_args.extend(flags(&[
                ("audit-policy-file", policy.display().to_string()),
                ("audit-log-path", audit_log.display().to_string()),
            ]));
        }
        let api_server = start_api_server(record, namespace, tools, &api_server_args)?;
        let admin = fs::read_to_string(pki.kubeconfig(pki::ADMIN))?;
        let kubernetes = Kubernetes::connect(namespace, &admin)?;
        let mut running = [etcd, api_server];
        await_ready(&kubernetes, &mut running)?;
        service_accounts::establish(&kubernetes, &pki)?;
        let [etcd, api_server] = running;
        let controllers = start_controller_manager(
            record,
            namespace,
            tools,
            &pki,
            "kube-controller-manager",
            setup.controllers,
        )?;
        let (namespace, tools) = (Arc::clone(namespace), tools.clone());
        Ok(Self {
            kubernetes,
            pki,
            controllers,
            api_server,
            etcd,
            api_server_args,
            namespace,
            tools,
            audit_log,
        })
    }

    /// Fails when one of its programs is no longer running.
    pub fn check(&mut self) -> Result<()> {
        self.controllers.check()?;
        self.api_server.check()?;
        self.etcd.check()
    }

    /// Kills the API server, as a crash would; then it is down.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.api_server.kill()
    }

    /// Starts the API server again, with `extra` flags until the next time, and waits until it is ready.
    pub fn restart_api_server(&mut self, record: &Record, extra: &[&str]) -> Result<()> {
        self.api_server.kill()?;
        let mut args = self.api_server_args.clone();
        args.extend(extra.iter().map(|flag| (*flag).to_owned()));
        self.api_server = start_api_server(record, &self.namespace, &self.tools, &args)?;
        await_ready(&self.kubernetes, std::slice::from_mut(&mut self.api_server))
    }

    /// etcd's process, to be paused.
    pub fn etcd(&self) -> &Process {
        &self.etcd
    }

    /// Makes etcd forget all versions but the newest, so that no watch can begin at an older one.
    pub fn compact(&self) -> Result<()> {
        let status = self.etcdctl(&["endpoint", "status", "--write-out=json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let revision = status[0]["Status"]["header"]["revision"].as_u64().context("no revision")?;
        self.etcdctl(&["compact", &revision.to_string()]).map(drop)
    }

    fn etcdctl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.program("etcdctl"));
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        self.namespace.output(command.arg("--endpoints=http://127.0.0.1:2379").args(args))
    }

    /// What the API server has noted, in order, if it was asked to ([`Setup::audited`]).
    pub fn audit_log(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.audit_log)?;
        // A crash can leave half a line.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

pub(crate) fn start_etcd(record: &Record, namespace: &Netns, tools: &Tools) -> Result<Process> {
    let args = flags(&[
        ("data-dir", record.dir().join("etcd").display().to_string()),
        ("listen-client-urls", "http://127.0.0.1:2379".into()),
        ("advertise-client-urls", "http://127.0.0.1:2379".into()),
        ("listen-peer-urls", "http://127.0.0.1:2380".into()),
        ("unsafe-no-fsync", "true".into()),
        ("log-level", "warn".into()),
    ]);
    let program = tools.program("etcd");
    Process::start(record, namespace, &Start { name: "etcd", program: &program, args: &args, env: &[] })
}

fn api_server_args(setup: &Setup<'_>, pki: &Pki) -> Vec<String> {
    let file = |name: &str| pki.path(name).display().to_string();
    flags(&[
        ("etcd-servers", "http://127.0.0.1:2379".into()),
        ("advertise-address", plan::control_plane().v4.to_string()),
        ("secure-port", "6443".into()),
        ("service-cluster-ip-range", plan::service_networks(setup.families).into()),
        ("client-ca-file", file("ca.crt")),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("service-account-issuer", "https://kubernetes.default.svc".into()),
        ("service-account-key-file", file("service-accounts.pub")),
        ("service-account-signing-key-file", file("service-accounts.key")),
        ("storage-media-type", setup.media_type.into()),
        ("authorization-mode", "Node,RBAC".into()),
        // As in real clusters: the programmer's init container is privileged.
        ("allow-privileged", "true".into()),
        // Whoever makes others wait for what they own needs the right to; ours do.
        ("enable-admission-plugins", "OwnerReferencesPermissionEnforcement".into()),
        // No controller makes ServiceAccounts here, and no kubelet mounts their tokens.
        ("disable-admission-plugins", "ServiceAccount".into()),
    ])
}

fn start_api_server(record: &Record, namespace: &Netns, tools: &Tools, args: &[String]) -> Result<Process> {
    let program = tools.program("kube-apiserver");
    Process::start(record, namespace, &Start { name: "kube-apiserver", program: &program, args, env: &[] })
}

/// Notes who writes what endpoint controllers write, once each request is answered.
fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "omitManagedFields": true,
        "rules": [{
            "level": "Metadata",
            "verbs": ["create", "update", "patch", "delete"],
            "resources": [
                {"group": "", "resources": ["endpoints"]},
                {"group": "discovery.k8s.io", "resources": ["endpointslices"]},
            ],
        }, {
            // With what is written: who holds it.
            "level": "Request",
            "verbs": ["create", "update"],
            "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}],
        }, {"level": "None"}],
    })
}

/// Starts a kube-controller-manager with these controllers only. A second one on the same host takes another port.
pub fn start_controller_manager(
    record: &Record,
    namespace: &Netns,
    tools: &Tools,
    pki: &Pki,
    name: &str,
    controllers: &str,
) -> Result<Process> {
    let kubeconfig = pki.kubeconfig(pki::ADMIN).display().to_string();
    let args = flags(&[
        ("kubeconfig", kubeconfig.clone()),
        ("controllers", controllers.into()),
        ("leader-elect", "false".into()),
        ("secure-port", "0".into()),
    ]);
    let program = tools.program("kube-controller-manager");
    Process::start(record, namespace, &Start { name, program: &program, args: &args, env: &[] })
}

pub(crate) fn await_ready(kubernetes: &Kubernetes, processes: &mut [Process]) -> Result<()> {
    wait::until("the API server to be ready", START_DEADLINE, || {
        for process in processes.iter_mut() {
            process.check()?;
        }
        Ok(match kubernetes.check_ready() {
            Ok(()) => Look::Done(()),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
    .with_context(|| processes.iter().map(|process| process.log_tail(20)).collect::<Vec<_>>().join("\n"))
}

/// `--name=value` for each.
pub fn flags(flags: &[(&str, String)]) -> Vec<String> {
    flags.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}
