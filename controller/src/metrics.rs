//! The controller's metrics.
//!
//! Names and labels of kube-controller-manager where the meaning is the same (`endpoint_slice_controller_*`,
//! `endpoint_slice_mirroring_controller_*`), ours with the prefix `fairlead_`.
//!
//! Invariant: gauges over all Services are kept as sums that change with each plan; a scrape does not walk all Services.

use std::{sync::Arc, time::Duration};

use fairlead_daemon::{
    failure::Class,
    metrics::{Counter, Metrics as Exposition},
    readiness::Readiness,
};
use fairlead_objects::ServiceKey;
use fairlead_planner::{Note, SlicePlan};
use parking_lot::Mutex;
use prometheus_client::{
    metrics::{
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use rustc_hash::FxHashMap;

use crate::{
    index::{Index, Kind},
    part::Part,
    queue::Queue,
};

mod collector;

type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];

/// Upstream's buckets for counts of endpoints.
fn counts() -> Histogram {
    Histogram::new(exponential_buckets(2.0, 2.0, 15))
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// All metrics that are counted as things happen. The rest is read on each scrape.
#[derive(Debug)]
pub struct Metrics {
    slices: SliceMetrics,
    mirror: SliceMetrics,
    mirror_updated: Histogram,
    mirror_skipped: Histogram,
    mirror_duration: Histogram,
    slice_syncs: Family<Label, Counter>,
    syncs: Family<Labels, Counter>,
    sync_duration: Histogram,
    latency: Histogram,
    writes: Family<Labels, Counter>,
    write_errors: Family<Labels, Counter>,
    repairs: Counter,
    notes: Family<Label, Counter>,
    events_dropped: Counter,
    leader: Family<[(&'static str, String); 1], Gauge>,
}

/// Metrics that the slices and the mirrored slices both have.
#[derive(Debug)]
struct SliceMetrics {
    added: Histogram,
    removed: Histogram,
    desired_endpoints: Gauge,
    slices: Gauge,
    desired_slices: Gauge,
    changes: Family<Label, Counter>,
    services: Mutex<FxHashMap<ServiceKey, [i64; 3]>>,
}

impl SliceMetrics {
    fn register(registry: &mut Registry) -> Self {
        let this = Self {
            added: counts(),
            removed: counts(),
            desired_endpoints: Gauge::default(),
            slices: Gauge::default(),
            desired_slices: Gauge::default(),
            changes: Family::default(),
            services: Mutex::default(),
        };
        registry.register("endpoints_added_per_sync", "Endpoints added on each sync", this.added.clone());
        registry.register(
            "endpoints_removed_per_sync",
            "Endpoints removed on each sync",
            this.removed.clone(),
        );
        registry.register(
            "endpoints_desired",
            "Endpoints that there should be",
            this.desired_endpoints.clone(),
        );
        registry.register("num_endpoint_slices", "EndpointSlices that there are", this.slices.clone());
        registry.register(
            "desired_endpoint_slices",
            "EndpointSlices that there would be with perfect packing",
            this.desired_slices.clone(),
        );
        registry.register("changes", "EndpointSlice changes by operation", this.changes.clone());
        this
    }

    /// Replaces what is known of a Service by what its newest plan says.
    fn planned(&self, key: &ServiceKey, plan: &SlicePlan, sync: bool) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let slices = plan.unchanged + plan.create.len() + plan.update.len();
        let new = [count(plan.desired_endpoints), count(slices), count(plan.desired_slices)];
        self.put(key, (new != [0; 3]).then_some(new));
        if sync {
            self.added.observe(f64::from(u32::try_from(plan.added).unwrap_or(u32::MAX)));
            self.removed.observe(f64::from(u32::try_from(plan.removed).unwrap_or(u32::MAX)));
        }
    }

    fn put(&self, key: &ServiceKey, new: Option<[i64; 3]>) {
        let mut services = self.services.lock();
        let old = match new {
            Some(new) => services.insert(key.clone(), new),
            None => services.remove(key),
        };
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        for (gauge, (old, new)) in [&self.desired_endpoints, &self.slices, &self.desired_slices]
            .into_iter()
            .zip(old.into_iter().zip(new))
        {
            gauge.inc_by(new - old);
        }
    }

    fn forget_all(&self) {
        self.services.lock().clear();
        for gauge in [&self.desired_endpoints, &self.slices, &self.desired_slices] {
            gauge.set(0);
        }
    }
}

/// How a part of a reconcile ended, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncResult {
    /// Everything is as planned.
    Success,
    /// Something had changed meanwhile; it is looked at again.
    Stale,
    /// It failed.
    Error,
}

impl SyncResult {
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Stale => "stale",
            Self::Error => "error",
        }
    }
}

fn label(part: Part) -> &'static str {
    match part {
        Part::Endpoints => "endpoints",
        Part::Slices => "slices",
        Part::Mirror => "mirror",
    }
}

impl Metrics {
    /// Registers all metrics.
    pub fn new(exposition: &Exposition) -> Self {
        exposition.register(Self::register)
    }

    fn register(registry: &mut Registry) -> Self {
        let slices = registry.sub_registry_with_prefix("endpoint_slice_controller");
        let slice_metrics = SliceMetrics::register(slices);
        let slice_syncs = Family::<Label, Counter>::default();
        slices.register("syncs", "EndpointSlice syncs by result", slice_syncs.clone());

        let mirror = registry.sub_registry_with_prefix("endpoint_slice_mirroring_controller");
        let mirror_metrics = SliceMetrics::register(mirror);
        let (updated, skipped, duration) = (counts(), counts(), seconds());
        mirror.register("endpoints_updated_per_sync", "Endpoints updated on each sync", updated.clone());
        mirror.register("addresses_skipped_per_sync", "Addresses skipped on each sync", skipped.clone());
        mirror.register("endpoints_sync_duration", "Duration of a sync in seconds", duration.clone());

        let this = Self {
            slices: slice_metrics,
            mirror: mirror_metrics,
            mirror_updated: updated,
            mirror_skipped: skipped,
            mirror_duration: duration,
            slice_syncs,
            syncs: Family::default(),
            sync_duration: seconds(),
            latency: seconds(),
            writes: Family::default(),
            write_errors: Family::default(),
            repairs: Counter::default(),
            notes: Family::default(),
            events_dropped: Counter::default(),
            leader: Family::default(),
        };
        this.register_ours(registry);
        this
    }

    fn register_ours(&self, registry: &mut Registry) {
        registry.register(
            "leader_election_master_status",
            "1 while this process holds the lease of that name, else 0",
            self.leader.clone(),
        );
        let ours = registry.sub_registry_with_prefix("fairlead");
        ours.register("syncs_total", "Syncs of a part of a Service, by result", self.syncs.clone());
        ours.register("sync_duration_seconds", "Duration of one reconcile", self.sync_duration.clone());
        ours.register(
            "change_latency_seconds",
            "Time from the arrival of a change until everything planned for it was written",
            self.latency.clone(),
        );
        ours.register("api_writes_total", "Writes that the API server acknowledged", self.writes.clone());
        ours.register(
            "api_write_errors_total",
            "Writes that failed, by class of error",
            self.write_errors.clone(),
        );
        ours.register(
            "live_reads_total",
            "Times that a Service's objects were read afresh because an answer contradicted what was known",
            self.repairs.clone(),
        );
        ours.register("notes_total", "Notes of plans: what was left out and why", self.notes.clone());
        ours.register(
            "events_dropped_total",
            "Events that were not published because too many were waiting",
            self.events_dropped.clone(),
        );
    }

    /// Registers what is read on each scrape.
    pub fn observe(
        exposition: &Exposition,
        index: Arc<Mutex<Index>>,
        queue: Arc<Queue>,
        readiness: Readiness,
    ) {
        let collector = collector::Collected { index, queue, readiness };
        exposition.register(|registry| registry.register_collector(Box::new(collector)));
    }

    /// What a plan says about the slices.
    pub fn planned(&self, key: &ServiceKey, part: Part, plan: &SlicePlan) {
        match part {
            Part::Endpoints => {}
            Part::Slices => self.slices.planned(key, plan, plan.desired_slices > 0),
            Part::Mirror => {
                self.mirror.planned(key, plan, plan.desired_slices > 0);
                if plan.desired_slices > 0 {
                    self.mirror_updated.observe(f64::from(u32::try_from(plan.updated).unwrap_or(u32::MAX)));
                }
            }
        }
    }

    /// Addresses of Endpoints that were not mirrored.
    pub fn skipped(&self, addresses: usize) {
        self.mirror_skipped.observe(f64::from(u32::try_from(addresses).unwrap_or(u32::MAX)));
    }

    /// One part of a reconcile ended.
    pub fn synced(&self, part: Part, result: SyncResult, duration: Duration) {
        self.syncs.get_or_create(&[("part", label(part)), ("result", result.as_str())]).inc();
        match part {
            Part::Endpoints => {}
            Part::Slices => self.slice_syncs.get_or_create(&[("result", result.as_str())]).inc(),
            Part::Mirror => self.mirror_duration.observe(duration.as_secs_f64()),
        }
    }

    /// One reconcile ended; `since` is how long ago the oldest change came in that it dealt with.
    pub fn reconciled(&self, duration: Duration, since: Option<Duration>) {
        self.sync_duration.observe(duration.as_secs_f64());
        if let Some(since) = since {
            self.latency.observe(since.as_secs_f64());
        }
    }

    /// A write was acknowledged.
    pub fn wrote(&self, part: Part, operation: &'static str) {
        self.writes.get_or_create(&[("part", label(part)), ("operation", operation)]).inc();
        let changes = match part {
            Part::Endpoints => return,
            Part::Slices => &self.slices.changes,
            Part::Mirror => &self.mirror.changes,
        };
        changes.get_or_create(&[("operation", operation)]).inc();
    }

    /// A write failed.
    pub fn write_failed(&self, part: Part, class: Class) {
        self.write_errors.get_or_create(&[("part", label(part)), ("class", class.as_str())]).inc();
    }

    /// The objects of a Service were read afresh.
    pub fn repaired(&self) {
        self.repairs.inc();
    }

    /// Notes of a plan.
    pub fn noted(&self, notes: &[Note]) {
        for note in notes {
            self.notes.get_or_create(&[("reason", note.reason())]).inc();
        }
    }

    /// An Event was dropped.
    pub fn event_dropped(&self) {
        self.events_dropped.inc();
    }

    /// Nothing is known of a Service any more.
    pub fn forget(&self, key: &ServiceKey) {
        self.slices.put(key, None);
        self.mirror.put(key, None);
    }

    /// This process holds the lease of that name, or does not.
    pub fn led(&self, lease: &str, leads: bool) {
        self.leader.get_or_create(&[("name", lease.to_owned())]).set(i64::from(leads));
        if !leads {
            self.slices.forget_all();
            self.mirror.forget_all();
        }
    }
}

/// Kinds as metric labels.
fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Services => "services",
        Kind::Pods => "pods",
        Kind::Nodes => "nodes",
        Kind::EndpointSlices => "endpointslices",
        Kind::Endpoints => "endpoints",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(exposition: &Exposition, name: &str) -> String {
        let text = exposition.encode().unwrap();
        text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
    }

    #[test]
    fn gauges_follow_the_newest_plan_of_each_service() {
        let exposition = Exposition::new();
        let metrics = Metrics::new(&exposition);
        let (web, api) = (ServiceKey::new("default", "web"), ServiceKey::new("default", "api"));
        let plan =
            |endpoints| SlicePlan { desired_endpoints: endpoints, desired_slices: 1, ..SlicePlan::default() };
        metrics.planned(&web, Part::Slices, &plan(3));
        metrics.planned(&api, Part::Slices, &plan(4));
        metrics.planned(&web, Part::Slices, &plan(2));
        let name = "endpoint_slice_controller_endpoints_desired";
        assert_eq!(line(&exposition, name), format!("{name} 6"));
        metrics.forget(&api);
        assert_eq!(line(&exposition, name), format!("{name} 2"));
    }

    #[test]
    fn upstream_s_counters_have_upstream_s_names() {
        let exposition = Exposition::new();
        let metrics = Metrics::new(&exposition);
        metrics.wrote(Part::Slices, "create");
        metrics.wrote(Part::Mirror, "delete");
        metrics.synced(Part::Slices, SyncResult::Stale, Duration::ZERO);
        for expected in [
            "endpoint_slice_controller_changes{operation=\"create\"} 1",
            "endpoint_slice_mirroring_controller_changes{operation=\"delete\"} 1",
            "endpoint_slice_controller_syncs{result=\"stale\"} 1",
        ] {
            assert_eq!(line(&exposition, expected), expected);
        }
    }
}
