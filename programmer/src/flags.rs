//! The command line: kube-proxy's flags.
//!
//! Flags become the same [`KubeProxyConfiguration`] that a file is read into, so both are checked by one validation, and
//! one run reports every problem. Flags of kube-proxy that do not apply here are accepted with a warning by name, so that
//! an existing command line works; others are unknown.

mod effect;
mod values;

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};
use fairlead_daemon::{client::ClientFlags, duration::GoDuration};
use fairlead_objects::{
    KubeProxyConfiguration,
    proxy_configuration::{ClientConnection, Conntrack, DetectLocal, Iptables, Ipvs, Logging},
};

use self::values::{boolean, gates, with_port};
pub use self::{
    effect::{InapplicableFlags, WithoutEffect, all, arguments},
    values::Gates,
};
use crate::netfilter::Variant;

/// Settings of the node agent.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node agent")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, as kube-proxy has them")]
pub struct Flags {
    /// Read the settings from this file, a KubeProxyConfiguration, as kube-proxy does. Then other flags of kube-proxy
    /// have no effect, except for --hostname-override, --master, --cleanup, --init-only, --write-config-to, -v and
    /// --logging-format.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the effective configuration to this file, then exit.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Only set what needs more rights than programming (conntrack limits, route_localnet), then exit.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    pub init_only: bool,
    /// Name of the Node we run on; the host's name if empty.
    #[arg(long, value_name = "NAME", default_value = "")]
    hostname_override: String,
    /// Replaces the Node's IP address of the same family. No socket is bound to it.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    bind_address: String,
    /// Where /healthz, /livez and /readyz are served; empty disables them. Default 0.0.0.0:10256, or [::]:10256 if
    /// --bind-address is an IPv6 address.
    #[arg(long, value_name = "IP:PORT")]
    healthz_bind_address: Option<String>,
    /// Where /metrics, /metrics/slis, /configz, /flagz, /statusz, /proxyMode and /healthz ("ok") are served; empty
    /// disables them. Default 127.0.0.1:10249, or [::1]:10249 if --bind-address is an IPv6 address.
    #[arg(long, value_name = "IP:PORT")]
    metrics_bind_address: Option<String>,
    /// End the process if one of these addresses is taken. Otherwise binding is retried four times a second.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    bind_address_hard_fail: bool,
    /// How often to check that no other program flushed our rules; health also reports changes that wait for more
    /// than twice this time.
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    iptables_sync_period: String,
    /// Least time between two changes of the rules. 0 is adaptive: the first change is programmed at once, and changes
    /// that arrive meanwhile are programmed together as soon as it is done.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    iptables_min_sync_period: String,
    /// Bit of the packet mark that asks for masquerading, 0 to 31.
    #[arg(long, value_name = "BIT", default_value = "14")]
    iptables_masquerade_bit: i64,
    /// Masquerade all traffic to cluster IPs.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    masquerade_all: bool,
    /// Serve node ports on 127.0.0.1, too (IPv4 only).
    #[arg(long, action = ArgAction::Set, default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    iptables_localhost_nodeports: bool,
    /// Network of the Pods, or a pair of networks of both families: in mode ClusterCIDR, packets from there are local.
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "")]
    cluster_cidr: String,
    /// How packets of local Pods are recognised: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR")]
    detect_local_mode: String,
    /// In mode BridgeInterface: packets from this bridge are local.
    #[arg(long, value_name = "NAME", default_value = "")]
    pod_bridge_interface: String,
    /// In mode InterfaceNamePrefix: packets from interfaces whose names begin so are local.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pod_interface_name_prefix: String,
    /// Networks whose addresses on this node serve node ports, or the word primary for the Node's own addresses;
    /// empty: all addresses.
    #[arg(long, value_name = "CIDR,...", action = ArgAction::Append, value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// Only iptables is implemented; ipvs and nftables are accepted with a warning and run iptables.
    #[arg(long, value_name = "MODE", default_value = "iptables")]
    proxy_mode: String,
    /// In mode ipvs: as --iptables-sync-period, which then has no effect.
    #[arg(long, value_name = "DURATION", hide = true)]
    ipvs_sync_period: Option<String>,
    /// In mode ipvs: as --iptables-min-sync-period, which then has no effect.
    #[arg(long, value_name = "DURATION", hide = true)]
    ipvs_min_sync_period: Option<String>,
    /// ComponentFlagz=false and ComponentStatusz=false switch off /flagz and /statusz; other gates have no effect.
    #[arg(long, value_name = "NAME=BOOL,...", default_value = "", value_parser = gates)]
    feature_gates: Gates,
    /// Verbosity of the log in kube-proxy's scale: from 4 on debug, from 6 on trace. --log-level wins.
    #[arg(short, long, value_name = "NUMBER")]
    v: Option<i64>,
    /// Format of the log, text or json, in kube-proxy's words. --log-format wins.
    #[arg(long, value_name = "FORMAT")]
    logging_format: Option<String>,
    /// Deprecated: 0 is --healthz-bind-address=""; otherwise the port of an address without one.
    #[arg(long, value_name = "PORT", hide = true)]
    healthz_port: Option<u16>,
    /// Deprecated: 0 is --metrics-bind-address=""; otherwise the port of an address without one.
    #[arg(long, value_name = "PORT", hide = true)]
    metrics_port: Option<u16>,
    /// Connections that conntrack may track, per CPU; 0 leaves the kernel's limit as it is.
    #[arg(long, value_name = "NUMBER", default_value = "32768")]
    conntrack_max_per_core: i64,
    /// Connections that conntrack may track at least, whatever the number of CPUs.
    #[arg(long, value_name = "NUMBER", default_value = "131072")]
    conntrack_min: i64,
    /// How long conntrack remembers idle TCP connections; 0 leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    conntrack_tcp_timeout_established: String,
    /// How long conntrack remembers TCP connections in CLOSE_WAIT; 0 leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    conntrack_tcp_timeout_close_wait: String,
    /// Let conntrack accept TCP packets outside the window; then packets that it calls invalid are not dropped.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    conntrack_tcp_be_liberal: bool,
    /// How long conntrack remembers UDP flows without an answer; 0 leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    conntrack_udp_timeout: String,
    /// How long conntrack remembers UDP flows with answers; 0 leaves it as it is.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    conntrack_udp_timeout_stream: String,
    /// How reluctant the kernel is to kill this process when memory runs out, from -1000 to 1000.
    #[arg(long, value_name = "NUMBER", default_value = "-999", allow_negative_numbers = true)]
    oom_score_adj: i64,
    /// Write to this variant of iptables instead of the one that the rest of the node uses.
    #[arg(long, value_name = "VARIANT")]
    iptables_variant: Option<Variant>,
    /// Remove all of our rules (and kube-proxy's), then exit.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    pub cleanup: bool,
    /// Print the effective configuration as a KubeProxyConfiguration, then exit.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL", value_parser = boolean)]
    pub dump_config: bool,
    /// Program nothing. Run beside the proxy that is in charge of this node, compare what becomes of packets under its rules
    /// and under those that this program would write, and report where they differ (in the log, in metrics and at
    /// /debug/divergence of the metrics server). Ports 10256 and 10249 are that proxy's: health and metrics are served on
    /// 10356 and 10349 in their place.
    #[arg(long, help_heading = "Shadow", conflicts_with_all = ["cleanup", "init_only"], action = ArgAction::Set,
          default_value = "false", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", value_parser = boolean)]
    shadow: bool,
    /// With --shadow: report a difference when it has stood for so long. The other proxy needs time after each change.
    #[arg(long, value_name = "DURATION", default_value = "10s", help_heading = "Shadow")]
    shadow_grace: GoDuration,
}

impl Flags {
    /// What the flags say, in the shape of a configuration file.
    pub fn configuration(&self, client: &ClientFlags) -> KubeProxyConfiguration {
        let text = |text: &String| Some(text.clone());
        let networks = self.nodeport_addresses.iter().map(|network| network.trim().to_owned());
        KubeProxyConfiguration {
            bind_address: text(&self.bind_address),
            bind_address_hard_fail: Some(self.bind_address_hard_fail),
            client_connection: ClientConnection {
                burst: Some(client.kube_api_burst.into()),
                kubeconfig: client.kubeconfig.as_ref().map(|path| path.to_string_lossy().into_owned()),
                qps: Some(client.kube_api_qps),
                ..ClientConnection::default()
            },
            cluster_cidr: text(&self.cluster_cidr),
            conntrack: Conntrack {
                max_per_core: Some(self.conntrack_max_per_core),
                min: Some(self.conntrack_min),
                tcp_be_liberal: Some(self.conntrack_tcp_be_liberal),
                tcp_close_wait_timeout: text(&self.conntrack_tcp_timeout_close_wait),
                tcp_established_timeout: text(&self.conntrack_tcp_timeout_established),
                udp_stream_timeout: text(&self.conntrack_udp_timeout_stream),
                udp_timeout: text(&self.conntrack_udp_timeout),
            },
            detect_local: DetectLocal {
                bridge_interface: text(&self.pod_bridge_interface),
                interface_name_prefix: text(&self.pod_interface_name_prefix),
            },
            detect_local_mode: text(&self.detect_local_mode),
            feature_gates: Some(self.feature_gates.0.clone()).filter(|gates| !gates.is_empty()),
            healthz_bind_address: with_port(self.healthz_bind_address.as_deref(), self.healthz_port),
            iptables: Iptables {
                localhost_node_ports: Some(self.iptables_localhost_nodeports),
                masquerade_all: Some(self.masquerade_all),
                masquerade_bit: Some(self.iptables_masquerade_bit),
                min_sync_period: text(&self.iptables_min_sync_period),
                sync_period: text(&self.iptables_sync_period),
            },
            ipvs: Ipvs {
                min_sync_period: self.ipvs_min_sync_period.clone(),
                sync_period: self.ipvs_sync_period.clone(),
                ..Ipvs::default()
            },
            logging: self.logging(Logging::default()),
            metrics_bind_address: with_port(self.metrics_bind_address.as_deref(), self.metrics_port),
            mode: text(&self.proxy_mode),
            node_port_addresses: Some(networks.filter(|network| !network.is_empty()).collect()),
            oom_score_adj: Some(self.oom_score_adj),
            ..KubeProxyConfiguration::default()
        }
    }

    /// `configured`, with what flags say instead. They win over a file, too, as in kube-proxy.
    pub fn logging(&self, configured: Logging) -> Logging {
        Logging {
            format: self.logging_format.clone().or(configured.format),
            verbosity: self.v.or(configured.verbosity),
            ..configured
        }
    }

    /// `--hostname-override`, unless it is empty.
    pub fn host_name(&self) -> Option<&str> {
        Some(self.hostname_override.as_str()).filter(|name| !name.trim().is_empty())
    }

    /// How long a difference must stand to be reported, if we are to be a shadow.
    pub(crate) fn shadow_grace(&self) -> Option<Duration> {
        self.shadow.then_some(self.shadow_grace.0)
    }

    /// The forced variant of iptables.
    pub fn variant(&self) -> Option<Variant> {
        self.iptables_variant
    }
}

#[cfg(test)]
mod tests;
