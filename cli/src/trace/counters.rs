//! Counters: how many packets rules have met so far, as `iptables-save -c` prints it.
//!
//! The compiler's parser leaves them out, because rules that differ in nothing else are the same.
//!
//! Invariant: a rule stands at the same position of the same chain as in the parsed rules.

use std::{collections::BTreeMap, fmt};

use fairlead_compiler::{ChainName, Step, Table};
use serde::Serialize;

/// What went through a rule or past the end of a built-in chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Counter {
    packets: u64,
    bytes: u64,
}

/// `12 packets, 720 bytes`
impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.packets == 1 { "packet" } else { "packets" };
        write!(f, "{} {noun}, {} bytes", self.packets, self.bytes)
    }
}

/// Of the rules of a save; empty if it has none.
#[derive(Debug, Default)]
pub(super) struct Counters {
    chains: BTreeMap<(Table, ChainName), Chain>,
}

#[derive(Debug, Default)]
struct Chain {
    policy: Option<Counter>,
    rules: Vec<Option<Counter>>,
}

impl Counters {
    /// Those of a text that the parser understood.
    pub(super) fn read(save: &str) -> Self {
        let mut counters = Self::default();
        let mut table = Table::named("");
        for line in save.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::named(name.trim());
            } else if let Some(declaration) = line.strip_prefix(':') {
                let mut words = declaration.split_ascii_whitespace();
                let policy = words.clone().nth(2).and_then(counter);
                counters.chain(&table, words.next().unwrap_or_default()).policy = policy;
            } else {
                counters.rule(&table, line);
            }
        }
        counters
    }

    fn chain(&mut self, table: &Table, name: &str) -> &mut Chain {
        self.chains.entry((table.clone(), ChainName::from(name))).or_default()
    }

    fn rule(&mut self, table: &Table, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let counter = counter(first);
        let command = if counter.is_some() { words.next().unwrap_or_default() } else { first };
        let Some(name) = words.next().filter(|_| matches!(command, "-A" | "-I")) else { return };
        let rules = &mut self.chain(table, name).rules;
        let at = if command == "-I" { 0 } else { rules.len() };
        rules.insert(at, counter);
    }

    /// Of the rule at a step.
    pub(super) fn of_rule(&self, step: &Step) -> Option<Counter> {
        self.at(&step.table, &step.chain, step.index)
    }

    /// Of the rule at a position, from 0.
    pub(super) fn at(&self, table: &Table, chain: &ChainName, index: usize) -> Option<Counter> {
        *self.chains.get(&(table.clone(), chain.clone()))?.rules.get(index)?
    }

    /// Of the packets that no rule of a built-in chain decided about.
    pub(super) fn of_policy(&self, table: &Table, chain: &ChainName) -> Option<Counter> {
        self.chains.get(&(table.clone(), chain.clone()))?.policy
    }

    /// Whether there is any of a rule.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.values().all(|chain| chain.rules.iter().all(Option::is_none))
    }
}

/// `[PACKETS:BYTES]`
fn counter(word: &str) -> Option<Counter> {
    let (packets, bytes) = word.strip_prefix('[')?.strip_suffix(']')?.split_once(':')?;
    Some(Counter { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVE: &str = "# Generated\n*filter\n:INPUT DROP [7:420]\n:X - [0:0]\n[1:60] -A X -j DROP\n-A X -j ACCEPT\n\
        [3:180] -A X -m comment --comment \"[9:9] -A Y\" -j DROP\n[4:240] -I X -j RETURN\nCOMMIT\n";

    #[test]
    fn counters_are_those_of_the_rule_at_the_position() {
        let counters = Counters::read(SAVE);
        let x = |index| counters.at(&Table::Filter, &ChainName::from("X"), index).map(|c| c.packets);
        assert_eq!([0, 1, 2, 3, 4].map(x), [Some(4), Some(1), None, Some(3), None]);
        assert_eq!(
            counters.of_policy(&Table::Filter, &ChainName::from("INPUT")).unwrap().to_string(),
            "7 packets, 420 bytes"
        );
        assert!(!counters.is_empty());
    }

    #[test]
    fn save_without_counters_has_none() {
        assert!(
            Counters::read("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n").is_empty()
        );
    }
}
