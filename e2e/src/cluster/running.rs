//! A running cluster, whatever it is made of: what cases about it need to know and to do.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{READY, judge::Judged};
use crate::{kubernetes::Kubernetes, netns::Netns, probe, processes::PROXIES, wait};

/// Where somebody stands who asks a Service.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// On a host that knows the way to the nodes, and to nothing behind them.
    Outside,
    /// On this node's own host.
    Node(&'a str),
}

/// A cluster that is up.
pub trait Running: Judged {
    /// Client of the API server, with all rights.
    fn kubernetes(&self) -> &Kubernetes;

    /// The nodes' names, each with the address of its host.
    fn addresses(&self) -> Result<Vec<(String, IpAddr)>>;

    /// Asks for a page with HTTP, and gives its body.
    fn fetch(&self, from: Asker<'_>, address: SocketAddr, path: &str) -> Result<String>;

    /// What kubectl needs to ask this cluster.
    fn kubectl_environment(&self) -> [(&'static str, String); 2] {
        let court = self.court();
        let home = court.record.dir().display().to_string();
        [("KUBECONFIG", court.kubeconfig.display().to_string()), ("HOME", home)]
    }

    /// Runs kubectl with all rights.
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        let court = self.court();
        let mut command = Command::new(&court.kubectl);
        command.envs(self.kubectl_environment()).args(args);
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        court.host.output(&mut command)
    }

    /// Waits until a condition of an object is true.
    fn await_condition(&self, kind: &str, namespace: &str, name: &str, condition: &str) -> Result<()> {
        wait::until_ok(&format!("{kind} {name} to be {condition}"), READY, || {
            let found: Option<Value> = self.kubernetes().get(kind, namespace, name)?;
            let found = found.context("not there")?;
            let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is = conditions.iter().any(|it| it["type"] == condition && it["status"] == "True");
            ensure!(is, "{}", Value::from(conditions));
            Ok(())
        })
    }
}

/// One of whatever make.
pub type AnyCluster = dyn Running;

/// Asks for a page from inside a namespace.
pub(super) fn page(from: &Netns, address: SocketAddr, path: &str) -> Result<String> {
    let (status, body) = probe::http_get(from, address, path)?;
    ensure!(status == 200, "{status} {body}");
    Ok(body)
}
