//! What becomes of a packet on either side, and whether that is the same.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use anyhow::{Result, bail};
use fairlead_compiler::{Dump, Host, NodeFacts, Outcome, Packet, Share, Trace, trace};

/// What can happen to a packet, how often, and which targets see which source.
#[derive(Debug, PartialEq, Eq)]
struct Fate {
    outcomes: BTreeMap<Outcome, Share>,
    /// Share of each target, with a rewritten source and without.
    targets: BTreeMap<(SocketAddr, bool), Share>,
    masquerade: bool,
}

impl From<&Trace> for Fate {
    fn from(trace: &Trace) -> Self {
        let targets = trace.targets.iter();
        let target = |target: &fairlead_compiler::Destination| {
            ((SocketAddr::new(target.address, target.port), target.masquerade), target.probability)
        };
        Self {
            outcomes: trace.shares.clone(),
            targets: targets.map(target).collect(),
            masquerade: trace.masquerade,
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |share: &Share| format!("{}/{}", share.numerator, share.denominator);
        for (outcome, of) in &self.outcomes {
            write!(f, "{} {}; ", outcome.as_str(), share(of))?;
        }
        for ((target, masquerade), of) in &self.targets {
            write!(f, "{target} {}{}, ", share(of), if *masquerade { " masqueraded" } else { "" })?;
        }
        write!(f, "{}", if self.masquerade { "masquerade" } else { "" })
    }
}

/// Both sides' rules of one family.
pub(super) struct Comparison<'a> {
    genuine: &'a Dump,
    ours: &'a Dump,
    host: Host,
    /// Packets compared so far.
    pub(super) packets: usize,
    /// Those that a Service did something with.
    pub(super) handled: usize,
}

impl<'a> Comparison<'a> {
    /// Of kube-proxy's rules and ours.
    pub(super) fn new(genuine: &'a Dump, ours: &'a Dump, facts: &NodeFacts) -> Self {
        Self { genuine, ours, host: Host::from(facts), packets: 0, handled: 0 }
    }

    /// Fails when a packet fares differently.
    pub(super) fn compare(&mut self, packet: &Packet) -> Result<()> {
        let (genuine, ours) = (trace(self.genuine, packet, &self.host), trace(self.ours, packet, &self.host));
        self.packets += 1;
        self.handled += usize::from(genuine.outcome != Outcome::NoMatch);
        let (theirs, own) = (Fate::from(&genuine), Fate::from(&ours));
        if theirs == own {
            return Ok(());
        }
        bail!(
            "{packet:?}\nkube-proxy: {theirs}\nours: {own}\nkube-proxy's rules:\n{}\nours:\n{}",
            steps(&genuine),
            steps(&ours)
        )
    }
}

fn steps(trace: &Trace) -> String {
    let line = |step: &fairlead_compiler::Step| format!("  {} {} {}", step.table, step.chain, step.rule);
    trace.path.iter().map(line).collect::<Vec<_>>().join("\n")
}
