//! etcd, the API server and a kube-controller-manager that leaves Services alone.
//!
//! Invariants: they listen inside the control plane's namespace only; their data is in the bed's folder. The three
//! endpoint controllers of kube-controller-manager are off, because that is what Fairlead replaces.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context, Result};

use crate::{
    kubernetes::Kubernetes,
    netns::Netns,
    pki::{self, Pki},
    plan::{self, Families},
    processes::{Process, Start},
    record::Record,
    tools::Tools,
    wait::{self, Look},
};

const START_DEADLINE: Duration = Duration::from_mins(1);

/// The controllers that a bed needs whatever it tests: deletion of namespaces, and of what a deleted owner leaves.
pub const BASE_CONTROLLERS: &str = "namespace-controller,garbage-collector-controller";

/// The controllers that Fairlead replaces.
pub const ENDPOINT_CONTROLLERS: &str =
    "endpoints-controller,endpointslice-controller,endpointslice-mirroring-controller";

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
        Self::start_storing(
            record,
            namespace,
            tools,
            families,
            controllers,
            "application/vnd.kubernetes.protobuf",
        )
    }

    /// As [`ControlPlane::start`]; the API server stores objects as `media_type`.
    pub fn start_storing(
        record: &Record,
        namespace: &Arc<Netns>,
        tools: &Tools,
        families: Families,
        controllers: &str,
        media_type: &str,
    ) -> Result<Self> {
        let etcd = start_etcd(record, namespace, tools)?;
        let addresses = plan::control_plane();
        let names = [[127, 0, 0, 1].into(), plan::KUBERNETES_SERVICE.into(), addresses.v6.into()];
        let pki = Pki::make(&record.dir().join("pki"), addresses.v4.into(), &names)?;
        let api_server = start_api_server(record, namespace, tools, families, &pki, media_type)?;
        let admin = fs::read_to_string(pki.kubeconfig(pki::ADMIN))?;
        let kubernetes = Kubernetes::connect(namespace, &admin)?;
        let mut running = [etcd, api_server];
        await_ready(&kubernetes, &mut running)?;
        let [etcd, api_server] = running;
        let controllers =
            start_controller_manager(record, namespace, tools, &pki, "kube-controller-manager", controllers)?;
        Ok(Self { kubernetes, pki, controllers, api_server, etcd })
    }

    /// Fails when one of its programs is no longer running.
    pub fn check(&mut self) -> Result<()> {
        self.controllers.check()?;
        self.api_server.check()?;
        self.etcd.check()
    }
}

fn start_etcd(record: &Record, namespace: &Netns, tools: &Tools) -> Result<Process> {
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

fn start_api_server(
    record: &Record,
    namespace: &Netns,
    tools: &Tools,
    families: Families,
    pki: &Pki,
    media_type: &str,
) -> Result<Process> {
    let file = |name: &str| pki.path(name).display().to_string();
    let args = flags(&[
        ("etcd-servers", "http://127.0.0.1:2379".into()),
        ("advertise-address", plan::control_plane().v4.to_string()),
        ("secure-port", "6443".into()),
        ("service-cluster-ip-range", plan::service_networks(families).into()),
        ("client-ca-file", file("ca.crt")),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("service-account-issuer", "https://kubernetes.default.svc".into()),
        ("service-account-key-file", file("service-accounts.pub")),
        ("service-account-signing-key-file", file("service-accounts.key")),
        ("storage-media-type", media_type.into()),
        ("authorization-mode", "Node,RBAC".into()),
        // No controller makes ServiceAccounts here, and no kubelet mounts their tokens.
        ("disable-admission-plugins", "ServiceAccount".into()),
    ]);
    let program = tools.program("kube-apiserver");
    Process::start(
        record,
        namespace,
        &Start { name: "kube-apiserver", program: &program, args: &args, env: &[] },
    )
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

fn await_ready(kubernetes: &Kubernetes, processes: &mut [Process]) -> Result<()> {
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
