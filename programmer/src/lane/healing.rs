//! The sync loop's part in self-healing: when to look at what others did, and what follows from it.

use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    Cause, Lane,
    job::{Job, Task, spawn},
};
use crate::{
    conntrack::FlowTable,
    engine::{Engine, Report, SyncError},
    netfilter::Netfilter,
    sentinel::Suspicion,
};

/// How long other programs may take to finish what they began, before we look at it.
const SETTLING: Duration = Duration::from_millis(50);

impl<N: Netfilter, F: FlowTable> Lane<N, F> {
    /// Another program did something: look what, when it is done with it.
    pub(super) fn note_stir(&mut self) {
        let Some(engine) = &self.engine else {
            // Nothing of ours is there yet.
            drop(self.wiring.sentinel.take(&|_| false));
            return;
        };
        self.suspicion.add(self.wiring.sentinel.take(&|chain| engine.concerns(chain)));
        if !self.suspicion.is_nothing() {
            self.look.get_or_insert_with(|| Instant::now() + SETTLING);
        }
    }

    pub(super) fn start_verification(&mut self) -> Option<Job<N>> {
        self.look = None;
        let engine = self.engine.take()?;
        self.wiring.sentinel.begin(self.suspicion == Suspicion::Everything);
        Some(spawn(engine, Task::Verify(std::mem::take(&mut self.suspicion))))
    }

    /// What was written is known to the sentinel as ours.
    pub(super) fn end_writing(&mut self, engine: &Engine<N>, result: &Result<Report, SyncError>) {
        let writers = result.as_ref().ok().map(|report| report.writers);
        self.wiring.sentinel.end(writers, &|chain| engine.concerns(chain), &|| engine.entries());
    }

    pub(super) fn verified(&mut self, result: Result<Report, SyncError>, duration: Duration) {
        let family = self.wiring.family;
        self.wiring.metrics.observe_verification(family, duration);
        match result {
            Ok(report) if report.drift.is_nothing() => debug!(%family, "rules are as they should be"),
            Ok(report) => {
                // All that we wrote was there, so no chain that is there is one that we left behind.
                self.wiring.signs.changed(family, report.drift.of_another_proxy.as_ref());
                self.repaired(&report);
            }
            Err(error) => self.failed(Some(Cause::Drift), FxHashMap::default(), &error),
        }
    }

    pub(super) fn repaired(&mut self, report: &Report) {
        let family = self.wiring.family;
        warn!(%family, "another program changed the rules; repaired: {}", report.drift);
        self.wiring.metrics.observe_drift(family, &report.drift);
        self.flows.suspect();
    }
}
