//! Shadow mode: beside a live kube-controller-manager, compare what we would leave with what is there, and write nothing.
//!
//! A plan is made from what exists, so an empty plan means agreement, and every write that it holds is a divergence. The
//! other controller needs a moment after each change, so a Service is compared when nothing has changed around it for a
//! while.
//!
//! Invariant: nothing in here has a client.

use std::{collections::BTreeMap, time::Duration};

use fairlead_daemon::metrics::{Counter, Metrics as Exposition};
use fairlead_objects::{ServiceKey, Timestamp};
use fairlead_planner::{EndpointsPlan, Level, Plan, SlicePlan};
use parking_lot::Mutex;
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use rustc_hash::FxHashMap;
use serde::Serialize;
use tokio::time::Instant;

use crate::{index::Snapshot, part::Part};

mod difference;

/// So many differences of one object are logged.
const LOGGED: usize = 3;

/// One object that is not as we would leave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Divergence {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Which of our parts differs: `endpoints`, `slices` or `mirror`.
    pub part: &'static str,
    /// `Endpoints` or `EndpointSlice`.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// What we would do: `create`, `update` or `delete`.
    pub action: &'static str,
    /// What is different, field by field: what is there, and what we would write.
    pub differences: Vec<String>,
    /// What the plan of the Service remarks: what was left out and why.
    pub notes: Vec<String>,
    /// When it was seen first.
    pub since: Timestamp,
}

impl Divergence {
    /// Whether both say the same, whenever they were seen.
    fn same(&self, other: &Self) -> bool {
        Self { since: other.since, ..self.clone() } == *other
    }
}

/// The comparisons, and what they found.
#[derive(Debug)]
pub struct Shadow {
    quiet: Duration,
    state: Mutex<State>,
    compared: Counter,
    diverged: Family<[(&'static str, &'static str); 2], Counter>,
    diverging: Family<[(&'static str, &'static str); 1], Gauge>,
}

#[derive(Debug, Default)]
struct State {
    /// Services to compare, and when something changed around them last.
    touched: FxHashMap<ServiceKey, Instant>,
    divergences: BTreeMap<ServiceKey, Vec<Divergence>>,
}

impl Shadow {
    /// Compares a Service when it has been quiet for so long.
    pub fn new(quiet: Duration, exposition: &Exposition) -> Self {
        let this = Self {
            quiet,
            state: Mutex::default(),
            compared: Counter::default(),
            diverged: Family::default(),
            diverging: Family::default(),
        };
        for part in Part::ALL {
            this.diverging.get_or_create(&[("part", part.word())]).set(0);
        }
        exposition.register(|registry| {
            registry.register(
                "fairlead_shadow_comparisons_total",
                "Services that were compared with what another controller left",
                this.compared.clone(),
            );
            registry.register(
                "fairlead_shadow_divergences_total",
                "Objects that were found not to be as we would leave them",
                this.diverged.clone(),
            );
            registry.register(
                "fairlead_shadow_divergences",
                "Objects that are not as we would leave them",
                this.diverging.clone(),
            );
        });
        this
    }

    /// Something changed around a Service.
    pub fn touch(&self, key: &ServiceKey, now: Instant) {
        self.state.lock().touched.insert(key.clone(), now);
    }

    /// How long to wait before a Service can be compared: zero now, `None` if there is no reason to.
    pub fn wait(&self, key: &ServiceKey, now: Instant) -> Option<Duration> {
        let touched = *self.state.lock().touched.get(key)?;
        Some((touched + self.quiet).saturating_duration_since(now))
    }

    /// Compares a Service: `plan` was made from `snapshot`. Logs what is new and what has gone.
    pub fn compare(&self, key: &ServiceKey, plan: &Plan, snapshot: &Snapshot, now: Timestamp) {
        let mut found = divergences(key, plan, snapshot, now);
        self.compared.inc();
        let mut state = self.state.lock();
        state.touched.remove(key);
        let before = state.divergences.remove(key).unwrap_or_default();
        for divergence in &mut found {
            if let Some(known) = before.iter().find(|known| known.same(divergence)) {
                divergence.since = known.since;
                continue;
            }
            let labels = [("part", divergence.part), ("action", divergence.action)];
            self.diverged.get_or_create(&labels).inc();
            // The first few tell what it is about; all of them are in the report.
            let differences = divergence.differences.get(..LOGGED).unwrap_or(&divergence.differences);
            tracing::warn!(
                service = %key,
                kind = divergence.kind,
                name = divergence.name,
                differences = divergence.differences.len(),
                "divergence: this controller would {} it: {}",
                divergence.action,
                differences.join("; ")
            );
        }
        for gone in before.iter().filter(|known| !found.iter().any(|now| now.name == known.name)) {
            tracing::info!(service = %key, kind = gone.kind, name = gone.name, "divergence is over");
        }
        for (divergences, change) in [(&before, -1), (&found, 1)] {
            for divergence in divergences {
                self.diverging.get_or_create(&[("part", divergence.part)]).inc_by(change);
            }
        }
        if !found.is_empty() {
            state.divergences.insert(key.clone(), found);
        }
    }

    /// Everything that diverges now, as `/debug/divergence` shows it.
    pub fn report(&self) -> Report {
        let state = self.state.lock();
        Report {
            comparisons: self.compared.get(),
            waiting: state.touched.len(),
            divergences: state.divergences.values().flatten().cloned().collect(),
        }
    }
}

/// The body of `/debug/divergence`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many comparisons there were.
    pub comparisons: u64,
    /// How many Services wait to be quiet.
    pub waiting: usize,
    /// What diverges, by Service.
    pub divergences: Vec<Divergence>,
}

fn divergences(key: &ServiceKey, plan: &Plan, snapshot: &Snapshot, now: Timestamp) -> Vec<Divergence> {
    let worth = |note: &&fairlead_planner::Note| note.level() == Level::Warning;
    let notes: Vec<String> = plan.notes.iter().filter(worth).map(ToString::to_string).collect();
    let divergence = |part: Part, name: &str, action, differences| Divergence {
        namespace: key.namespace.to_string(),
        service: key.name.to_string(),
        part: part.word(),
        kind: if part == Part::Endpoints { "Endpoints" } else { "EndpointSlice" },
        name: name.to_owned(),
        action,
        differences,
        notes: notes.clone(),
        since: now,
    };
    let mut found = Vec::new();
    let existing = snapshot.endpoints.as_deref();
    match &plan.endpoints {
        EndpointsPlan::Keep => {}
        EndpointsPlan::Create(endpoints) => {
            let differences = difference::endpoints(None, Some(endpoints));
            found.push(divergence(Part::Endpoints, &key.name, "create", differences));
        }
        EndpointsPlan::Update(endpoints) => {
            let differences = difference::endpoints(existing, Some(endpoints));
            found.push(divergence(Part::Endpoints, &key.name, "update", differences));
        }
        EndpointsPlan::Delete(_) => {
            let differences = difference::endpoints(existing, None);
            found.push(divergence(Part::Endpoints, &key.name, "delete", differences));
        }
    }
    for (part, SlicePlan { create, update, delete, .. }) in
        [(Part::Slices, &plan.slices), (Part::Mirror, &plan.mirror)]
    {
        let known = |name: &str| {
            let slices = snapshot.slices.iter().map(|slice| &**slice);
            slices.into_iter().find(|slice| slice.metadata.name.as_deref() == Some(name))
        };
        for (slices, action) in [(create, "create"), (update, "update")] {
            for slice in slices {
                let name = slice.metadata.name.as_deref().unwrap_or_default();
                let differences = difference::slices(known(name), Some(slice));
                found.push(divergence(part, name, action, differences));
            }
        }
        for gone in delete {
            let differences = difference::slices(known(&gone.name), None);
            found.push(divergence(part, &gone.name, "delete", differences));
        }
    }
    found
}

#[cfg(test)]
mod tests;
