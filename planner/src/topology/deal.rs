//! Deals: which zone each endpoint is hinted to.
//!
//! An endpoint is hinted to its own zone, unless that zone has more than its part; then to one that has less. Slices whose
//! hints are good enough stay as they are.
//!
//! Invariant: what [`settle`] has dealt it leaves alone the next time.

use std::{net::IpAddr, sync::Arc};

use super::{ZoneCounts, split::Split};

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seat {
    /// What it is ordered by: its addresses, then the name of its Pod.
    pub(super) order: (Vec<IpAddr>, String),
    /// Its position in its slice.
    pub(super) position: usize,
    /// The zone that it is in.
    pub(super) zone: Arc<str>,
    /// The zones that it is hinted to; empty if it has no hints worth keeping.
    pub(super) hints: Vec<Arc<str>>,
}

/// The ready endpoints of one slice, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hand {
    /// Which slice it is.
    pub(super) slice: usize,
    pub(super) seats: Vec<Seat>,
}

/// Deals hints, as few new ones as upstream does. Upstream may deal the same slice again and again, where shares are such
/// that a zone cannot be brought below its maximum; here everything is dealt afresh then, always in the same way.
pub(super) fn settle(split: &Split, hands: &mut Vec<Hand>) -> ZoneCounts {
    hands.sort_by(|a, b| order(a).cmp(&order(b)));
    let fresh = afresh(split, hands);
    if *hands != fresh {
        let dealt = deal(split, hands);
        let is_stable = deal(split, &dealt) == dealt;
        *hands = if is_stable { dealt } else { fresh };
    }
    count(hands)
}

fn order(hand: &Hand) -> Option<&(Vec<IpAddr>, String)> {
    hand.seats.first().map(|seat| &seat.order)
}

/// Hints per zone.
fn count(hands: &[Hand]) -> ZoneCounts {
    let mut counts = ZoneCounts::new();
    for zone in hands.iter().flat_map(|hand| &hand.seats).flat_map(|seat| &seat.hints) {
        *counts.entry(Arc::clone(zone)).or_default() += 1;
    }
    counts
}

fn afresh(split: &Split, hands: &[Hand]) -> Vec<Hand> {
    let mut hands = hands.to_vec();
    hands.iter_mut().flat_map(|hand| &mut hand.seats).for_each(|seat| seat.hints.clear());
    deal(split, &hands)
}

/// Keeps the slices that can stay as they are, and deals the others (upstream's AddHints).
fn deal(split: &Split, hands: &[Hand]) -> Vec<Hand> {
    let mut hands = hands.to_vec();
    let mut counts = ZoneCounts::new();
    let mut open: Vec<&mut Hand> = Vec::new();
    for hand in &mut hands {
        match kept(split, hand, &counts) {
            Some(kept) => add(&mut counts, kept),
            None => open.push(hand),
        }
    }
    for seat in open.iter_mut().flat_map(|hand| &mut hand.seats) {
        *counts.entry(Arc::clone(&seat.zone)).or_default() += 1;
        seat.hints = vec![Arc::clone(&seat.zone)];
    }
    let mut moves = split.moves(&counts);
    for seat in open.into_iter().flat_map(|hand| &mut hand.seats) {
        if let Some(zone) = moves.next(&seat.zone) {
            seat.hints = vec![zone];
        }
    }
    hands
}

/// The hints of a slice, if it can stay as it is beside what is allocated already (upstream's getHintsByZone).
pub(super) fn kept(split: &Split, hand: &Hand, allocated: &ZoneCounts) -> Option<ZoneCounts> {
    if hand.seats.iter().any(|seat| seat.hints.is_empty()) {
        return None;
    }
    let counts = count(std::slice::from_ref(hand));
    let fits = |(zone, count): (&Arc<str>, &usize)| {
        let others = allocated.get(zone).copied().unwrap_or(0);
        split.maximum(zone).is_some_and(|maximum| count + others <= maximum)
    };
    counts.iter().all(fits).then_some(counts)
}

fn add(counts: &mut ZoneCounts, more: ZoneCounts) {
    for (zone, count) in more {
        *counts.entry(zone).or_default() += count;
    }
}
