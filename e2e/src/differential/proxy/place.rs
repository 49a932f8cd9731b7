//! The node that both sides have rules for.

use std::net::IpAddr;

use anyhow::Result;
use fairlead_compiler::{Host, NodeFacts, Origin};
use fairlead_objects::{Family, NodeName};
use ipnet::IpNet;

use super::packets::{PODS, WORLD};
use crate::{plan::Node, programs::Variant};

/// A node, as both sides see it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// What it is made of.
    pub(super) node: Node,
    /// Its iptables.
    pub(super) variant: Variant,
    /// Whether it takes packets of 127.0.0.0/8 out of, and in by, other devices than loopback.
    pub(super) routes_loopback: bool,
}

impl Place {
    /// What the compiler needs to know of it. It has the harness' devices.
    pub(super) fn facts(&self, family: Family) -> Result<NodeFacts> {
        let (own, gateway) = (self.node.addresses, self.node.pod(1));
        let addresses = [
            format!("{}/24", own.v4),
            format!("{}/64", own.v6),
            format!("{}/32", gateway.v4),
            format!("{}/128", gateway.v6),
            "127.0.0.1/8".to_owned(),
            "::1/128".to_owned(),
        ];
        Ok(NodeFacts {
            name: NodeName::new(self.node.name.as_str()),
            zone: Some(format!("zone{}", self.node.number).into()),
            node_ip: match family {
                Family::V4 => own.v4.into(),
                Family::V6 => own.v6.into(),
            },
            addresses: addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?,
            family,
        })
    }

    /// Where packets from this address come from.
    pub(super) fn origin(&self, source: IpAddr, host: &Host) -> Origin {
        let pods = <[String; 2]>::from(self.node.pod_networks());
        let is_in = |network: &String| network.parse().is_ok_and(|network: IpNet| network.contains(&source));
        if host.is_local(source) {
            Origin::Node
        } else {
            let link = if pods.iter().any(is_in) { PODS } else { WORLD };
            Origin::Interface(Some(link.to_owned()))
        }
    }
}
