//! Jobs: what touches the kernel, in a task of its own, with the engine in its hands.

use std::time::Duration;

use fairlead_objects::{ServiceKey, Timestamp};
use rustc_hash::FxHashMap;
use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};

use super::Cause;
use crate::{
    engine::{Engine, Report, SyncError},
    netfilter::Netfilter,
    sentinel::Suspicion,
};

/// What a job is for.
#[derive(Debug)]
pub(super) enum Task {
    Sync { full: Option<Cause>, triggers: FxHashMap<ServiceKey, Vec<Timestamp>> },
    Canary,
    Verify(Suspicion),
}

/// A job that ended.
pub(super) struct Finished<N> {
    pub(super) engine: Engine<N>,
    pub(super) outcome: Outcome,
    pub(super) duration: Duration,
}

/// How it ended.
pub(super) enum Outcome {
    Synced {
        full: Option<Cause>,
        triggers: FxHashMap<ServiceKey, Vec<Timestamp>>,
        result: Result<Report, SyncError>,
    },
    Checked(Result<bool, SyncError>),
    Verified(Result<Report, SyncError>),
}

/// The task that a job runs in.
pub(super) type Job<N> = JoinHandle<Finished<N>>;

/// Starts a job beside the loop.
pub(super) fn spawn<N: Netfilter>(mut engine: Engine<N>, task: Task) -> Job<N> {
    tokio::spawn(async move {
        let start = Instant::now();
        let outcome = match task {
            Task::Sync { full, triggers } => {
                let result = if full.is_some() { engine.full().await } else { engine.partial().await };
                Outcome::Synced { full, triggers, result }
            }
            Task::Verify(suspicion) => Outcome::Verified(engine.verify(&suspicion).await),
            Task::Canary => Outcome::Checked(engine.flushed().await),
        };
        Finished { engine, outcome, duration: start.elapsed() }
    })
}

/// Waits for the task, if there is one.
pub(super) async fn ended<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

/// Waits until that time, if there is one.
pub(super) async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
