//! Holding a coordination.k8s.io Lease, through kube-lease-manager.
//!
//! That crate reports only changes of who holds the lease: neither renewals nor, when the API server is out of reach, that
//! a lease has run out. So we keep the deadline ourselves: after a failed renewal the term ends unless another attempt has
//! gone on without an error for longer than its requests can take, which means that it succeeded.

use std::{fmt, time::Duration};

use fairlead_daemon::{failure, readiness::Gate};
use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Times;

/// Pause after a failed request about the lease.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// What becomes of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is ours.
    Won,
    /// It is not ours any more, or may not be.
    Lost,
}

/// Which lease, and how.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Namespace of the Lease object.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are; no other process may have the same.
    pub identity: String,
    /// Its times, in whole seconds.
    pub times: Times,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Lease {
    /// Tries to get and keep the lease until `shutdown`, then gives it up. Errors are logged once per change, and shown by
    /// `gate`, which is open from the first answer on: a standby is ready, too.
    ///
    /// `client` must give up on requests after [`Times::request`].
    pub async fn keep(
        self,
        client: Client,
        gate: Gate,
        shutdown: CancellationToken,
        mut report: impl FnMut(Change),
    ) {
        let ended = shutdown.clone();
        let Some(manager) = ended.run_until_cancelled(self.manager(client, &gate)).await else { return };
        gate.open();
        let mut holds = Holds::default();
        loop {
            let deadline = holds.deadline();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = sleep_until(deadline.unwrap_or_else(far)), if deadline.is_some() => {
                    if holds.decide(Instant::now()) {
                        tracing::warn!(lease = %self, "the lease could not be renewed in time");
                        report(Change::Lost);
                    } else if gate.well() {
                        tracing::info!(lease = %self, "the lease is being renewed again");
                    }
                }
                changed = manager.changed() => match changed {
                    Ok(won) => {
                        holds = Holds { ours: won, ..Holds::default() };
                        gate.well();
                        report(if won { Change::Won } else { Change::Lost });
                    }
                    Err(error) => {
                        self.complain(&gate, &error);
                        holds.failed(Instant::now(), self.times);
                        sleep(self.times.retry.min(AFTER_FAILURE)).await;
                        holds.tried(Instant::now(), self.times);
                    }
                },
            }
        }
        if holds.ours {
            report(Change::Lost);
            self.release(&manager).await;
        }
    }

    async fn manager(&self, client: Client, gate: &Gate) -> LeaseManager {
        loop {
            // Renewed when so much is left of it: every retry period.
            let grace = self.times.lease.saturating_sub(self.times.retry).as_secs().max(1);
            let builder = LeaseManagerBuilder::new(client.clone(), self.name.clone())
                .with_namespace(self.namespace.clone())
                .with_identity(self.identity.clone())
                .with_field_manager(format!("fairlead-{}", self.identity))
                .with_duration(self.times.lease.as_secs())
                .with_grace(grace);
            match builder.build().await {
                Ok(manager) => return manager,
                Err(error) => self.complain(gate, &error),
            }
            sleep(self.times.retry).await;
        }
    }

    async fn release(&self, manager: &LeaseManager) {
        match tokio::time::timeout(self.times.request() * 2, manager.release()).await {
            Ok(Ok(())) => tracing::info!(lease = %self, "released the lease"),
            Ok(Err(error)) => tracing::warn!(lease = %self, "cannot release the lease: {}", sentence(&error)),
            Err(_elapsed) => tracing::warn!(lease = %self, "cannot release the lease: no answer in time"),
        }
    }

    fn complain(&self, gate: &Gate, error: &LeaseManagerError) {
        let text = format!(
            "{}; allow this identity to get, create and patch leases in namespace {} (RBAC), or use --leader-elect=false",
            sentence(error),
            self.namespace
        );
        if gate.trouble(text.as_str()) {
            tracing::warn!(lease = %self, "cannot get or renew the lease: {text}");
        } else {
            tracing::debug!(lease = %self, "still cannot get or renew the lease: {text}");
        }
    }
}

fn sentence(error: &LeaseManagerError) -> String {
    match error {
        LeaseManagerError::KubeError(error) => failure::sentence(error),
        error => failure::chain(error),
    }
}

fn far() -> Instant {
    Instant::now() + Duration::from_hours(24)
}

/// Whether the lease is ours, and until when that may be believed.
#[derive(Debug, Default)]
struct Holds {
    ours: bool,
    /// A renewal failed: the term ends then, if nothing else happens.
    give_up_at: Option<Instant>,
    /// The present attempt has succeeded if it has not failed by then.
    believed_at: Option<Instant>,
}

impl Holds {
    /// A renewal failed just now. The one before it may have been a retry period and its own requests ago.
    fn failed(&mut self, now: Instant, times: Times) {
        self.believed_at = None;
        if self.ours && self.give_up_at.is_none() {
            let age = times.retry + times.request() * 2;
            self.give_up_at = Some(now + times.renew_deadline.saturating_sub(age));
        }
    }

    /// Another attempt begins.
    fn tried(&mut self, now: Instant, times: Times) {
        // A renewal is two requests.
        self.believed_at = Some(now + times.request() * 2 + Duration::from_millis(500));
    }

    fn deadline(&self) -> Option<Instant> {
        self.give_up_at.into_iter().chain(self.believed_at).min()
    }

    /// A deadline has come. Returns whether the lease is lost by it.
    fn decide(&mut self, now: Instant) -> bool {
        let lost = self.ours && self.give_up_at.is_some_and(|at| at <= now);
        if lost {
            *self = Self::default();
        } else if self.believed_at.is_some_and(|at| at <= now) {
            self.believed_at = None;
            self.give_up_at = None;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        lease: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
        retry: Duration::from_secs(2),
    };

    #[test]
    fn term_ends_before_the_lease_does_when_renewals_fail() {
        let start = Instant::now();
        let mut holds = Holds { ours: true, ..Holds::default() };
        // The last good renewal was at the start; its successor failed after the retry period and both requests.
        let first_failure = start + TIMES.retry + TIMES.request() * 2;
        holds.failed(first_failure, TIMES);
        let end = holds.deadline().unwrap();
        assert!(end <= start + TIMES.renew_deadline, "{:?}", end - start);
        assert!(holds.decide(end) && !holds.ours);
    }

    #[test]
    fn attempt_that_goes_on_without_an_error_keeps_the_term() {
        let start = Instant::now();
        let mut holds = Holds { ours: true, ..Holds::default() };
        holds.failed(start, TIMES);
        holds.tried(start + AFTER_FAILURE, TIMES);
        let decided = holds.deadline().unwrap();
        assert!(!holds.decide(decided));
        assert!(holds.ours && holds.deadline().is_none());
    }

    #[test]
    fn failures_of_a_standby_have_no_deadline_for_giving_up() {
        let mut holds = Holds::default();
        holds.failed(Instant::now(), TIMES);
        assert_eq!(holds.deadline(), None);
    }
}
