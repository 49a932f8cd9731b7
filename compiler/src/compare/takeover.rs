//! What would be installed after a takeover: our rules in the place of the other proxy's, everybody else's as they are.

use std::collections::BTreeMap;

use crate::{
    delta::ChainRef,
    diff::diff,
    dump::{Dump, InstalledChain},
    ruleset::Ruleset,
};

/// The rules after a full sync of `desired`.
pub(super) fn taken_over(installed: &Dump, desired: &Ruleset) -> Dump {
    let mut delta = diff(installed, desired);
    let mut dump = Dump::default();
    for (table, chains) in &installed.tables {
        let kept = chains.iter().filter_map(|(name, chain)| {
            let reference = ChainRef::new(table.clone(), name.clone());
            if delta.delete.contains(&reference) || delta.put.contains_key(&reference) {
                return None;
            }
            Some((name.clone(), chain.clone()))
        });
        dump.tables.insert(table.clone(), kept.collect());
    }
    for (ChainRef { table, name }, chain) in std::mem::take(&mut delta.put) {
        let chain = InstalledChain { policy: None, rules: chain.rules.to_vec() };
        dump.tables.entry(table).or_default().insert(name, chain);
    }
    // Each is inserted above the one before, so the lowest comes first.
    for jump in delta.hook.into_iter().rev() {
        let chains: &mut BTreeMap<_, _> = dump.tables.entry(jump.table).or_default();
        chains.entry(jump.from).or_insert_with(InstalledChain::default).rules.insert(0, jump.rule);
    }
    dump
}
