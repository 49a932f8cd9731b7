//! Drift: how what is installed differs from what should be, in words for logs and metrics; and the part of a ruleset
//! that a suspicion is about.
//!
//! Invariant: pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

use fairlead_compiler::{ChainName, ChainRef, Delta, Dump, ParseError, Ruleset, diff, parse, wellknown};

use crate::netfilter::declares;

/// Differences that are told one by one.
const TOLD: usize = 8;
/// What kube-proxy calls its chain for an endpoint. It has one for each; ours have them where nothing else does.
const OF_ENDPOINTS: &str = "KUBE-SEP-";

/// One kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A chain is not there.
    Missing,
    /// A chain has other rules.
    Changed,
    /// A chain is there that should not be.
    Stale,
    /// A built-in chain does not lead to ours.
    Unhooked,
}

impl Kind {
    /// A constant word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "chain_missing",
            Self::Changed => "chain_changed",
            Self::Stale => "chain_stale",
            Self::Unhooked => "jump_missing",
        }
    }
}

/// All differences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// How many there are of each kind.
    pub counts: BTreeMap<Kind, usize>,
    /// The first of them.
    told: Vec<(Kind, ChainRef)>,
    /// A chain for an endpoint that we have no chain for. If we did not leave it behind, another proxy wrote it.
    pub of_another_proxy: Option<ChainName>,
}

impl Drift {
    /// What `delta` repairs in `installed`.
    pub fn of(delta: &Delta, installed: &Dump) -> Self {
        let mut drift = Self::default();
        for chain in delta.put.keys() {
            let there = installed.chain(&chain.table, chain.name.as_str()).is_some();
            drift.add(if there { Kind::Changed } else { Kind::Missing }, chain.clone());
        }
        // One that somebody else leads to is emptied, and not deleted.
        let emptied = delta.put.iter().filter(|(_, chain)| chain.rules.is_empty()).map(|(chain, _)| chain);
        let mut stale = delta.delete.iter().chain(emptied).map(|chain| &chain.name);
        drift.of_another_proxy = stale.find(|name| name.as_str().starts_with(OF_ENDPOINTS)).cloned();
        for chain in &delta.delete {
            drift.add(Kind::Stale, chain.clone());
        }
        for jump in &delta.hook {
            drift.add(Kind::Unhooked, ChainRef::new(jump.table.clone(), jump.from.clone()));
        }
        drift
    }

    fn add(&mut self, kind: Kind, chain: ChainRef) {
        *self.counts.entry(kind).or_default() += 1;
        if self.told.len() < TOLD {
            self.told.push((kind, chain));
        }
    }

    /// Whether there is none.
    pub fn is_nothing(&self) -> bool {
        self.counts.is_empty()
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, ChainRef { table, name })) in self.told.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let text = match kind {
                Kind::Missing => "missing",
                Kind::Changed => "changed",
                Kind::Stale => "not ours any more",
                Kind::Unhooked => "without a jump of ours",
            };
            write!(f, "{separator}{table} {name} {text}")?;
        }
        let all: usize = self.counts.values().sum();
        if all > self.told.len() { write!(f, ", and {} more", all - self.told.len()) } else { Ok(()) }
    }
}

/// The difference between `desired` and what single chains hold: `lines` has the rules of each, as a save prints them,
/// or `None` where it is missing. Chains that are not in `lines` are not looked at.
pub fn of_chains(
    desired: &Ruleset,
    lines: &BTreeMap<ChainRef, Option<Vec<String>>>,
) -> Result<(Delta, Dump), ParseError> {
    let mut installed = parse(&save(desired, lines))?;
    for (table, chains) in &mut installed.tables {
        chains.retain(|name, _| {
            matches!(lines.get(&ChainRef::new(table.clone(), name.clone())), Some(Some(_)))
        });
    }
    let asked: BTreeSet<_> = lines.keys().cloned().collect();
    Ok((diff(&installed, &excerpt(desired, &asked)), installed))
}

/// The chains as the save that they were taken from. Targets are jumps only if they are declared.
fn save(desired: &Ruleset, lines: &BTreeMap<ChainRef, Option<Vec<String>>>) -> String {
    // Writing to a String cannot fail.
    let mut text = String::new();
    let tables: BTreeSet<_> = lines.keys().map(|chain| &chain.table).collect();
    for table in tables {
        _ = writeln!(text, "*{table}");
        let known = desired.tables.get(table).into_iter().flat_map(BTreeMap::keys);
        let of_table = || lines.iter().filter(|(chain, _)| chain.table == *table);
        let names: BTreeSet<_> = known.chain(of_table().map(|(chain, _)| &chain.name)).collect();
        for name in names {
            _ = writeln!(text, ":{name} - [0:0]");
        }
        for line in of_table().filter_map(|(_, lines)| lines.as_ref()).flatten() {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// The part of a ruleset that is about `chains`.
fn excerpt(ruleset: &Ruleset, chains: &BTreeSet<ChainRef>) -> Ruleset {
    let mut part = Ruleset { family: ruleset.family, tables: BTreeMap::new(), jumps: Vec::new() };
    for reference in chains {
        if let Some(chain) = ruleset.chain(&reference.table, reference.name.as_str()) {
            let table = part.tables.entry(reference.table.clone()).or_default();
            table.insert(reference.name.clone(), chain.clone());
        }
    }
    let asked = |table: &_, name: &_| chains.iter().any(|chain| chain.table == *table && chain.name == *name);
    part.jumps = ruleset.jumps.iter().filter(|jump| asked(&jump.table, &jump.from)).cloned().collect();
    part
}

/// Whether a chain is one that we write, or jump from: then what others do to it matters.
pub fn concerns(ruleset: &Ruleset, chain: &ChainRef) -> bool {
    ruleset.chain(&chain.table, chain.name.as_str()).is_some_and(|chain| !chain.shared)
        || chain.name.as_str() == wellknown::CANARY
        || chain.name.as_str() == wellknown::FIREWALL
        || fairlead_compiler::is_service_chain(&chain.table, &chain.name)
        || ruleset.jumps.iter().any(|jump| jump.table == chain.table && jump.from == chain.name)
}

/// The rules of one chain, out of a save of its whole table.
pub fn lines_of(save: &str, chain: &str) -> Option<Vec<String>> {
    let start = format!("-A {chain} ");
    declares(save, chain)
        .then(|| save.lines().filter(|line| line.starts_with(&start)).map(str::to_owned).collect())
}
