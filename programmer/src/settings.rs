//! The settings after validation, and how they are printed by `--dump-config`.
//!
//! Invariant: a [`Settings`] is consistent; nothing that is checked here is checked again later.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use serde::Serialize;

use fairlead_daemon::duration::GoDuration;

use crate::netfilter::Variant;

/// How packets of local Pods are told from others (kube-proxy's `detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source network, one per family; empty: not at all.
    ClusterCidr(Vec<IpNet>),
    /// By the Pod networks of our Node.
    NodeCidr,
    /// By the bridge they come from.
    Bridge(String),
    /// By the beginning of the name of the interface they come from.
    Prefix(String),
}

/// On which of the node's addresses node ports are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those within these networks; empty: all.
    Networks(Vec<IpNet>),
    /// The addresses by which the cluster knows the Node.
    Primary,
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of our Node; the host's name if not given.
    pub node_name: String,
    /// Overrides the Node's address of its family, unless it is the unspecified address.
    pub bind_address: IpAddr,
    /// Where health is served; `None`: nowhere.
    pub health_address: Option<SocketAddr>,
    /// Where metrics are served.
    pub metrics_address: SocketAddr,
    /// End the process if an address cannot be bound.
    pub hard_fail: bool,
    /// How often the rules are checked for an outside flush; half the time after which a waiting change is unhealthy.
    pub sync_period: Duration,
    /// Least time between syncs; zero is adaptive.
    pub min_sync_period: Duration,
    /// Number of the bit in the packet mark that asks for masquerading.
    pub masquerade_bit: u8,
    /// Masquerade everything that goes to cluster IPs.
    pub masquerade_all: bool,
    /// Serve node ports on 127.0.0.1.
    pub localhost_node_ports: bool,
    /// How Pods are recognised.
    pub detect_local: DetectLocal,
    /// Where node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Variant of iptables, if forced.
    pub variant: Option<Variant>,
}

impl Settings {
    /// The settings in the shape of a `KubeProxyConfiguration`, as JSON (which is YAML, too).
    pub fn dump(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&Dump::from(self))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    api_version: &'static str,
    kind: &'static str,
    hostname_override: String,
    bind_address: String,
    bind_address_hard_fail: bool,
    healthz_bind_address: String,
    metrics_bind_address: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    detect_local_mode: &'static str,
    detect_local: DumpDetectLocal,
    iptables: DumpIptables,
    mode: &'static str,
    node_port_addresses: Vec<String>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct DumpDetectLocal {
    bridge_interface: String,
    interface_name_prefix: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DumpIptables {
    localhost_node_ports: bool,
    masquerade_all: bool,
    masquerade_bit: u8,
    min_sync_period: String,
    sync_period: String,
}

impl From<&Settings> for Dump {
    fn from(settings: &Settings) -> Self {
        let mut cluster_cidr = String::new();
        let mut detect_local = DumpDetectLocal::default();
        let detect_local_mode = match &settings.detect_local {
            DetectLocal::ClusterCidr(networks) => {
                cluster_cidr = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                "ClusterCIDR"
            }
            DetectLocal::NodeCidr => "NodeCIDR",
            DetectLocal::Bridge(name) => {
                detect_local.bridge_interface.clone_from(name);
                "BridgeInterface"
            }
            DetectLocal::Prefix(prefix) => {
                detect_local.interface_name_prefix.clone_from(prefix);
                "InterfaceNamePrefix"
            }
        };
        Self {
            api_version: "kubeproxy.config.k8s.io/v1alpha1",
            kind: "KubeProxyConfiguration",
            hostname_override: settings.node_name.clone(),
            bind_address: settings.bind_address.to_string(),
            bind_address_hard_fail: settings.hard_fail,
            healthz_bind_address: settings
                .health_address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            metrics_bind_address: settings.metrics_address.to_string(),
            cluster_cidr,
            detect_local_mode,
            detect_local,
            iptables: DumpIptables {
                localhost_node_ports: settings.localhost_node_ports,
                masquerade_all: settings.masquerade_all,
                masquerade_bit: settings.masquerade_bit,
                min_sync_period: GoDuration(settings.min_sync_period).to_string(),
                sync_period: GoDuration(settings.sync_period).to_string(),
            },
            mode: "iptables",
            node_port_addresses: match &settings.node_port_addresses {
                NodePortAddresses::Primary => vec!["primary".to_owned()],
                NodePortAddresses::Networks(networks) => networks.iter().map(ToString::to_string).collect(),
            },
        }
    }
}

/// Settings for tests of other modules.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Defaults, for a node called `node-a`.
    pub(crate) fn settings() -> Settings {
        Settings {
            node_name: "node-a".to_owned(),
            bind_address: IpAddr::from([0, 0, 0, 0]),
            health_address: None,
            metrics_address: SocketAddr::from(([127, 0, 0, 1], 0)),
            hard_fail: false,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            masquerade_bit: 14,
            masquerade_all: false,
            localhost_node_ports: true,
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::Networks(Vec::new()),
            variant: None,
        }
    }
}
