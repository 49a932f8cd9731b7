//! The ledger: which differences stand, since when, and which of them count.
//!
//! The other proxy and we hear of a change at different times and take different times over it, so a difference counts when
//! it has stood, unchanged, for the grace period.
//!
//! Invariants: pure state, the time is an argument; each divergence is told once when it begins to count, and once when it is
//! over.

use std::{collections::BTreeMap, time::Duration};

use fairlead_compiler::{Comparison, Difference, Discord};
use fairlead_objects::{Family, Timestamp};
use tokio::time::Instant;

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// For durations.
    pub(super) instant: Instant,
    /// For people.
    pub(super) time: Timestamp,
}

impl Moment {
    /// Now.
    pub(super) fn now() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }
}

/// One difference.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) difference: Difference,
    /// Since when it has been as it is.
    first: Instant,
    pub(super) since: Timestamp,
    /// It counts.
    pub(super) stands: bool,
}

/// What a comparison changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct News {
    /// Begin to count.
    pub(super) begun: Vec<Difference>,
    /// Counted, and are no more.
    pub(super) over: Vec<Difference>,
}

/// The differences of one family.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    pub(super) family: Family,
    grace: Duration,
    /// By everything of them but the fates.
    entries: BTreeMap<String, Entry>,
    /// Those with an excuse.
    pub(super) expected: Vec<Difference>,
    /// How many comparisons there were.
    pub(super) comparisons: u64,
    /// The last of them, without its differences.
    pub(super) last: Option<(Timestamp, Comparison)>,
    /// Something changed that was not compared yet.
    pub(super) pending: bool,
    /// Why nothing can be compared.
    pub(super) obstacle: Option<String>,
}

impl Ledger {
    /// An empty ledger.
    pub(super) fn new(family: Family, grace: Duration) -> Self {
        Self {
            family,
            grace,
            entries: BTreeMap::new(),
            expected: Vec::new(),
            comparisons: 0,
            last: None,
            pending: true,
            obstacle: None,
        }
    }

    /// Takes in what a comparison found.
    pub(super) fn compared(&mut self, mut comparison: Comparison, now: Moment) -> News {
        self.comparisons += 1;
        let found = std::mem::take(&mut comparison.differences);
        self.last = Some((now.time, comparison));
        let (expected, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|one| one.excuse.is_some());
        self.expected = expected;
        let mut before = std::mem::take(&mut self.entries);
        for difference in found {
            let key = key(&difference);
            let entry = match before.remove(&key) {
                Some(known) if known.stands || known.difference == difference => {
                    Entry { difference, ..known }
                }
                _ => Entry { difference, first: now.instant, since: now.time, stands: false },
            };
            self.entries.insert(key, entry);
        }
        let over = before.into_values().filter(|entry| entry.stands).map(|entry| entry.difference);
        News { begun: self.ripen(now), over: over.collect() }
    }

    /// Nothing has changed since the last comparison.
    pub(super) fn unchanged(&mut self, now: Moment) -> News {
        if let Some((time, _)) = &mut self.last {
            *time = now.time;
        }
        News { begun: self.ripen(now), over: Vec::new() }
    }

    /// There is nothing to compare with.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.expected.clear();
    }

    /// What has stood for long enough counts from now on.
    fn ripen(&mut self, now: Moment) -> Vec<Difference> {
        let grace = self.grace;
        let ripe =
            self.entries.values_mut().filter(|entry| !entry.stands && now.instant >= entry.first + grace);
        ripe.map(|entry| {
            entry.stands = true;
            entry.difference.clone()
        })
        .collect()
    }

    /// When the next difference will have stood for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        let waiting = self.entries.values().filter(|entry| !entry.stands);
        waiting.map(|entry| entry.first + self.grace).min()
    }

    /// Those that count.
    pub(super) fn standing(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.stands)
    }

    /// How many have not stood for long enough.
    pub(super) fn waiting(&self) -> usize {
        self.entries.values().filter(|entry| !entry.stands).count()
    }

    /// How many of a kind count.
    pub(super) fn count(&self, kind: Discord) -> usize {
        self.standing().filter(|entry| entry.difference.discord == kind).count()
    }
}

fn key(difference: &Difference) -> String {
    let Difference { frontend, clients, discord, .. } = difference;
    let clients: Vec<String> = clients.iter().map(ToString::to_string).collect();
    format!("{}|{frontend}|{}|{}", difference.owner(), discord.as_str(), clients.join("|"))
}

#[cfg(test)]
mod tests;
