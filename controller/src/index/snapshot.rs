//! A snapshot: what one plan is made from, taken under one lock.

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{EndpointSlice, Endpoints, Node, Pod, Service, ServiceKey};
use fairlead_planner::{NodeLookup, Nodes, Remembered, ZoneShares, is_topology_auto};

use super::Index;

/// Everything around one Service at one moment. It shares the objects with the index.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The Service, if it exists.
    pub service: Option<Arc<Service>>,
    /// The Pods that it selects.
    pub pods: Vec<Arc<Pod>>,
    /// The Endpoints of its name.
    pub endpoints: Option<Arc<Endpoints>>,
    /// All slices that carry its name, whoever manages them.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Names that new slices cannot have.
    pub taken_names: Vec<String>,
    /// The Endpoints and slices contradict what the API server said: they should be read again before they are used.
    pub suspect: bool,
    /// The shares of the zones, if the Service asks for topology mode `Auto` and they can be told.
    pub shares: Option<Arc<ZoneShares>>,
    /// What the last plan wanted remembered.
    pub remembered: Option<Arc<Remembered>>,
    /// The Nodes of the Pods; `None` if Nodes are not watched.
    nodes: Option<BTreeMap<Arc<str>, Arc<Node>>>,
}

impl Index {
    /// Everything around one Service.
    pub fn snapshot(&self, key: &ServiceKey) -> Snapshot {
        let namespace = self.namespaces.get(&key.namespace);
        let pods: Vec<Arc<Pod>> =
            namespace.map(|namespace| namespace.members(&key.name).cloned().collect()).unwrap_or_default();
        let node =
            |name: &Arc<str>| Some((Arc::clone(name), Arc::clone(self.nodes.get(name)?.node.as_ref()?)));
        let nodes =
            self.nodes_watched.then(|| pods.iter().filter_map(|pod| node(pod.node.as_ref()?)).collect());
        let service = namespace.and_then(|namespace| namespace.service(&key.name)).cloned();
        let hinted = service.as_deref().is_some_and(is_topology_auto);
        Snapshot {
            service,
            shares: if hinted { self.zone_shares() } else { None },
            remembered: self.topology.remembered(key),
            pods,
            endpoints: self.endpoints.get(key).cloned(),
            slices: self.slices_of(key).cloned().collect(),
            taken_names: self.taken.get(key).cloned().unwrap_or_default(),
            suspect: self.suspects.contains_key(key),
            nodes,
        }
    }
}

impl Nodes for Snapshot {
    fn node(&self, name: &str) -> NodeLookup<'_> {
        match &self.nodes {
            None => NodeLookup::Unchecked,
            Some(nodes) => nodes.get(name).map_or(NodeLookup::Missing, |node| NodeLookup::Known(node)),
        }
    }
}
