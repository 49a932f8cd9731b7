//! Affinity: which rules lead clients back to where they were, so that a walk can tell of a rule that remembers a client
//! whether, and for how long, that is of any use.

use std::collections::HashMap;

use crate::{
    dump::Dump,
    matches::{Affinity, Match},
    rule::{Rule, Target},
    ruleset::{ChainName, Table},
};

/// A rule that leads those whom a list has to a chain.
#[derive(Clone, Copy, Debug)]
struct Recall<'a> {
    position: usize,
    seconds: u32,
    to: &'a ChainName,
}

/// All such rules of `nat`, by the chain that has them and the list that they ask.
#[derive(Clone, Debug, Default)]
pub(super) struct Recalls<'a> {
    rules: HashMap<(&'a ChainName, &'a str), Recall<'a>>,
}

impl<'a> Recalls<'a> {
    pub(super) fn of(dump: &'a Dump) -> Self {
        let mut recalls = Self::default();
        for (chain, installed) in dump.tables.get(&Table::Nat).into_iter().flatten() {
            for (position, rule) in installed.rules.iter().enumerate() {
                let (Some((list, Affinity::Recall { seconds })), Some(Target::Jump(to))) =
                    (affinity(rule), &rule.target)
                else {
                    continue;
                };
                // The first one is asked first.
                recalls.rules.entry((chain, list)).or_insert(Recall { position, seconds, to });
            }
        }
        recalls
    }

    /// For how many seconds a client stays with the endpoint that a rule of `chain` chooses, to which a rule of `caller`
    /// before `from` led; `None` if it does not.
    pub(super) fn seconds(
        &self,
        rule: &Rule,
        chain: &ChainName,
        (caller, from): (&ChainName, usize),
    ) -> Option<u32> {
        let (list, Affinity::Remember) = affinity(rule)? else { return None };
        let recall = self.rules.get(&(caller, list))?;
        (recall.to == chain && recall.position < from).then_some(recall.seconds)
    }
}

/// The list that a rule asks or fills.
fn affinity(rule: &Rule) -> Option<(&str, Affinity)> {
    rule.matches.iter().find_map(|condition| match condition {
        Match::Affinity { list, action } => Some((&**list, *action)),
        _ => None,
    })
}
