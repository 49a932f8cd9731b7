//! What the compiler must know of the node.

use std::{net::IpAddr, sync::Arc};

use fairlead_objects::{Family, NodeName};
use ipnet::IpNet;

/// Facts about the node that the rules are for, in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name: endpoints with this node name are local.
    pub name: NodeName,
    /// Its zone, for topology hints.
    pub zone: Option<Arc<str>>,
    /// Its address, for the source-range exception of load-balancer addresses.
    pub node_ip: IpAddr,
    /// Addresses of its interfaces, with prefix lengths; both families may be given.
    pub addresses: Vec<IpNet>,
    /// Family of the rules.
    pub family: Family,
}

impl NodeFacts {
    /// Addresses of the family.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(IpNet::addr).filter(|address| Family::of(*address) == self.family)
    }
}
