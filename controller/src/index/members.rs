//! Services and Pods of one namespace, and which belong together.
//!
//! A Service is filed under one pair of its selector (the one that the fewest Services are filed under). A Pod that it
//! selects has that pair among its labels, so a Pod finds its Services by looking at its labels only.
//!
//! Invariant: `pod.services` holds a Service if and only if `service.members` holds the Pod, and then the selector matches.

use std::sync::Arc;

use fairlead_objects::{Interner, LabelMap, Pod, Service};
use fairlead_planner::selects;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Epoch;

type Pair = (Arc<str>, Arc<str>);

/// One namespace.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    services: FxHashMap<Arc<str>, ServiceEntry>,
    pods: FxHashMap<Arc<str>, PodEntry>,
    filed: FxHashMap<Pair, Vec<Arc<str>>>,
    /// Sets of Services that Pods belong to.
    memberships: Interner<[Arc<str>]>,
}

#[derive(Debug)]
struct ServiceEntry {
    service: Arc<Service>,
    members: FxHashSet<Arc<str>>,
    filed_under: Option<Pair>,
    epoch: Epoch,
}

#[derive(Debug)]
struct PodEntry {
    pod: Arc<Pod>,
    /// Names of the Services that select it, sorted; shared by the Pods of a workload.
    services: Arc<[Arc<str>]>,
    epoch: Epoch,
}

/// What a Pod event changed.
#[derive(Debug)]
pub(super) struct PodChange {
    /// The shared copy of its name.
    pub(super) name: Arc<str>,
    /// Where it ran before.
    pub(super) old_node: Option<Arc<str>>,
    /// Names of the Services that it concerns.
    pub(super) dirty: Vec<Arc<str>>,
}

impl Namespace {
    /// Returns whether anything changed.
    pub(super) fn apply_service(&mut self, service: Service, epoch: Epoch) -> bool {
        let name = Arc::clone(&service.key.name);
        let Some(entry) = self.services.get_mut(&name) else {
            let entry = ServiceEntry {
                service: Arc::new(service),
                members: FxHashSet::default(),
                filed_under: None,
                epoch,
            };
            self.services.insert(Arc::clone(&name), entry);
            self.enrol(&name);
            return true;
        };
        entry.epoch = epoch;
        if same_but_version(&entry.service, &service) {
            entry.service = Arc::new(service);
            return false;
        }
        let reselects = entry.service.selector != service.selector;
        entry.service = Arc::new(service);
        if reselects {
            self.expel(&name);
            self.enrol(&name);
        }
        true
    }

    /// Returns whether it was there.
    pub(super) fn delete_service(&mut self, name: &Arc<str>) -> bool {
        if !self.services.contains_key(name) {
            return false;
        }
        self.expel(name);
        self.services.remove(name);
        true
    }

    /// Files a Service and gathers its members.
    fn enrol(&mut self, name: &Arc<str>) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let Some(selector) = entry.service.selector.clone().filter(|selector| !selector.is_empty()) else {
            return;
        };
        let filed = |(key, value): &(&Arc<str>, &Arc<str>)| {
            self.filed.get(&(Arc::clone(key), Arc::clone(value))).map_or(0, Vec::len)
        };
        let rarest =
            selector.iter().min_by_key(filed).map(|(key, value)| (Arc::clone(key), Arc::clone(value)));
        if let Some(pair) = &rarest {
            self.filed.entry(pair.clone()).or_default().push(Arc::clone(name));
        }
        entry.filed_under = rarest;
        for (pod_name, pod) in &mut self.pods {
            if selects(&selector, &pod.pod.labels) {
                entry.members.insert(Arc::clone(pod_name));
                pod.services = self.memberships.share(with(&pod.services, name));
            }
        }
    }

    /// Undoes [`Self::enrol`].
    fn expel(&mut self, name: &Arc<str>) {
        let Some(entry) = self.services.get_mut(name) else { return };
        if let Some(pair) = entry.filed_under.take()
            && let Some(names) = self.filed.get_mut(&pair)
        {
            names.retain(|filed| filed != name);
            if names.is_empty() {
                self.filed.remove(&pair);
            }
        }
        for pod_name in entry.members.drain() {
            if let Some(pod) = self.pods.get_mut(&pod_name) {
                let others = pod.services.iter().filter(|service| *service != name).cloned().collect();
                pod.services = self.memberships.share(others);
            }
        }
    }

    /// Names of the Services that select these labels, sorted.
    fn matching(&mut self, labels: &LabelMap) -> Arc<[Arc<str>]> {
        let filed = labels
            .iter()
            .filter_map(|(key, value)| self.filed.get(&(Arc::clone(key), Arc::clone(value))))
            .flatten();
        let selecting = filed.filter(|name| {
            let selector = self.services.get(*name).and_then(|entry| entry.service.selector.as_ref());
            selector.is_some_and(|selector| selects(selector, labels))
        });
        let mut names: Vec<Arc<str>> = selecting.cloned().collect();
        names.sort_unstable();
        self.memberships.share(names.into())
    }

    pub(super) fn apply_pod(&mut self, pod: Pod, epoch: Epoch) -> PodChange {
        let Some(known) = self.pods.get_mut(&pod.name) else { return self.add_pod(pod, epoch) };
        known.epoch = epoch;
        let name = Arc::clone(&known.pod.name);
        let old_node = known.pod.node.clone();
        if *known.pod == pod {
            return PodChange { name, old_node, dirty: Vec::new() };
        }
        let relabelled = known.pod.labels != pod.labels;
        let otherwise_same =
            relabelled && Pod { labels: Arc::clone(&pod.labels), ..(*known.pod).clone() } == pod;
        let old_services = Arc::clone(&known.services);
        let services = if relabelled { self.matching(&pod.labels) } else { Arc::clone(&old_services) };
        self.move_member(&name, &old_services, &services);
        let dirty = if otherwise_same {
            // Only the Services that it joins or leaves see a difference.
            difference(&old_services, &services).chain(difference(&services, &old_services)).collect()
        } else {
            services.iter().cloned().chain(difference(&old_services, &services)).collect()
        };
        let pod = Arc::new(Pod { name: Arc::clone(&name), ..pod });
        self.pods.insert(Arc::clone(&name), PodEntry { pod, services, epoch });
        PodChange { name, old_node, dirty }
    }

    fn add_pod(&mut self, pod: Pod, epoch: Epoch) -> PodChange {
        let name = Arc::clone(&pod.name);
        let services = self.matching(&pod.labels);
        self.move_member(&name, &[], &services);
        let dirty = services.to_vec();
        self.pods.insert(Arc::clone(&name), PodEntry { pod: Arc::new(pod), services, epoch });
        PodChange { name, old_node: None, dirty }
    }

    fn move_member(&mut self, pod: &Arc<str>, old: &[Arc<str>], new: &[Arc<str>]) {
        for service in difference(old, new) {
            if let Some(entry) = self.services.get_mut(&service) {
                entry.members.remove(pod);
            }
        }
        for service in difference(new, old) {
            if let Some(entry) = self.services.get_mut(&service) {
                entry.members.insert(Arc::clone(pod));
            }
        }
    }

    pub(super) fn delete_pod(&mut self, name: &Arc<str>) -> Option<PodChange> {
        let PodEntry { pod, services, .. } = self.pods.remove(name)?;
        self.move_member(name, &services, &[]);
        Some(PodChange { name: Arc::clone(name), old_node: pod.node.clone(), dirty: services.to_vec() })
    }

    pub(super) fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(name).map(|entry| &entry.service)
    }

    /// The Pods that a Service selects.
    pub(super) fn members(&self, name: &str) -> impl Iterator<Item = &Arc<Pod>> {
        let names = self.services.get(name).into_iter().flat_map(|entry| &entry.members);
        names.filter_map(|name| self.pods.get(name).map(|entry| &entry.pod))
    }

    /// The Services that select a Pod.
    pub(super) fn services_of(&self, pod: &str) -> &[Arc<str>] {
        self.pods.get(pod).map_or(&[], |entry| &entry.services)
    }

    pub(super) fn services_not_seen(&self, epoch: Epoch) -> Vec<Arc<str>> {
        self.services
            .iter()
            .filter(|(_, entry)| entry.epoch != epoch)
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }

    pub(super) fn pods_not_seen(&self, epoch: Epoch) -> Vec<Arc<str>> {
        self.pods.iter().filter(|(_, entry)| entry.epoch != epoch).map(|(name, _)| Arc::clone(name)).collect()
    }

    pub(super) fn service_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    pub(super) fn service_count(&self) -> usize {
        self.services.len()
    }

    pub(super) fn pod_count(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.pods.is_empty()
    }
}

/// Names in `left` that are not in `right`; both are sorted.
fn difference<'a>(left: &'a [Arc<str>], right: &'a [Arc<str>]) -> impl Iterator<Item = Arc<str>> + 'a {
    left.iter().filter(|name| right.binary_search(name).is_err()).cloned()
}

fn with(services: &[Arc<str>], name: &Arc<str>) -> Arc<[Arc<str>]> {
    match services.binary_search(name) {
        Ok(_) => services.into(),
        Err(position) => {
            let (before, after) = services.split_at(position);
            before.iter().chain([name]).chain(after).cloned().collect()
        }
    }
}

/// Whether two states of a Service differ in nothing that a plan could depend on.
fn same_but_version(left: &Service, right: &Service) -> bool {
    left.uid == right.uid
        && Service { resource_version: Arc::clone(&right.resource_version), ..left.clone() } == *right
}
