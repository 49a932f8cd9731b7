//! The sync loop of one family.
//!
//! ```text
//!  changes ──> ProxyState ─┐                 ┌─ partial ─┐
//!  basis ──────────────────┴─ Schedule ── job┼─ full ────┼──> Engine ──> kernel
//!  every sync period ────────────────────────┴─ canary ──┘
//! ```
//!
//! One task owns all state of its family; there is no lock. At most one job touches the rules at a time, in a task of
//! its own, so changes are taken in while it runs. UDP flows are compared with the rules of a sync that succeeded beside the
//! next one. Families do not wait for each other.
//!
//! Invariants: nothing is written before both initial lists are in and our Node is known (or given up on); a change is
//! lost by no failure, because whatever a failed sync did or did not write, the next one compares everything.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use fairlead_compiler::{ProxyState, Rulebook};
use fairlead_daemon::{failure, readiness::Gate};
use fairlead_objects::{Family, ServiceKey, Timestamp};
use ipnet::IpNet;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::{
    sync::{mpsc, watch},
    task::JoinError,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    census::{Census, HealthPorts},
    conntrack::FlowTable,
    engine::{Engine, Report, SyncError},
    events::Events,
    feed::Change,
    health::Health,
    metrics::Metrics,
    netfilter::Netfilter,
    own_node::Basis,
    quarantine::{Advice, Quarantine},
    rival::Signs,
    schedule::Schedule,
    sentinel::{Sentinel, Suspicion},
};

mod affinity;
mod flows;
mod healing;
mod intake;
mod isolation;
mod job;

use flows::{FlowDuty, Reconcile};
use job::{Finished, Job, Outcome, Task, ended, spawn, until};

/// How often everything is compared without a reason, as kube-proxy does.
const FULL_SYNC_PERIOD: Duration = Duration::from_hours(1);

/// Why a sync is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The first one.
    Start,
    /// The one before failed.
    Failure,
    /// Another program flushed our tables.
    Flush,
    /// Another program changed our rules, and the repair failed.
    Drift,
    /// It is time again.
    Period,
}

impl Cause {
    /// A constant word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Failure => "failure",
            Self::Flush => "flush",
            Self::Drift => "drift",
            Self::Period => "period",
        }
    }
}

/// Settings and connections of a sync loop.
#[derive(Debug)]
pub struct Wiring<N, F> {
    /// Family of its rules.
    pub family: Family,
    /// Where they are written.
    pub netfilter: Arc<N>,
    /// Flows that rules once decided about.
    pub flows: Arc<F>,
    /// What they are made from.
    pub changes: mpsc::Receiver<Change>,
    /// What else they depend on; `None` until our Node is known or given up on.
    pub basis: watch::Receiver<Option<Basis>>,
    /// Reads the interface addresses of the node.
    pub addresses: fn(Family) -> io::Result<Vec<IpNet>>,
    /// How often to look for the canary.
    pub sync_period: Duration,
    /// Least time between syncs.
    pub min_sync_period: Duration,
    /// Opened by the first success; carries what is wrong now.
    pub gate: Gate,
    /// Notices what other programs do to the rules.
    pub sentinel: Sentinel,
    /// Where users are told about Services that are left out.
    pub events: Events,
    /// Where it is told that other programs changed rules.
    pub signs: Signs,
    /// What probes are told.
    pub health: Arc<Mutex<Health>>,
    /// Where health check ports are published, after each success.
    pub health_ports: watch::Sender<HealthPorts>,
    /// What is measured.
    pub metrics: Metrics,
}

/// The sync loop of one family.
pub struct Lane<N, F> {
    wiring: Wiring<N, F>,
    flows: FlowDuty<F>,
    reconcile: Option<Reconcile>,
    state: ProxyState,
    schedule: Schedule,
    /// Services that changed since the last sync started.
    dirty: BTreeSet<ServiceKey>,
    /// Absent before the first sync and while a job has it.
    engine: Option<Engine<N>>,
    /// What is counted besides rules, as of the last sync's start.
    census: Census,
    /// What the engine's rulebook is for.
    current: Option<Basis>,
    /// What another program may have changed, and when to look: a moment after it began.
    suspicion: Suspicion,
    look: Option<Instant>,
    /// Services that are left out.
    quarantine: Quarantine,
    /// As of the last sync's start: those, and others while the guilty are looked for.
    excluded: BTreeSet<ServiceKey>,
    /// Services whose owners know that they are served without affinity.
    without_affinity: BTreeSet<ServiceKey>,
    /// The next sync must be full, for this reason.
    full: Option<Cause>,
    last_full: Instant,
    services_listed: bool,
    slices_listed: bool,
    /// When changes happened that are not programmed yet, by Service.
    triggers: FxHashMap<ServiceKey, Vec<Timestamp>>,
    started: Timestamp,
}

impl<N: Netfilter, F: FlowTable> Lane<N, F> {
    /// A sync loop that knows nothing yet.
    pub fn new(wiring: Wiring<N, F>) -> Self {
        Self {
            flows: FlowDuty::new(wiring.family, Arc::clone(&wiring.flows)),
            reconcile: None,
            state: ProxyState::new(wiring.family),
            schedule: Schedule::new(wiring.min_sync_period),
            dirty: BTreeSet::new(),
            engine: None,
            census: Census::default(),
            current: None,
            suspicion: Suspicion::Nothing,
            look: None,
            quarantine: Quarantine::default(),
            excluded: BTreeSet::new(),
            without_affinity: BTreeSet::new(),
            full: Some(Cause::Start),
            last_full: Instant::now(),
            services_listed: false,
            slices_listed: false,
            triggers: FxHashMap::default(),
            started: Timestamp::now(),
            wiring,
        }
    }

    /// Runs until `shutdown`, leaving the rules in place. An error is a defect: a job panicked.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), JoinError> {
        let period = self.wiring.sync_period;
        let mut canary = interval_at(Instant::now() + period, period);
        canary.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut job: Option<Job<N>> = None;
        self.wiring.health.lock().updated(self.wiring.family, Timestamp::now());
        self.note_basis();
        loop {
            let (idle, due) = (job.is_none(), self.due());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                finished = ended(&mut job) => {
                    job = None;
                    self.finish(finished?);
                }
                reconciled = ended(&mut self.reconcile) => {
                    self.reconcile = None;
                    self.flows.finish(reconciled?, &self.wiring.metrics);
                }
                () = until(due), if idle => job = self.start_sync(),
                Some(change) = self.wiring.changes.recv() => self.take_in(change),
                Ok(()) = self.wiring.basis.changed() => self.note_basis(),
                () = until(self.quarantine.due()), if idle && self.full.is_none() => self.retry_held(),
                () = until(self.look), if idle && self.full.is_none() => job = self.start_verification(),
                () = self.wiring.sentinel.stirred(idle) => self.note_stir(),
                () = until(self.flows.due(Instant::now())), if idle && self.full.is_none() => {
                    self.start_reconcile();
                }
                _ = canary.tick(), if idle && self.engine.is_some() => job = self.start_check(),
            }
        }
    }

    /// Whether everything is there that rules are made from.
    fn is_informed(&self) -> bool {
        self.services_listed && self.slices_listed && self.wiring.basis.borrow().is_some()
    }

    fn due(&self) -> Option<Instant> {
        if self.is_informed() { self.schedule.due(Instant::now()) } else { None }
    }

    fn request(&mut self) {
        self.schedule.request();
        if !self.is_informed() {
            // A slow start is no reason to restart us.
            return;
        }
        let now = Timestamp::now();
        self.wiring.health.lock().queued(self.wiring.family, now);
        self.wiring.metrics.observe_queued(self.wiring.family, now.as_duration().as_secs_f64());
    }

    fn note_basis(&mut self) {
        if self.wiring.basis.borrow_and_update().is_some() {
            self.request();
        }
    }

    /// The basis with the interface addresses as they are now, where rules depend on them.
    fn basis_now(&self) -> Option<Basis> {
        let mut basis = self.wiring.basis.borrow().clone()?;
        if basis.config.lists_addresses(self.wiring.family) {
            match (self.wiring.addresses)(self.wiring.family) {
                Ok(addresses) => basis.facts.addresses = addresses,
                Err(error) => {
                    warn!(%error, "cannot read the addresses of this node's interfaces; going on with those known");
                    basis.facts.addresses = self
                        .current
                        .as_ref()
                        .map(|current| current.facts.addresses.clone())
                        .unwrap_or_default();
                }
            }
        }
        Some(basis)
    }

    fn start_sync(&mut self) -> Option<Job<N>> {
        let basis = self.basis_now()?;
        let dirty = std::mem::take(&mut self.dirty);
        let mut engine = self.engine.take().unwrap_or_else(|| {
            let rulebook = Rulebook::new(basis.config.clone(), basis.facts.clone());
            Engine::new(Arc::clone(&self.wiring.netfilter), rulebook)
        });
        if self.current.as_ref().is_some_and(|current| *current != basis) {
            info!(family = %self.wiring.family, "what is known of our node changed; computing all rules anew");
            engine.rulebook.reconfigure(basis.config.clone(), basis.facts.clone(), &self.state);
            self.census = Census::of(&self.state, &basis.facts);
        } else {
            engine.rulebook.refresh(&self.state, &dirty);
            self.census.refresh(&self.state, &dirty, &basis.facts);
        }
        self.quarantine.note(&dirty, |key| !self.state.ports(key).is_empty());
        let excluded = self.quarantine.excluded();
        self.flows.refresh(&self.state, &dirty);
        if excluded != self.excluded {
            // Without rules, packets of those that were left out went elsewhere.
            self.flows.suspect();
            self.excluded.clone_from(&excluded);
        }
        engine.rulebook.exclude(excluded, &self.state);
        self.current = Some(basis);
        self.tell_lost_affinity(&dirty);
        self.schedule.started();
        self.wiring.metrics.changes_taken();
        let full = self.full.take();
        if full.is_some() {
            self.suspicion = Suspicion::Nothing;
            self.look = None;
        }
        self.wiring.sentinel.begin(full.is_some());
        if let Some(cause) = full {
            self.last_full = Instant::now();
            self.wiring.metrics.observe_full(self.wiring.family, cause.as_str());
        }
        Some(spawn(engine, Task::Sync { full, triggers: std::mem::take(&mut self.triggers) }))
    }

    fn start_check(&mut self) -> Option<Job<N>> {
        let engine = self.engine.take()?;
        Some(spawn(engine, Task::Canary))
    }

    /// All rules must be programmed as they are now.
    fn start_reconcile(&mut self) {
        let started = self.current.as_ref().and_then(|basis| self.flows.start(basis, self.wiring.addresses));
        if started.is_some() {
            self.reconcile = started;
        }
    }

    fn finish(&mut self, finished: Finished<N>) {
        let Finished { engine, outcome, duration } = finished;
        match outcome {
            Outcome::Synced { full, triggers, result } => {
                self.end_writing(&engine, &result);
                self.wiring.metrics.observe_sync(self.wiring.family, full.is_some(), duration);
                match result {
                    Ok(report) => {
                        self.succeeded(&triggers, &report);
                        self.start_reconcile();
                        self.tell(full, &report, duration);
                        if self.quarantine.succeeded(Instant::now()) == Advice::Again {
                            self.request();
                        }
                        self.tell_verdicts();
                        self.report_held();
                        if full.is_some() {
                            self.count_rules(&engine);
                        }
                    }
                    Err(error) => {
                        self.failed(full, triggers, &error);
                        self.blame(&error, &engine);
                    }
                }
            }
            Outcome::Verified(result) => {
                self.end_writing(&engine, &result);
                self.verified(result, duration);
            }
            Outcome::Checked(Ok(flushed)) => self.checked(&engine, flushed),
            Outcome::Checked(Err(error)) => {
                warn!(family = %self.wiring.family, "cannot check for a flush: {}", failure::chain(&error));
            }
        }
        self.engine = Some(engine);
    }

    fn succeeded(&mut self, triggers: &FxHashMap<ServiceKey, Vec<Timestamp>>, report: &Report) {
        let Wiring { family, metrics, health, gate, health_ports, .. } = &self.wiring;
        let (family, now) = (*family, Timestamp::now());
        self.schedule.succeeded(Instant::now());
        health.lock().updated(family, now);
        if self.schedule.due(Instant::now()).is_some() {
            health.lock().queued(family, now);
        }
        metrics.observe_success(family, now.as_duration().as_secs_f64());
        for time in triggers.values().flatten() {
            metrics.observe_programming(family, now.duration_since(*time).unsigned_abs());
        }
        for (table, rules) in &report.rules {
            metrics.observe_written(family, table_label(table.as_str()), *rules);
        }
        metrics.observe_stranded(family, self.census.stranded());
        if let Some(Basis { config, facts }) = &self.current {
            health_ports.send_replace(self.census.health_ports(config, facts));
        }
        if !gate.is_open() || gate.well() {
            info!(%family, "all rules are programmed");
        }
        gate.open();
    }

    /// Logs what a sync did.
    fn tell(&mut self, full: Option<Cause>, report: &Report, duration: Duration) {
        let family = self.wiring.family;
        let Report { documents, chains, deleted, jumps, .. } = *report;
        let milliseconds = duration.as_millis();
        let Some(cause) = full else {
            debug!(%family, documents, chains, deleted, milliseconds, "partial sync");
            return;
        };
        info!(%family, cause = cause.as_str(), documents, chains, deleted, jumps, milliseconds, "full sync");
        if matches!(cause, Cause::Flush | Cause::Drift | Cause::Period) && !report.drift.is_nothing() {
            self.wiring.signs.changed(family, None);
            self.repaired(report);
        }
    }

    fn failed(
        &mut self,
        full: Option<Cause>,
        triggers: FxHashMap<ServiceKey, Vec<Timestamp>>,
        error: &SyncError,
    ) {
        for (key, times) in triggers {
            self.triggers.entry(key).or_default().splice(0..0, times);
        }
        // A start that failed is still a start.
        self.full = Some(full.unwrap_or(Cause::Failure));
        let delay = self.schedule.failed(Instant::now());
        let Wiring { family, metrics, gate, .. } = &self.wiring;
        metrics.observe_failure(*family, error.category(), error.is_restore(), full.is_some());
        let text = failure::chain(error);
        warn!(%family, "programming rules failed: {text}; trying again in {} ms", delay.as_millis());
        gate.trouble(text);
    }

    fn checked(&mut self, engine: &Engine<N>, flushed: bool) {
        self.count_rules(engine);
        if flushed {
            warn!(family = %self.wiring.family, "another program flushed our rules; writing them again");
            self.full = Some(Cause::Flush);
            self.request();
        } else if self.last_full.elapsed() >= FULL_SYNC_PERIOD {
            self.full = Some(Cause::Period);
            self.quarantine.release(Instant::now(), true);
            self.request();
        }
    }

    fn count_rules(&self, engine: &Engine<N>) {
        for (table, rules) in engine.rule_counts() {
            self.wiring.metrics.observe_rules(self.wiring.family, table, rules);
        }
    }
}

fn table_label(table: &str) -> &'static str {
    match table {
        "filter" => "filter",
        "nat" => "nat",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
