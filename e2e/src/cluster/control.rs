//! The control plane of a cluster of real kubelets: as a bed's, with what kubelets, ServiceAccounts and Deployments need
//! beside it, and a scheduler.
//!
//! Invariant: kube-controller-manager runs all its controllers but the three that Fairlead replaces.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::Result;

use super::parts::Parts;
use crate::{
    control_plane::{self, ENDPOINT_CONTROLLERS, flags},
    kubernetes::Kubernetes,
    netns::Netns,
    pki::{self, Pki},
    plan::{self, Families, Node},
    processes::{Process, Start},
    record::Record,
    tools::Tools,
};

/// A running control plane.
#[derive(Debug)]
pub(super) struct Control {
    /// Client of the API server, with all rights.
    pub(super) kubernetes: Kubernetes,
    /// Keys and kubeconfigs.
    pub(super) pki: Pki,
    families: Families,
    // In the order in which they are stopped.
    scheduler: Process,
    manager: Process,
    api_server: Process,
    etcd: Process,
}

/// Who asks kubelets for logs and to run commands.
const KUBELET_CLIENT: &str = "kubelet-client";

impl Control {
    /// Starts it, and waits until the API server is ready.
    pub(super) fn start(
        record: &Record,
        namespace: &Arc<Netns>,
        tools: &Tools,
        parts: &Parts,
        nodes: &[Node],
        families: Families,
    ) -> Result<Self> {
        let etcd = control_plane::start_etcd(record, namespace, tools)?;
        let pki = keys(record, nodes)?;
        let run = |name: &str, program: PathBuf, args: &[String]| {
            Process::start(record, namespace, &Start { name, program: &program, args, env: &[] })
        };
        let api_server =
            run("kube-apiserver", tools.program("kube-apiserver"), &api_server_args(&pki, families))?;
        let admin = std::fs::read_to_string(pki.kubeconfig(pki::ADMIN))?;
        let kubernetes = Kubernetes::connect(namespace, &admin)?;
        let mut running = [etcd, api_server];
        control_plane::await_ready(&kubernetes, &mut running)?;
        let [etcd, api_server] = running;
        let manager = run(
            "kube-controller-manager",
            tools.program("kube-controller-manager"),
            &controller_manager_args(&pki),
        )?;
        let scheduler = run("kube-scheduler", parts.program("kube-scheduler"), &scheduler_args(&pki))?;
        Ok(Self { kubernetes, pki, families, scheduler, manager, api_server, etcd })
    }

    /// Fails when one of its programs is no longer running.
    pub(super) fn check(&mut self) -> Result<()> {
        let all = [&mut self.scheduler, &mut self.manager, &mut self.api_server, &mut self.etcd];
        all.into_iter().try_for_each(Process::check)
    }

    /// Kills the API server, as a crash would, starts it again, and waits until it is ready.
    pub(super) fn restart_api_server(
        &mut self,
        record: &Record,
        namespace: &Netns,
        tools: &Tools,
    ) -> Result<()> {
        self.api_server.kill()?;
        let (program, args) = (tools.program("kube-apiserver"), api_server_args(&self.pki, self.families));
        let start = Start { name: "kube-apiserver", program: &program, args: &args, env: &[] };
        self.api_server = Process::start(record, namespace, &start)?;
        control_plane::await_ready(&self.kubernetes, std::slice::from_mut(&mut self.api_server))
    }
}

fn keys(record: &Record, nodes: &[Node]) -> Result<Pki> {
    let server = plan::control_plane();
    let names = [[127, 0, 0, 1].into(), plan::KUBERNETES_SERVICE.into(), server.v6.into()];
    let pki = Pki::make(&record.dir().join("pki"), server.v4.into(), &names)?;
    pki.add_certificate(KUBELET_CLIENT, KUBELET_CLIENT, Some("system:masters"), &[])?;
    for node in nodes {
        let user = format!("system:node:{}", node.name);
        let own: [IpAddr; 2] = [node.addresses.v4.into(), node.addresses.v6.into()];
        pki.add_certificate(&node.name, &user, Some("system:nodes"), &own)?;
    }
    Ok(pki)
}

fn api_server_args(pki: &Pki, families: Families) -> Vec<String> {
    let file = |name: &str| pki.path(name).display().to_string();
    flags(&[
        ("etcd-servers", "http://127.0.0.1:2379".into()),
        ("advertise-address", plan::control_plane().v4.to_string()),
        ("secure-port", "6443".into()),
        ("service-cluster-ip-range", plan::service_networks(families).into()),
        ("client-ca-file", file("ca.crt")),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("kubelet-certificate-authority", file("ca.crt")),
        ("kubelet-client-certificate", file(&format!("{KUBELET_CLIENT}.crt"))),
        ("kubelet-client-key", file(&format!("{KUBELET_CLIENT}.key"))),
        ("kubelet-preferred-address-types", "InternalIP".into()),
        ("service-account-issuer", "https://kubernetes.default.svc".into()),
        ("service-account-key-file", file("service-accounts.pub")),
        ("service-account-signing-key-file", file("service-accounts.key")),
        ("authorization-mode", "Node,RBAC".into()),
        ("enable-admission-plugins", "NodeRestriction,OwnerReferencesPermissionEnforcement".into()),
        ("allow-privileged", "true".into()),
    ])
}

fn controller_manager_args(pki: &Pki) -> Vec<String> {
    let switched_off = ENDPOINT_CONTROLLERS.replace(',', ",-");
    flags(&[
        ("kubeconfig", pki.kubeconfig(pki::CONTROLLER_MANAGER).display().to_string()),
        ("controllers", format!("*,-{switched_off}")),
        ("service-account-private-key-file", pki.path("service-accounts.key").display().to_string()),
        ("root-ca-file", pki.path("ca.crt").display().to_string()),
        ("use-service-account-credentials", "true".into()),
        ("leader-elect", "false".into()),
        ("allocate-node-cidrs", "false".into()),
        // Sooner than by default: tests wait for it.
        ("node-monitor-grace-period", "20s".into()),
        ("secure-port", "0".into()),
    ])
}

fn scheduler_args(pki: &Pki) -> Vec<String> {
    flags(&[
        ("kubeconfig", pki.kubeconfig(pki::SCHEDULER).display().to_string()),
        ("leader-elect", "false".into()),
        ("secure-port", "0".into()),
    ])
}
