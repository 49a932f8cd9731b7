//! What a change makes dirty, and why.

use std::collections::BTreeMap;

use fairlead_objects::ServiceKey;

/// Why a Service has to be looked at again. How long that may wait depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The Service appeared, changed or went away.
    Service,
    /// Its Endpoints went away by another's hand.
    EndpointsGone,
    /// Its Endpoints appeared or changed by another's hand.
    Endpoints,
    /// A slice of it went away by another's hand.
    SliceGone,
    /// A slice of it appeared or changed by another's hand.
    Slice,
    /// One of its Pods appeared, changed or went away.
    Pod,
    /// A Node of its Pods appeared, moved to another zone or went away.
    Node,
    /// We became the leader, or a live look showed something unexpected.
    Resync,
}

impl Cause {
    /// A fixed word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::EndpointsGone => "endpoints_gone",
            Self::Endpoints => "endpoints",
            Self::SliceGone => "slice_gone",
            Self::Slice => "slice",
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Resync => "resync",
        }
    }
}

/// Services that a change concerns, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty(pub(super) BTreeMap<ServiceKey, Cause>);

impl Dirty {
    /// One Service.
    pub fn one(key: ServiceKey, cause: Cause) -> Self {
        Self(BTreeMap::from([(key, cause)]))
    }

    pub(super) fn insert(&mut self, key: ServiceKey, cause: Cause) {
        self.0.entry(key).and_modify(|known| *known = (*known).min(cause)).or_insert(cause);
    }

    pub(super) fn extend(&mut self, other: Self) {
        for (key, cause) in other.0 {
            self.insert(key, cause);
        }
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(ServiceKey, Cause)> for Dirty {
    fn from_iter<I: IntoIterator<Item = (ServiceKey, Cause)>>(keys: I) -> Self {
        let mut dirty = Self::default();
        for (key, cause) in keys {
            dirty.insert(key, cause);
        }
        dirty
    }
}

impl IntoIterator for Dirty {
    type Item = (ServiceKey, Cause);
    type IntoIter = std::collections::btree_map::IntoIter<ServiceKey, Cause>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
