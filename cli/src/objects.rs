//! Objects: the views of Kubernetes objects that a command works on, wherever they come from.
//!
//! Invariant: an object of an API server and the same object in a file become the same view.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fairlead_objects::{
    EndpointSlice, Endpoints, Node, NodeObject, ObjectMeta, Pod, PodObject, Service, ServiceKey,
    ServiceObject, labels,
};
use fairlead_planner::{NodeLookup, Nodes};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::condition::Condition;

/// Namespace of objects that do not say.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// Namespace and name of an object.
pub(crate) type ObjectKey = (Arc<str>, Arc<str>);

/// Why a value is no object of its kind.
pub(crate) type ReadError = serde_path_to_error::Error<serde_json::Error>;

/// All objects that the planner or the compiler needs, by namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) origin: Origin,
    pub(crate) services: BTreeMap<ServiceKey, Service>,
    /// Services that ask for both families by `ipFamilyPolicy`, which the view does not hold.
    pub(crate) dual_stack: BTreeSet<ServiceKey>,
    pub(crate) pods: BTreeMap<ObjectKey, Pod>,
    /// Conditions of Pods that do not hold, which the view does not keep.
    pub(crate) failing: BTreeMap<ObjectKey, Vec<Condition>>,
    pub(crate) nodes: BTreeMap<Arc<str>, Node>,
    pub(crate) endpoints: BTreeMap<ServiceKey, Endpoints>,
    pub(crate) slices: BTreeMap<ObjectKey, EndpointSlice>,
}

impl Nodes for Objects {
    fn node(&self, name: &str) -> NodeLookup<'_> {
        match (self.nodes.get(name), self.are_nodes_known()) {
            (Some(node), _) => NodeLookup::Known(node),
            (None, true) => NodeLookup::Missing,
            (None, false) => NodeLookup::Unchecked,
        }
    }
}

/// Where objects come from, and so what it means that one is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Files: nothing.
    #[default]
    Files,
    /// What the controller sees in a cluster: that it does not exist. Where Nodes could not be read, there are only those
    /// that slices tell of.
    Controller { nodes: bool },
    /// What a node's programmer sees: Services and slices, as they are.
    Programmer,
}

impl Origin {
    /// How to call the place where the objects are.
    pub(crate) fn place(self) -> &'static str {
        match self {
            Self::Files => "the input",
            Self::Controller { .. } | Self::Programmer => "the cluster",
        }
    }
}

/// Kinds that the planner or the compiler needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Service,
    Pod,
    Node,
    Endpoints,
    EndpointSlice,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Service, Self::Pod, Self::Node, Self::Endpoints, Self::EndpointSlice];

    pub(crate) fn named(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.api_version() == api_version && known.as_str() == kind)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Endpoints => "Endpoints",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            _ => "v1",
        }
    }

    pub(crate) fn is_namespaced(self) -> bool {
        self != Self::Node
    }
}

impl Objects {
    /// Whether a Node that is not among them does not exist.
    pub(crate) fn are_nodes_known(&self) -> bool {
        match self.origin {
            Origin::Controller { nodes } => nodes,
            Origin::Files | Origin::Programmer => !self.nodes.is_empty(),
        }
    }

    /// Fills in the zones of Nodes that cannot be read from the slices that are there.
    pub(crate) fn infer_nodes(&mut self) {
        for endpoint in self.slices.values().flat_map(|slice| &slice.endpoints) {
            if let (Some(node), Some(zone)) = (&endpoint.node_name, &endpoint.zone) {
                let name: Arc<str> = node.as_str().into();
                let zone = (labels::ZONE.into(), zone.as_str().into());
                let node = Node { name: name.clone(), labels: [zone].into(), ..Node::default() };
                self.nodes.insert(name, node);
            }
        }
    }

    /// Adds those of another read of the same place.
    pub(crate) fn absorb(&mut self, others: Self) {
        let Self { origin: _, services, dual_stack, pods, failing, nodes, endpoints, slices } = others;
        self.services.extend(services);
        self.dual_stack.extend(dual_stack);
        for pod in pods.keys() {
            self.failing.remove(pod);
        }
        self.pods.extend(pods);
        self.failing.extend(failing);
        self.nodes.extend(nodes);
        self.endpoints.extend(endpoints);
        self.slices.extend(slices);
    }

    /// Adds an object, in the place of one of the same name.
    pub(crate) fn add(&mut self, kind: Kind, value: Value) -> Result<(), ReadError> {
        match kind {
            Kind::Service => {
                let dual_stack = asks_for_both_families(&value);
                let service: Service = read::<ServiceObject>(value)?.into();
                if dual_stack {
                    self.dual_stack.insert(service.key.clone());
                }
                self.services.insert(service.key.clone(), service);
            }
            Kind::Pod => {
                let failing = Condition::failing(&value);
                let pod: Pod = read::<PodObject>(value)?.into();
                let key = (pod.namespace.clone(), pod.name.clone());
                if failing.is_empty() {
                    self.failing.remove(&key);
                } else {
                    self.failing.insert(key.clone(), failing);
                }
                self.pods.insert(key, pod);
            }
            Kind::Node => {
                let node: Node = read::<NodeObject>(value)?.into();
                self.nodes.insert(node.name.clone(), node);
            }
            Kind::Endpoints => {
                let mut endpoints: Endpoints = read(value)?;
                let (namespace, name) = key(&mut endpoints.metadata);
                self.endpoints.insert(ServiceKey { namespace, name }, endpoints);
            }
            Kind::EndpointSlice => {
                let mut slice: EndpointSlice = read(value)?;
                self.slices.insert(key(&mut slice.metadata), slice);
            }
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, ReadError> {
    serde_path_to_error::deserialize(value)
}

fn asks_for_both_families(service: &Value) -> bool {
    let policy = service.pointer("/spec/ipFamilyPolicy").and_then(Value::as_str);
    matches!(policy, Some("PreferDualStack" | "RequireDualStack"))
}

/// Fills in the namespace and returns the key.
fn key(metadata: &mut ObjectMeta) -> ObjectKey {
    let namespace = metadata.namespace.take().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    metadata.namespace = Some(namespace.clone());
    (namespace.into(), metadata.name.clone().unwrap_or_default().into())
}
