//! Access: where the cluster is, by which proxy, and who is asking, as kubectl finds it.
//!
//! Nothing here talks to the network.

use std::{env, time::Duration};

use fairlead_daemon::{client, failure::chain};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::ClusterError;
use crate::args::Access;

/// How long connecting may take; somebody is waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take: a page of a list.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Set by the kubelet in every container.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// The file that is named; else $KUBECONFIG or ~/.kube/config; else the service account of the Pod that this runs in.
pub(super) async fn config(access: &Access) -> Result<Config, ClusterError> {
    let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
    let kubeconfig = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let found = match kubeconfig {
        Ok(kubeconfig) => client::configuration(kubeconfig, &options, None).await,
        Err(error) => Err(error),
    };
    let no_cluster = |error: &KubeconfigError| ClusterError::NoCluster { reason: chain(error) };
    let mut config = match found {
        Ok(config) => config,
        Err(_) if access.names_nothing() && env::var_os(IN_CLUSTER).is_some() => {
            Config::incluster().map_err(|error| ClusterError::NoCluster { reason: chain(&error) })?
        }
        Err(error) => return Err(no_cluster(&error)),
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // Else the time that a pooled connection sat idle would count, too.
    config.reset_reader_on_write = true;
    config.default_retry = false;
    Ok(config)
}
