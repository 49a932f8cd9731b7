//! Whether what a kernel did with a packet is something that the tracer finds in its rules.

use fairlead_compiler::{Fate, Host, Outcome};

use super::packets::{Question, is_no_host};
use crate::tun::{self, Complaint, End};

/// Whether they agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agreement {
    Yes,
    No,
    /// The source may have been rewritten to what it was, or to avoid a connection that had it already.
    Unclear,
}

/// Holds what was seen against what was traced.
pub(super) fn agreement(question: &Question, host: &Host, traced: &Fate, seen: &tun::Fate) -> Agreement {
    let can = |outcome: Outcome| traced.outcomes.contains_key(&outcome);
    if can(Outcome::NoMatch) && is_no_host(question.packet.destination) && !seen.is_masqueraded() {
        return Agreement::Yes;
    }
    let agrees = match (seen.end, seen.answer) {
        (End::Left { source, destination, .. } | End::Delivered { source, destination }, _) => {
            let delivered = matches!(seen.end, End::Delivered { .. });
            let rewritten = seen.is_masqueraded();
            let possible = |rewritten: bool| {
                let passes = destination == question.destination()
                    && can(Outcome::NoMatch)
                    // Known for all ways together only.
                    && (traced.masquerade == rewritten || !traced.targets.is_empty());
                passes || traced.targets.contains_key(&(destination, rewritten))
            };
            let rightly =
                delivered == host.is_local(destination.ip()) && (!rewritten || host.is_local(source.ip()));
            if rightly && !possible(rewritten) && possible(!rewritten) && source.ip() == seen.sent_from.ip() {
                return Agreement::Unclear;
            }
            rightly && possible(rewritten)
        }
        (End::Nowhere, Some(answer)) => {
            answer.complaint == Complaint::PortUnreachable && can(Outcome::Rejected)
        }
        (End::Nowhere, None) => can(Outcome::Dropped) || question.may_be_lost(traced),
        (End::Unroutable, _) => question.may_be_lost(traced),
    };
    if agrees { Agreement::Yes } else { Agreement::No }
}
