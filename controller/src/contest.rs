//! Contests: objects that another's hand changes after we wrote them, again and again.
//!
//! Two controllers that agree are no contest, whoever writes first. Where they do not agree, each undoes what the other did;
//! so a repair that has to be repeated waits longer each time, and once the other hand has rested for a while, all is
//! forgotten. Changes of Services, Pods and Nodes never wait for this.
//!
//! Invariant: however fast another is, an object is repaired at most [`PATIENCE`] times and then once in a doubling time, at
//! the end once in [`LONGEST`].

use std::time::Duration;

use tokio::time::Instant;

/// Repairs in a row that may follow each other closely: somebody is trying something by hand, or hands over.
const PATIENCE: u32 = 3;
/// What the first repair after those waits.
const FIRST: Duration = Duration::from_secs(2);
/// What a repair waits at most: so long, too, may objects stay wrong once the other hand rests.
const LONGEST: Duration = Duration::from_mins(1);
/// Without a repair for so long, or for twice what the last one waited, there is no contest any more.
const REST: Duration = Duration::from_mins(1);

/// What is known of the other hand, for one part of one Service.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Contest {
    repairs: u32,
    last: Option<Instant>,
}

impl Contest {
    /// What another changed had to be repaired.
    pub(crate) fn repaired(&mut self, now: Instant) {
        self.repairs = self.repairs_at(now).saturating_add(1);
        self.last = Some(now);
    }

    /// How long to leave another's change alone, beyond what every change is left.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        wait(self.repairs_at(now))
    }

    /// Whether repairs wait longer because of it.
    pub(crate) fn is_on(&self, now: Instant) -> bool {
        self.repairs_at(now) >= PATIENCE
    }

    fn repairs_at(&self, now: Instant) -> u32 {
        let rest = REST.max(2 * wait(self.repairs));
        let is_over = self.last.is_none_or(|last| now.saturating_duration_since(last) > rest);
        if is_over { 0 } else { self.repairs }
    }
}

fn wait(repairs: u32) -> Duration {
    match repairs.checked_sub(PATIENCE) {
        None => Duration::ZERO,
        Some(doublings) => FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of so many repairs waits when the other hand strikes at once.
    fn waits(contest: &mut Contest, now: &mut Instant, count: usize) -> Vec<u64> {
        let mut waits = Vec::new();
        for _ in 0..count {
            let wait = contest.delay(*now);
            *now += wait;
            contest.repaired(*now);
            waits.push(wait.as_secs());
        }
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn repairs_wait_longer_each_time_up_to_a_limit() {
        let (mut contest, mut now) = (Contest::default(), Instant::now());
        assert_eq!(waits(&mut contest, &mut now, 12), [0, 0, 0, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert!(contest.is_on(now));
    }

    #[tokio::test(start_paused = true)]
    async fn contest_is_over_when_the_other_hand_rests() {
        let (mut contest, mut now) = (Contest::default(), Instant::now());
        waits(&mut contest, &mut now, 3);
        assert!(contest.is_on(now));
        now += REST + Duration::from_secs(1);
        assert!(!contest.is_on(now));
        waits(&mut contest, &mut now, 12);
        now += LONGEST;
        assert!(contest.is_on(now), "it may still come back");
        now += LONGEST + Duration::from_secs(1);
        assert_eq!(contest.delay(now), Duration::ZERO);
    }
}
