//! Entries: what a tree files, and who among their clients is masqueraded.
//!
//! A packet to a cluster IP from outside the cluster must be marked for masquerading before its destination is rewritten. A rule per
//! Service would be a third of all rules, and the kernel looks at every rule at every change (decision 0011). So a
//! subtree of cluster IPs shares one: it marks, their rules follow, and what none of them decided about loses the mark
//! again.

use std::collections::BTreeMap;

use super::Path;
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
    /// Marks what the tree's [`Masquerade`] is about, where no rule above does. `None` if `rules` lead to one that does.
    pub(crate) mark: Option<Rule>,
    /// What decides about packets to the frontend.
    pub(crate) rules: Vec<Rule>,
}

impl From<Vec<Rule>> for Entry {
    fn from(rules: Vec<Rule>) -> Self {
        Self { mark: None, rules }
    }
}

impl Entry {
    /// Its rules where no rule above marks.
    pub(crate) fn all_rules(&self) -> impl Iterator<Item = &Rule> {
        self.mark.iter().chain(&self.rules)
    }
}

/// The rules of some entries. `marked`: a rule above marks.
pub(crate) fn rules(entries: &BTreeMap<EntryId, Entry>, marked: bool) -> Vec<Rule> {
    let own = |entry: &Entry| entry.mark.clone().filter(|_| !marked);
    entries.values().flat_map(|entry| own(entry).into_iter().chain(entry.rules.iter().cloned())).collect()
}

/// Which clients of a tree's frontends are masqueraded, whatever the frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Masquerade {
    /// What their packets match; nothing if it is all of them.
    pub(crate) sources: Vec<Match>,
    /// The bits that KUBE-MARK-MASQ sets.
    pub(crate) mark: u32,
}

impl Masquerade {
    /// `rules`, in between those that mark and take the mark back.
    pub(crate) fn around(&self, rules: Vec<Rule>, guard: impl Fn(Rule) -> Rule) -> Vec<Rule> {
        let set = Target::Jump(ChainName::from(wellknown::MARK_MASQ));
        let clear = Target::SetMark(Mark { value: 0, mask: self.mark });
        let [set, clear] =
            [(set, "masquerade what the next rules decide about"), (clear, "no Service: leave it alone")]
                .map(|(target, why)| guard(self.for_sources(target)).because(why));
        [set].into_iter().chain(rules).chain([clear]).collect()
    }

    /// A rule about the clients that are masqueraded.
    pub(crate) fn for_sources(&self, target: Target) -> Rule {
        self.sources.iter().cloned().fold(Rule::to(target), Rule::when)
    }
}
