//! Entries: what a tree files, and how a bucket's entries become the rules of its chain.
//!
//! A packet to a cluster IP from outside the cluster must be marked for masquerading before its destination is rewritten. A rule per
//! Service would be a third of all rules, and the kernel looks at every rule at every change (decision 0011). So the entries
//! of a bucket share one: it marks, their rules follow, and what none of them decided about loses the mark again.

use std::collections::BTreeMap;

use super::{Path, SHARERS_MIN};
use crate::{
    matches::Match,
    rule::{Mark, Rule, Target},
    ruleset::{ChainName, wellknown},
    service_port::ServicePortName,
};

/// Identity of an entry, and its order in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryId {
    /// Where it belongs.
    pub(crate) path: Path,
    /// Whether others may ask for the same place. Cluster IPs are the API server's to give, so they come first.
    pub(crate) contestable: bool,
    /// Whose it is: two Services may claim the same external address.
    pub(crate) owner: ServicePortName,
    /// Which of the owner's frontends: an external address may be a load-balancer address, too.
    pub(crate) frontend: u8,
}

/// The rules of one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What marks packets to the frontend. Present only if `rules` decide about all of them, and nobody contests the place.
    pub(crate) masquerade: Option<Masquerade>,
    /// What decides about them.
    pub(crate) rules: Vec<Rule>,
}

/// Whom an entry asks to be masqueraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Masquerade {
    /// What their packets match; nothing for all clients. The same for all entries of a tree.
    pub(crate) sources: Vec<Match>,
    /// The bits that KUBE-MARK-MASQ sets. The same for all entries of a tree.
    pub(crate) mark: u32,
    /// The rule that marks packets to this frontend only.
    pub(crate) own: Rule,
}

impl From<Vec<Rule>> for Entry {
    fn from(rules: Vec<Rule>) -> Self {
        Self { masquerade: None, rules }
    }
}

impl Entry {
    /// Its rules when it shares none.
    pub(crate) fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.masquerade.iter().map(|masquerade| &masquerade.own).chain(&self.rules)
    }
}

impl Masquerade {
    fn shared(&self, target: Target, why: &str) -> Rule {
        self.sources.iter().cloned().fold(Rule::to(target), Rule::when).because(why)
    }

    fn set(&self) -> Rule {
        let chain = ChainName::from(wellknown::MARK_MASQ);
        self.shared(Target::Jump(chain), "masquerade what the next rules decide about")
    }

    fn clear(&self) -> Rule {
        self.shared(Target::SetMark(Mark { value: 0, mask: self.mark }), "no Service's: leave it alone")
    }
}

/// The rules of a bucket's chain. `sharing`: entries may ask for masquerading together.
pub(crate) fn chain(entries: &BTreeMap<EntryId, Entry>, sharing: bool) -> Vec<Rule> {
    let sharers = || entries.values().filter_map(|entry| Some((entry.masquerade.as_ref()?, &entry.rules)));
    match sharers().next() {
        Some((masquerade, _)) if sharing && sharers().count() >= SHARERS_MIN => {
            let shared = sharers().flat_map(|(_, rules)| rules).cloned();
            let others = entries.values().filter(|entry| entry.masquerade.is_none());
            let others = others.flat_map(|entry| &entry.rules).cloned();
            [masquerade.set()].into_iter().chain(shared).chain([masquerade.clear()]).chain(others).collect()
        }
        _ => entries.values().flat_map(Entry::all_rules).cloned().collect(),
    }
}
