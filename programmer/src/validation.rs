//! From a configuration, read from flags or from a file, to settings; or to everything that is wrong with it.
//!
//! Invariant: a problem names the flag or the field, whichever the user wrote, the value, and what was expected.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use fairlead_daemon::duration::GoDuration;
use fairlead_objects::{
    Family, KubeProxyConfiguration, parse_network,
    proxy_configuration::{ClientConnection, Conntrack, Logging},
};
use ipnet::IpNet;

use crate::{
    netfilter::Variant,
    settings::{ConntrackSettings, DetectLocal, LogSettings, NodePortAddresses, Settings},
};

const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];

/// Where a configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From flags. Empty text is a value, and 0 is no duration.
    Flags,
    /// From this file. Empty text and 0 mean the default, as in every file of kube-proxy.
    File(PathBuf),
}

/// What is known besides the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host<'a> {
    /// The host's name.
    pub name: &'a str,
    /// The name that a flag gives it, which wins over the file.
    pub override_name: Option<&'a str>,
    /// The forced variant of iptables.
    pub variant: Option<Variant>,
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    place: String,
    value: String,
    expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}: expected {}", self.place, self.value, self.expected)
    }
}

/// The same setting as field of a file and as flag.
const FLAGS: &[(&str, &str)] = &[
    ("bindAddress", "bind-address"),
    ("clientConnection.burst", "kube-api-burst"),
    ("clientConnection.qps", "kube-api-qps"),
    ("clusterCIDR", "cluster-cidr"),
    ("conntrack.maxPerCore", "conntrack-max-per-core"),
    ("conntrack.min", "conntrack-min"),
    ("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait"),
    ("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established"),
    ("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream"),
    ("conntrack.udpTimeout", "conntrack-udp-timeout"),
    ("detectLocal.bridgeInterface", "pod-bridge-interface"),
    ("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix"),
    ("detectLocalMode", "detect-local-mode"),
    ("healthzBindAddress", "healthz-bind-address"),
    ("hostnameOverride", "hostname-override"),
    ("iptables.masqueradeBit", "iptables-masquerade-bit"),
    ("iptables.minSyncPeriod", "iptables-min-sync-period"),
    ("iptables.syncPeriod", "iptables-sync-period"),
    ("ipvs.minSyncPeriod", "ipvs-min-sync-period"),
    ("ipvs.syncPeriod", "ipvs-sync-period"),
    ("logging.format", "logging-format"),
    ("logging.verbosity", "v"),
    ("metricsBindAddress", "metrics-bind-address"),
    ("mode", "proxy-mode"),
    ("nftables.minSyncPeriod", "iptables-min-sync-period"),
    ("nftables.syncPeriod", "iptables-sync-period"),
    ("nodePortAddresses", "nodeport-addresses"),
    ("oomScoreAdj", "oom-score-adj"),
];

/// The settings, or everything that is wrong with them.
pub fn settings(
    configuration: &KubeProxyConfiguration,
    source: &Source,
    host: Host<'_>,
) -> Result<Settings, Vec<Problem>> {
    let mut check = Check { source, problems: Vec::new() };
    let settings = check.settings(configuration, host);
    if check.problems.is_empty() { Ok(settings) } else { Err(check.problems) }
}

/// Collects problems, so that checking goes on after the first.
struct Check<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
}

/// Settings that each mode has in a block of its own.
struct ModeBlock<'a> {
    name: &'static str,
    masquerade_all: Option<bool>,
    masquerade_bit: Option<i64>,
    sync_period: Option<&'a str>,
    min_sync_period: Option<&'a str>,
}

/// A configuration for another mode keeps its meaning where there is a counterpart.
fn mode_block(configuration: &KubeProxyConfiguration) -> ModeBlock<'_> {
    let iptables = &configuration.iptables;
    let block = ModeBlock {
        name: "iptables",
        masquerade_all: iptables.masquerade_all,
        masquerade_bit: iptables.masquerade_bit,
        sync_period: iptables.sync_period.as_deref(),
        min_sync_period: iptables.min_sync_period.as_deref(),
    };
    match configuration.mode.as_deref() {
        Some("nftables") => {
            let nftables = &configuration.nftables;
            ModeBlock {
                name: "nftables",
                masquerade_all: nftables.masquerade_all.or(block.masquerade_all),
                masquerade_bit: nftables.masquerade_bit.or(block.masquerade_bit),
                sync_period: nftables.sync_period.as_deref().or(block.sync_period),
                min_sync_period: nftables.min_sync_period.as_deref().or(block.min_sync_period),
            }
        }
        Some("ipvs") => ModeBlock {
            name: "ipvs",
            sync_period: configuration.ipvs.sync_period.as_deref().or(block.sync_period),
            min_sync_period: configuration.ipvs.min_sync_period.as_deref().or(block.min_sync_period),
            ..block
        },
        _ => block,
    }
}

fn kubeconfig(configured: &ClientConnection) -> Option<PathBuf> {
    configured.kubeconfig.clone().filter(|path| !path.is_empty()).map(PathBuf::from)
}

impl Check<'_> {
    fn settings(&mut self, configuration: &KubeProxyConfiguration, host: Host<'_>) -> Settings {
        let block = mode_block(configuration);
        let bind_address = self.bind_address(configuration.bind_address.as_deref());
        let (sync_period, min_sync_period) = self.periods(&block);
        let mode = configuration.mode.as_deref().filter(|mode| !mode.is_empty()).unwrap_or("iptables");
        if !MODES.contains(&mode) {
            self.fail("mode", mode, "iptables");
        }
        Settings {
            node_name: self.node_name(configuration.hostname_override.as_deref(), host),
            bind_address,
            health_address: self.health_address(configuration.healthz_bind_address.as_deref(), bind_address),
            metrics_address: self
                .metrics_address(configuration.metrics_bind_address.as_deref(), bind_address),
            hard_fail: configuration.bind_address_hard_fail.unwrap_or(false),
            sync_period,
            min_sync_period,
            masquerade_bit: self.masquerade_bit(block.masquerade_bit),
            masquerade_all: block.masquerade_all.unwrap_or(false),
            localhost_node_ports: configuration.iptables.localhost_node_ports.unwrap_or(true),
            detect_local: self.detect_local(configuration),
            node_port_addresses: self.node_port_addresses(configuration.node_port_addresses.as_deref()),
            conntrack: self.conntrack(&configuration.conntrack),
            oom_score_adj: self.oom_score_adj(configuration.oom_score_adj),
            unavailable_mode: MODES.into_iter().find(|known| *known == mode && *known != "iptables"),
            kubeconfig: kubeconfig(&configuration.client_connection),
            api_rate: self.api_rate(&configuration.client_connection),
            log: self.log(&configuration.logging),
            variant: host.variant,
        }
    }

    fn fail(&mut self, field: &str, value: impl fmt::Display, expected: impl Into<String>) {
        let place = match self.source {
            Source::Flags => {
                let flag = FLAGS.iter().find(|(of, _)| *of == field).map_or(field, |(_, flag)| flag);
                format!("--{flag}")
            }
            Source::File(path) => format!("{}: {field}", path.display()),
        };
        self.problems.push(Problem { place, value: value.to_string(), expected: expected.into() });
    }

    fn parse<T: FromStr>(&mut self, field: &str, value: &str, expected: &str) -> Option<T> {
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.fail(field, value, expected);
        }
        parsed
    }

    fn duration(&mut self, field: &str, value: &str) -> Duration {
        let parsed = self.parse(field, value, "a duration such as 30s, 1m30s or 500ms");
        parsed.map_or(Duration::ZERO, |GoDuration(duration)| duration)
    }

    /// An address with a port, or an address alone, which gets `port`.
    fn socket(&mut self, field: &str, value: &str, port: u16) -> Option<SocketAddr> {
        let alone = || Some(SocketAddr::new(value.parse().ok()?, port));
        let address = value.parse::<SocketAddr>().ok().or_else(alone).filter(|address| address.port() != 0);
        if address.is_none() {
            self.fail(field, value, "an IP address, with a port from 1 to 65535 or without");
        }
        address
    }

    fn networks(&mut self, field: &str, texts: &[&str]) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in texts {
            match parse_network(text) {
                Ok(network) => networks.push(network),
                Err(_) => self.fail(field, text, "a network such as 10.0.0.0/8"),
            }
        }
        networks
    }

    fn bind_address(&mut self, text: Option<&str>) -> IpAddr {
        let given = text.filter(|text| !text.is_empty());
        let parsed = given.and_then(|text| self.parse("bindAddress", text, "an IP address"));
        parsed.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    /// As kube-proxy: the flag, the file, or the host's name, in lower case, without space around it.
    fn node_name(&mut self, configured: Option<&str>, host: Host<'_>) -> String {
        let given =
            [host.override_name, configured].into_iter().flatten().find(|name| !name.trim().is_empty());
        let name = given.unwrap_or(host.name).trim().to_lowercase();
        if name.is_empty() {
            self.fail("hostnameOverride", "", "the name of a Node, because this host has no name");
        }
        name
    }

    fn health_address(&mut self, value: Option<&str>, bind_address: IpAddr) -> Option<SocketAddr> {
        let everywhere = match bind_address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        match value {
            Some("") if *self.source == Source::Flags => None,
            None | Some("") => Some(SocketAddr::new(everywhere, HEALTH_PORT)),
            Some(value) => self.socket("healthzBindAddress", value, HEALTH_PORT),
        }
    }

    fn metrics_address(&mut self, value: Option<&str>, bind_address: IpAddr) -> Option<SocketAddr> {
        let here = match bind_address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        match value {
            Some("") if *self.source == Source::Flags => None,
            None | Some("") => Some(SocketAddr::new(here, METRICS_PORT)),
            Some(value) => self.socket("metricsBindAddress", value, METRICS_PORT),
        }
    }

    /// In a file 0 means the default; as a flag, no limit.
    fn api_rate(&mut self, configured: &ClientConnection) -> (f64, u32) {
        let file = *self.source != Source::Flags;
        let qps = configured.qps.filter(|qps| !file || *qps != 0.0).unwrap_or(5.0);
        let burst = configured.burst.filter(|burst| !file || *burst != 0).unwrap_or(10);
        let valid = u32::try_from(burst).ok();
        if valid.is_none() {
            self.fail("clientConnection.burst", burst, "a number from 0");
        }
        (qps, valid.unwrap_or_default())
    }

    fn log(&mut self, configured: &Logging) -> LogSettings {
        let format = configured.format.as_deref().unwrap_or_default();
        if !["", "text", "json"].contains(&format) {
            self.fail("logging.format", format, "text or json");
        }
        let verbosity = configured.verbosity.unwrap_or_default();
        let valid = u32::try_from(verbosity).ok();
        if valid.is_none() {
            self.fail("logging.verbosity", verbosity, "a number from 0");
        }
        LogSettings { json: format == "json", verbosity: valid.unwrap_or_default() }
    }

    fn periods(&mut self, block: &ModeBlock<'_>) -> (Duration, Duration) {
        let default = Duration::from_secs(30);
        let before = self.problems.len();
        let (sync_field, min_field) =
            (format!("{}.syncPeriod", block.name), format!("{}.minSyncPeriod", block.name));
        let given = |text: Option<&str>| text.map(str::to_owned).filter(|text| !text.is_empty());
        let mut sync = given(block.sync_period).map_or(default, |text| self.duration(&sync_field, &text));
        let min =
            given(block.min_sync_period).map_or(Duration::ZERO, |text| self.duration(&min_field, &text));
        if self.problems.len() == before {
            if sync.is_zero() && *self.source != Source::Flags {
                sync = default;
            }
            if sync.is_zero() {
                self.fail(&sync_field, GoDuration(sync), "more than 0");
            } else if min > sync {
                let most = format!("at most the sync period ({})", GoDuration(sync));
                self.fail(&min_field, GoDuration(min), most);
            }
        }
        (sync, min)
    }

    fn masquerade_bit(&mut self, bit: Option<i64>) -> u8 {
        let bit = bit.unwrap_or(14);
        let valid = u8::try_from(bit).ok().filter(|bit| *bit < 32);
        if valid.is_none() {
            self.fail("iptables.masqueradeBit", bit, "a number from 0 to 31");
        }
        valid.unwrap_or_default()
    }

    fn detect_local(&mut self, configuration: &KubeProxyConfiguration) -> DetectLocal {
        let mode = configuration.detect_local_mode.as_deref().unwrap_or_default();
        let by = &configuration.detect_local;
        match mode {
            "" | "ClusterCIDR" => {
                let text = configuration.cluster_cidr.as_deref().unwrap_or_default();
                DetectLocal::ClusterCidr(self.cluster_networks(text))
            }
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                let name = by.bridge_interface.as_deref();
                DetectLocal::Bridge(self.interface("detectLocal.bridgeInterface", name, mode))
            }
            "InterfaceNamePrefix" => {
                let prefix = by.interface_name_prefix.as_deref();
                DetectLocal::Prefix(self.interface("detectLocal.interfaceNamePrefix", prefix, mode))
            }
            other => {
                let expected = "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                self.fail("detectLocalMode", other, expected);
                DetectLocal::NodeCidr
            }
        }
    }

    fn interface(&mut self, field: &str, name: Option<&str>, mode: &str) -> String {
        let name = name.unwrap_or_default();
        if name.is_empty() {
            self.fail(field, name, format!("a name, because local traffic is detected by {mode}"));
        }
        name.to_owned()
    }

    fn cluster_networks(&mut self, text: &str) -> Vec<IpNet> {
        let texts: Vec<_> = text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
        let networks = self.networks("clusterCIDR", &texts);
        let of = |family| networks.iter().filter(|net| Family::of(net.addr()) == family).count();
        if of(Family::V4) > 1 || of(Family::V6) > 1 {
            self.fail("clusterCIDR", text, "at most one network of each family");
        }
        networks
    }

    fn node_port_addresses(&mut self, texts: Option<&[String]>) -> NodePortAddresses {
        match texts.unwrap_or_default() {
            [text] if text == "primary" => NodePortAddresses::Primary,
            texts => {
                let texts: Vec<_> = texts.iter().map(String::as_str).collect();
                NodePortAddresses::Networks(self.networks("nodePortAddresses", &texts))
            }
        }
    }

    fn conntrack(&mut self, configured: &Conntrack) -> ConntrackSettings {
        let mut number = |field: &str, value: Option<i64>, default: u32| {
            let value = value.unwrap_or_else(|| default.into());
            let valid = u32::try_from(value).ok();
            if valid.is_none() {
                self.fail(field, value, "a number from 0");
            }
            valid.unwrap_or_default()
        };
        let max_per_core = number("conntrack.maxPerCore", configured.max_per_core, 32 * 1024);
        let min = number("conntrack.min", configured.min, 128 * 1024);
        let mut timeout = |field: &str, value: &Option<String>, default: &str| {
            let text = value.as_deref().filter(|text| !text.is_empty()).unwrap_or(default);
            Some(self.duration(field, text)).filter(|timeout| !timeout.is_zero())
        };
        ConntrackSettings {
            max_per_core,
            min,
            tcp_established: timeout(
                "conntrack.tcpEstablishedTimeout",
                &configured.tcp_established_timeout,
                "24h",
            ),
            tcp_close_wait: timeout(
                "conntrack.tcpCloseWaitTimeout",
                &configured.tcp_close_wait_timeout,
                "1h",
            ),
            udp: timeout("conntrack.udpTimeout", &configured.udp_timeout, "0"),
            udp_stream: timeout("conntrack.udpStreamTimeout", &configured.udp_stream_timeout, "0"),
            tcp_be_liberal: configured.tcp_be_liberal.unwrap_or(false),
        }
    }

    fn oom_score_adj(&mut self, score: Option<i64>) -> i16 {
        let score = score.unwrap_or(-999);
        let valid = i16::try_from(score).ok().filter(|score| (-1000..=1000).contains(score));
        if valid.is_none() {
            self.fail("oomScoreAdj", score, "a number from -1000 to 1000");
        }
        valid.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
