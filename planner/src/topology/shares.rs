//! Shares of zones: how much of the cluster's CPU each zone has.
//!
//! Invariant: there are at least two zones, and their shares add up to one.

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{Node, labels};

use super::{
    OVERLOAD, Unhinted, ZoneCounts, cpu,
    split::{Allocation, Split},
};

/// The part of the cluster's allocatable CPU that each zone has.
#[derive(Clone, Debug, PartialEq)]
pub struct ZoneShares(BTreeMap<Arc<str>, f64>);

impl ZoneShares {
    /// Adds up the allocatable CPU of ready Nodes outside the control plane. `None` if there are fewer than two zones, or
    /// if one of those Nodes has no zone or no CPU: then no split would be fair.
    #[allow(single_use_lifetimes, reason = "inside `impl Trait` it cannot be left out")]
    pub fn of<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> Option<Self> {
        let mut by_zone: BTreeMap<Arc<str>, u128> = BTreeMap::new();
        for node in nodes.into_iter().filter(|node| node.ready && !is_control_plane(node)) {
            let cpu = node.allocatable_cpu.as_deref().and_then(cpu::nano).filter(|cpu| *cpu > 0)?;
            let sum = by_zone.entry(Arc::clone(node.zone()?)).or_default();
            *sum = sum.saturating_add(cpu);
        }
        let total = by_zone.values().fold(0_u128, |total, cpu| total.saturating_add(*cpu));
        let share = |cpu: u128| float(cpu::milli(cpu)) / float(cpu::milli(total));
        (by_zone.len() > 1).then(|| Self(by_zone.into_iter().map(|(zone, cpu)| (zone, share(cpu))).collect()))
    }

    /// The zones and their shares, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, f64)> {
        self.0.iter().map(|(zone, share)| (zone, *share))
    }

    /// How many of so many endpoints each zone should have, or why that cannot be done well.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of endpoints are far below 2^52 and never negative"
    )]
    pub(super) fn split(&self, endpoints: usize) -> Result<Split, Unhinted> {
        let zones = self.0.len();
        if zones > endpoints {
            return Err(Unhinted::InsufficientEndpoints { endpoints, zones });
        }
        let mut minimums = BTreeMap::new();
        for (zone, share) in &self.0 {
            let fair = share * endpoints as f64;
            minimums.insert(zone, (fair, (fair * (1.0 / (1.0 + OVERLOAD))).ceil() as usize));
        }
        let spare = endpoints
            .checked_sub(minimums.values().map(|(_, minimum)| minimum).sum())
            .ok_or(Unhinted::MinimumsExceedTotal { endpoints, zones })?;
        let allocation = |(zone, (fair, minimum)): (&Arc<str>, (f64, usize))| {
            (Arc::clone(zone), Allocation { desired: fair.max(minimum as f64), maximum: minimum + spare })
        };
        Ok(Split::new(minimums.into_iter().map(allocation).collect()))
    }

    /// Whether one of the zones has so few of these hints that the endpoints hinted to it would be overloaded.
    #[allow(clippy::cast_precision_loss, reason = "counts of endpoints are far below 2^52")]
    pub(super) fn overload(&self, counts: &ZoneCounts) -> bool {
        let total = counts.values().sum::<usize>() as f64;
        self.0.iter().any(|(zone, share)| {
            let minimum = (total * share * (1.0 / (1.0 + OVERLOAD))).ceil();
            counts.get(zone).is_none_or(|count| (*count as f64) < minimum)
        })
    }
}

fn is_control_plane(node: &Node) -> bool {
    [labels::NODE_ROLE_CONTROL_PLANE, labels::NODE_ROLE_MASTER]
        .iter()
        .any(|role| node.labels.contains_key(*role))
}

#[allow(clippy::cast_precision_loss, reason = "a share needs no more digits than a float has")]
fn float(milli: u128) -> f64 {
    milli as f64
}
