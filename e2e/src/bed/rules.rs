//! What is installed on the nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Result, ensure};
use fairlead_objects::Family;

use super::Bed;

impl Bed {
    /// What `iptables-save` or `ip6tables-save` prints on the n-th node, without what changes by itself: counters and
    /// the time.
    pub fn save(&self, node: u8, family: Family) -> Result<String> {
        let program = match family {
            Family::V4 => "iptables-save",
            Family::V6 => "ip6tables-save",
        };
        let saved =
            self.node_netns(node)?.output(&mut Command::new(self.options.variant.program(program)))?;
        let lines = saved.lines().filter(|line| !line.starts_with('#'));
        let without_counters = |line: &str| match line.split_once(" [") {
            Some((chain, _)) if chain.starts_with(':') => format!("{chain}\n"),
            _ => format!("{line}\n"),
        };
        Ok(lines.map(without_counters).collect())
    }

    /// The lines of the n-th node's `iptables-save --counters` that mention `word`.
    pub fn rules_about(&self, node: u8, word: &str) -> Result<Vec<String>> {
        let program = self.options.variant.program("iptables-save");
        let saved = self.node_netns(node)?.output(Command::new(program).arg("--counters"))?;
        Ok(saved.lines().filter(|line| line.contains(word)).map(str::to_owned).collect())
    }

    /// The rules of the n-th node by `table chain`, in order and without counters. Built-in chains without rules are
    /// left out: whether they are listed depends on whether anybody ever looked at their table. The rules of those that
    /// have some are sorted: which jump stands above which depends on who came last.
    pub fn rules(&self, node: u8) -> Result<BTreeMap<String, Vec<String>>> {
        let mut table = String::new();
        let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut own = BTreeSet::new();
        for line in self.rules_about(node, "")? {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            } else if let Some((_, rule)) = line.split_once("] -A ") {
                let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                chains.entry(format!("{table} {chain}")).or_default().push(rule.to_owned());
            } else if let Some((chain, _)) = line.split_once(" - [") {
                let chain = format!("{table} {}", chain.trim_start_matches(':'));
                own.insert(chain.clone());
                chains.entry(chain).or_default();
            }
        }
        for (_, rules) in chains.iter_mut().filter(|(chain, _)| !own.contains(*chain)) {
            rules.sort();
        }
        Ok(chains)
    }

    /// Fails when the rules of the n-th node are not these any more, and says which differ.
    pub fn check_rules(&self, node: u8, before: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let now = self.rules(node)?;
        let differ = now.keys().chain(before.keys()).filter(|chain| now.get(*chain) != before.get(*chain));
        let differ: BTreeSet<&String> = differ.collect();
        let show =
            |chain: &&String| format!("{chain}: was {:?}, is {:?}", before.get(*chain), now.get(*chain));
        ensure!(
            differ.is_empty(),
            "other rules:\n{}",
            differ.iter().map(show).collect::<Vec<_>>().join("\n")
        );
        Ok(())
    }
}
