//! Leadership: whether this process may write.
//!
//! A standby keeps its index warm and writes nothing. Winning the lease begins a term; losing it ends the term, which
//! cancels what is being written at that moment.
//!
//! Invariants: at most one term is open. A process that cannot renew its lease ends its term before the lease can be taken
//! by another. Whoever writes looks at the clock first ([`Leadership::in_time`]): a process that was frozen wakes up in the
//! middle of things, and the end of its term may not be the first that happens.

use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub mod lease;
mod record;

/// Whether this process may write, shared by all that write.
#[derive(Debug, Default)]
pub struct Leadership {
    term: RwLock<Option<CancellationToken>>,
    /// Until when the lease is ours if it is not renewed; without a lease, for ever.
    until: RwLock<Option<Instant>>,
}

/// How soon a write that is too late looks again: the term ends or is renewed now.
const GLANCE: Duration = Duration::from_millis(20);

impl Leadership {
    /// The token of the present term, if this process leads. It is cancelled when the term ends.
    pub fn term(&self) -> Option<CancellationToken> {
        self.term.read().clone()
    }

    /// Begins a term. Returns whether that is news.
    pub fn win(&self) -> bool {
        let mut term = self.term.write();
        let news = term.is_none();
        term.get_or_insert_default();
        news
    }

    /// The lease is ours until then.
    pub fn hold(&self, until: Instant) {
        *self.until.write() = Some(until);
    }

    /// Waits while the time is over that the lease was ours for.
    pub async fn in_time(&self) {
        while self.until.read().is_some_and(|until| until <= Instant::now()) {
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// Ends the term. Returns whether there was one.
    pub fn lose(&self) -> bool {
        let term = self.term.write().take();
        if let Some(term) = &term {
            term.cancel();
        }
        term.is_some()
    }
}

/// Times of the lease, as kube-controller-manager's flags have them.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long a lease lasts that is not renewed.
    pub lease: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// How long to wait between attempts.
    pub retry: Duration,
}

impl Times {
    /// Longest time that one request about the lease may take: a renewal takes two, and several must fit between the first
    /// failure and the deadline.
    pub fn request(self) -> Duration {
        (self.renew_deadline.saturating_sub(self.retry) / 6).max(Duration::from_millis(500))
    }

    /// How long a write that was sent within a term may take to arrive: no later than another's term can begin.
    pub fn write(self) -> Duration {
        self.lease.saturating_sub(self.renew_deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_late_waits_until_the_lease_is_held_again() {
        let leadership = Leadership::default();
        leadership.win();
        leadership.in_time().await;
        leadership.hold(Instant::now() + Duration::from_secs(10));
        leadership.in_time().await;
        tokio::time::sleep(Duration::from_secs(11)).await;
        let minute = Duration::from_mins(1);
        assert!(tokio::time::timeout(minute, leadership.in_time()).await.is_err());
        leadership.hold(Instant::now() + minute);
        leadership.in_time().await;
    }

    #[test]
    fn losing_cancels_the_term_and_winning_begins_another() {
        let leadership = Leadership::default();
        assert!(leadership.term().is_none());
        assert!(leadership.win() && !leadership.win());
        let first = leadership.term().unwrap();
        assert!(leadership.lose() && !leadership.lose());
        assert!(first.is_cancelled() && leadership.term().is_none());
        leadership.win();
        assert!(!leadership.term().unwrap().is_cancelled());
    }
}
