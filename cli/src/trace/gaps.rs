//! Gaps: what a trace could not take into account, so that nobody takes it for more than it is.

use std::collections::BTreeSet;

use fairlead_compiler::{ChainName, Dump, InstalledChain, Match, Rule, Table, Target, Trace};

/// The chains that a packet may start in.
const BUILT_IN: [(Table, &[&str]); 2] = [
    (Table::Nat, &["PREROUTING", "OUTPUT", "POSTROUTING"]),
    (Table::Filter, &["INPUT", "FORWARD", "OUTPUT"]),
];

/// A warning for each rule on the way that could not be judged.
pub(super) fn notices(dump: &Dump, trace: &Trace) -> Vec<String> {
    let mut notices = Vec::new();
    for (table, name) in visited(dump, trace) {
        for (index, rule) in
            chain(dump, &table, &name).iter().flat_map(|chain| chain.rules.iter().enumerate())
        {
            if let Some(gap) = gap(rule) {
                let number = index + 1;
                notices.push(format!("warning: {table} {name}, rule {number}: {gap}: {rule}"));
            }
        }
    }
    notices
}

/// The chains that the packet was in: those of rules that held, and those that these lead to.
fn visited(dump: &Dump, trace: &Trace) -> BTreeSet<(Table, ChainName)> {
    let mut visited: BTreeSet<(Table, ChainName)> =
        trace.path.iter().map(|step| (step.table.clone(), step.chain.clone())).collect();
    for step in &trace.path {
        let rules = chain(dump, &step.table, &step.chain).map(|chain| &chain.rules);
        let next = rules.and_then(|rules| rules.get(step.index)).and_then(Rule::next_chain);
        visited.extend(next.map(|next| (step.table.clone(), next.clone())));
    }
    for (table, names) in BUILT_IN {
        visited.extend(names.iter().map(|name| (table.clone(), ChainName::from(*name))));
    }
    visited
}

fn chain<'a>(dump: &'a Dump, table: &Table, name: &ChainName) -> Option<&'a InstalledChain> {
    dump.chain(table, name.as_str())
}

fn gap(rule: &Rule) -> Option<&'static str> {
    let unknown = |condition: &Match| matches!(condition, Match::Opaque(_));
    let outgoing = |condition: &Match| matches!(condition, Match::OutInterface { .. });
    if rule.matches.iter().any(unknown) {
        Some("has a match that is not understood, and counts as not holding")
    } else if rule.matches.iter().any(outgoing) {
        Some("asks for the outgoing interface, which is not known, and counts as not holding")
    } else if matches!(rule.target, Some(Target::Opaque(_))) {
        Some("has a target that is not understood, and counts as doing nothing")
    } else {
        None
    }
}
