//! Hints of the annotation `service.kubernetes.io/topology-mode: Auto` (KEP-2433; upstream's TopologyCache): ready
//! endpoints are dealt to zones in proportion to the zones' CPU, and if that cannot be done well, none is hinted.
//!
//! Upstream keeps what it has dealt in a cache beside its controller. Here nothing is kept: the shares of the zones and
//! what the last plan dealt come in as [`Topology`], and what this plan deals goes out as [`Remembered`].
//!
//! Invariants: either all ready endpoints of a family are hinted or none is; the same slices and shares give the same
//! hints, so that a second plan changes nothing.

mod cpu;
mod deal;
mod shares;
mod split;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use fairlead_objects::{Endpoint, EndpointSlice, Family, ForName, Hints, Service, labels, parse_address};

use crate::{
    packing::{Packed, Rewrite},
    port::PortSet,
};
use deal::{Hand, Seat};

pub use shares::ZoneShares;

/// By how much the endpoints hinted to a zone may be overloaded.
const OVERLOAD: f64 = 0.2;

/// Hints per zone. An endpoint that is hinted to two zones counts in both.
pub type ZoneCounts = BTreeMap<Arc<str>, usize>;

/// What topology mode `Auto` needs to know besides the objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Topology<'a> {
    /// The shares of the zones; `None` if there are none or if Nodes are not known.
    pub shares: Option<&'a ZoneShares>,
    /// What the last plan of this Service remembered ([`crate::Plan::topology`]); `None` if there was none.
    pub remembered: Option<&'a Remembered>,
}

/// What one plan wants the next one of the same Service to know; empty for Services without topology mode `Auto`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Hints per zone, for families whose endpoints are hinted.
    pub hinted: BTreeMap<Family, ZoneCounts>,
    /// Why the endpoints of the other families are not hinted.
    pub refused: BTreeMap<Family, Unhinted>,
}

impl Remembered {
    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.hinted.is_empty() && self.refused.is_empty()
    }

    /// Whether these shares would overload what is hinted to some zone (upstream's GetOverloadedServices).
    pub fn is_overloaded(&self, shares: Option<&ZoneShares>) -> bool {
        let mut hinted = self.hinted.values().filter(|counts| !counts.is_empty());
        hinted.any(|counts| shares.is_none_or(|shares| shares.overload(counts)))
    }

    /// Whether the Service must be planned again now that the shares are these: a zone is overloaded, or endpoints that
    /// could not be hinted now can. (Upstream lets the latter wait for another change of the Service.)
    pub fn is_outdated(&self, shares: Option<&ZoneShares>) -> bool {
        let possible = |why: &Unhinted| match why {
            Unhinted::InsufficientNodes => shares.is_some(),
            Unhinted::InsufficientEndpoints { endpoints, .. }
            | Unhinted::MinimumsExceedTotal { endpoints, .. } => {
                shares.is_some_and(|shares| shares.split(*endpoints).is_ok())
            }
            Unhinted::EndpointWithoutZone | Unhinted::NotRequested => false,
        };
        self.is_overloaded(shares) || self.refused.values().any(possible)
    }
}

/// Why the endpoints of one family carry no hints of topology mode `Auto`. It prints as upstream's Events do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unhinted {
    /// The annotation is gone.
    NotRequested,
    /// There are no shares: a Node lacks its zone or its CPU, or there is only one zone.
    InsufficientNodes,
    /// There are fewer ready endpoints than zones.
    InsufficientEndpoints {
        /// Ready endpoints.
        endpoints: usize,
        /// Zones.
        zones: usize,
    },
    /// There are too few endpoints to give every zone as many as keep it from being overloaded.
    MinimumsExceedTotal {
        /// Ready endpoints.
        endpoints: usize,
        /// Zones.
        zones: usize,
    },
    /// A ready endpoint has no zone.
    EndpointWithoutZone,
}

impl fmt::Display for Unhinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRequested => f.write_str("Topology Aware Hints has been disabled"),
            Self::InsufficientNodes => f.write_str(
                "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes",
            ),
            Self::InsufficientEndpoints { endpoints, zones } => {
                write!(f, "Insufficient number of endpoints ({endpoints} endpoints, {zones} zones)")
            }
            Self::MinimumsExceedTotal { endpoints, zones } => write!(
                f,
                "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold \
                 ({endpoints} endpoints, {zones} zones)"
            ),
            Self::EndpointWithoutZone => f.write_str("One or more endpoints do not have a zone specified"),
        }
    }
}

/// Whether a Service asks for hints by annotation: `Auto` or `auto`. The deprecated annotation
/// `service.kubernetes.io/topology-aware-hints` has precedence, and any of this over `trafficDistribution`.
pub fn is_topology_auto(service: &Service) -> bool {
    let annotation = |key| service.annotations.get(key).map(|value| &**value);
    let mode = annotation(labels::TOPOLOGY_AWARE_HINTS).or_else(|| annotation(labels::TOPOLOGY_MODE));
    matches!(mode, Some("Auto" | "auto"))
}

/// Puts hints on everything that is written, and adds slices whose hints have to change. Returns the hints per zone.
pub(crate) fn apply(packed: &mut Packed<'_>, shares: Option<&ZoneShares>) -> Result<ZoneCounts, Unhinted> {
    let shares = shares.ok_or(Unhinted::InsufficientNodes)?;
    let written = packed.written().map(|endpoints| (endpoints, false));
    let unchanged = packed.unchanged.iter().map(|slice| (&*slice.endpoints, true));
    let all: Vec<(&[Endpoint], bool)> = written.chain(unchanged).collect();
    let ready =
        all.iter().flat_map(|(endpoints, _)| *endpoints).filter(|endpoint| is_ready(endpoint)).count();
    let split = shares.split(ready)?;
    let mut hands = all
        .into_iter()
        .enumerate()
        .map(|(slice, (endpoints, unchanged))| hand(slice, endpoints, unchanged))
        .collect::<Result<Vec<Hand>, Unhinted>>()?;
    let counts = deal::settle(&split, &mut hands);
    hands.sort_by_key(|hand| hand.slice);
    let unchanged = hands.split_off(packed.create.len() + packed.update.len());
    for (endpoints, hand) in packed.written_mut().zip(&hands) {
        write(endpoints, hand);
    }
    for (existing, hand) in std::mem::take(&mut packed.unchanged).into_iter().zip(&unchanged) {
        keep(packed, existing, hand);
    }
    Ok(counts)
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.ready == Some(true)
}

/// The ready endpoints of a slice. The hints of one that is written anyway are dealt anew.
fn hand(slice: usize, endpoints: &[Endpoint], unchanged: bool) -> Result<Hand, Unhinted> {
    let mut seats = Vec::with_capacity(endpoints.len());
    for (position, endpoint) in endpoints.iter().enumerate().filter(|(_, endpoint)| is_ready(endpoint)) {
        let zone = endpoint.zone.as_deref().filter(|zone| !zone.is_empty());
        let stored = endpoint.hints.as_deref().filter(|_| unchanged);
        let hints = stored.into_iter().flat_map(|hints| &hints.for_zones);
        let addresses: Vec<IpAddr> =
            endpoint.addresses.iter().filter_map(|address| parse_address(address).ok()).collect();
        let pod = endpoint.target_ref.as_ref().map(|target| target.name.clone()).unwrap_or_default();
        seats.push(Seat {
            order: (addresses, pod),
            position,
            zone: zone.ok_or(Unhinted::EndpointWithoutZone)?.into(),
            hints: hints.map(|zone| zone.name.as_str().into()).collect(),
        });
    }
    seats.sort_by(|a, b| a.order.cmp(&b.order));
    Ok(Hand { slice, seats })
}

/// Leaves a slice unchanged if its hints are those that were dealt.
fn keep<'a>(packed: &mut Packed<'a>, existing: &'a EndpointSlice, hand: &Hand) {
    let mut endpoints = existing.endpoints.clone();
    write(&mut endpoints, hand);
    let differs = |(old, new): (&Endpoint, &Endpoint)| is_ready(old) && old.hints != new.hints;
    if existing.endpoints.iter().zip(&endpoints).any(differs) {
        let ports = PortSet::new(existing.ports.iter().cloned());
        packed.update.push(Rewrite { existing, ports, endpoints });
    } else {
        packed.unchanged.push(existing);
    }
}

/// Writes the hints that were dealt, and clears those of endpoints that are not ready.
fn write(endpoints: &mut [Endpoint], hand: &Hand) {
    for endpoint in &mut *endpoints {
        endpoint.hints = None;
    }
    for seat in &hand.seats {
        if let Some(endpoint) = endpoints.get_mut(seat.position) {
            let for_zones = seat.hints.iter().map(|zone| ForName { name: zone.to_string() }).collect();
            endpoint.hints = Some(Box::new(Hints { for_zones, for_nodes: Vec::new() }));
        }
    }
}
