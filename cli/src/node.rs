//! The node: from its object, the flags and the configuration to what the compiler must know.
//!
//! Invariants: flags win over the Node object; a node that neither knows is an error, never a guess.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use fairlead_compiler::{Config, Detector, NodeFacts};
use fairlead_objects::{Family, Node, NodeName};
use ipnet::IpNet;

use crate::{
    args::NodeFlags,
    config::{DetectLocal, NodePortAddresses, Settings},
    objects::Objects,
};

/// Nodes that are named instead of one that is not there.
const SHOWN: usize = 10;

/// There is nothing known about the node.
#[derive(Debug, thiserror::Error)]
#[error("--node {name}: no Node object of that name in {place} ({present}); add it, or say --node-ip")]
pub(crate) struct UnknownNode {
    name: String,
    place: &'static str,
    /// What there is instead.
    present: String,
}

/// Node facts and rule settings of one family.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) facts: NodeFacts,
    pub(crate) config: Config,
    /// What the user should know, as whole lines.
    pub(crate) notices: Vec<String>,
}

/// Finds out about the node called `name`.
pub(crate) fn target(
    name: &str,
    flags: &NodeFlags,
    settings: &Settings,
    objects: &Objects,
    family: Family,
) -> Result<Target, UnknownNode> {
    let node = objects.nodes.get(name);
    if node.is_none() && flags.node_ip.is_empty() {
        return Err(UnknownNode {
            name: name.to_owned(),
            place: objects.origin.place(),
            present: present(objects),
        });
    }
    let mut notices = Vec::new();
    let addresses = addresses(flags, node);
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let node_ip =
        settings.bind_address.filter(of_family).or_else(|| addresses.iter().copied().find(of_family));
    if node_ip.is_none() {
        notices.push(format!("warning: --node {name}: has no {family} address; loopback stands in for it"));
    }
    let detector = detector(&settings.detect_local, node, family);
    if settings.detect_local == DetectLocal::NodeCidr && detector == Detector::None {
        notices.push(format!("warning: --node {name}: has no {family} podCIDR, which NodeCIDR asks for"));
    }
    let config = Config {
        detector,
        localhost_node_ports: settings.localhost_node_ports,
        masquerade_all: settings.masquerade_all,
        masquerade_bit: settings.masquerade_bit,
        node_port_addresses: match &settings.node_port_addresses {
            NodePortAddresses::Networks(networks) => networks.clone(),
            NodePortAddresses::Primary => node_ip.map(IpNet::from).into_iter().collect(),
        },
        ..Config::default()
    };
    let facts = NodeFacts {
        name: NodeName::new(name),
        zone: flags.zone.as_deref().map(Arc::from).or_else(|| node.and_then(Node::zone).cloned()),
        node_ip: node_ip.unwrap_or_else(|| loopback(family)),
        addresses: interfaces(flags, addresses),
        family,
    };
    Ok(Target { facts, config, notices })
}

fn present(objects: &Objects) -> String {
    let names: Vec<&str> = objects.nodes.keys().map(|name| &**name).collect();
    let (shown, more) = names.split_at(names.len().min(SHOWN));
    match (shown, more.len()) {
        ([], _) => "there is none at all".to_owned(),
        (shown, 0) => format!("there is {}", shown.join(", ")),
        (shown, more) => format!("there is {} and {more} more", shown.join(", ")),
    }
}

fn addresses(flags: &NodeFlags, node: Option<&Node>) -> Vec<IpAddr> {
    if flags.node_ip.is_empty() {
        node.map(|node| node.addresses.clone()).unwrap_or_default()
    } else {
        flags.node_ip.clone()
    }
}

/// Interface addresses as given, or else the node's addresses by themselves.
fn interfaces(flags: &NodeFlags, addresses: Vec<IpAddr>) -> Vec<IpNet> {
    if flags.node_cidr.is_empty() {
        addresses.into_iter().map(IpNet::from).collect()
    } else {
        flags.node_cidr.clone()
    }
}

fn detector(detect: &DetectLocal, node: Option<&Node>, family: Family) -> Detector {
    let by_network = |networks: &[IpNet]| {
        let network = networks.iter().find(|network| Family::of(network.addr()) == family);
        network.map_or(Detector::None, |network| Detector::Cidr(*network))
    };
    match detect {
        DetectLocal::ClusterCidr(networks) => by_network(networks),
        DetectLocal::NodeCidr => by_network(node.map_or(&[], |node| &node.pod_cidrs)),
        DetectLocal::Bridge(name) => Detector::Bridge(name.as_str().into()),
        DetectLocal::Prefix(prefix) => Detector::Prefix(prefix.as_str().into()),
    }
}

/// What kube-proxy takes for the address of a node that has none of the family.
fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}
