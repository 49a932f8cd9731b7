//! Configuration: the part of a KubeProxyConfiguration that shapes rules.
//!
//! Invariant: no field is ignored in silence. Fields of kube-proxy that do not shape rules, and fields that do not exist,
//! are warned about by name when they are set to something.

use std::{net::IpAddr, path::Path};

use fairlead_objects::{
    KubeProxyConfiguration, parse_address, parse_network,
    proxy_configuration::{API_VERSION, DetectLocal as DetectLocalNames, KIND},
};
use ipnet::IpNet;
use serde_json::Value;

use crate::input::{Document, Problem, Problems, Source, Step};

/// Bits of a packet mark.
const MARK_BITS: u8 = 32;

/// Fields that shape rules.
const APPLIED: &[&str] = &[
    "apiVersion",
    "kind",
    "bindAddress",
    "clusterCIDR",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "detectLocalMode",
    "iptables.localhostNodePorts",
    "iptables.masqueradeAll",
    "iptables.masqueradeBit",
    "mode",
    "nodePortAddresses",
];

/// Other fields of kube-proxy: about the process, the kernel or other modes.
const WITHOUT_RULES: &[&str] = &[
    "bindAddressHardFail",
    "clientConnection",
    "configSyncPeriod",
    "conntrack",
    "enableProfiling",
    "featureGates",
    "healthzBindAddress",
    "hostnameOverride",
    "iptables.minSyncPeriod",
    "iptables.syncPeriod",
    "ipvs",
    "logging",
    "metricsBindAddress",
    "nftables",
    "oomScoreAdj",
    "portRange",
    "showHiddenMetricsForVersion",
    "winkernel",
    "windowsRunAsService",
];

/// How traffic of local Pods is told from other traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DetectLocal {
    /// By the Pod networks of the cluster; not at all if there are none.
    ClusterCidr(Vec<IpNet>),
    /// By the Pod networks of the node.
    NodeCidr,
    /// By the bridge it comes from.
    Bridge(String),
    /// By the name of the interface it comes from.
    Prefix(String),
}

/// Which addresses of the node accept node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodePortAddresses {
    /// Those in these networks; all if there are none.
    Networks(Vec<IpNet>),
    /// The node's address only.
    Primary,
}

/// What shapes the rules of a node, with kube-proxy's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) bind_address: Option<IpAddr>,
    pub(crate) detect_local: DetectLocal,
    pub(crate) localhost_node_ports: bool,
    pub(crate) masquerade_all: bool,
    pub(crate) masquerade_bit: u8,
    pub(crate) node_port_addresses: NodePortAddresses,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bind_address: None,
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            localhost_node_ports: true,
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: NodePortAddresses::Networks(Vec::new()),
        }
    }
}

/// Reads a configuration file. Returns the settings and the warnings.
pub(crate) fn read(path: &Path) -> anyhow::Result<(Settings, Vec<String>)> {
    let source = Source::read(path)?;
    Ok(parse(&source).map_err(Problems)?)
}

fn parse(source: &Source) -> Result<(Settings, Vec<String>), Vec<Problem>> {
    let document = Document::single(&source.name, &source.text).map_err(|problem| vec![problem])?;
    let value = document.parse().map_err(|problem| vec![problem])?;
    check_type(&document, &value).map_err(|problem| vec![problem])?;
    let mut warnings = not_applied(&source.name, &value);
    let fields: KubeProxyConfiguration = document.read(&[], value).map_err(|problem| vec![problem])?;
    if let Some(mode @ ("ipvs" | "nftables")) = fields.mode.as_deref() {
        warnings.push(format!("warning: {}: mode {mode} is read as iptables", source.name));
    }
    let mut reader = Reader { document: &document, problems: Vec::new() };
    let settings = reader.settings(fields);
    reader.problems.sort_by_key(|problem| problem.line);
    if reader.problems.is_empty() { Ok((settings, warnings)) } else { Err(reader.problems) }
}

fn check_type(document: &Document<'_>, value: &Value) -> Result<(), Problem> {
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let found = value.get(field).and_then(Value::as_str).unwrap_or("nothing");
        if found != expected {
            return Err(document.problem_at(&[field.into()], format!("found {found}, expected {expected}")));
        }
    }
    Ok(())
}

/// One warning for kube-proxy's fields that do not shape rules, one for each field that does not exist.
fn not_applied(source: &str, value: &Value) -> Vec<String> {
    let mut leaves = Vec::new();
    set_fields(value, String::new(), &mut leaves);
    let under = |leaf: &str, field: &str| {
        leaf.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    leaves.retain(|leaf| !APPLIED.iter().any(|field| under(leaf, field)));
    let known: Vec<&str> =
        WITHOUT_RULES.iter().copied().filter(|field| leaves.iter().any(|leaf| under(leaf, field))).collect();
    let mut warnings = Vec::new();
    if !known.is_empty() {
        warnings.push(format!("warning: {source}: does not shape rules: {}", known.join(", ")));
    }
    leaves.retain(|leaf| !known.iter().any(|field| under(leaf, field)));
    warnings.extend(leaves.iter().map(|leaf| format!("warning: {source}: unknown field: {leaf}")));
    warnings
}

/// Paths of all fields that are set to something: kubeadm writes every field, most of them as `null`, 0 or "".
fn set_fields(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                set_fields(value, path, found);
            }
        }
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text.is_empty() || text == "0s" => {}
        Value::Number(number) if number.as_i64() == Some(0) => {}
        Value::Array(items) if items.is_empty() => {}
        _ => found.push(path),
    }
}

/// Turns fields into settings, and collects what is wrong with them.
struct Reader<'a> {
    document: &'a Document<'a>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn settings(&mut self, fields: KubeProxyConfiguration) -> Settings {
        let defaults = Settings::default();
        let iptables = fields.iptables;
        self.one_of("mode", fields.mode.as_deref(), &["", "iptables", "ipvs", "nftables"]);
        let bit = iptables.masquerade_bit.unwrap_or_else(|| defaults.masquerade_bit.into());
        let masquerade_bit = u8::try_from(bit).ok().filter(|bit| *bit < MARK_BITS);
        if masquerade_bit.is_none() {
            let message = format!("found {bit}, expected a number from 0 to {}", MARK_BITS - 1);
            self.problem("iptables.masqueradeBit", message);
        }
        let masquerade_bit = masquerade_bit.unwrap_or(defaults.masquerade_bit);
        Settings {
            bind_address: self.bind_address(fields.bind_address.as_deref()),
            detect_local: self.detect_local(
                fields.detect_local_mode.as_deref(),
                fields.cluster_cidr.as_deref(),
                fields.detect_local,
            ),
            localhost_node_ports: iptables.localhost_node_ports.unwrap_or(defaults.localhost_node_ports),
            masquerade_all: iptables.masquerade_all.unwrap_or(defaults.masquerade_all),
            masquerade_bit,
            node_port_addresses: self.node_port_addresses(&fields.node_port_addresses.unwrap_or_default()),
        }
    }

    /// The unspecified address is the default and says nothing about the node.
    fn bind_address(&mut self, text: Option<&str>) -> Option<IpAddr> {
        let text = text.filter(|text| !text.is_empty())?;
        if let Ok(address) = parse_address(text) {
            return Some(address).filter(|address| !address.is_unspecified());
        }
        self.problem("bindAddress", format!("found {text:?}, expected an IPv4 or IPv6 address"));
        None
    }

    fn detect_local(
        &mut self,
        mode: Option<&str>,
        cluster: Option<&str>,
        by: DetectLocalNames,
    ) -> DetectLocal {
        const MODES: [&str; 5] = ["", "BridgeInterface", "ClusterCIDR", "InterfaceNamePrefix", "NodeCIDR"];
        self.one_of("detectLocalMode", mode, &MODES);
        match mode {
            Some("NodeCIDR") => DetectLocal::NodeCidr,
            Some("BridgeInterface") => {
                DetectLocal::Bridge(self.interface("detectLocal.bridgeInterface", by.bridge_interface))
            }
            Some("InterfaceNamePrefix") => DetectLocal::Prefix(
                self.interface("detectLocal.interfaceNamePrefix", by.interface_name_prefix),
            ),
            _ => {
                let networks =
                    cluster.unwrap_or_default().split(',').map(str::trim).filter(|text| !text.is_empty());
                DetectLocal::ClusterCidr(self.networks("clusterCIDR", networks))
            }
        }
    }

    fn node_port_addresses(&mut self, texts: &[String]) -> NodePortAddresses {
        match texts {
            [text] if text == "primary" => NodePortAddresses::Primary,
            texts => NodePortAddresses::Networks(self.networks("nodePortAddresses", texts)),
        }
    }

    fn interface(&mut self, field: &str, name: Option<String>) -> String {
        let name = name.unwrap_or_default();
        if name.is_empty() {
            self.problem(
                field,
                "missing; expected the name of an interface, as detectLocalMode says".to_owned(),
            );
        }
        name
    }

    fn networks(&mut self, field: &str, texts: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in texts {
            let text = text.as_ref();
            match parse_network(text) {
                Ok(network) => networks.push(network),
                Err(_) => self.problem(field, format!("found {text:?}, expected networks as ADDRESS/LENGTH")),
            }
        }
        networks
    }

    fn one_of(&mut self, field: &str, text: Option<&str>, choices: &[&str]) {
        if let Some(text) = text.filter(|text| !choices.contains(text)) {
            let choices: Vec<&str> = choices.iter().copied().filter(|choice| !choice.is_empty()).collect();
            self.problem(field, format!("found {text:?}, expected one of {}", choices.join(", ")));
        }
    }

    fn problem(&mut self, field: &str, message: String) {
        let path: Vec<Step> = field.split('.').map(Step::from).collect();
        self.problems.push(self.document.problem_at(&path, message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(fields: &str) -> Result<(Settings, Vec<String>), Vec<Problem>> {
        let text = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{fields}");
        parse(&Source { name: "proxy.yaml".to_owned(), text })
    }

    #[test]
    fn absent_and_zero_fields_give_the_defaults_without_warnings() {
        let zero = "bindAddress: 0.0.0.0\nclusterCIDR: \"\"\nconfigSyncPeriod: 0s\nconntrack: {maxPerCore: null, min: 0}\n\
                    detectLocalMode: \"\"\niptables: {masqueradeAll: false, masqueradeBit: null, syncPeriod: 0s}\nmode: \"\"\n\
                    nodePortAddresses: null\nwinkernel: {enableDSR: false, networkName: \"\"}\n";
        for fields in ["", zero] {
            assert_eq!(parsed(fields).unwrap(), (Settings::default(), Vec::new()));
        }
    }

    #[test]
    fn fields_that_are_not_applied_are_named() {
        let (_, warnings) =
            parsed("mode: ipvs\nclientConnection: {qps: 5}\niptables: {masquerade: true}\nfoo: [1]\n")
                .unwrap();
        assert_eq!(
            warnings,
            [
                "warning: proxy.yaml: does not shape rules: clientConnection",
                "warning: proxy.yaml: unknown field: foo",
                "warning: proxy.yaml: unknown field: iptables.masquerade",
                "warning: proxy.yaml: mode ipvs is read as iptables",
            ]
        );
    }

    #[test]
    fn wrong_values_are_all_named() {
        let problems =
            parsed("bindAddress: here\ndetectLocalMode: BridgeInterface\niptables: {masqueradeBit: 32}\n")
                .unwrap_err();
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["detectLocal.bridgeInterface", "bindAddress", "iptables.masqueradeBit"]);
    }

    #[test]
    fn cluster_networks_may_be_of_both_families() {
        let (settings, _) = parsed("clusterCIDR: 10.244.0.0/16,fd00:10:244::/56\n").unwrap();
        let DetectLocal::ClusterCidr(networks) = settings.detect_local else { panic!("by cluster networks") };
        assert_eq!(networks.len(), 2);
    }
}
