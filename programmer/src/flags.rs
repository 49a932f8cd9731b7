//! The command line: kube-proxy's flags.
//!
//! Flags become the same [`KubeProxyConfiguration`] that a file is read into, so both are checked by one validation, and
//! one run reports every problem. Flags of kube-proxy that do not apply here are accepted with a warning by name, so that
//! an existing command line works; others are unknown.

use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, Args, parser::ValueSource};
use fairlead_objects::{
    KubeProxyConfiguration,
    proxy_configuration::{Conntrack, DetectLocal, Iptables},
};

use crate::netfilter::Variant;

/// Settings of the node agent.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node agent")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, as kube-proxy has them")]
pub struct Flags {
    /// Read the settings from this file, a KubeProxyConfiguration, as kube-proxy does. Then other flags of kube-proxy
    /// have no effect, except for --hostname-override, --master, --cleanup, --init-only and --write-config-to.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the effective configuration to this file, then exit.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Only set what needs more rights than programming (conntrack limits, route_localnet), then exit.
    #[arg(long)]
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
    /// Where /metrics, /proxyMode and /healthz ("ok") are served. Default 127.0.0.1:10249, or [::1]:10249 if
    /// --bind-address is an IPv6 address.
    #[arg(long, value_name = "IP:PORT")]
    metrics_bind_address: Option<String>,
    /// End the process if one of these addresses is taken. Otherwise binding is retried every 5 s.
    #[arg(long, action = ArgAction::Set, default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
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
          default_missing_value = "true", value_name = "BOOL")]
    masquerade_all: bool,
    /// Serve node ports on 127.0.0.1, too (IPv4 only).
    #[arg(long, action = ArgAction::Set, default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
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
    #[arg(long, value_name = "CIDR,...", default_value = "")]
    nodeport_addresses: String,
    /// Only iptables is implemented; ipvs and nftables are accepted with a warning and run iptables.
    #[arg(long, value_name = "MODE", default_value = "iptables")]
    proxy_mode: String,
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
          default_missing_value = "true", value_name = "BOOL")]
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
    #[arg(long)]
    pub cleanup: bool,
    /// Print the effective configuration as a KubeProxyConfiguration, then exit.
    #[arg(long)]
    pub dump_config: bool,
}

/// Flags of kube-proxy that do not apply: about other modes, other ways to talk to the API server, its own internals.
#[derive(Args, Clone, Debug)]
pub struct InapplicableFlags {
    #[arg(long, hide = true)]
    boot_id_file: Option<String>,
    #[arg(long, hide = true)]
    config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    feature_gates: Option<String>,
    #[arg(long, hide = true)]
    healthz_port: Option<String>,
    #[arg(long, hide = true)]
    ipvs_exclude_cidrs: Option<String>,
    #[arg(long, hide = true)]
    ipvs_min_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_scheduler: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipvs_strict_arp: Option<String>,
    #[arg(long, hide = true)]
    ipvs_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcp_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcpfin_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_udp_timeout: Option<String>,
    #[arg(long, hide = true)]
    kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    log_json_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_json_split_stream: Option<String>,
    #[arg(long, hide = true)]
    log_text_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_text_split_stream: Option<String>,
    #[arg(long, hide = true)]
    logging_format: Option<String>,
    #[arg(long, hide = true)]
    machine_id_file: Option<String>,
    #[arg(long, hide = true)]
    metrics_port: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profiling: Option<String>,
    #[arg(long, hide = true)]
    show_hidden_metrics_for_version: Option<String>,
    #[arg(short, long, hide = true)]
    v: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
}

/// Their names.
const INAPPLICABLE: &[&str] = &[
    "boot_id_file",
    "config_sync_period",
    "feature_gates",
    "healthz_port",
    "ipvs_exclude_cidrs",
    "ipvs_min_sync_period",
    "ipvs_scheduler",
    "ipvs_strict_arp",
    "ipvs_sync_period",
    "ipvs_tcp_timeout",
    "ipvs_tcpfin_timeout",
    "ipvs_udp_timeout",
    "kube_api_content_type",
    "log_flush_frequency",
    "log_json_info_buffer_size",
    "log_json_split_stream",
    "log_text_info_buffer_size",
    "log_text_split_stream",
    "logging_format",
    "machine_id_file",
    "metrics_port",
    "profiling",
    "show_hidden_metrics_for_version",
    "v",
    "vmodule",
];

/// Flags that have an effect together with `--config`. All flags of kube-proxy but these have none then.
const WITH_CONFIG: &[&str] = &[
    "config",
    "hostname_override",
    "master",
    "cleanup",
    "init_only",
    "write_config_to",
    "iptables_variant",
    "dump_config",
    "log_level",
    "log_format",
];

/// Which flags were given, of those that have no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WithoutEffect {
    /// Because they do not apply here at all.
    pub inapplicable: Vec<String>,
    /// Because `--config` is given.
    pub overridden: Vec<String>,
}

impl WithoutEffect {
    /// Finds them in what was given.
    pub fn of(matches: &ArgMatches) -> Self {
        let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let ids: Vec<&str> = matches.ids().map(clap::Id::as_str).filter(given).collect();
        let flag = |id: &&str| format!("--{}", id.replace('_', "-"));
        let (inapplicable, others): (Vec<_>, Vec<_>) =
            ids.iter().copied().partition(|id| INAPPLICABLE.contains(id));
        let mut overridden: Vec<String> = Vec::new();
        if matches.value_source("config").is_some() {
            // Groups of flags have ids, too, in CamelCase.
            let of_kube_proxy =
                |id: &&&str| !WITH_CONFIG.contains(*id) && !id.starts_with(char::is_uppercase);
            overridden = others.iter().filter(of_kube_proxy).map(flag).collect();
        }
        Self { inapplicable: inapplicable.iter().map(flag).collect(), overridden }
    }
}

impl Flags {
    /// What the flags say, in the shape of a configuration file.
    pub fn configuration(&self) -> KubeProxyConfiguration {
        let text = |text: &String| Some(text.clone());
        let networks = self.nodeport_addresses.split(',').map(|network| network.trim().to_owned());
        KubeProxyConfiguration {
            bind_address: text(&self.bind_address),
            bind_address_hard_fail: Some(self.bind_address_hard_fail),
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
            healthz_bind_address: self.healthz_bind_address.clone(),
            iptables: Iptables {
                localhost_node_ports: Some(self.iptables_localhost_nodeports),
                masquerade_all: Some(self.masquerade_all),
                masquerade_bit: Some(self.iptables_masquerade_bit),
                min_sync_period: text(&self.iptables_min_sync_period),
                sync_period: text(&self.iptables_sync_period),
            },
            metrics_bind_address: self.metrics_bind_address.clone(),
            mode: text(&self.proxy_mode),
            node_port_addresses: Some(networks.filter(|network| !network.is_empty()).collect()),
            oom_score_adj: Some(self.oom_score_adj),
            ..KubeProxyConfiguration::default()
        }
    }

    /// `--hostname-override`, unless it is empty.
    pub fn host_name(&self) -> Option<&str> {
        Some(self.hostname_override.as_str()).filter(|name| !name.trim().is_empty())
    }

    /// The forced variant of iptables.
    pub fn variant(&self) -> Option<Variant> {
        self.iptables_variant
    }
}

#[cfg(test)]
mod tests;
