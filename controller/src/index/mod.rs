//! The index: everything the controller knows of the cluster, arranged so that a change finds the Services it concerns.
//!
//! ```text
//!   Service <─ selector pair ─> Pod ─> Node          (which Services does this Pod belong to? which Pods run there?)
//!      │
//!      └─ name ─> Endpoints, EndpointSlices          (what exists for this Service, our own writes included)
//! ```
//!
//! It is a plain synchronous struct. Watches feed it by `apply_*`, `delete_*`, `begin` and `sweep`; the executor feeds it
//! with the results of our own writes. Every change returns the Services that became dirty.
//!
//! Invariants: a Pod event costs O(labels of the Pod + Services it belongs to); a snapshot costs O(what it holds). An
//! object never goes back in time: what is older than what is known, or known to be deleted, is ignored. Nothing in here
//! waits, so its lock may be held for as long as a call takes and must never be held across an `.await`.

mod dirty;
mod members;
mod snapshot;
mod topology;
mod version;
mod written;

use std::sync::Arc;

use fairlead_objects::{
    EndpointSlice, Endpoints, Interner, LabelMap, Node, Pod, Service, ServiceKey, labels,
};
use rustc_hash::{FxHashMap, FxHashSet};

pub use dirty::{Cause, Dirty};
pub use snapshot::Snapshot;
pub use written::Gone;

use members::Namespace;
use topology::Topology;
use written::Objects;

/// Kinds that the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Services.
    Services,
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
    /// EndpointSlices.
    EndpointSlices,
    /// Endpoints.
    Endpoints,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Services, Self::Nodes, Self::EndpointSlices, Self::Endpoints, Self::Pods];

    /// Its name for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Services => "Services",
            Self::Pods => "Pods",
            Self::Nodes => "Nodes",
            Self::EndpointSlices => "EndpointSlices",
            Self::Endpoints => "Endpoints",
        }
    }
}

/// Number of a list; objects that were last seen in an earlier one are gone when a list is complete.
type Epoch = u32;

/// See the [module](self).
#[derive(Debug)]
pub struct Index {
    epochs: FxHashMap<Kind, Epoch>,
    namespaces: FxHashMap<Arc<str>, Namespace>,
    nodes: FxHashMap<Arc<str>, NodeEntry>,
    endpoints: Objects<Endpoints>,
    slices: Objects<EndpointSlice>,
    slices_of: FxHashMap<ServiceKey, FxHashSet<Arc<str>>>,
    /// Services whose Endpoints and slices should be read from the API server before they are planned again, with the
    /// names that it said are taken.
    suspects: FxHashMap<ServiceKey, Vec<String>>,
    /// Names that the API server says are taken although no slice of that Service has them.
    taken: FxHashMap<ServiceKey, Vec<String>>,
    names: Interner<str>,
    label_maps: Interner<LabelMap>,
    ports: Interner<[fairlead_objects::ContainerPort]>,
    topology: Topology,
    /// Without Nodes nothing is concluded from their absence.
    nodes_watched: bool,
}

#[derive(Debug, Default)]
struct NodeEntry {
    node: Option<Arc<Node>>,
    /// (namespace, name) of the Pods that run there, whether or not the Node is known.
    pods: FxHashSet<(Arc<str>, Arc<str>)>,
    epoch: Epoch,
}

/// How much the index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Number of objects by kind, in the order of [`Kind::ALL`].
    pub objects: [usize; 5],
}

impl Index {
    /// An empty index. `nodes_watched` says whether Nodes will be fed to it.
    pub fn new(nodes_watched: bool) -> Self {
        Self {
            epochs: FxHashMap::default(),
            namespaces: FxHashMap::default(),
            nodes: FxHashMap::default(),
            endpoints: Objects::default(),
            slices: Objects::default(),
            slices_of: FxHashMap::default(),
            suspects: FxHashMap::default(),
            taken: FxHashMap::default(),
            names: Interner::default(),
            label_maps: Interner::default(),
            ports: Interner::default(),
            topology: Topology::default(),
            nodes_watched,
        }
    }

    fn epoch(&self, kind: Kind) -> Epoch {
        self.epochs.get(&kind).copied().unwrap_or_default()
    }

    /// A list of `kind` begins.
    pub fn begin(&mut self, kind: Kind) {
        let epoch = self.epochs.entry(kind).or_default();
        *epoch = epoch.wrapping_add(1);
    }

    /// A list of `kind` is complete: what it did not hold is gone.
    pub fn sweep(&mut self, kind: Kind) -> Dirty {
        let epoch = self.epoch(kind);
        let mut dirty = Dirty::default();
        match kind {
            Kind::Services => {
                for key in self.absent(|namespace| namespace.services_not_seen(epoch)) {
                    dirty.extend(self.delete_service(&key));
                }
            }
            Kind::Pods => {
                for ServiceKey { namespace, name } in self.absent(|namespace| namespace.pods_not_seen(epoch))
                {
                    dirty.extend(self.delete_pod(&namespace, &name));
                }
            }
            Kind::Nodes => {
                let gone =
                    self.nodes.iter().filter(|(_, entry)| entry.node.is_some() && entry.epoch != epoch);
                for name in gone.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
                    dirty.extend(self.delete_node(&name));
                }
            }
            Kind::Endpoints => {
                let (gone, suspects) = self.endpoints.not_seen(epoch);
                for (key, endpoints) in gone {
                    dirty.extend(self.delete_endpoints(&key, &endpoints));
                }
                dirty.extend(self.suspect_all(suspects));
            }
            Kind::EndpointSlices => {
                let (gone, suspects) = self.slices.not_seen(epoch);
                for (_, slice) in gone {
                    dirty.extend(self.delete_slice(&slice));
                }
                let services =
                    suspects.iter().filter_map(|key| self.slices.get(key)?.service_key()).collect();
                dirty.extend(self.suspect_all(services));
            }
        }
        dirty
    }

    fn absent(&self, list: impl Fn(&Namespace) -> Vec<Arc<str>>) -> Vec<ServiceKey> {
        let key = |namespace: &Arc<str>, name| ServiceKey { namespace: Arc::clone(namespace), name };
        self.namespaces
            .iter()
            .flat_map(|(ns, entry)| list(entry).into_iter().map(move |name| key(ns, name)))
            .collect()
    }

    fn suspect_all(&mut self, keys: Vec<ServiceKey>) -> Dirty {
        let mut dirty = Dirty::default();
        for key in keys {
            self.suspect(&key);
            dirty.insert(key, Cause::Resync);
        }
        dirty
    }

    /// The shared copy of a name.
    fn name(&mut self, text: &Arc<str>) -> Arc<str> {
        self.names.share(Arc::clone(text))
    }

    /// The shared copy of the labels of the Pod called `pod`.
    fn labels(&mut self, labels: &LabelMap, pod: &Arc<str>) -> Arc<LabelMap> {
        if let Some(known) = self.label_maps.known(labels) {
            return known;
        }
        // Labels that are one Pod's alone still have their words in common with others.
        let names = &mut self.names;
        let mut word = |word: &Arc<str>| {
            if word == pod { Arc::clone(pod) } else { names.share(Arc::clone(word)) }
        };
        let labels = labels.iter().map(|(key, value)| (word(key), word(value))).collect();
        self.label_maps.share(Arc::new(labels))
    }

    /// A Service was seen.
    pub fn apply_service(&mut self, service: Service) -> Dirty {
        let epoch = self.epoch(Kind::Services);
        let namespace = self.name(&service.key.namespace);
        let entry = self.namespaces.entry(namespace).or_default();
        let key = service.key.clone();
        if entry.apply_service(service, epoch) { Dirty::one(key, Cause::Service) } else { Dirty::default() }
    }

    /// A Service is gone.
    pub fn delete_service(&mut self, key: &ServiceKey) -> Dirty {
        let Some(namespace) = self.namespaces.get_mut(&key.namespace) else { return Dirty::default() };
        if !namespace.delete_service(&key.name) {
            return Dirty::default();
        }
        self.drop_namespace_if_empty(&key.namespace);
        self.taken.remove(key);
        Dirty::one(key.clone(), Cause::Service)
    }

    /// A Pod was seen.
    pub fn apply_pod(&mut self, mut pod: Pod) -> Dirty {
        let epoch = self.epoch(Kind::Pods);
        pod.namespace = self.name(&pod.namespace);
        pod.labels = self.labels(&pod.labels, &pod.name);
        pod.ports = self.ports.share(pod.ports);
        pod.node = pod.node.map(|node| self.names.share(node));
        pod.subdomain = pod.subdomain.map(|subdomain| self.names.share(subdomain));
        pod.hostname = pod.hostname.map(|hostname| shared_with(&pod.name, hostname));
        let (namespace, node) = (Arc::clone(&pod.namespace), pod.node.clone());
        let entry = self.namespaces.entry(Arc::clone(&namespace)).or_default();
        let change = entry.apply_pod(pod, epoch);
        if change.old_node != node {
            self.unbind(change.old_node.as_ref(), &namespace, &change.name);
            if let Some(node) = node {
                self.nodes.entry(node).or_default().pods.insert((Arc::clone(&namespace), change.name));
            }
        }
        services(&namespace, change.dirty, Cause::Pod)
    }

    /// A Pod is gone.
    pub fn delete_pod(&mut self, namespace: &Arc<str>, name: &Arc<str>) -> Dirty {
        let Some(change) = self.namespaces.get_mut(namespace).and_then(|entry| entry.delete_pod(name)) else {
            return Dirty::default();
        };
        self.unbind(change.old_node.as_ref(), namespace, name);
        self.drop_namespace_if_empty(namespace);
        services(namespace, change.dirty, Cause::Pod)
    }

    fn unbind(&mut self, node: Option<&Arc<str>>, namespace: &Arc<str>, pod: &Arc<str>) {
        let Some((node, entry)) = node.and_then(|node| Some((node, self.nodes.get_mut(node)?))) else {
            return;
        };
        entry.pods.remove(&(Arc::clone(namespace), Arc::clone(pod)));
        if entry.pods.is_empty() && entry.node.is_none() {
            self.nodes.remove(node);
        }
    }

    fn drop_namespace_if_empty(&mut self, namespace: &Arc<str>) {
        if self.namespaces.get(namespace).is_some_and(Namespace::is_empty) {
            self.namespaces.remove(namespace);
        }
    }

    /// A Node was seen.
    pub fn apply_node(&mut self, node: Node) -> Dirty {
        let epoch = self.epoch(Kind::Nodes);
        let name = self.name(&node.name);
        let entry = self.nodes.entry(name).or_default();
        entry.epoch = epoch;
        // What plans depend on: that the Node exists, and its zone. Heartbeats change neither.
        let concerns = entry.node.as_ref().is_none_or(|known| known.zone() != node.zone());
        let name = Arc::clone(&node.name);
        let concerns_shares = topology::concerns_shares(entry.node.as_deref(), &node);
        entry.node = Some(Arc::new(node));
        let mut dirty = if concerns { self.services_on(&name) } else { Dirty::default() };
        if concerns_shares {
            dirty.extend(self.shares_changed());
        }
        dirty
    }

    /// A Node is gone.
    pub fn delete_node(&mut self, name: &Arc<str>) -> Dirty {
        let Some(entry) = self.nodes.get_mut(name) else { return Dirty::default() };
        entry.node = None;
        let mut dirty = self.services_on(name);
        dirty.extend(self.shares_changed());
        if self.nodes.get(name).is_some_and(|entry| entry.pods.is_empty()) {
            self.nodes.remove(name);
        }
        dirty
    }

    fn services_on(&self, node: &Arc<str>) -> Dirty {
        let mut dirty = Dirty::default();
        for (namespace, pod) in self.nodes.get(node).iter().flat_map(|entry| &entry.pods) {
            let members =
                self.namespaces.get(namespace).map(|entry| entry.services_of(pod)).unwrap_or_default();
            for service in members {
                dirty.insert(
                    ServiceKey { namespace: Arc::clone(namespace), name: Arc::clone(service) },
                    Cause::Node,
                );
            }
        }
        dirty
    }

    /// All Services that are known, and all names for which Endpoints or slices of ours exist.
    pub fn keys(&self) -> Vec<ServiceKey> {
        let services = self.namespaces.iter().flat_map(|(namespace, entry)| {
            entry
                .service_names()
                .map(|name| ServiceKey { namespace: Arc::clone(namespace), name: Arc::clone(name) })
        });
        let mut keys: FxHashSet<ServiceKey> = services.collect();
        keys.extend(self.slices_of.keys().cloned());
        keys.extend(self.endpoints.keys().cloned());
        keys.into_iter().collect()
    }

    /// Whether there is a Service of that name, or anything that belongs to one.
    pub fn knows(&self, key: &ServiceKey) -> bool {
        self.namespaces.get(&key.namespace).is_some_and(|entry| entry.service(&key.name).is_some())
            || self.slices_of.contains_key(key)
            || self.endpoints.get(key).is_some()
    }

    /// How much there is.
    pub fn sizes(&self) -> Sizes {
        let services = self.namespaces.values().map(Namespace::service_count).sum();
        let pods = self.namespaces.values().map(Namespace::pod_count).sum();
        let nodes = self.nodes.values().filter(|entry| entry.node.is_some()).count();
        Sizes { objects: [services, nodes, self.slices.len(), self.endpoints.len(), pods] }
    }
}

/// `text`, or the copy of it that is held anyway.
fn shared_with(held: &Arc<str>, text: Arc<str>) -> Arc<str> {
    if text == *held { Arc::clone(held) } else { text }
}

fn services(namespace: &Arc<str>, names: Vec<Arc<str>>, cause: Cause) -> Dirty {
    let mut dirty = Dirty::default();
    for name in names {
        dirty.insert(ServiceKey { namespace: Arc::clone(namespace), name }, cause);
    }
    dirty
}

/// Whether a slice is managed by one of the controllers that we are.
fn is_ours(slice: &EndpointSlice) -> bool {
    matches!(
        slice.label(labels::SLICE_MANAGED_BY),
        Some(labels::SLICE_CONTROLLER | labels::MIRRORING_CONTROLLER)
    )
}

#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;
