//! Splits: how many endpoints each zone should have, and which zones have to give some away to get there.
//!
//! Invariant: as much is given as is received, and nothing moves for less than half an endpoint.

use std::{collections::BTreeMap, sync::Arc};

use super::ZoneCounts;

/// What one zone should have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Allocation {
    /// Endpoints, as exactly as shares tell.
    pub(super) desired: f64,
    /// With more, some other zone could not have its minimum.
    pub(super) maximum: usize,
}

/// What every zone should have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Split(BTreeMap<Arc<str>, Allocation>);

/// How many endpoints zones have to give away, and how many zones have to get.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Moves {
    pub(super) give: ZoneCounts,
    pub(super) receive: ZoneCounts,
}

impl Split {
    pub(super) fn new(zones: BTreeMap<Arc<str>, Allocation>) -> Self {
        Self(zones)
    }

    /// The most endpoints that may be hinted to a zone; `None` if it should not have any.
    pub(super) fn maximum(&self, zone: &str) -> Option<usize> {
        self.0.get(zone).map(|allocation| allocation.maximum)
    }

    /// What has to move from where there is most to spare to where most is missing. Of equals, the first by name.
    #[allow(clippy::cast_precision_loss, reason = "counts of endpoints are far below 2^52")]
    pub(super) fn moves(&self, counts: &ZoneCounts) -> Moves {
        let (mut surplus, mut deficit) = (BTreeMap::new(), BTreeMap::new());
        for (zone, allocation) in &self.0 {
            let difference = counts.get(zone).copied().unwrap_or(0) as f64 - allocation.desired;
            if difference > 0.0 {
                surplus.insert(Arc::clone(zone), difference);
            } else if difference < 0.0 {
                deficit.insert(Arc::clone(zone), -difference);
            }
        }
        let mut moves = Moves::default();
        while let (Some((from, spare)), Some((to, missing))) = (most(&mut surplus), most(&mut deficit)) {
            if (*spare < 1.0 && *missing < 1.0) || *spare < 0.5 || *missing < 0.5 {
                break;
            }
            *moves.give.entry(from).or_default() += 1;
            *moves.receive.entry(to).or_default() += 1;
            *spare -= 1.0;
            *missing -= 1.0;
        }
        moves
    }
}

impl Moves {
    /// Takes one endpoint from a zone that has to give, if there is one that has to get.
    pub(super) fn next(&mut self, from: &str) -> Option<Arc<str>> {
        let give = self.give.get_mut(from).filter(|give| **give > 0)?;
        let (to, receive) = self.receive.iter_mut().find(|(_, receive)| **receive > 0)?;
        *give -= 1;
        *receive -= 1;
        Some(Arc::clone(to))
    }
}

fn most(zones: &mut BTreeMap<Arc<str>, f64>) -> Option<(Arc<str>, &mut f64)> {
    let mut most: Option<(&Arc<str>, &mut f64)> = None;
    for (zone, amount) in zones {
        if most.as_ref().is_none_or(|(_, known)| *amount > **known) {
            most = Some((zone, amount));
        }
    }
    most.map(|(zone, amount)| (Arc::clone(zone), amount))
}
