//! The tracker: Services and EndpointSlices of one family as last seen, and which Services changed since last asked.
//!
//! Invariants: only what rules are made from is kept and compared, so that a change of metadata is no change; slices may
//! come before their Service; order of arrival does not matter; no text is held twice but names of slices.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fairlead_objects::{
    EndpointSlice, Family, Hints, Interner, NodeName, Service, ServiceKey, labels, parse_address,
};

use crate::{
    endpoint::{Endpoint, EndpointHints, Endpoints, PortKey},
    service_port::ServicePort,
};

/// The namespace of objects without one.
const DEFAULT_NAMESPACE: &str = "default";

/// Services and merged slices of one family.
#[derive(Clone, Debug)]
pub struct ProxyState {
    family: Family,
    services: BTreeMap<ServiceKey, Known>,
    /// Which Service of its namespace a slice, by namespace and name, belonged to when last seen.
    owners: BTreeMap<(Arc<str>, Arc<str>), Arc<str>>,
    shared: Shared,
    endpoint_count: usize,
    dirty: BTreeSet<ServiceKey>,
}

/// What is known of a Service.
#[derive(Clone, Debug, Default)]
struct Known {
    /// None if the Service is absent.
    ports: Box<[ServicePort]>,
    /// In the order of their names. Most have one, for which a map would be large.
    slices: Vec<(Arc<str>, Slice)>,
}

/// What many Services and endpoints have in common.
#[derive(Clone, Debug, Default)]
struct Shared {
    /// Namespaces, names of ports and nodes.
    words: Interner<str>,
    hints: Interner<EndpointHints>,
}

/// What is kept of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slice {
    ports: Box<[(PortKey, u16)]>,
    endpoints: Box<[SliceEndpoint]>,
}

/// What is kept of an endpoint in a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "the three conditions of the API are independent")]
struct SliceEndpoint {
    address: IpAddr,
    node: Option<Arc<str>>,
    ready: bool,
    serving: bool,
    terminating: bool,
    hints: Option<Arc<EndpointHints>>,
}

impl ProxyState {
    /// An empty state.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            services: BTreeMap::new(),
            owners: BTreeMap::new(),
            shared: Shared::default(),
            endpoint_count: 0,
            dirty: BTreeSet::new(),
        }
    }

    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Takes in a new or changed Service. One that nodes have nothing to do for counts as absent.
    pub fn set_service(&mut self, service: &Service) {
        let mut ports = ServicePort::of(service, self.family);
        if ports.is_empty() {
            return self.remove_service(&service.key);
        }
        let key = self.key(service.key.clone());
        for port in &mut ports {
            let name = Arc::make_mut(&mut port.name);
            name.service = key.clone();
            name.port.name = self.shared.words.share(Arc::clone(&name.port.name));
        }
        let known = self.services.entry(key.clone()).or_default();
        if *known.ports != *ports {
            known.ports = ports.into();
            self.dirty.insert(key);
        }
    }

    /// Forgets a Service. Its slices stay until they are removed.
    pub fn remove_service(&mut self, key: &ServiceKey) {
        if let Some(known) = self.services.get_mut(key)
            && !known.ports.is_empty()
        {
            known.ports = Box::default();
            if known.slices.is_empty() {
                self.services.remove(key);
            }
            self.dirty.insert(key.clone());
        }
    }

    /// Takes in a new or changed slice. One that nodes have nothing to do for counts as absent: another address type, no
    /// Service, or labelled as headless.
    pub fn set_slice(&mut self, slice: &EndpointSlice) {
        let Some(name) = slice.metadata.name.as_deref() else { return };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let owner = slice.service_key().filter(|_| {
            slice.address_type.family() == Some(self.family) && slice.label(labels::HEADLESS).is_none()
        });
        let id = self.slice_id(namespace, name);
        if self.owners.get(&id) != owner.as_ref().map(|owner| &owner.name) {
            self.remove_slice(namespace, name);
        }
        let Some(owner) = owner.map(|owner| self.key(owner)) else { return };
        let lean = Slice::of(slice, self.family, &mut self.shared);
        let count = lean.count();
        let slices = &mut self.services.entry(owner.clone()).or_default().slices;
        match slices.iter_mut().find(|(known, _)| *known == id.1) {
            Some((_, stored)) if *stored == lean => return,
            Some((_, stored)) => self.endpoint_count -= std::mem::replace(stored, lean).count(),
            None => {
                let place = slices.partition_point(|(known, _)| *known < id.1);
                slices.reserve_exact(1);
                slices.insert(place, (Arc::clone(&id.1), lean));
            }
        }
        self.endpoint_count += count;
        self.owners.insert(id, Arc::clone(&owner.name));
        self.dirty.insert(owner);
    }

    /// Forgets a slice.
    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let id = self.slice_id(namespace, name);
        let Some(owner) = self.owners.remove(&id) else { return };
        let owner = ServiceKey { namespace: id.0, name: owner };
        if let Entry::Occupied(mut known) = self.services.entry(owner.clone()) {
            let Known { ports, slices } = known.get_mut();
            if let Some(place) = slices.iter().position(|(known, _)| **known == *name) {
                self.endpoint_count -= slices.remove(place).1.count();
            }
            if slices.is_empty() && ports.is_empty() {
                known.remove();
            }
        }
        self.dirty.insert(owner);
    }

    /// The key as it is held, so that no text is held twice.
    fn key(&mut self, key: ServiceKey) -> ServiceKey {
        match self.services.get_key_value(&key) {
            Some((known, _)) => known.clone(),
            None => ServiceKey { namespace: self.shared.words.share(key.namespace), ..key },
        }
    }

    fn slice_id(&mut self, namespace: &str, name: &str) -> (Arc<str>, Arc<str>) {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        (self.shared.words.word(namespace), name.into())
    }

    /// Services whose rules may have changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    /// All Services, in order.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &[ServicePort])> {
        let present = self.services.iter().filter(|(_, known)| !known.ports.is_empty());
        present.map(|(key, known)| (key, &*known.ports))
    }

    /// The ports of a Service; empty if it is absent.
    pub fn ports(&self, key: &ServiceKey) -> &[ServicePort] {
        self.services.get(key).map_or(&[], |known| &known.ports)
    }

    /// Endpoints in all slices, times ports.
    pub fn endpoint_count(&self) -> usize {
        self.endpoint_count
    }

    /// The endpoints of a Service, merged from its slices: the same address and port counts once, and what is not
    /// terminating wins over what is.
    pub fn endpoints(&self, key: &ServiceKey) -> Endpoints {
        let mut merged: BTreeMap<PortKey, BTreeMap<SocketAddr, Endpoint>> = BTreeMap::new();
        for slice in self.slices(key) {
            for (port, number) in &slice.ports {
                let endpoints = merged.entry(port.clone()).or_default();
                for endpoint in &slice.endpoints {
                    let endpoint = endpoint.at(*number);
                    match endpoints.entry(endpoint.address) {
                        Entry::Occupied(_) if endpoint.terminating => {}
                        Entry::Occupied(mut stored) => *stored.get_mut() = endpoint,
                        Entry::Vacant(vacant) => _ = vacant.insert(endpoint),
                    }
                }
            }
        }
        merged.into_iter().map(|(port, endpoints)| (port, sorted(endpoints))).collect()
    }

    /// Whether several slices list one endpoint in differing conditions, none of them terminating. The last by name of the
    /// slice counts here, and any of them under kube-proxy.
    pub fn has_contradicting_slices(&self, key: &ServiceKey) -> bool {
        let mut listed: BTreeMap<(&PortKey, SocketAddr), Endpoint> = BTreeMap::new();
        for (slice, (port, number)) in
            self.slices(key).flat_map(|slice| slice.ports.iter().map(move |port| (slice, port)))
        {
            for endpoint in slice.endpoints.iter().filter(|endpoint| !endpoint.terminating) {
                let endpoint = endpoint.at(*number);
                let known = listed.entry((port, endpoint.address)).or_insert_with(|| endpoint.clone());
                if *known != endpoint {
                    return true;
                }
            }
        }
        false
    }

    fn slices(&self, key: &ServiceKey) -> impl Iterator<Item = &Slice> {
        let slices = self.services.get(key).map(|known| known.slices.iter());
        slices.into_iter().flatten().map(|(_, slice)| slice)
    }

    /// What the health check of a Service counts: distinct addresses of ready endpoints on `node`, over all ports.
    pub fn local_ready_count(&self, key: &ServiceKey, node: &NodeName) -> usize {
        let endpoints = self.endpoints(key);
        let local = endpoints.values().flatten().filter(|endpoint| endpoint.ready && endpoint.is_on(node));
        local.map(|endpoint| endpoint.address.ip()).collect::<BTreeSet<_>>().len()
    }
}

/// By text, as kube-proxy orders them: `10.0.0.10:80` comes before `10.0.0.2:80`.
fn sorted(endpoints: BTreeMap<SocketAddr, Endpoint>) -> Vec<Endpoint> {
    let mut endpoints: Vec<_> = endpoints.into_values().collect();
    endpoints.sort_by_cached_key(|endpoint| endpoint.address.to_string());
    endpoints
}

impl Slice {
    fn of(slice: &EndpointSlice, family: Family, shared: &mut Shared) -> Self {
        let ports = slice.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|number| *number != 0)?;
            let name = shared.words.word(port.name.as_deref().unwrap_or_default());
            Some((PortKey { name, protocol: port.protocol.unwrap_or_default() }, number))
        });
        let ports = ports.collect();
        let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
            let address = parse_address(endpoint.addresses.first()?).ok()?;
            (Family::of(address) == family).then(|| SliceEndpoint {
                address,
                node: endpoint.node_name.as_deref().map(|node| shared.words.word(node)),
                ready: endpoint.conditions.ready.unwrap_or(true),
                serving: endpoint.conditions.serving.unwrap_or(true),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
                hints: endpoint.hints.as_deref().map(|hints| shared.hints.share(Arc::new(hints.into()))),
            })
        });
        Self { endpoints: endpoints.collect(), ports }
    }

    fn count(&self) -> usize {
        self.ports.len() * self.endpoints.len()
    }
}

impl SliceEndpoint {
    fn at(&self, port: u16) -> Endpoint {
        Endpoint {
            address: SocketAddr::new(self.address, port),
            node: self.node.clone(),
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
            hints: self.hints.clone(),
        }
    }
}

impl From<&Hints> for EndpointHints {
    fn from(hints: &Hints) -> Self {
        Self {
            zones: hints.for_zones.iter().map(|zone| zone.name.as_str().into()).collect(),
            nodes: hints.for_nodes.iter().map(|node| node.name.as_str().into()).collect(),
        }
    }
}
