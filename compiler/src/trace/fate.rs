//! Fates: what becomes of a packet, whichever rules see to it, so that two rulesets can be held against each other.
//!
//! Invariant: what the kernel's rounding of probabilities does is no difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
};

use super::{Outcome, Trace, add_affinity, walk::End};
use crate::probability::Share;

/// Shares that differ by less are equal: the kernel stores probabilities in units of 2⁻³¹.
const BLUR: f64 = 1e-6;
/// Targets that a text names.
const NAMED: usize = 6;

/// What can happen to a packet and how often, and which targets see which source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fate {
    /// Share of each outcome that can happen.
    pub outcomes: BTreeMap<Outcome, Share>,
    /// Share of each target, with the source rewritten (`true`) and without.
    pub targets: BTreeMap<(SocketAddr, bool), Share>,
    /// Whether the source is rewritten on any way, to a target or past all Services.
    pub masquerade: bool,
    /// Share of the connections after which the client is led to the same target again, by the seconds within which it has to
    /// come back.
    pub affinity: BTreeMap<u32, Share>,
}

/// How two fates differ: the first of these that they differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discord {
    /// One is delivered, refused or dropped, and the other is not.
    Outcome,
    /// They reach other targets.
    Targets,
    /// The source is rewritten for one and not for the other.
    Masquerade,
    /// They reach the same targets, but not equally often.
    Shares,
    /// They reach the same targets, but clients are led to theirs again on one side only, or for another time.
    Affinity,
}

impl Discord {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Outcome, Self::Targets, Self::Masquerade, Self::Shares, Self::Affinity];

    /// A constant word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outcome => "outcome",
            Self::Targets => "targets",
            Self::Masquerade => "masquerade",
            Self::Shares => "shares",
            Self::Affinity => "affinity",
        }
    }
}

impl Fate {
    pub(super) fn add(&mut self, end: &End) {
        let add = |sum: &mut Share| *sum = sum.or(end.share);
        add(self.outcomes.entry(end.outcome).or_insert(Share::NONE));
        self.masquerade |= end.masquerade;
        if end.outcome == Outcome::Accepted {
            let target = (SocketAddr::new(end.address, end.port), end.masquerade);
            add(self.targets.entry(target).or_insert(Share::NONE));
            add_affinity(&mut self.affinity, end.affinity, end.share);
        }
    }

    /// How it differs from another; `None` if it does not.
    pub fn discord(&self, other: &Self) -> Option<Discord> {
        let addresses =
            |fate: &Self| fate.targets.keys().map(|(address, _)| *address).collect::<BTreeSet<_>>();
        if !self.outcomes.keys().eq(other.outcomes.keys()) {
            Some(Discord::Outcome)
        } else if self.targets.keys().eq(other.targets.keys()) && self.masquerade == other.masquerade {
            let outcomes = self.outcomes.values().zip(other.outcomes.values());
            let targets = self.targets.values().zip(other.targets.values());
            let differ = |(a, b): (&Share, &Share)| (a.as_f64() - b.as_f64()).abs() > BLUR;
            let (mine, others) = (&self.affinity, &other.affinity);
            if outcomes.chain(targets).any(differ) {
                Some(Discord::Shares)
            } else if !mine.keys().eq(others.keys()) || mine.values().zip(others.values()).any(differ) {
                Some(Discord::Affinity)
            } else {
                None
            }
        } else if addresses(self) == addresses(other) {
            Some(Discord::Masquerade)
        } else {
            Some(Discord::Targets)
        }
    }
}

impl From<&Trace> for Fate {
    fn from(trace: &Trace) -> Self {
        let target = |target: &super::Destination| {
            ((SocketAddr::new(target.address, target.port), target.masquerade), target.probability)
        };
        Self {
            outcomes: trace.shares.clone(),
            targets: trace.targets.iter().map(target).collect(),
            masquerade: trace.masquerade,
            affinity: trace.affinity.clone(),
        }
    }
}

/// `accepted: 10.0.0.1:80 1/2, 10.0.0.2:80 1/2 masqueraded, remembered for 10800 s`
impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (outcome, share)) in self.outcomes.iter().enumerate() {
            f.write_str(if number == 0 { "" } else { ", " })?;
            f.write_str(outcome.as_str())?;
            if *share != Share::ALL {
                write!(f, " {share}")?;
            }
        }
        for (number, ((target, masquerade), share)) in self.targets.iter().take(NAMED).enumerate() {
            write!(f, "{}{target}", if number == 0 { ": " } else { ", " })?;
            if *share != Share::ALL {
                write!(f, " {share}")?;
            }
            f.write_str(if *masquerade { " masqueraded" } else { "" })?;
        }
        if self.targets.len() > NAMED {
            write!(f, " and {} more", self.targets.len() - NAMED)?;
        }
        f.write_str(if self.targets.is_empty() && self.masquerade { ", masqueraded" } else { "" })?;
        for (seconds, share) in &self.affinity {
            write!(f, ", remembered for {seconds} s")?;
            if *share != Share::ALL {
                write!(f, " {share}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate(targets: &[(&str, bool, u64)]) -> Fate {
        let parts: u64 = targets.iter().map(|(_, _, share)| share).sum();
        let targets = targets.iter().map(|(address, masquerade, share)| {
            ((address.parse().unwrap(), *masquerade), Share::new(*share, parts))
        });
        let targets: BTreeMap<_, _> = targets.collect();
        let masquerade = targets.keys().any(|(_, masquerade)| *masquerade);
        Fate { outcomes: [(Outcome::Accepted, Share::ALL)].into(), targets, masquerade, ..Fate::default() }
    }

    fn refused() -> Fate {
        Fate { outcomes: [(Outcome::Rejected, Share::ALL)].into(), ..Fate::default() }
    }

    #[test]
    fn the_gravest_difference_is_named() {
        let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
        let known = fate(&[(a, false, 1), (b, false, 1)]);
        let sticking = |seconds| Fate { affinity: [(seconds, Share::ALL)].into(), ..known.clone() };
        for (other, discord) in [
            (known.clone(), None),
            (refused(), Some(Discord::Outcome)),
            (fate(&[(a, false, 1), ("10.0.0.2:81", false, 1)]), Some(Discord::Targets)),
            (fate(&[(a, true, 1)]), Some(Discord::Targets)),
            (fate(&[(a, false, 1), (b, true, 1)]), Some(Discord::Masquerade)),
            (fate(&[(a, false, 1), (b, false, 2)]), Some(Discord::Shares)),
            (fate(&[(a, false, 1_000_000_000), (b, false, 1_000_000_001)]), None),
            (sticking(60), Some(Discord::Affinity)),
        ] {
            assert_eq!(known.discord(&other), discord, "{other}");
            assert_eq!(other.discord(&known), discord, "{other}");
        }
        assert_eq!(sticking(60).discord(&sticking(60)), None);
        assert_eq!(sticking(60).discord(&sticking(61)), Some(Discord::Affinity));
    }

    #[test]
    fn text_names_outcomes_and_the_first_targets() {
        assert_eq!(refused().to_string(), "rejected");
        assert_eq!(fate(&[("10.0.0.1:80", true, 1)]).to_string(), "accepted: 10.0.0.1:80 masqueraded");
        let many: Vec<String> = (1..=8).map(|n| format!("[fd00::{n}]:80")).collect();
        let many: Vec<_> = many.iter().map(|text| (text.as_str(), false, 1)).collect();
        let text = fate(&many).to_string();
        assert!(text.starts_with("accepted: [fd00::1]:80 1/8, [fd00::2]:80 1/8"), "{text}");
        assert!(text.ends_with("[fd00::6]:80 1/8 and 2 more"), "{text}");
        let half = Fate { affinity: [(60, Share::new(1, 2))].into(), ..refused() };
        assert_eq!(half.to_string(), "rejected, remembered for 60 s 1/2");
    }
}
