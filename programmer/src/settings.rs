//! The settings after validation, and how they look as a configuration (`--dump-config`, `/configz`).
//!
//! Invariant: a [`Settings`] is consistent; nothing that is checked here is checked again later.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use fairlead_daemon::duration::GoDuration;
use fairlead_objects::{KubeProxyConfiguration, proxy_configuration::Iptables};
use ipnet::IpNet;

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

/// Limits and timeouts of the kernel's connection tracking; what is `None` or 0 is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConntrackSettings {
    /// Connections per CPU; 0 leaves the kernel's limit as it is.
    pub max_per_core: u32,
    /// Connections whatever the number of CPUs.
    pub min: u32,
    /// Of idle TCP connections.
    pub tcp_established: Option<Duration>,
    /// Of TCP connections in CLOSE_WAIT.
    pub tcp_close_wait: Option<Duration>,
    /// Of UDP flows without an answer.
    pub udp: Option<Duration>,
    /// Of UDP flows with answers.
    pub udp_stream: Option<Duration>,
    /// Accept TCP packets outside the window.
    pub tcp_be_liberal: bool,
}

/// What is logged, in kube-proxy's terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// Objects for machines instead of text for people.
    pub json: bool,
    /// How much: 0 is what everybody should know, 4 what a developer wants, 6 is everything.
    pub verbosity: u32,
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of our Node; the host's name if not given.
    pub node_name: String,
    /// Overrides the Node's address of its family, unless it is the unspecified address.
    pub bind_address: IpAddr,
    /// Where health is served; `None`: nowhere.
    pub health_address: Option<SocketAddr>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics_address: Option<SocketAddr>,
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
    /// What to set of connection tracking.
    pub conntrack: ConntrackSettings,
    /// How reluctant the kernel is to kill us.
    pub oom_score_adj: i16,
    /// The proxy mode that was asked for, if it is not the one that will run.
    pub unavailable_mode: Option<&'static str>,
    /// File with the address and credentials of the API server, if the configuration names one.
    pub kubeconfig: Option<PathBuf>,
    /// Requests per second that are written on average, not limited if not positive; and how many at once.
    pub api_rate: (f64, u32),
    /// What is logged, unless flags of our own say otherwise.
    pub log: LogSettings,
    /// Variant of iptables, if forced.
    pub variant: Option<Variant>,
}

impl Settings {
    /// The configuration in force: `configuration`, from which the settings were made, with defaults filled in and
    /// every value as it is used.
    pub fn effective(&self, configuration: &KubeProxyConfiguration) -> KubeProxyConfiguration {
        let mut effective = configuration.clone().with_defaults();
        let duration = |duration| Some(go_text(duration));
        effective.bind_address = Some(self.bind_address.to_string());
        effective.healthz_bind_address =
            Some(self.health_address.map(|address| address.to_string()).unwrap_or_default());
        effective.metrics_bind_address =
            Some(self.metrics_address.map(|address| address.to_string()).unwrap_or_default());
        (effective.client_connection.qps, effective.client_connection.burst) =
            (Some(self.api_rate.0), Some(self.api_rate.1.into()));
        effective.hostname_override = Some(self.node_name.clone());
        effective.mode = Some("iptables".to_owned());
        effective.iptables = Iptables {
            localhost_node_ports: Some(self.localhost_node_ports),
            masquerade_all: Some(self.masquerade_all),
            masquerade_bit: Some(self.masquerade_bit.into()),
            min_sync_period: duration(self.min_sync_period),
            sync_period: duration(self.sync_period),
        };
        let conntrack = &self.conntrack;
        let timeout = |timeout: Option<Duration>| duration(timeout.unwrap_or_default());
        effective.conntrack.tcp_established_timeout = timeout(conntrack.tcp_established);
        effective.conntrack.tcp_close_wait_timeout = timeout(conntrack.tcp_close_wait);
        effective.conntrack.udp_timeout = timeout(conntrack.udp);
        effective.conntrack.udp_stream_timeout = timeout(conntrack.udp_stream);
        effective
    }
}

/// As Go prints durations: with minutes and seconds even where they are 0.
fn go_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        _ if duration.subsec_nanos() != 0 => GoDuration(duration).to_string(),
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
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
            metrics_address: None,
            hard_fail: false,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            masquerade_bit: 14,
            masquerade_all: false,
            localhost_node_ports: true,
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::Networks(Vec::new()),
            conntrack: ConntrackSettings::default(),
            oom_score_adj: 0,
            unavailable_mode: None,
            kubeconfig: None,
            api_rate: (5.0, 10),
            log: LogSettings::default(),
            variant: None,
        }
    }
}
