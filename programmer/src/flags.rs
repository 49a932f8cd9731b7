//! The command line: kube-proxy's flags, as far as they are implemented.
//!
//! Values are taken as text and checked together, so that one run reports every problem. Flags of kube-proxy that are
//! not implemented are not declared: using one is an error, never silently without effect.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use clap::{ArgAction, Args};
use fairlead_daemon::duration::GoDuration;
use fairlead_objects::{Family, parse_network};
use ipnet::IpNet;

use crate::{
    netfilter::Variant,
    settings::{DetectLocal, NodePortAddresses, Settings},
};

const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Settings of the node agent.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node agent")]
#[allow(clippy::struct_excessive_bools, reason = "independent switches, as kube-proxy has them")]
pub struct Flags {
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
    iptables_masquerade_bit: String,
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

/// A flag whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    flag: &'static str,
    value: String,
    expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} {:?}: expected {}", self.flag, self.value, self.expected)
    }
}

/// Collects problems, so that checking goes on after the first.
#[derive(Default)]
struct Check(Vec<Problem>);

impl Check {
    fn fail(&mut self, flag: &'static str, value: &str, expected: impl Into<String>) {
        self.0.push(Problem { flag, value: value.to_owned(), expected: expected.into() });
    }

    fn parse<T: FromStr>(&mut self, flag: &'static str, value: &str, expected: &str) -> Option<T> {
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.fail(flag, value, expected);
        }
        parsed
    }

    fn duration(&mut self, flag: &'static str, value: &str) -> Duration {
        let parsed = self.parse(flag, value, "a duration such as 30s, 1m30s or 500ms");
        parsed.map_or(Duration::ZERO, |GoDuration(duration)| duration)
    }

    /// An address with a port, or an address alone, which gets `port`.
    fn socket(&mut self, flag: &'static str, value: &str, port: u16) -> Option<SocketAddr> {
        let alone = || Some(SocketAddr::new(value.parse().ok()?, port));
        let address = value.parse::<SocketAddr>().ok().or_else(alone).filter(|address| address.port() != 0);
        if address.is_none() {
            self.fail(flag, value, "an IP address, with a port from 1 to 65535 or without");
        }
        address
    }

    fn networks(&mut self, flag: &'static str, list: &str) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            match parse_network(text) {
                Ok(network) => networks.push(network),
                Err(_) => self.fail(flag, text, "a network such as 10.0.0.0/8"),
            }
        }
        networks
    }
}

impl Flags {
    /// The settings, or everything that is wrong with them.
    pub fn validate(&self, host_name: &str) -> Result<Settings, Vec<Problem>> {
        let mut check = Check::default();
        let bind_address = check.parse("bind-address", &self.bind_address, "an IP address");
        let bind_address = bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let (sync_period, min_sync_period) = self.periods(&mut check);
        let settings = Settings {
            node_name: self.node_name(host_name, &mut check),
            bind_address,
            health_address: self.health_address(bind_address, &mut check),
            metrics_address: self.metrics_address(bind_address, &mut check),
            hard_fail: self.bind_address_hard_fail,
            sync_period,
            min_sync_period,
            masquerade_bit: self.masquerade_bit(&mut check),
            masquerade_all: self.masquerade_all,
            localhost_node_ports: self.iptables_localhost_nodeports,
            detect_local: self.detect_local(&mut check),
            node_port_addresses: self.node_port_addresses(&mut check),
            variant: self.iptables_variant,
        };
        if !["", "iptables", "ipvs", "nftables"].contains(&&*self.proxy_mode) {
            check.fail("proxy-mode", &self.proxy_mode, "iptables");
        }
        if check.0.is_empty() { Ok(settings) } else { Err(check.0) }
    }

    /// The proxy mode asked for, if it is not the one that will run.
    pub fn unavailable_mode(&self) -> Option<&str> {
        Some(self.proxy_mode.as_str()).filter(|mode| !["", "iptables"].contains(mode))
    }

    /// The forced variant of iptables.
    pub fn variant(&self) -> Option<Variant> {
        self.iptables_variant
    }

    /// As kube-proxy: the host's name in lower case, without space around it.
    fn node_name(&self, host_name: &str, check: &mut Check) -> String {
        let name = if self.hostname_override.trim().is_empty() { host_name } else { &self.hostname_override };
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            check.fail("hostname-override", "", "the name of a Node, because this host has no name");
        }
        name
    }

    fn health_address(&self, bind_address: IpAddr, check: &mut Check) -> Option<SocketAddr> {
        let everywhere = match bind_address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        match self.healthz_bind_address.as_deref() {
            None => Some(SocketAddr::new(everywhere, HEALTH_PORT)),
            Some("") => None,
            Some(value) => check.socket("healthz-bind-address", value, HEALTH_PORT),
        }
    }

    fn metrics_address(&self, bind_address: IpAddr, check: &mut Check) -> SocketAddr {
        let here = match bind_address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let default = SocketAddr::new(here, METRICS_PORT);
        let given = self.metrics_bind_address.as_deref();
        given.and_then(|value| check.socket("metrics-bind-address", value, METRICS_PORT)).unwrap_or(default)
    }

    fn periods(&self, check: &mut Check) -> (Duration, Duration) {
        let before = check.0.len();
        let sync = check.duration("iptables-sync-period", &self.iptables_sync_period);
        let min = check.duration("iptables-min-sync-period", &self.iptables_min_sync_period);
        if check.0.len() == before {
            if sync.is_zero() {
                check.fail("iptables-sync-period", &self.iptables_sync_period, "more than 0");
            } else if min > sync {
                let most = format!("at most --iptables-sync-period ({})", GoDuration(sync));
                check.fail("iptables-min-sync-period", &self.iptables_min_sync_period, most);
            }
        }
        (sync, min)
    }

    fn masquerade_bit(&self, check: &mut Check) -> u8 {
        let bit = self.iptables_masquerade_bit.parse().ok().filter(|bit| *bit < 32);
        if bit.is_none() {
            check.fail("iptables-masquerade-bit", &self.iptables_masquerade_bit, "a number from 0 to 31");
        }
        bit.unwrap_or_default()
    }

    fn detect_local(&self, check: &mut Check) -> DetectLocal {
        let name = |flag, value: &str, check: &mut Check| {
            if value.is_empty() {
                check.fail(
                    flag,
                    value,
                    format!("a name, because --detect-local-mode is {}", self.detect_local_mode),
                );
            }
            value.to_owned()
        };
        match self.detect_local_mode.as_str() {
            "" | "ClusterCIDR" => DetectLocal::ClusterCidr(self.cluster_networks(check)),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                DetectLocal::Bridge(name("pod-bridge-interface", &self.pod_bridge_interface, check))
            }
            "InterfaceNamePrefix" => {
                DetectLocal::Prefix(name("pod-interface-name-prefix", &self.pod_interface_name_prefix, check))
            }
            other => {
                check.fail(
                    "detect-local-mode",
                    other,
                    "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
                );
                DetectLocal::NodeCidr
            }
        }
    }

    fn cluster_networks(&self, check: &mut Check) -> Vec<IpNet> {
        let networks = check.networks("cluster-cidr", &self.cluster_cidr);
        let of = |family| networks.iter().filter(|net| Family::of(net.addr()) == family).count();
        if of(Family::V4) > 1 || of(Family::V6) > 1 {
            check.fail("cluster-cidr", &self.cluster_cidr, "at most one network of each family");
        }
        networks
    }

    fn node_port_addresses(&self, check: &mut Check) -> NodePortAddresses {
        if self.nodeport_addresses.trim() == "primary" {
            return NodePortAddresses::Primary;
        }
        NodePortAddresses::Networks(check.networks("nodeport-addresses", &self.nodeport_addresses))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(arguments: &[&str]) -> Flags {
        Command::parse_from(["fairlead-programmer"].iter().chain(arguments)).flags
    }

    fn problems(arguments: &[&str]) -> Vec<String> {
        flags(arguments).validate("host").unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_those_of_kube_proxy_except_for_the_adaptive_minimum() {
        let settings = flags(&[]).validate(" Node-A\n").unwrap();
        assert_eq!(settings.node_name, "node-a");
        assert_eq!(settings.health_address, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(settings.metrics_address, "127.0.0.1:10249".parse().unwrap());
        assert_eq!(
            (settings.sync_period, settings.min_sync_period),
            (Duration::from_secs(30), Duration::ZERO)
        );
        assert_eq!((settings.masquerade_bit, settings.masquerade_all), (14, false));
        assert!(settings.localhost_node_ports);
        assert_eq!(settings.detect_local, DetectLocal::ClusterCidr(Vec::new()));
        assert_eq!(settings.node_port_addresses, NodePortAddresses::Networks(Vec::new()));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems = problems(&[
            "--bind-address=x",
            "--healthz-bind-address=1.2.3.4:0",
            "--metrics-bind-address=",
            "--iptables-masquerade-bit=32",
            "--cluster-cidr=10.0.0.0/8,11.0.0.0/8",
            "--nodeport-addresses=primary,10.0.0.0/8",
            "--iptables-min-sync-period=1m",
            "--proxy-mode=userspace",
        ]);
        assert_eq!(problems.len(), 8, "{problems:#?}");
        assert!(problems.contains(
            &"--iptables-min-sync-period \"1m\": expected at most --iptables-sync-period (30s)".to_owned()
        ));
    }

    #[test]
    fn interface_modes_need_their_interface() {
        assert_eq!(problems(&["--detect-local-mode=BridgeInterface"]).len(), 1);
        assert_eq!(problems(&["--detect-local-mode=InterfaceNamePrefix"]).len(), 1);
        let flags = flags(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"]);
        assert_eq!(flags.validate("host").unwrap().detect_local, DetectLocal::Bridge("cni0".to_owned()));
    }

    #[test]
    fn booleans_are_written_as_go_does() {
        let flags = flags(&["--masquerade-all", "--iptables-localhost-nodeports=false"]);
        let settings = flags.validate("host").unwrap();
        assert!(settings.masquerade_all && !settings.localhost_node_ports);
    }

    #[test]
    fn address_alone_gets_the_usual_port_and_ipv6_moves_the_defaults() {
        let settings = flags(&["--metrics-bind-address=0.0.0.0"]).validate("host").unwrap();
        assert_eq!(settings.metrics_address, "0.0.0.0:10249".parse().unwrap());
        let settings = flags(&["--bind-address=fd00::1"]).validate("host").unwrap();
        assert_eq!(settings.health_address, Some("[::]:10256".parse().unwrap()));
        assert_eq!(settings.metrics_address, "[::1]:10249".parse().unwrap());
        assert_eq!(flags(&["--healthz-bind-address="]).validate("host").unwrap().health_address, None);
    }

    #[test]
    fn dumped_configuration_has_the_shape_of_kube_proxys() {
        let settings = flags(&["--cluster-cidr=10.0.0.0/8,fd00::/8", "--iptables-min-sync-period=1s"]);
        let dump = settings.validate("host").unwrap().dump().unwrap();
        let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
        assert_eq!(dump["kind"], "KubeProxyConfiguration");
        assert_eq!(dump["clusterCIDR"], "10.0.0.0/8,fd00::/8");
        assert_eq!(dump["iptables"]["minSyncPeriod"], "1s");
    }
}
