//! Dumps: what is installed, ours and everybody's, as read from `iptables-save`.

use std::collections::BTreeMap;

use crate::{
    rule::Rule,
    ruleset::{ChainName, Ruleset, Table},
};

/// What is installed for one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Every chain of every table.
    pub tables: BTreeMap<Table, BTreeMap<ChainName, InstalledChain>>,
}

/// One installed chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstalledChain {
    /// What a built-in chain does at its end; `None` for all other chains.
    pub policy: Option<Policy>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// What a built-in chain does with packets that no rule decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Lets them pass.
    Accept,
    /// Drops them.
    Drop,
}

impl Dump {
    /// The chain of that name.
    pub fn chain(&self, table: &Table, name: &str) -> Option<&InstalledChain> {
        self.tables.get(table)?.get(name)
    }

    /// Chains of a table; none if the table is absent.
    pub(crate) fn chains(&self, table: &Table) -> impl Iterator<Item = (&ChainName, &InstalledChain)> {
        self.tables.get(table).into_iter().flatten()
    }
}

/// The built-in chains of the tables that we write to.
const BUILT_IN: [(Table, &[&str]); 2] = [
    (Table::Filter, &["INPUT", "FORWARD", "OUTPUT"]),
    (Table::Nat, &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
];

/// The ruleset as installed on a node that has nothing else.
impl From<&Ruleset> for Dump {
    fn from(ruleset: &Ruleset) -> Self {
        let mut dump = Self::default();
        for (table, chains) in BUILT_IN {
            let empty = InstalledChain { policy: Some(Policy::Accept), rules: Vec::new() };
            let chains = chains.iter().map(|name| (ChainName::from(*name), empty.clone())).collect();
            dump.tables.insert(table, chains);
        }
        for (table, chains) in &ruleset.tables {
            let installed = dump.tables.entry(table.clone()).or_default();
            for (name, chain) in chains {
                installed.insert(name.clone(), InstalledChain { policy: None, rules: chain.rules.to_vec() });
            }
        }
        for jump in &ruleset.jumps {
            let chains = dump.tables.entry(jump.table.clone()).or_default();
            chains.entry(jump.from.clone()).or_default().rules.push(jump.rule.clone());
        }
        dump
    }
}
