//! The difference between what is installed and what should be, between typed rules.
//!
//! Invariants: what others installed is never touched: their chains, their rules in built-in chains, the content of shared
//! chains; applying the difference leaves no difference.

use std::collections::BTreeSet;

use crate::{
    delta::{ChainRef, Delta},
    dump::Dump,
    names,
    rule::Rule,
    ruleset::{Chain, ChainName, Ruleset, Table, wellknown},
};

/// What to do so that `installed` holds `desired`: damaged and missing chains, missing jumps, and chains of Services that are
/// ours (or kube-proxy's) and no longer wanted.
pub fn diff(installed: &Dump, desired: &Ruleset) -> Delta {
    let mut delta = Delta::default();
    for (table, chains) in &desired.tables {
        for (name, chain) in chains {
            let present = installed.chain(table, name.as_str());
            if present.is_none_or(|present| !chain.shared && present.rules != chain.rules) {
                delta.put.insert(ChainRef::new(table.clone(), name.clone()), chain.clone());
            }
        }
    }
    for jump in &desired.jumps {
        let present = installed.chain(&jump.table, jump.from.as_str());
        if !present.is_some_and(|chain| chain.rules.contains(&jump.rule)) {
            delta.hook.push(jump.clone());
        }
    }
    for table in [Table::Filter, Table::Nat] {
        add_stale(installed, desired, &table, &mut delta);
    }
    delta
}

fn add_stale(installed: &Dump, desired: &Ruleset, table: &Table, delta: &mut Delta) {
    let stale: BTreeSet<_> = installed
        .chains(table)
        .map(|(name, _)| name)
        .filter(|name| names::is_service_chain(table, name) && desired.chain(table, name.as_str()).is_none())
        .collect();
    let ours = |name: &ChainName| {
        stale.contains(name) || desired.chain(table, name.as_str()).is_some_and(|c| !c.shared)
    };
    let pinned = foreign_callees(installed, table, ours);
    for name in &stale {
        let reference = ChainRef::new(table.clone(), (*name).clone());
        if !pinned.contains(*name) {
            delta.delete.insert(reference);
        } else if installed.chain(table, name.as_str()).is_some_and(|chain| !chain.rules.is_empty()) {
            // Deleting it would fail, and with it the whole transaction. It is emptied, and deleted when nobody leads there.
            delta.put.insert(reference, Chain::default());
        }
    }
}

/// Chains that rules outside of our chains lead to.
pub(crate) fn foreign_callees<'a>(
    installed: &'a Dump,
    table: &Table,
    ours: impl Fn(&ChainName) -> bool,
) -> BTreeSet<&'a ChainName> {
    let foreign =
        installed.chains(table).filter(|(name, _)| !ours(name) && name.as_str() != wellknown::CANARY);
    foreign.flat_map(|(_, chain)| chain.rules.iter().filter_map(Rule::next_chain)).collect()
}
