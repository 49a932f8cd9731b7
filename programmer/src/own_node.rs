//! What our Node says about us: zone, addresses, Pod networks.
//!
//! Invariant: pure; an unknown Node is a value, not an error, and leads to loopback addresses, as in kube-proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fairlead_compiler::{Config, Detector, NodeFacts};
use fairlead_objects::{Family, Node, NodeName};
use ipnet::IpNet;

use crate::{
    netfilter::Features,
    settings::{DetectLocal, NodePortAddresses, Settings},
};

/// What the kernel of this node is like, found out at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What rules may use.
    pub features: Features,
    /// Conntrack accepts TCP packets outside the window.
    pub liberal_tcp: bool,
    /// Packets from 127.0.0.1 may leave through other interfaces.
    pub route_localnet: bool,
}

/// All that rules of one family depend on, besides Services and endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// How to make rules.
    pub config: Config,
    /// For whom; without interface addresses, which are read at every sync that needs them.
    pub facts: NodeFacts,
}

/// Derives the basis of `family`.
pub fn basis(family: Family, settings: &Settings, kernel: Kernel, node: Option<&Node>) -> Basis {
    Basis {
        config: kernel.features.limit(Config {
            masquerade_bit: settings.masquerade_bit,
            masquerade_all: settings.masquerade_all,
            detector: detector(family, settings, node),
            node_port_addresses: node_port_networks(family, settings, node),
            localhost_node_ports: settings.localhost_node_ports
                && kernel.route_localnet
                && family == Family::V4,
            liberal_tcp: kernel.liberal_tcp,
            ..Config::default()
        }),
        facts: NodeFacts {
            name: NodeName::new(settings.node_name.as_str()),
            zone: node.and_then(Node::zone).cloned(),
            node_ip: node_ip(family, settings, node),
            addresses: Vec::new(),
            family,
        },
    }
}

/// Whether the Node says enough to start with: it has an address, and Pod networks where they are needed.
pub fn is_complete(settings: &Settings, node: &Node) -> bool {
    let pod_networks = settings.detect_local != DetectLocal::NodeCidr || !node.pod_cidrs.is_empty();
    !node.addresses.is_empty() && pod_networks
}

/// The address of `family` by which the cluster knows us; loopback if there is none.
fn node_ip(family: Family, settings: &Settings, node: Option<&Node>) -> IpAddr {
    let given = Some(settings.bind_address).filter(|address| !address.is_unspecified());
    let known = node.into_iter().flat_map(|node| node.addresses.iter().copied());
    let loopback = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    given.into_iter().chain(known).find(|address| Family::of(*address) == family).unwrap_or(loopback)
}

fn detector(family: Family, settings: &Settings, node: Option<&Node>) -> Detector {
    let of_family = |networks: &[IpNet]| {
        let found = networks.iter().find(|network| Family::of(network.addr()) == family);
        found.map_or(Detector::None, |network| Detector::Cidr(*network))
    };
    match &settings.detect_local {
        DetectLocal::ClusterCidr(networks) => of_family(networks),
        DetectLocal::NodeCidr => node.map_or(Detector::None, |node| of_family(&node.pod_cidrs)),
        DetectLocal::Bridge(name) => Detector::Bridge(name.as_str().into()),
        DetectLocal::Prefix(prefix) => Detector::Prefix(prefix.as_str().into()),
    }
}

/// `primary` becomes the Node's addresses; if all are unknown, node ports are served on all addresses.
fn node_port_networks(family: Family, settings: &Settings, node: Option<&Node>) -> Vec<IpNet> {
    match &settings.node_port_addresses {
        NodePortAddresses::Networks(networks) => networks.clone(),
        NodePortAddresses::Primary => {
            let address = node_ip(family, settings, node);
            if address.is_loopback() { Vec::new() } else { vec![IpNet::from(address)] }
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders;

    use super::*;
    use crate::{netfilter::Feature, settings::testing};

    const KERNEL: Kernel = Kernel { features: Features::ALL, liberal_tcp: true, route_localnet: true };

    fn of(family: Family, settings: &Settings) -> Basis {
        basis(family, settings, KERNEL, Some(&builders::node("node-a", "192.168.0.2", "a")))
    }

    #[test]
    fn bind_address_replaces_the_nodes_address_of_its_family_only() {
        let settings = Settings { bind_address: IpAddr::from([10, 9, 9, 9]), ..testing::settings() };
        assert_eq!(of(Family::V4, &settings).facts.node_ip, IpAddr::from([10, 9, 9, 9]));
        assert!(of(Family::V6, &settings).facts.node_ip.is_loopback());
        assert_eq!(of(Family::V4, &testing::settings()).facts.node_ip, IpAddr::from([192, 168, 0, 2]));
    }

    #[test]
    fn each_family_gets_its_own_cluster_network() {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let settings =
            Settings { detect_local: DetectLocal::ClusterCidr(networks.clone()), ..testing::settings() };
        assert_eq!(of(Family::V4, &settings).config.detector, Detector::Cidr(networks[0]));
        assert_eq!(of(Family::V6, &settings).config.detector, Detector::Cidr(networks[1]));
        assert_eq!(of(Family::V6, &testing::settings()).config.detector, Detector::None);
    }

    #[test]
    fn localhost_node_ports_need_ipv4_and_the_kernels_consent() {
        assert!(of(Family::V4, &testing::settings()).config.localhost_node_ports);
        assert!(!of(Family::V6, &testing::settings()).config.localhost_node_ports);
        let without = Kernel { route_localnet: false, ..KERNEL };
        assert!(!basis(Family::V4, &testing::settings(), without, None).config.localhost_node_ports);
    }

    #[test]
    fn rules_use_what_the_kernel_has() {
        let features = Features::ALL.without(Feature::Bpf);
        let kernel = Kernel { features, ..KERNEL };
        let config = basis(Family::V4, &testing::settings(), kernel, None).config;
        assert_eq!((config.bpf, config.random_fully, config.liberal_tcp), (false, true, true));
    }
}
