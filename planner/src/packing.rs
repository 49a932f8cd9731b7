//! Packing: how the endpoints of one port set are spread over slices (upstream's reconcileByPortMapping).
//!
//! The aim is few writes, not few slices: an endpoint stays where it is, what is missing goes first into slices that must
//! be written anyway, then into new slices as long as they become full, and the rest into the one existing slice that it
//! fills best. Nothing is moved between slices that are right as they are.
//!
//! Upstream leaves the order to chance; here endpoints are ordered by address and then by Pod name, slices by name.
//!
//! Invariants: every desired endpoint is in exactly one slice; no slice grows beyond the maximum.

use std::{collections::BTreeMap, net::IpAddr};

use fairlead_objects::{Endpoint, EndpointSlice, ObjectReference, parse_address};

use crate::port::PortSet;

/// A slice that does not exist yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    pub(crate) ports: PortSet,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// New contents for a slice that exists.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rewrite<'a> {
    pub(crate) existing: &'a EndpointSlice,
    pub(crate) ports: PortSet,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What is to happen to the slices of one Service and address type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Packed<'a> {
    pub(crate) create: Vec<Draft>,
    pub(crate) update: Vec<Rewrite<'a>>,
    pub(crate) delete: Vec<&'a EndpointSlice>,
    pub(crate) unchanged: Vec<&'a EndpointSlice>,
    /// How many endpoints appear.
    pub(crate) added: usize,
    /// How many endpoints disappear.
    pub(crate) removed: usize,
    /// How many endpoints change in place.
    pub(crate) updated: usize,
}

/// What makes two endpoints the same one, in the order in which endpoints are placed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity<'a> {
    addresses: Vec<IpAddr>,
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
}

impl<'a> Identity<'a> {
    /// `None` if an address is no IP address: then the endpoint is nothing that we would write.
    pub(crate) fn of(endpoint: &'a Endpoint) -> Option<Self> {
        let mut addresses: Vec<IpAddr> =
            endpoint.addresses.iter().map(|address| parse_address(address).ok()).collect::<Option<_>>()?;
        addresses.sort_unstable();
        let target = endpoint.target_ref.as_deref();
        Some(Self {
            addresses,
            name: target.map_or("", |target| &target.name),
            namespace: target.map_or("", |target| &target.namespace),
            hostname: endpoint.hostname.as_deref().unwrap_or_default(),
        })
    }
}

/// Puts endpoints in the order in which they are placed. Of several with one identity, the last one stays.
pub(crate) fn in_order(endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let by_identity: BTreeMap<Identity<'_>, usize> =
        endpoints.iter().enumerate().filter_map(|(i, endpoint)| Some((Identity::of(endpoint)?, i))).collect();
    let order: Vec<usize> = by_identity.into_values().collect();
    let mut endpoints: Vec<Option<Endpoint>> = endpoints.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| endpoints.get_mut(i)?.take()).collect()
}

/// Whether two endpoints of the same identity are written alike, hints aside.
pub(crate) fn is_same(a: &Endpoint, b: &Endpoint) -> bool {
    let target = |endpoint: &Endpoint| {
        let unversioned =
            |target: &ObjectReference| ObjectReference { resource_version: String::new(), ..target.clone() };
        endpoint.target_ref.as_deref().map(unversioned)
    };
    a.addresses == b.addresses
        && a.node_name == b.node_name
        && a.zone == b.zone
        && a.conditions == b.conditions
        && target(a) == target(b)
}

impl<'a> Packed<'a> {
    /// Spreads the endpoints of one port set. `existing` are the slices that have these ports already, by name;
    /// `desired` is [`in_order`]; `is_labelled` says whether a slice has the right labels.
    pub(crate) fn pack(
        &mut self,
        ports: &PortSet,
        existing: &[&'a EndpointSlice],
        desired: &[Endpoint],
        is_labelled: impl Fn(&EndpointSlice) -> bool,
        max: usize,
    ) {
        let mut local = Self::default();
        let mut missing: BTreeMap<Identity<'_>, &Endpoint> =
            desired.iter().filter_map(|endpoint| Some((Identity::of(endpoint)?, endpoint))).collect();
        for slice in existing {
            local.keep(ports, slice, &mut missing, &is_labelled);
        }
        local.added = missing.len();
        local.place(ports, missing.into_values().cloned().collect(), max);
        self.append(local);
    }

    /// Decides what stays of one slice, and takes that out of what is missing.
    fn keep<'d>(
        &mut self,
        ports: &PortSet,
        slice: &'a EndpointSlice,
        missing: &mut BTreeMap<Identity<'d>, &'d Endpoint>,
        is_labelled: impl Fn(&EndpointSlice) -> bool,
    ) where
        'a: 'd,
    {
        let mut kept: Vec<Endpoint> = Vec::with_capacity(slice.endpoints.len());
        let mut differing = 0;
        for endpoint in &slice.endpoints {
            if let Some(fresh) = Identity::of(endpoint).and_then(|identity| missing.remove(&identity)) {
                differing += usize::from(!is_same(endpoint, fresh));
                kept.push(fresh.clone());
            }
        }
        let dropped = slice.endpoints.len() - kept.len();
        self.removed += dropped;
        self.updated += differing;
        let rewrite = |endpoints| Rewrite { existing: slice, ports: ports.clone(), endpoints };
        if differing == 0 && dropped == 0 {
            if is_labelled(slice) {
                self.unchanged.push(slice);
            } else {
                self.update.push(rewrite(slice.endpoints.clone()));
            }
        } else if kept.is_empty() {
            self.delete.push(slice);
        } else {
            self.update.push(rewrite(kept));
        }
    }

    /// Finds places for endpoints that are in no slice.
    fn place(&mut self, ports: &PortSet, missing: Vec<Endpoint>, max: usize) {
        let mut missing = missing.into_iter();
        let mut fullest_first: Vec<&mut Rewrite<'_>> = self.update.iter_mut().collect();
        fullest_first.sort_by_key(|rewrite| std::cmp::Reverse(rewrite.endpoints.len()));
        for rewrite in fullest_first {
            let room = max.saturating_sub(rewrite.endpoints.len());
            rewrite.endpoints.extend(missing.by_ref().take(room));
        }
        while missing.len() > 0 {
            if let Some(position) = best_fit(&self.unchanged, missing.len(), max) {
                let existing = self.unchanged.remove(position);
                let endpoints = existing.endpoints.iter().cloned().chain(missing.by_ref()).collect();
                self.update.push(Rewrite { existing, ports: ports.clone(), endpoints });
            } else {
                let endpoints = missing.by_ref().take(max).collect();
                self.create.push(Draft { ports: ports.clone(), endpoints });
            }
        }
    }

    fn append(&mut self, other: Self) {
        self.create.extend(other.create);
        self.update.extend(other.update);
        self.delete.extend(other.delete);
        self.unchanged.extend(other.unchanged);
        self.added += other.added;
        self.removed += other.removed;
        self.updated += other.updated;
    }

    /// The endpoints of everything that is written: of new slices, then of rewritten ones.
    pub(crate) fn written(&self) -> impl Iterator<Item = &[Endpoint]> {
        let created = self.create.iter().map(|draft| &*draft.endpoints);
        created.chain(self.update.iter().map(|rewrite| &*rewrite.endpoints))
    }

    /// The same, to put hints on them.
    pub(crate) fn written_mut(&mut self) -> impl Iterator<Item = &mut [Endpoint]> {
        let created = self.create.iter_mut().map(|draft| &mut *draft.endpoints);
        created.chain(self.update.iter_mut().map(|rewrite| &mut *rewrite.endpoints))
    }

    /// Gives up a slice with all its endpoints.
    pub(crate) fn discard(&mut self, slice: &'a EndpointSlice) {
        self.removed += slice.endpoints.len();
        self.delete.push(slice);
    }

    /// Turns pairs of a deletion and a creation into updates, so that the old object stays. `is_eligible` says which
    /// slices may be reused.
    pub(crate) fn recycle(&mut self, is_eligible: impl Fn(&EndpointSlice) -> bool) {
        self.delete.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        for existing in std::mem::take(&mut self.delete) {
            match self.create.pop_if(|_| is_eligible(existing)) {
                Some(Draft { ports, endpoints }) => self.update.push(Rewrite { existing, ports, endpoints }),
                None => self.delete.push(existing),
            }
        }
    }
}

/// The slice that `count` more endpoints fill best, if they fit into one.
fn best_fit(slices: &[&EndpointSlice], count: usize, max: usize) -> Option<usize> {
    if count >= max {
        return None;
    }
    let room_left = |slice: &EndpointSlice| max.checked_sub(count + slice.endpoints.len());
    let fits = slices.iter().enumerate().filter_map(|(i, slice)| Some((room_left(slice)?, i)));
    fits.min().map(|(_, i)| i)
}
