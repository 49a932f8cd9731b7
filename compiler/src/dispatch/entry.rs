//! Entries: what a tree files, and who among their clients is masqueraded.
//!
//! A packet to a cluster IP from outside the cluster must be marked for masquerading before its destination is rewritten. A rule per
//! Service would be a third of all rules, and the kernel looks at every rule at every change (decision 0011). So a
//! subtree of cluster IPs shares one: it marks, their rules follow, and what none of them decided about loses the mark
//! again.

use std::{iter, sync::Arc};

use super::Path;
use crate::{
    matches::Match,
    rule::{Mark, Rule, Target},
    rules::Rules,
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
    pub(crate) owner: Arc<ServicePortName>,
    /// Which of the owner's frontends: an external address may be a load-balancer address, too.
    pub(crate) frontend: u8,
}

/// The rules of one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Who marks what the tree's [`Masquerade`] is about.
    pub(crate) marking: Marking,
    /// What decides about packets to the frontend.
    pub(crate) rules: Rules,
}

/// Where packets to a frontend are marked for masquerading. Few entries need a rule for it, so it is made when it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Marking {
    /// Not before the entry's rules, which lead to a rule that marks.
    #[default]
    Behind,
    /// Before them: by a rule above, or else by one of the entry's own.
    Before {
        /// Its own has the comment of the entry's first rule.
        commented: bool,
    },
}

impl From<Vec<Rule>> for Entry {
    fn from(rules: Vec<Rule>) -> Self {
        Self { marking: Marking::Behind, rules: rules.into() }
    }
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
    pub(crate) fn around(&self, rules: Vec<Arc<Rule>>, guard: impl Fn(Rule) -> Rule) -> Vec<Arc<Rule>> {
        let clear = self.for_sources(Target::SetMark(Mark { value: 0, mask: self.mark }));
        let [set, clear] = [
            (self.set(), "masquerade what the next rules decide about"),
            (clear, "no Service: leave it alone"),
        ]
        .map(|(rule, why)| guard(rule).because(why).shared());
        iter::once(set).chain(rules).chain([clear]).collect()
    }

    /// Marks.
    pub(crate) fn set(&self) -> Rule {
        self.for_sources(Target::Jump(ChainName::from(wellknown::MARK_MASQ)))
    }

    /// A rule about the clients that are masqueraded.
    pub(crate) fn for_sources(&self, target: Target) -> Rule {
        self.sources.iter().cloned().fold(Rule::to(target), Rule::when)
    }
}
