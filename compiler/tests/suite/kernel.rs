//! A model of the kernel's tables that deltas are applied to, as strict as the real one.

use fairlead_compiler::{Chain, Delta, Dump, InstalledChain, Ruleset, parse};

/// Applies a delta; a jump to a chain that does not exist fails, and so does deleting a chain that something leads to.
pub(crate) fn apply(dump: &mut Dump, delta: &Delta) {
    for (reference, Chain { rules, .. }) in &delta.put {
        let chains = dump.tables.entry(reference.table.clone()).or_default();
        chains.insert(reference.name.clone(), InstalledChain { policy: None, rules: rules.to_vec() });
    }
    for jump in delta.hook.iter().rev() {
        let chains = dump.tables.entry(jump.table.clone()).or_default();
        chains.entry(jump.from.clone()).or_default().rules.insert(0, jump.rule.clone());
    }
    for jump in &delta.unhook {
        let chains = dump.tables.get_mut(&jump.table).unwrap();
        let rules = &mut chains.get_mut(&jump.from).unwrap().rules;
        let at = rules.iter().position(|rule| *rule == jump.rule).expect("the rule to remove is there");
        rules.remove(at);
    }
    for reference in &delta.delete {
        let removed = dump.tables.get_mut(&reference.table).and_then(|chains| chains.remove(&reference.name));
        assert!(removed.is_some(), "{} of {} was not there", reference.name, reference.table);
    }
    assert_consistent(dump);
}

/// Every jump has a target.
pub(crate) fn assert_consistent(dump: &Dump) {
    for (table, chains) in &dump.tables {
        for (name, chain) in chains {
            for next in chain.rules.iter().filter_map(fairlead_compiler::Rule::next_chain) {
                assert!(chains.contains_key(next), "{table} {name} leads to {next}, which does not exist");
            }
        }
    }
}

/// A node that has nothing.
pub(crate) fn virgin(ruleset: &Ruleset) -> Dump {
    let mut empty = ruleset.clone();
    empty.tables.clear();
    empty.jumps.clear();
    Dump::from(&empty)
}

/// Reads back the document of a ruleset.
pub(crate) fn reparsed(ruleset: &Ruleset) -> Dump {
    parse(&ruleset.render_document()).unwrap()
}
