//! When the next sync starts.
//!
//! The first change after quiet is due at once. While a sync runs, changes collect; the next one starts when it ends
//! (or `--iptables-min-sync-period` later). After a failure it starts after a delay that doubles each time.
//!
//! Invariants: a request is due until a sync that started after it succeeded; failures never lead to a busy loop,
//! whatever requests come in. Pure: the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// First delay after a failure.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay after a failure.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// State of one family's syncs.
#[derive(Clone, Debug)]
pub struct Schedule {
    gap: Duration,
    requested: bool,
    not_before: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// With at least `gap` between the end of one sync and the start of the next; zero is adaptive.
    pub fn new(gap: Duration) -> Self {
        Self { gap, requested: false, not_before: None, failures: 0 }
    }

    /// Something changed.
    pub fn request(&mut self) {
        self.requested = true;
    }

    /// When the next sync should start, `now` at the earliest; `None` if nothing is to be done.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.requested.then(|| self.not_before.map_or(now, |earliest| earliest.max(now)))
    }

    /// Something changed that the failure before does not matter for.
    pub fn hasten(&mut self) {
        self.requested = true;
        self.not_before = None;
    }

    /// A sync starts and takes all requests so far with it.
    pub fn started(&mut self) {
        self.requested = false;
    }

    /// The sync that was started succeeded.
    pub fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        self.not_before = now.checked_add(self.gap);
    }

    /// The sync that was started failed: it will be repeated. Returns after which delay.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let doubled = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(self.failures));
        let delay = doubled.min(LONGEST_DELAY).max(self.gap);
        self.failures = self.failures.saturating_add(1);
        self.requested = true;
        self.not_before = now.checked_add(delay);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_change_after_quiet_is_due_at_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::ZERO);
        assert_eq!(schedule.due(now), None);
        schedule.request();
        assert_eq!(schedule.due(now), Some(now));
    }

    #[test]
    fn changes_during_a_sync_are_due_when_it_ends() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::ZERO);
        schedule.request();
        schedule.started();
        assert_eq!(schedule.due(now), None);
        schedule.request();
        let end = now + Duration::from_millis(30);
        schedule.succeeded(end);
        assert_eq!(schedule.due(end), Some(end));
    }

    #[test]
    fn gap_is_kept_after_a_sync_but_not_before_the_first() {
        let now = Instant::now();
        let gap = Duration::from_secs(1);
        let mut schedule = Schedule::new(gap);
        schedule.request();
        assert_eq!(schedule.due(now), Some(now));
        schedule.started();
        schedule.succeeded(now);
        schedule.request();
        assert_eq!(schedule.due(now), Some(now + gap));
    }

    #[test]
    fn delay_doubles_with_each_failure_up_to_thirty_seconds_and_success_resets_it() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Duration::ZERO);
        let delays: Vec<u128> = (0..12).map(|_| schedule.failed(now).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30_000, 30_000, 30_000]);
        schedule.request();
        assert_eq!(schedule.due(now), Some(now + LONGEST_DELAY), "a new request must not shorten the delay");
        schedule.succeeded(now);
        assert_eq!(schedule.failed(now), FIRST_DELAY);
    }
}
