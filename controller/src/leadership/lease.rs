//! Holding a coordination.k8s.io Lease: the election loop, with client-go's protocol.
//!
//! Any number of candidates look at one Lease. Its holder renews it every retry period; whoever sees it unchanged for as
//! long as it lasts may take it. Every write carries the resourceVersion of what it is based on, so of two that try at once
//! one wins.
//!
//! Invariants: our term ends at the latest when the renew deadline has passed since the start of the last request that
//! renewed the lease, whatever the API server does meanwhile; as that deadline is shorter than the lease and others count
//! from a later moment, no two terms overlap. No answer is waited for beyond that. Clocks of two machines are never
//! compared (`record`).

use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use fairlead_daemon::{
    failure::{self, Class},
    readiness::Gate,
};
use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Times,
    record::{self, Step},
};
use crate::execute::FIELD_MANAGER;

/// How much of a pause is added at random, at most (as client-go), so that candidates do not come all at once.
const JITTER: f64 = 1.2;
/// A standby looks so many times in a retry period. How late it sees the last renewal of a leader that vanished is how much
/// later than the lease's end it takes over.
const LOOKS: u32 = 4;

/// What becomes of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was acquired or renewed, and is ours until then unless it is renewed again. Comes before [`Change::Won`].
    Held(Instant),
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
    /// Its times.
    pub times: Times,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where the Lease object is kept: the API server, or a test's stand-in for it.
pub trait Leases: Send + Sync {
    /// Reads the object, if it exists.
    fn get(&self) -> impl Future<Output = kube::Result<Option<Object>>> + Send;
    /// Creates it.
    fn create(&self, lease: &Object) -> impl Future<Output = kube::Result<Object>> + Send;
    /// Replaces it if it still has that resourceVersion.
    fn replace(&self, lease: &Object) -> impl Future<Output = kube::Result<Object>> + Send;
}

/// The Lease of that name at the API server.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Of the Lease's namespace.
    pub api: Api<Object>,
    /// Its name.
    pub name: String,
}

impl Leases for Remote {
    async fn get(&self) -> kube::Result<Option<Object>> {
        self.api.get_opt(&self.name).await
    }

    async fn create(&self, lease: &Object) -> kube::Result<Object> {
        self.api.create(&parameters(), lease).await
    }

    async fn replace(&self, lease: &Object) -> kube::Result<Object> {
        self.api.replace(&self.name, &parameters(), lease).await
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

/// Why a request about the lease failed.
#[derive(Debug, thiserror::Error)]
enum LeaseError {
    #[error("{}", failure::sentence(.0))]
    Request(#[source] kube::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
}

impl LeaseError {
    /// Whether somebody else was faster.
    fn is_contention(&self) -> bool {
        let Self::Request(error) = self else { return false };
        matches!(Class::of(error), Class::Conflict | Class::AlreadyExists | Class::NotFound)
    }

    fn is_forbidden(&self) -> bool {
        matches!(self, Self::Request(error) if Class::of(error) == Class::Forbidden)
    }
}

/// How an attempt to get or keep the lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is ours.
    Ours,
    /// It is another's for at least so long.
    Theirs(Duration),
    /// Somebody else was faster; who, the next look shows.
    Contended,
}

impl Lease {
    /// Tries to get and keep the lease until `shutdown`, then gives it up. Errors are logged once per change, and shown by
    /// `gate`, which is open from the first answer on: a standby is ready, too.
    pub async fn keep(
        self,
        leases: impl Leases,
        gate: Gate,
        shutdown: CancellationToken,
        mut report: impl FnMut(Change),
    ) {
        let mut candidate = Candidate { lease: &self, leases, observed: None, term: None };
        loop {
            let led = candidate.term.is_some();
            let outcome = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = ends(candidate.deadline()) => None,
                outcome = candidate.attempt() => Some(outcome),
            };
            if let Some(outcome) = &outcome {
                self.tell(&gate, outcome);
            }
            if let (Some(Ok(Outcome::Ours)), Some(until)) = (&outcome, candidate.deadline()) {
                report(Change::Held(until));
            }
            if !led && candidate.term.is_some() {
                report(Change::Won);
            }
            let pause = candidate.judge(outcome.as_ref(), &mut report);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // The next turn of the loop sees that, too.
                () = ends(candidate.deadline()) => {}
                () = sleep(pause) => {}
            }
        }
        if candidate.term.take().is_some() {
            report(Change::Lost);
            candidate.release().await;
        }
    }

    fn tell(&self, gate: &Gate, outcome: &Result<Outcome, LeaseError>) {
        match outcome {
            Ok(_) => {
                if gate.well() {
                    tracing::info!(lease = %self, "the lease can be read and written again");
                }
                gate.open();
            }
            Err(error) => self.complain(gate, error),
        }
    }

    fn complain(&self, gate: &Gate, error: &LeaseError) {
        let mut text = error.to_string();
        if error.is_forbidden() {
            text = format!(
                "{text}; allow this identity to get, create and update leases in namespace {} (RBAC), or use \
                 --leader-elect=false",
                self.namespace
            );
        }
        if gate.trouble(text.as_str()) {
            tracing::warn!(lease = %self, "cannot get or renew the lease: {text}");
        } else {
            tracing::debug!(lease = %self, "still cannot get or renew the lease: {text}");
        }
    }
}

/// Waits for a deadline, for ever if there is none.
async fn ends(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The Lease as it was seen last.
#[derive(Debug)]
struct Observed {
    object: Object,
    /// Since when its record has been seen unchanged.
    since: Instant,
}

struct Candidate<'a, L> {
    lease: &'a Lease,
    leases: L,
    observed: Option<Observed>,
    /// When the request began that renewed the lease last, while it is ours.
    term: Option<Instant>,
}

impl<L: Leases> Candidate<'_, L> {
    /// When our term ends if nothing is heard.
    fn deadline(&self) -> Option<Instant> {
        Some(self.term? + self.lease.times.renew_deadline)
    }

    /// One attempt to get or keep the lease.
    async fn attempt(&mut self) -> Result<Outcome, LeaseError> {
        let start = Instant::now();
        let outcome = self.look_and_write().await;
        if matches!(outcome, Ok(Outcome::Ours)) {
            self.term = Some(start);
        }
        outcome
    }

    async fn look_and_write(&mut self) -> Result<Outcome, LeaseError> {
        // What a leader wrote last is most likely what is still there.
        if self.term.is_some()
            && let Some(known) = self.observed.as_ref().map(|observed| observed.object.clone())
            && self.write(known).await? == Outcome::Ours
        {
            return Ok(Outcome::Ours);
        }
        let Some(object) = self.ask(self.leases.get()).await? else {
            let metadata = ObjectMeta {
                namespace: Some(self.lease.namespace.clone()),
                name: Some(self.lease.name.clone()),
                ..ObjectMeta::default()
            };
            return self.write(Object { metadata, spec: None }).await;
        };
        self.observe(object.clone());
        match self.step() {
            Step::Wait(left) => Ok(Outcome::Theirs(left)),
            Step::Acquire | Step::Renew => self.write(object).await,
        }
    }

    /// Writes that the lease is ours, into what was read.
    async fn write(&mut self, mut object: Object) -> Result<Outcome, LeaseError> {
        let old = object.spec.take().unwrap_or_default();
        let Lease { identity, times, .. } = self.lease;
        object.spec = Some(record::held(&old, identity, times.lease, Timestamp::now()));
        let written = if object.metadata.resource_version.is_none() {
            self.ask(self.leases.create(&object)).await
        } else {
            self.ask(self.leases.replace(&object)).await
        };
        match written {
            Ok(object) => {
                self.observe(object);
                Ok(Outcome::Ours)
            }
            Err(error) if error.is_contention() => Ok(Outcome::Contended),
            Err(error) => Err(error),
        }
    }

    async fn ask<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, LeaseError> {
        let patience = self.lease.times.request();
        match timeout(patience, request).await {
            Ok(answer) => answer.map_err(LeaseError::Request),
            Err(_elapsed) => Err(LeaseError::Silent(patience)),
        }
    }

    fn observe(&mut self, object: Object) {
        let now = Instant::now();
        let unchanged = self.observed.as_ref().filter(|known| known.object.spec == object.spec);
        let since = unchanged.map_or(now, |known| known.since);
        self.observed = Some(Observed { object, since });
    }

    fn step(&self) -> Step {
        let Some(Observed { object, since }) = &self.observed else { return Step::Acquire };
        let record = object.spec.as_ref();
        let unchanged = Instant::now().saturating_duration_since(*since);
        let Lease { identity, times, .. } = self.lease;
        record.map_or(Step::Acquire, |record| record::decide(record, identity, unchanged, times.lease))
    }

    /// Draws the conclusions from an attempt, or from a deadline that has passed (`None`). Returns how long to pause.
    fn judge(
        &mut self,
        outcome: Option<&Result<Outcome, LeaseError>>,
        report: &mut impl FnMut(Change),
    ) -> Duration {
        let times = self.lease.times;
        let led = self.term.is_some();
        match outcome {
            Some(Ok(Outcome::Ours)) => times.retry,
            Some(Ok(Outcome::Theirs(left))) => {
                if self.term.take().is_some() {
                    tracing::warn!(lease = %self.lease, holder = self.holder(), "another has taken the lease");
                    report(Change::Lost);
                }
                // The end of the lease is not slept through.
                jittered(times.retry / LOOKS).min(*left + jittered(times.retry / 20))
            }
            Some(Ok(Outcome::Contended) | Err(_)) if led => self.expire(report).unwrap_or(times.retry / 4),
            Some(Ok(Outcome::Contended) | Err(_)) => jittered(times.retry),
            None => self.expire(report).unwrap_or_default(),
        }
    }

    /// Ends the term if its deadline has passed.
    fn expire(&mut self, report: &mut impl FnMut(Change)) -> Option<Duration> {
        self.deadline().filter(|deadline| *deadline <= Instant::now())?;
        self.term = None;
        tracing::warn!(lease = %self.lease, "the lease could not be renewed in time");
        report(Change::Lost);
        Some(Duration::ZERO)
    }

    fn holder(&self) -> &str {
        let record = self.observed.as_ref().and_then(|observed| observed.object.spec.as_ref());
        record.and_then(record::holder).unwrap_or_default()
    }

    /// Empties the holder, so that another need not wait; not if it is another's by now.
    async fn release(mut self) {
        let mut attempts = 0;
        while let Some(Observed { mut object, .. }) = self.observed.take() {
            let ours = |spec: &LeaseSpec| record::holder(spec) == Some(&self.lease.identity);
            let Some(spec) = object.spec.take().filter(ours) else { return };
            object.spec = Some(record::released(&spec, Timestamp::now()));
            attempts += 1;
            let Err(error) = self.ask(self.leases.replace(&object)).await else {
                return tracing::info!(lease = %self.lease, "released the lease");
            };
            if error.is_contention()
                && attempts < 3
                && let Ok(Some(object)) = self.ask(self.leases.get()).await
            {
                self.observe(object);
                continue;
            }
            tracing::warn!(lease = %self.lease, "cannot release the lease: {error}");
        }
    }
}

/// `period`, and up to [`JITTER`] of it more.
fn jittered(period: Duration) -> Duration {
    // The hasher's keys are random, and a pause needs no better source.
    let bits = RandomState::new().build_hasher().finish() >> 32;
    let fraction = f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX);
    period.mul_f64(1.0 + JITTER * fraction)
}

#[cfg(test)]
mod tests;
