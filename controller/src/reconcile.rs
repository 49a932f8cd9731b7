//! One reconcile: snapshot, plan, execute, for the parts of a Service that are due.
//!
//! Invariants: without a term nothing is planned or written. The parts of a Service are executed side by side and fail one
//! by one: a refused Endpoints write does not stop the slices. Every failure is counted for its part, retried after its own
//! delay, and cleared by the next success.

use std::{fmt, sync::Arc, time::Duration};

use fairlead_objects::{ObjectMeta, Pod, ServiceKey, Timestamp};
use fairlead_planner::{
    EndpointsPlan, Limits, Note, NoteKind, Parts, Plan, PlanInput, Remembered, SlicePlan, Topology,
    TriggerTimes, Triggers,
};
use kube_runtime::controller::Action;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    events::{Events, Regarding, Uids},
    execute::{Operation, WriteError, Writer},
    index::{Index, Snapshot},
    leadership::Leadership,
    metrics::{Metrics, SyncResult, changed_slices},
    part::Part,
    primary::Primary,
    queue::{Queue, Taken},
    shadow::Shadow,
};

/// How long written Endpoints rest for each of their addresses: 100 ms for as many as an object holds at most.
const ENDPOINTS_REST: Duration = Duration::from_micros(100);

/// Everything that reconciles share.
pub struct Context {
    /// What is known of the cluster.
    pub index: Arc<Mutex<Index>>,
    /// What is to be done.
    pub queue: Arc<Queue>,
    /// Whether it is for us to do.
    pub leadership: Arc<Leadership>,
    /// What does it.
    pub writer: Writer,
    /// Whom to tell.
    pub events: Events,
    /// What to count.
    pub metrics: Arc<Metrics>,
    /// Sizes from flags.
    pub limits: Limits,
    /// Which parts run.
    pub parts: Parts,
    /// Only compares, where there is one.
    pub shadow: Option<Arc<Shadow>>,
    /// Which changes written Endpoints and slices answer to.
    pub triggers: [Mutex<TriggerTimes>; 2],
}

/// Parts of a reconcile that failed.
#[derive(Debug)]
pub struct Failure(Vec<(Part, WriteError)>);

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (part, error)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{part}: {error}")?;
        }
        Ok(())
    }
}

/// What kube-runtime calls for a key.
pub async fn reconcile(primary: Arc<Primary>, context: Arc<Context>) -> Result<Action, Failure> {
    let key = primary.key();
    if let Some(shadow) = &context.shadow {
        return Ok(context.compare(shadow, &key));
    }
    let Some(term) = context.leadership.term() else {
        // Whoever leads does it; should we win, everything is marked again.
        context.queue.drop_due(&key);
        context.retire(&key);
        return Ok(Action::await_change());
    };
    let start = Instant::now();
    let taken = context.queue.take(&key, start);
    if taken.is_empty() {
        return Ok(context.next(&key));
    }
    let work = context.metrics.begin(&taken, start);
    let Some(failures) = term.run_until_cancelled(context.sync(&key, taken)).await else {
        return Ok(Action::await_change());
    };
    drop(work);
    let now = Instant::now();
    context
        .metrics
        .reconciled(now - start, taken.since.filter(|_| failures.is_empty()).map(|since| now - since));
    if failures.is_empty() {
        context.retire(&key);
        Ok(context.next(&key))
    } else {
        Err(Failure(failures))
    }
}

/// What kube-runtime calls when a reconcile failed: raises the failure counts and says when to try again.
#[allow(clippy::needless_pass_by_value, reason = "kube-runtime's signature")]
pub fn after_failure(primary: Arc<Primary>, failure: &Failure, context: Arc<Context>) -> Action {
    let key = primary.key();
    let now = Instant::now();
    for (part, error) in &failure.0 {
        let failures = context.queue.failed(&key, *part, error.retry_after, now);
        context.metrics.retried(*part);
        if error.is_stale() && failures == 1 {
            tracing::debug!(service = %key, %part, "{error}; looking again");
            continue;
        }
        // What fails for long is not to fill the log: the first, second, fourth, eighth, ... time is enough.
        if failures.is_power_of_two() {
            tracing::warn!(service = %key, %part, failures, "{error}; retrying");
        } else {
            tracing::debug!(service = %key, %part, failures, "{error}; retrying");
        }
        context.announce(&key, *part, error);
    }
    context.next(&key)
}

impl Context {
    /// When the key wants to be looked at again.
    fn next(&self, key: &ServiceKey) -> Action {
        self.queue.next(key, Instant::now()).map_or_else(Action::await_change, Action::requeue)
    }

    /// Forgets a key of which nothing exists any more.
    fn retire(&self, key: &ServiceKey) {
        // The lock of the index is released before that of the queue is taken. A change in between marks the key, and then
        // the queue keeps it.
        let known = self.index.lock().knows(key);
        if !known && self.queue.retire(key) {
            self.metrics.forget(key);
            self.events.forget(key);
            self.triggers.iter().for_each(|times| times.lock().forget(key));
        }
    }

    /// What is done instead of all else in shadow mode: plans when the Service is quiet, and writes nothing.
    fn compare(&self, shadow: &Shadow, key: &ServiceKey) -> Action {
        let now = Instant::now();
        if !self.queue.take(key, now).is_empty() {
            shadow.touch(key, now);
        }
        let Some(wait) = shadow.wait(key, now) else { return self.next(key) };
        if !wait.is_zero() {
            return Action::requeue(self.queue.next(key, now).map_or(wait, |next| next.min(wait)));
        }
        let snapshot = self.index.lock().snapshot(key);
        let mut plan = self.plan(key, &snapshot, self.parts, Triggers::default());
        self.remember(key, std::mem::take(&mut plan.topology), &snapshot);
        self.metrics.noted(&plan.notes);
        self.metrics.planned(key, snapshot.service.as_deref(), Part::Slices, &plan.slices);
        self.metrics.planned(key, None, Part::Mirror, &plan.mirror);
        shadow.compare(key, &plan, &snapshot, Timestamp::now());
        self.retire(key);
        self.next(key)
    }

    /// Plans and executes. Returns the parts that failed.
    async fn sync(&self, key: &ServiceKey, taken: Taken) -> Vec<(Part, WriteError)> {
        let due = Part::ALL.into_iter().filter(|part| part.is_in(taken.parts));
        let mut snapshot = self.index.lock().snapshot(key);
        if snapshot.suspect {
            if let Err(error) = Box::pin(self.writer.repair(key)).await {
                return due.map(|part| (part, error.clone())).collect();
            }
            snapshot = self.index.lock().snapshot(key);
        }
        let triggers = self.triggers(&snapshot, taken.parts);
        let mut plan = self.plan(key, &snapshot, taken.parts, triggers);
        self.remember(key, std::mem::take(&mut plan.topology), &snapshot);
        self.note(key, taken.parts, &plan.notes, &snapshot);
        self.undo(key, taken.undone, &plan);
        let failures = self.execute(key, taken.parts, plan, &snapshot).await;
        self.give_back(key, triggers, &failures);
        failures
    }

    fn triggers(&self, snapshot: &Snapshot, parts: Parts) -> Triggers {
        let Some(service) = snapshot.service.as_deref().filter(|service| service.selector.is_some()) else {
            return Triggers::default();
        };
        let pods: Vec<&Pod> = snapshot.pods.iter().map(|pod| &**pod).collect();
        let [endpoints, slices] = &self.triggers;
        let next = |wanted: bool, times: &Mutex<TriggerTimes>| -> Option<Timestamp> {
            if wanted { times.lock().next(service, &pods) } else { None }
        };
        Triggers { endpoints: next(parts.endpoints, endpoints), slices: next(parts.slices, slices) }
    }

    /// A time whose write failed is the time of the next write, too.
    fn give_back(&self, key: &ServiceKey, triggers: Triggers, failures: &[(Part, WriteError)]) {
        let [endpoints, slices] = &self.triggers;
        for (part, _) in failures {
            match part {
                Part::Endpoints => {
                    triggers.endpoints.into_iter().for_each(|time| endpoints.lock().give_back(key, time));
                }
                Part::Slices => {
                    triggers.slices.into_iter().for_each(|time| slices.lock().give_back(key, time));
                }
                Part::Mirror => {}
            }
        }
    }

    fn plan(&self, key: &ServiceKey, snapshot: &Snapshot, parts: Parts, triggers: Triggers) -> Plan {
        let pods: Vec<&Pod> = snapshot.pods.iter().map(|pod| &**pod).collect();
        let slices: Vec<_> = snapshot.slices.iter().map(|slice| &**slice).collect();
        let input = PlanInput {
            key,
            service: snapshot.service.as_deref(),
            pods: &pods,
            nodes: snapshot,
            endpoints: snapshot.endpoints.as_deref(),
            slices: &slices,
            taken_names: &snapshot.taken_names,
            parts,
            limits: self.limits,
            triggers,
            topology: Topology {
                shares: snapshot.shares.as_deref(),
                remembered: snapshot.remembered.as_deref(),
            },
        };
        let plan = fairlead_planner::plan(&input);
        if cfg!(debug_assertions) {
            for finding in fairlead_planner::check(&plan, &input) {
                tracing::error!(service = %key, "the plan breaks an invariant: {finding:?}");
            }
        }
        plan
    }

    /// What the plan wants the next one to know; most want nothing.
    fn remember(&self, key: &ServiceKey, remembered: Remembered, snapshot: &Snapshot) {
        if !remembered.is_empty() || snapshot.remembered.is_some() {
            self.index.lock().remember(key, remembered);
        }
    }

    /// Takes notice of what is only written because another's hand has changed it.
    fn undo(&self, key: &ServiceKey, undone: Parts, plan: &Plan) {
        let writes = |part: Part| match part {
            Part::Endpoints => plan.endpoints != EndpointsPlan::Keep,
            Part::Slices => !plan.slices.is_empty(),
            Part::Mirror => !plan.mirror.is_empty(),
        };
        for part in Part::ALL.into_iter().filter(|part| part.is_in(undone) && writes(*part)) {
            if self.queue.undo(key, part, Instant::now()) {
                tracing::warn!(
                    service = %key, %part,
                    "something else keeps changing what is written here; it will be written again less and less often"
                );
            }
        }
    }

    fn note(&self, key: &ServiceKey, parts: Parts, notes: &[Note], snapshot: &Snapshot) {
        self.metrics.noted(notes);
        let uid = |metadata: &ObjectMeta| metadata.uid.clone();
        let endpoints = snapshot.endpoints.as_ref().and_then(|endpoints| uid(&endpoints.metadata));
        let service = snapshot.service.as_ref().map(|service| service.uid.to_string());
        self.events.noted(key, parts, notes, &Uids { service, endpoints });
        for note in notes {
            tracing::debug!(service = %key, "{note}");
        }
        if parts.mirror && snapshot.endpoints.is_some() {
            let skipped = |note: &Note| match note.kind {
                NoteKind::TooManyAddresses { skipped, .. } | NoteKind::InvalidAddresses(skipped) => skipped,
                _ => 0,
            };
            self.metrics.skipped(notes.iter().map(skipped).max().unwrap_or_default());
        }
    }

    async fn execute(
        &self,
        key: &ServiceKey,
        parts: Parts,
        plan: Plan,
        snapshot: &Snapshot,
    ) -> Vec<(Part, WriteError)> {
        let Plan { endpoints, slices, mirror, .. } = plan;
        let (endpoints, slices, mirror) = tokio::join!(
            self.execute_part(key, parts, Part::Endpoints, self.endpoints(key, endpoints)),
            self.execute_part(key, parts, Part::Slices, self.slices(key, Part::Slices, slices, snapshot)),
            self.execute_part(key, parts, Part::Mirror, self.slices(key, Part::Mirror, mirror, snapshot)),
        );
        endpoints.into_iter().chain(slices).chain(mirror).collect()
    }

    async fn endpoints(&self, key: &ServiceKey, plan: EndpointsPlan) -> Result<(), WriteError> {
        // Most plans are empty; those are not to pay for a future that holds requests.
        if plan == EndpointsPlan::Keep {
            return Ok(());
        }
        let rest = rest_after(&plan);
        Box::pin(self.writer.endpoints(key, plan)).await?;
        self.queue.rest(key, Part::Endpoints, Instant::now() + rest);
        Ok(())
    }

    async fn slices(
        &self,
        key: &ServiceKey,
        part: Part,
        plan: SlicePlan,
        snapshot: &Snapshot,
    ) -> Result<(), WriteError> {
        let service = snapshot.service.as_deref();
        self.metrics.planned(key, service, part, &plan);
        let service = service.filter(|_| part == Part::Slices);
        let existing = snapshot.slices.iter().map(|slice| &**slice);
        let changed = service.map(|service| (service, changed_slices(&plan, existing)));
        if !plan.is_empty() {
            Box::pin(self.writer.slices(key, part, plan)).await?;
        }
        if let Some((service, changed)) = changed {
            self.metrics.changed(service, &changed);
        }
        Ok(())
    }

    async fn execute_part(
        &self,
        key: &ServiceKey,
        parts: Parts,
        part: Part,
        execution: impl Future<Output = Result<(), WriteError>>,
    ) -> Option<(Part, WriteError)> {
        if !part.is_in(parts) {
            return None;
        }
        let start = Instant::now();
        let (result, failure) = match execution.await {
            Ok(()) => {
                self.queue.succeeded(key, part);
                (SyncResult::Success, None)
            }
            Err(error) if error.is_stale() => (SyncResult::Stale, Some((part, error))),
            Err(error) => (SyncResult::Error, Some((part, error))),
        };
        self.metrics.synced(part, result, elapsed(start));
        failure
    }

    /// Publishes upstream's Event for a failure, if upstream has one.
    fn announce(&self, key: &ServiceKey, part: Part, error: &WriteError) {
        let (service, endpoints) = {
            let snapshot = self.index.lock().snapshot(key);
            let endpoints = snapshot.endpoints.and_then(|endpoints| endpoints.metadata.uid.clone());
            (snapshot.service.map(|service| service.uid.to_string()), endpoints)
        };
        match (part, error.operation) {
            (Part::Endpoints, Operation::Create) => {
                let note = format!("Failed to create endpoint for service {key}: {}", error.message);
                self.events.warn(part, key, Regarding::Endpoints(None), "FailedToCreateEndpoint", note);
            }
            (Part::Endpoints, Operation::Update) => {
                let note = format!("Failed to update endpoint {key}: {}", error.message);
                self.events.warn(part, key, Regarding::Endpoints(endpoints), "FailedToUpdateEndpoint", note);
            }
            (Part::Slices, _) => {
                let note = format!("Error updating Endpoint Slices for Service {key}: {error}");
                self.events.warn(
                    part,
                    key,
                    Regarding::Service(service),
                    "FailedToUpdateEndpointSlices",
                    note,
                );
            }
            (Part::Endpoints | Part::Mirror, _) => {}
        }
    }
}

/// How long Endpoints are left alone once they were written: they are one object, however many addresses they have, and
/// while a thousand Pods are replaced that object would go to the API server and to all who watch it for every one of them.
fn rest_after(plan: &EndpointsPlan) -> Duration {
    let (EndpointsPlan::Create(endpoints) | EndpointsPlan::Update(endpoints)) = plan else {
        return Duration::ZERO;
    };
    let sizes =
        endpoints.subsets.iter().map(|subset| subset.addresses.len() + subset.not_ready_addresses.len());
    ENDPOINTS_REST * sizes.sum::<usize>().try_into().unwrap_or(u32::MAX)
}

fn elapsed(start: Instant) -> Duration {
    Instant::now() - start
}
