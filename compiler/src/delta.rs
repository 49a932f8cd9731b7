//! Deltas: what must be written so that the kernel has the ruleset.

use std::collections::{BTreeMap, BTreeSet};

use crate::ruleset::{Chain, ChainName, Jump, Ruleset, Table};

/// A chain in a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainRef {
    /// Table.
    pub table: Table,
    /// Chain.
    pub name: ChainName,
}

impl ChainRef {
    /// The chain `name` of `table`.
    pub fn new(table: Table, name: ChainName) -> Self {
        Self { table, name }
    }
}

/// Changes to what is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Chains to create or to replace as a whole.
    pub put: BTreeMap<ChainRef, Chain>,
    /// Chains to flush and delete.
    pub delete: BTreeSet<ChainRef>,
    /// Rules to insert at the top of built-in chains, given from top to bottom.
    pub hook: Vec<Jump>,
    /// Rules to remove from built-in chains.
    pub unhook: Vec<Jump>,
}

/// Rules that one Service stands for when a delta is cut into batches.
const RULES_PER_SERVICE: usize = 4;

impl Delta {
    /// Everything of a ruleset, for a node that has nothing of it.
    pub fn everything(ruleset: &Ruleset) -> Self {
        let mut delta = Self { hook: ruleset.jumps.clone(), ..Self::default() };
        for (table, chains) in &ruleset.tables {
            for (name, chain) in chains {
                delta.put.insert(ChainRef::new(table.clone(), name.clone()), chain.clone());
            }
        }
        delta
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty() && self.hook.is_empty() && self.unhook.is_empty()
    }

    /// Number of chains that are written or deleted.
    pub fn chain_count(&self) -> usize {
        self.put.len() + self.delete.len()
    }

    /// Number of rules that are written.
    pub fn rule_count(&self) -> usize {
        self.put.values().map(|chain| chain.rules.len()).sum::<usize>() + self.hook.len()
    }

    /// Cuts the delta into parts to be applied in this order, each about as large as `services_per_batch` Services.
    ///
    /// Every prefix is consistent: a chain is written no earlier than the chains that it jumps to, so the chains of Services
    /// come first and dispatch last; then the jumps from built-in chains, and at the very end the deletions.
    pub fn batches(self, services_per_batch: usize) -> Vec<Self> {
        let budget = services_per_batch.max(1).saturating_mul(RULES_PER_SERVICE);
        if self.rule_count() + self.chain_count() <= budget {
            return if self.is_empty() { Vec::new() } else { vec![self] };
        }
        let order = self.callees_first();
        let Self { mut put, delete, hook, unhook } = self;
        let mut batches = vec![Self::default()];
        let mut weight = 0;
        for reference in order {
            let Some(chain) = put.remove(&reference) else { continue };
            weight += 1 + chain.rules.len();
            if let Some(batch) = batches.last_mut() {
                batch.put.insert(reference, chain);
            }
            if weight >= budget {
                weight = 0;
                batches.push(Self::default());
            }
        }
        if let Some(batch) = batches.last_mut() {
            batch.hook = hook;
        }
        batches.push(Self { delete, unhook, ..Self::default() });
        batches.retain(|batch| !batch.is_empty());
        batches
    }

    /// The written chains, each after those that it leads to. (Rulesets have no cycles; one would be cut somewhere.)
    fn callees_first(&self) -> Vec<ChainRef> {
        let mut order = Vec::with_capacity(self.put.len());
        let mut seen = BTreeSet::new();
        for reference in self.put.keys() {
            let mut stack = vec![(reference.clone(), false)];
            while let Some((reference, callees_done)) = stack.pop() {
                if callees_done {
                    order.push(reference);
                    continue;
                }
                if !seen.insert(reference.clone()) {
                    continue;
                }
                let Some(chain) = self.put.get(&reference) else { continue };
                let table = reference.table.clone();
                stack.push((reference, true));
                let callees = chain.rules.iter().filter_map(crate::Rule::next_chain);
                stack.extend(callees.map(|name| (ChainRef::new(table.clone(), name.clone()), false)));
            }
        }
        order
    }
}
