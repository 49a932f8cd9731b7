//! Objects that we write ourselves: Endpoints and slices, seen through a watch that lags behind our own writes.
//!
//! Results of our writes are applied at once. What the watch says about an older state is ignored, and what it says about
//! an object that we deleted is ignored until it confirms the deletion. So a plan always sees at least what we wrote
//! ourselves, and there is no such thing as a cache that is out of date and has to be waited for.
//!
//! Invariants: an object's resourceVersion never decreases (as far as versions can be compared). An object that we wrote
//! and that no watch has shown yet survives a list that does not hold it, but its Service is then looked at afresh.

use std::sync::Arc;

use fairlead_objects::{EndpointSlice, Endpoints, ObjectMeta, ServiceKey, labels};
use rustc_hash::FxHashMap;

use super::{Cause, Dirty, Epoch, Index, Kind, is_ours, version};

/// An object that was deleted or is known not to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: Option<String>,
}

/// Metadata of a kind, independent of the rest.
pub(super) trait Meta {
    fn meta(&self) -> &ObjectMeta;
    /// Whether both say the same, whatever versions and uids they carry.
    fn says(&self, other: &Self) -> bool;
}

impl Meta for Endpoints {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn says(&self, other: &Self) -> bool {
        self.subsets == other.subsets && same_meta(&self.metadata, &other.metadata)
    }
}

impl Meta for EndpointSlice {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn says(&self, other: &Self) -> bool {
        self.endpoints == other.endpoints
            && self.ports == other.ports
            && self.address_type == other.address_type
            && same_meta(&self.metadata, &other.metadata)
    }
}

fn same_meta(left: &ObjectMeta, right: &ObjectMeta) -> bool {
    left.labels == right.labels
        && left.annotations == right.annotations
        && left.owner_references == right.owner_references
        && left.deletion_timestamp.is_some() == right.deletion_timestamp.is_some()
}

/// All objects of one kind.
#[derive(Debug)]
pub(super) struct Objects<K> {
    entries: FxHashMap<ServiceKey, Entry<K>>,
    tombstones: FxHashMap<ServiceKey, Tombstone>,
    /// What was sent and not answered yet: the watch may be faster than the answer.
    sent: FxHashMap<ServiceKey, Sent<K>>,
}

/// A request that has not been answered.
#[derive(Debug)]
enum Sent<K> {
    Write {
        object: Box<K>,
        /// Uids of what the watch said was deleted meanwhile: the answer is not to bring it back.
        gone: Vec<Option<String>>,
    },
    Delete(Option<String>),
}

impl<K> Sent<K> {
    fn write(object: K) -> Self {
        Self::Write { object: Box::new(object), gone: Vec::new() }
    }
}

impl<K> Default for Objects<K> {
    fn default() -> Self {
        Self { entries: FxHashMap::default(), tombstones: FxHashMap::default(), sent: FxHashMap::default() }
    }
}

#[derive(Debug)]
struct Entry<K> {
    object: Arc<K>,
    epoch: Epoch,
    /// A watch has shown it in this or a later state.
    confirmed: bool,
}

/// An object that is gone although the watch may not have said so yet.
#[derive(Debug)]
struct Tombstone {
    uid: Option<String>,
    /// Up to which version it was gone; `None` for ever, because we deleted it.
    until: Option<String>,
}

/// How an object came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From a watch, during that list or after it.
    Watch(Epoch),
    /// From the API server's answer to our own request.
    Answer,
}

/// What became of an object that came in.
#[derive(Debug)]
pub(super) enum Applied<K> {
    /// Older than what is known, or known to be deleted.
    Ignored,
    /// It says nothing new.
    Same,
    /// It is what we have sent, and replaced this state, if there was one.
    Echo(Option<Arc<K>>),
    /// It replaced this state, if there was one.
    Changed(Option<Arc<K>>),
}

impl<K: Meta> Objects<K> {
    pub(super) fn get(&self, key: &ServiceKey) -> Option<&Arc<K>> {
        self.entries.get(key).map(|entry| &entry.object)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.entries.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn apply(&mut self, key: &ServiceKey, object: K, origin: Origin) -> Applied<K> {
        let new_version = object.meta().resource_version.as_deref();
        if let Some(tombstone) = self.tombstones.get(key) {
            let covered =
                tombstone.until.as_deref().is_none_or(|until| !version::is_older(Some(until), new_version));
            if tombstone.uid == object.meta().uid && covered {
                return Applied::Ignored;
            }
            self.tombstones.remove(key);
        }
        let watched = matches!(origin, Origin::Watch(_));
        let echo = match self.sent.get(key) {
            Some(Sent::Write { gone, .. }) if !watched && gone.contains(&object.meta().uid) => {
                return Applied::Ignored;
            }
            Some(Sent::Write { object: sent, .. }) => watched && sent.says(&object),
            _ => false,
        };
        let Some(entry) = self.entries.get_mut(key) else {
            let epoch = if let Origin::Watch(epoch) = origin { epoch } else { Epoch::default() };
            self.entries.insert(key.clone(), Entry { object: Arc::new(object), epoch, confirmed: watched });
            return if echo { Applied::Echo(None) } else { Applied::Changed(None) };
        };
        if let Origin::Watch(epoch) = origin {
            entry.epoch = epoch;
        }
        if version::is_older(new_version, entry.object.meta().resource_version.as_deref()) {
            return Applied::Ignored;
        }
        entry.confirmed = watched;
        let same = entry.object.meta().uid == object.meta().uid && entry.object.says(&object);
        let old = std::mem::replace(&mut entry.object, Arc::new(object));
        match (same, echo) {
            (true, _) => Applied::Same,
            (false, true) => Applied::Echo(Some(old)),
            (false, false) => Applied::Changed(Some(old)),
        }
    }

    /// Removes an object by a watch's word. `None` if that concerns an older object of the same name.
    fn delete(&mut self, key: &ServiceKey, gone: &ObjectMeta) -> Option<Arc<K>> {
        if self.tombstones.get(key).is_some_and(|tombstone| tombstone.uid == gone.uid) {
            self.tombstones.remove(key);
        }
        if let Some(Sent::Write { gone: meanwhile, .. }) = self.sent.get_mut(key) {
            meanwhile.push(gone.uid.clone());
        }
        let known = self.entries.get(key)?.object.meta();
        let another = known.uid != gone.uid
            && !version::is_older(known.resource_version.as_deref(), gone.resource_version.as_deref());
        if another { None } else { self.entries.remove(key).map(|entry| entry.object) }
    }

    /// Whether a deletion of that uid was sent and is not answered yet.
    fn is_deleting(&self, key: &ServiceKey, gone: &ObjectMeta) -> bool {
        matches!(self.sent.get(key), Some(Sent::Delete(uid)) if *uid == gone.uid)
    }

    /// Removes an object that is known to be gone, and remembers that.
    fn bury(&mut self, key: &ServiceKey, uid: Option<String>, until: Option<String>) -> Option<Arc<K>> {
        let known = self.entries.get(key).is_some_and(|entry| entry.object.meta().uid == uid);
        self.tombstones.insert(key.clone(), Tombstone { uid, until });
        if known { self.entries.remove(key).map(|entry| entry.object) } else { None }
    }

    /// What the list of `epoch` did not hold: objects that are gone, and keys of those that we wrote meanwhile.
    pub(super) fn not_seen(&mut self, epoch: Epoch) -> (Vec<(ServiceKey, Arc<K>)>, Vec<ServiceKey>) {
        let absent = self.entries.iter().filter(|(_, entry)| entry.epoch != epoch);
        let (gone, unconfirmed): (Vec<_>, Vec<_>) = absent.partition(|(_, entry)| entry.confirmed);
        let gone = gone.into_iter().map(|(key, entry)| (key.clone(), Arc::clone(&entry.object))).collect();
        (gone, unconfirmed.into_iter().map(|(key, _)| key.clone()).collect())
    }
}

impl Index {
    /// Endpoints were seen by the watch.
    pub fn apply_endpoints(&mut self, endpoints: Endpoints) -> Dirty {
        let origin = Origin::Watch(self.epoch(Kind::Endpoints));
        self.put_endpoints(endpoints, origin)
    }

    /// Endpoints are gone, says the watch.
    pub fn delete_endpoints(&mut self, key: &ServiceKey, gone: &Endpoints) -> Dirty {
        let ours = self.endpoints.is_deleting(key, &gone.metadata);
        match self.endpoints.delete(key, &gone.metadata).filter(|_| !ours) {
            Some(old) if self.endpoints_concern(key, &[&old]) => {
                Dirty::one(key.clone(), Cause::EndpointsGone)
            }
            _ => Dirty::default(),
        }
    }

    /// A slice was seen by the watch.
    pub fn apply_slice(&mut self, slice: EndpointSlice) -> Dirty {
        let origin = Origin::Watch(self.epoch(Kind::EndpointSlices));
        self.put_slice(slice, origin)
    }

    /// A slice is gone, says the watch.
    pub fn delete_slice(&mut self, gone: &EndpointSlice) -> Dirty {
        let Some(key) = object_key(&gone.metadata) else { return Dirty::default() };
        let deleting = self.slices.is_deleting(&key, &gone.metadata);
        let Some(old) = self.slices.delete(&key, &gone.metadata) else { return Dirty::default() };
        self.unlink(&old, &key.name);
        match old.service_key() {
            Some(service) if is_ours(&old) && !deleting => Dirty::one(service, Cause::SliceGone),
            _ => Dirty::default(),
        }
    }

    /// These Endpoints are about to be sent. What the watch says may be an echo of that until [`Self::answered`].
    pub fn sending_endpoints(&mut self, key: &ServiceKey, endpoints: &Endpoints) {
        self.endpoints.sent.insert(key.clone(), Sent::write(endpoints.clone()));
    }

    /// As [`Self::sending_endpoints`], for a slice.
    pub fn sending_slice(&mut self, key: &ServiceKey, slice: &EndpointSlice) {
        self.slices.sent.insert(key.clone(), Sent::write(slice.clone()));
    }

    /// The deletion of an object is about to be sent. `key` is the object's own namespace and name.
    pub fn sending_deletion(&mut self, kind: Kind, key: &ServiceKey, uid: Option<String>) {
        match kind {
            Kind::Endpoints => drop(self.endpoints.sent.insert(key.clone(), Sent::Delete(uid))),
            Kind::EndpointSlices => drop(self.slices.sent.insert(key.clone(), Sent::Delete(uid))),
            Kind::Services | Kind::Pods | Kind::Nodes => {}
        }
    }

    /// What was sent for that object has been answered, or nobody waits for the answer any more.
    pub fn answered(&mut self, kind: Kind, key: &ServiceKey) {
        match kind {
            Kind::Endpoints => drop(self.endpoints.sent.remove(key)),
            Kind::EndpointSlices => drop(self.slices.sent.remove(key)),
            Kind::Services | Kind::Pods | Kind::Nodes => {}
        }
    }

    /// The API server's answer to our own create or update of Endpoints. Nothing becomes dirty by it.
    pub fn wrote_endpoints(&mut self, endpoints: Endpoints) {
        drop(self.put_endpoints(endpoints, Origin::Answer));
    }

    /// The API server's answer to our own create or update of a slice. Nothing becomes dirty by it.
    pub fn wrote_slice(&mut self, slice: EndpointSlice) {
        drop(self.put_slice(slice, Origin::Answer));
    }

    /// We deleted these Endpoints.
    pub fn deleted_endpoints(&mut self, key: &ServiceKey, gone: Gone) {
        drop(self.endpoints.bury(key, gone.uid, None));
    }

    /// We deleted this slice.
    pub fn deleted_slice(&mut self, namespace: &Arc<str>, gone: Gone) {
        let key = ServiceKey::new(Arc::clone(namespace), gone.name);
        if let Some(old) = self.slices.bury(&key, gone.uid, None) {
            self.unlink(&old, &key.name);
        }
    }

    /// What a Service's Endpoints and slices really are, read from the API server at `list_version`. Watch events that say
    /// otherwise about versions up to that one are ignored from now on.
    pub fn replace(
        &mut self,
        key: &ServiceKey,
        endpoints: Option<Endpoints>,
        slices: Vec<EndpointSlice>,
        list_version: Option<&str>,
    ) {
        let until = Some(list_version.unwrap_or("0").to_owned());
        let live: Vec<ServiceKey> = slices.iter().filter_map(|slice| object_key(&slice.metadata)).collect();
        let known: Vec<Arc<EndpointSlice>> = self.slices_of(key).cloned().collect();
        for old in known {
            let Some(slice_key) = object_key(&old.metadata).filter(|slice_key| !live.contains(slice_key))
            else {
                continue;
            };
            if version::is_older(list_version, old.metadata.resource_version.as_deref()) {
                continue;
            }
            if self.slices.bury(&slice_key, old.metadata.uid.clone(), until.clone()).is_some() {
                self.unlink(&old, &slice_key.name);
            }
        }
        for slice in slices {
            self.wrote_slice(slice);
        }
        match endpoints {
            Some(endpoints) => self.wrote_endpoints(endpoints),
            None => {
                if let Some(uid) = self.endpoints.get(key).map(|old| old.metadata.uid.clone()) {
                    drop(self.endpoints.bury(key, uid, until));
                }
            }
        }
        let collided = self.suspects.remove(key).unwrap_or_default();
        let foreign =
            collided.into_iter().filter(|name| !self.slices_of.get(key).is_some_and(|s| s.contains(&**name)));
        let foreign: Vec<String> = foreign.collect();
        if !foreign.is_empty() {
            self.taken.entry(key.clone()).or_default().extend(foreign);
        }
    }

    /// Says that what is known of a Service's Endpoints and slices may not be what the API server has.
    pub fn suspect(&mut self, key: &ServiceKey) {
        self.suspects.entry(key.clone()).or_default();
    }

    /// As [`Self::suspect`], because a new slice could not have that name. If it is not a slice of the Service after all,
    /// [`Self::replace`] notes the name as taken.
    pub fn suspect_name(&mut self, key: &ServiceKey, name: String) {
        self.suspects.entry(key.clone()).or_default().push(name);
    }

    pub(super) fn slices_of(&self, key: &ServiceKey) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.slices_of.get(key).into_iter().flatten();
        names.filter_map(|name| {
            self.slices.get(&ServiceKey { namespace: Arc::clone(&key.namespace), name: Arc::clone(name) })
        })
    }

    fn put_endpoints(&mut self, endpoints: Endpoints, origin: Origin) -> Dirty {
        let Some(key) = object_key(&endpoints.metadata) else { return Dirty::default() };
        let Applied::Changed(old) = self.endpoints.apply(&key, endpoints, origin) else {
            return Dirty::default();
        };
        let states: Vec<&Endpoints> =
            old.iter().chain(self.endpoints.get(&key)).map(|state| &**state).collect();
        if self.endpoints_concern(&key, &states) {
            Dirty::one(key, Cause::Endpoints)
        } else {
            Dirty::default()
        }
    }

    /// Endpoints of a Service always do. Of others, leader-election records (which change every two seconds) do not.
    fn endpoints_concern(&self, key: &ServiceKey, states: &[&Endpoints]) -> bool {
        let namespace = self.namespaces.get(&key.namespace);
        let service = namespace.and_then(|namespace| namespace.service(&key.name));
        service.is_some_and(|service| service.selector.is_some())
            || self.slices_of.contains_key(key)
            || states.iter().any(|endpoints| {
                let annotations = endpoints.metadata.annotations.as_ref();
                !annotations.is_some_and(|annotations| annotations.contains_key(labels::LEADER))
            })
    }

    fn put_slice(&mut self, slice: EndpointSlice, origin: Origin) -> Dirty {
        let Some(key) = object_key(&slice.metadata) else { return Dirty::default() };
        let (new_service, ours) = (slice.service_key(), is_ours(&slice));
        let (old, foreign) = match self.slices.apply(&key, slice, origin) {
            Applied::Changed(old) => (old, true),
            Applied::Echo(old) => (old, false),
            Applied::Ignored | Applied::Same => return Dirty::default(),
        };
        let mut dirty = Dirty::default();
        let old_service = old.as_ref().and_then(|old| old.service_key());
        let concerns = foreign && (ours || old.as_deref().is_some_and(is_ours));
        if old_service != new_service
            && let Some(old) = &old
        {
            self.unlink(old, &key.name);
        }
        for service in old_service.into_iter().filter(|_| concerns) {
            dirty.insert(service, Cause::Slice);
        }
        if let Some(service) = new_service {
            self.slices_of.entry(service.clone()).or_default().insert(Arc::clone(&key.name));
            if concerns {
                dirty.insert(service, Cause::Slice);
            }
        }
        dirty
    }

    fn unlink(&mut self, slice: &EndpointSlice, name: &str) {
        let Some(service) = slice.service_key() else { return };
        if let Some(names) = self.slices_of.get_mut(&service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
    }
}

/// Namespace and name of an object.
fn object_key(metadata: &ObjectMeta) -> Option<ServiceKey> {
    Some(ServiceKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
}
