//! The record in a coordination.k8s.io Lease: who holds it, and what may be done about that (client-go's leaderelection).
//!
//! Invariant: times in a record are for people. They were written by other machines' clocks and are never compared with
//! ours: a record has expired when it has been seen unchanged, by our own clock, for as long as it says that it lasts.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};

/// A lease that was released lasts so many seconds on paper: the API server refuses 0.
const RELEASED: i32 = 1;

/// What a candidate may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nobody holds it, or whoever did has let it expire: try to become its holder.
    Acquire,
    /// It is ours: keep it so.
    Renew,
    /// It is another's for at least so long.
    Wait(Duration),
}

/// What `candidate` may do about a record that it has seen unchanged for so long. `default` is how long a record lasts that
/// does not say so itself.
pub(super) fn decide(record: &LeaseSpec, candidate: &str, unchanged: Duration, default: Duration) -> Step {
    match holder(record) {
        None => Step::Acquire,
        Some(holder) if holder == candidate => Step::Renew,
        Some(_) => match lasts(record).unwrap_or(default).checked_sub(unchanged) {
            None | Some(Duration::ZERO) => Step::Acquire,
            Some(left) => Step::Wait(left),
        },
    }
}

/// Who holds it, if anybody does.
pub(super) fn holder(record: &LeaseSpec) -> Option<&str> {
    record.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn lasts(record: &LeaseSpec) -> Option<Duration> {
    let seconds = u64::try_from(record.lease_duration_seconds?).ok()?;
    Some(Duration::from_secs(seconds))
}

/// The record once `candidate` holds it for `duration`: renewed if it did before, else acquired.
pub(super) fn held(old: &LeaseSpec, candidate: &str, duration: Duration, now: Timestamp) -> LeaseSpec {
    let renewed = holder(old) == Some(candidate);
    let transitions = match (old.lease_transitions, renewed) {
        (transitions, true) => transitions.or(Some(0)),
        (Some(transitions), false) => Some(transitions.saturating_add(1)),
        // It was never held.
        (None, false) => Some(0),
    };
    LeaseSpec {
        holder_identity: Some(candidate.to_owned()),
        lease_duration_seconds: Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: old.acquire_time.clone().filter(|_| renewed).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: transitions,
        ..old.clone()
    }
}

/// The record once its holder has given it up.
pub(super) fn released(old: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: None,
        lease_duration_seconds: Some(RELEASED),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..old.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_secs(15);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn step(record: &LeaseSpec, unchanged: u64) -> Step {
        decide(record, "a", Duration::from_secs(unchanged), LASTS)
    }

    #[test]
    fn record_without_a_holder_is_acquired_at_once() {
        assert_eq!(step(&LeaseSpec::default(), 0), Step::Acquire);
        let empty = LeaseSpec { holder_identity: Some(String::new()), ..LeaseSpec::default() };
        assert_eq!(step(&empty, 0), Step::Acquire);
        assert_eq!(step(&released(&held(&LeaseSpec::default(), "b", LASTS, at(0)), at(1)), 0), Step::Acquire);
    }

    #[test]
    fn own_record_is_renewed_however_old_it_is() {
        let ours = held(&LeaseSpec::default(), "a", LASTS, at(0));
        assert_eq!(step(&ours, 0), Step::Renew);
        assert_eq!(step(&ours, 1000), Step::Renew);
    }

    #[test]
    fn record_of_another_is_waited_for_by_our_own_clock_whatever_its_times_say() {
        for written in [0, 4_000_000_000] {
            let theirs = held(&LeaseSpec::default(), "b", LASTS, at(written));
            assert_eq!(step(&theirs, 0), Step::Wait(LASTS));
            assert_eq!(step(&theirs, 14), Step::Wait(Duration::from_secs(1)));
            assert_eq!(step(&theirs, 15), Step::Acquire);
        }
    }

    #[test]
    fn duration_is_the_record_s_own_and_ours_where_it_has_none() {
        let mut theirs = held(&LeaseSpec::default(), "b", Duration::from_mins(1), at(0));
        assert_eq!(step(&theirs, 15), Step::Wait(Duration::from_secs(45)));
        theirs.lease_duration_seconds = None;
        assert_eq!(step(&theirs, 5), Step::Wait(Duration::from_secs(10)));
    }

    #[test]
    fn renewing_keeps_when_it_was_acquired_and_acquiring_counts_a_transition() {
        let first = held(&LeaseSpec::default(), "a", LASTS, at(10));
        assert_eq!(first.lease_transitions, Some(0));
        let renewed = held(&first, "a", LASTS, at(20));
        assert_eq!(renewed.acquire_time, Some(MicroTime(at(10))));
        assert_eq!((renewed.renew_time, renewed.lease_transitions), (Some(MicroTime(at(20))), Some(0)));
        let taken = held(&first, "b", LASTS, at(30));
        assert_eq!(taken.acquire_time, Some(MicroTime(at(30))));
        assert_eq!((taken.lease_transitions, holder(&taken)), (Some(1), Some("b")));
    }

    #[test]
    fn releasing_empties_the_holder_and_keeps_the_count() {
        let record = released(&held(&LeaseSpec::default(), "a", LASTS, at(10)), at(20));
        assert_eq!((holder(&record), record.lease_transitions), (None, Some(0)));
        assert!(record.lease_duration_seconds > Some(0), "the API server refuses 0");
    }
}
