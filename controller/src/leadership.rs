//! Leadership: whether this process may write.
//!
//! A standby keeps its index warm and writes nothing. Winning the lease begins a term; losing it ends the term, which
//! cancels what is being written at that moment.
//!
//! Invariant: at most one term is open. A process that cannot renew its lease ends its term before the lease can be taken
//! by another.

use std::time::Duration;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

pub mod lease;
mod record;

/// Whether this process may write, shared by all that write.
#[derive(Debug, Default)]
pub struct Leadership {
    term: RwLock<Option<CancellationToken>>,
}

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
