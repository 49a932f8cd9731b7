//! Decision: which of the rules that hold decide what becomes of the packet.
//!
//! Invariant: a rule decides if it leads to an endpoint that is reached, refuses the packet, or drops it; all others only lead
//! there.

use fairlead_compiler::{Dump, Outcome, Rule, Step, Target, Trace};

/// The rule at a step.
pub(super) fn rule<'d>(dump: &'d Dump, step: &Step) -> Option<&'d Rule> {
    dump.chain(&step.table, step.chain.as_str())?.rules.get(step.index)
}

/// Whether the rule at `step` decides.
pub(super) fn decides(dump: &Dump, trace: &Trace, step: &Step) -> bool {
    match rule(dump, step).and_then(|rule| rule.target.as_ref()) {
        Some(Target::Dnat(to)) => {
            trace.targets.iter().any(|target| target.address == to.ip() && target.port == to.port())
        }
        Some(Target::Drop) => trace.shares.contains_key(&Outcome::Dropped),
        Some(Target::Reject(_)) => trace.shares.contains_key(&Outcome::Rejected),
        _ => false,
    }
}
