//! The body of `/debug/divergence`.

use std::{collections::BTreeMap, ops::Deref};

use fairlead_compiler::{Difference, Fate};
use fairlead_objects::Timestamp;
use serde::Serialize;

use super::ledger::Ledger;

/// Everything that is known.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// How many comparisons there were, of all families.
    comparisons: u64,
    /// Differences that have not stood for the grace period.
    waiting: usize,
    /// Whether something changed that was not compared yet.
    pending: bool,
    families: BTreeMap<&'static str, FamilyReport>,
    /// What diverges.
    divergences: Vec<Entry>,
    /// What differs by a documented difference, and is no divergence.
    expected: Vec<Entry>,
}

/// The last comparison of a family.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    last_comparison: Option<Timestamp>,
    services: usize,
    frontends: usize,
    packets: usize,
    /// Why nothing can be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    obstacle: Option<String>,
}

/// One difference.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    family: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    port: String,
    frontend: String,
    clients: Vec<String>,
    /// `outcome`, `targets`, `masquerade`, `shares`, `affinity`.
    kind: &'static str,
    installed: Verdict,
    ours: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Timestamp>,
    /// Why it was to be expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    excuse: Option<&'static str>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, Serialize)]
struct Verdict {
    outcomes: BTreeMap<&'static str, f64>,
    targets: Vec<Target>,
    /// How many connections are followed by others to the same target, by the seconds within which they have to come.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    affinity: BTreeMap<u32, f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Target {
    address: String,
    probability: f64,
    masquerade: bool,
}

impl Report {
    /// Of all families.
    pub(super) fn of(ledgers: impl Iterator<Item = impl Deref<Target = Ledger>>) -> Self {
        let mut report = Self::default();
        for ledger in ledgers {
            report.add(&ledger);
        }
        report
    }

    fn add(&mut self, ledger: &Ledger) {
        let family = ledger.family.as_str();
        self.comparisons += ledger.comparisons;
        self.waiting += ledger.waiting();
        self.pending |= ledger.pending;
        let mut of_family = FamilyReport { obstacle: ledger.obstacle.clone(), ..FamilyReport::default() };
        if let Some((time, last)) = &ledger.last {
            of_family.last_comparison = Some(*time);
            (of_family.services, of_family.frontends, of_family.packets) =
                (last.services, last.frontends, last.packets);
        }
        self.families.insert(family, of_family);
        let standing = ledger.standing();
        self.divergences
            .extend(standing.map(|entry| Entry::of(family, &entry.difference, Some(entry.since))));
        self.expected.extend(ledger.expected.iter().map(|difference| Entry::of(family, difference, None)));
    }
}

impl Entry {
    fn of(family: &'static str, difference: &Difference, since: Option<Timestamp>) -> Self {
        let Difference { service, port, frontend, clients, discord, theirs, ours, excuse } = difference;
        Self {
            family,
            namespace: service.as_ref().map(|key| key.namespace.to_string()),
            service: service.as_ref().map(|key| key.name.to_string()),
            port: port.to_string(),
            frontend: frontend.to_string(),
            clients: clients.iter().map(ToString::to_string).collect(),
            kind: discord.as_str(),
            installed: theirs.into(),
            ours: ours.into(),
            since,
            excuse: excuse.map(fairlead_compiler::Excuse::as_str),
        }
    }
}

impl From<&Fate> for Verdict {
    fn from(fate: &Fate) -> Self {
        let outcomes = fate.outcomes.iter().map(|(outcome, share)| (outcome.as_str(), share.as_f64()));
        let targets = fate.targets.iter().map(|((target, masquerade), share)| Target {
            address: target.to_string(),
            probability: share.as_f64(),
            masquerade: *masquerade,
        });
        let affinity = fate.affinity.iter().map(|(seconds, share)| (*seconds, share.as_f64()));
        Self { outcomes: outcomes.collect(), targets: targets.collect(), affinity: affinity.collect() }
    }
}
