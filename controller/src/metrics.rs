//! The controller's metrics.
//!
//! Names and labels of kube-controller-manager where the meaning is the same (`endpoint_slice_controller_*`,
//! `endpoint_slice_mirroring_controller_*`), ours with the prefix `fairlead_`.
//!
//! Invariant: gauges over all Services are kept as sums that change with each plan; a scrape does not walk all Services.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fairlead_daemon::{
    failure::Class,
    metrics::{Counter, Metrics as Exposition},
    readiness::Readiness,
};
use fairlead_objects::{Family as AddressFamily, Service, ServiceKey};
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
use tokio::time::Instant;

use crate::{
    index::{Index, Kind},
    part::Part,
    queue::{Queue, Taken},
};

mod collector;
mod slices;
mod workqueue;

pub(crate) use slices::changed_slices;
use slices::{HintMetrics, SliceMetrics};
pub use workqueue::Work;
use workqueue::Workqueue;

type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];

/// Upstream's buckets for counts of endpoints.
fn counts() -> Histogram {
    Histogram::new(exponential_buckets(2.0, 2.0, 15))
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// All metrics that are counted as things happen. The rest is read on each scrape.
#[derive(Debug)]
pub struct Metrics {
    workqueue: Workqueue,
    slices: SliceMetrics,
    hints: HintMetrics,
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
    other_writers: Gauge,
    leader: Family<[(&'static str, String); 1], Gauge>,
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

impl Metrics {
    /// Registers all metrics.
    pub fn new(exposition: &Exposition) -> Self {
        exposition.register(Self::register)
    }

    fn register(registry: &mut Registry) -> Self {
        let slices = registry.sub_registry_with_prefix("endpoint_slice_controller");
        let slice_metrics = SliceMetrics::register(slices);
        let hints = HintMetrics::register(slices);
        let slice_syncs = Family::<Label, Counter>::default();
        slices.register("syncs", "EndpointSlice syncs by result", slice_syncs.clone());

        let mirror = registry.sub_registry_with_prefix("endpoint_slice_mirroring_controller");
        let mirror_metrics = SliceMetrics::register(mirror);
        let (updated, skipped, duration) = (counts(), counts(), seconds());
        mirror.register("endpoints_updated_per_sync", "Endpoints updated on each sync", updated.clone());
        mirror.register("addresses_skipped_per_sync", "Addresses skipped on each sync", skipped.clone());
        mirror.register("endpoints_sync_duration", "Duration of a sync in seconds", duration.clone());

        let this = Self {
            workqueue: Workqueue::register(registry),
            slices: slice_metrics,
            hints,
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
            other_writers: Gauge::default(),
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
        ours.register(
            "other_writers",
            "Other controllers that were seen to write the same objects, in the last quarter of an hour",
            self.other_writers.clone(),
        );
    }

    /// Registers what is read on each scrape.
    pub fn observe(
        &self,
        exposition: &Exposition,
        index: Arc<Mutex<Index>>,
        queue: Arc<Queue>,
        readiness: Readiness,
    ) {
        let collector = collector::Collected { index, queue, readiness, running: self.workqueue.running() };
        exposition.register(|registry| registry.register_collector(Box::new(collector)));
    }

    /// Work begins on what was taken from the queue; it ends when the result is dropped.
    pub fn begin(&self, taken: &Taken, now: Instant) -> Work {
        self.workqueue.begin(taken, now)
    }

    /// A part is going to be tried again.
    pub fn retried(&self, part: Part) {
        self.workqueue.retried(part);
    }

    /// What a plan says about the slices of a Service (`None` if it is gone).
    pub fn planned(&self, key: &ServiceKey, service: Option<&Service>, part: Part, plan: &SlicePlan) {
        match part {
            Part::Endpoints => {}
            Part::Slices => {
                self.slices.planned(key, plan);
                self.hints.planned(key, service);
                // Once per address type, as upstream.
                plan.churn.values().for_each(|churn| self.slices.churned(churn.added, churn.removed));
            }
            Part::Mirror => {
                self.mirror.planned(key, plan);
                if plan.desired_slices > 0 {
                    self.mirror.churned(plan.added, plan.removed);
                    self.mirror_updated.observe(float(plan.updated));
                }
            }
        }
    }

    /// So many slices of a Service were changed by one plan, by address type.
    pub fn changed(&self, service: &Service, changed: &BTreeMap<AddressFamily, usize>) {
        self.hints.wrote(service, changed);
    }

    /// Addresses of Endpoints that were not mirrored.
    pub fn skipped(&self, addresses: usize) {
        self.mirror_skipped.observe(float(addresses));
    }

    /// One part of a reconcile ended.
    pub fn synced(&self, part: Part, result: SyncResult, duration: Duration) {
        self.syncs.get_or_create(&[("part", part.word()), ("result", result.as_str())]).inc();
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
        self.writes.get_or_create(&[("part", part.word()), ("operation", operation)]).inc();
        let changes = match part {
            Part::Endpoints => return,
            Part::Slices => &self.slices.changes,
            Part::Mirror => &self.mirror.changes,
        };
        changes.get_or_create(&[("operation", operation)]).inc();
    }

    /// A write failed.
    pub fn write_failed(&self, part: Part, class: Class) {
        self.write_errors.get_or_create(&[("part", part.word()), ("class", class.as_str())]).inc();
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

    /// So many others were seen to write the same objects.
    pub fn other_writers(&self, count: usize) {
        self.other_writers.set(gauge(count));
    }

    /// Nothing is known of a Service any more.
    pub fn forget(&self, key: &ServiceKey) {
        self.slices.put(key, None);
        self.hints.planned(key, None);
        self.mirror.put(key, None);
    }

    /// This process holds the lease of that name, or does not.
    pub fn led(&self, lease: &str, leads: bool) {
        self.leader.get_or_create(&[("name", lease.to_owned())]).set(i64::from(leads));
        if !leads {
            self.slices.forget_all();
            self.hints.forget_all();
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
    use fairlead_objects::builders::{object, service};
    use fairlead_planner::Parts;
    use serde_json::json;

    use super::*;
    use crate::queue::BatchPeriods;

    /// Upstream's names and types (Kubernetes 1.36).
    const UPSTREAM_S: [&str; 26] = [
        "endpoint_slice_controller_endpoints_added_per_sync histogram",
        "endpoint_slice_controller_endpoints_removed_per_sync histogram",
        "endpoint_slice_controller_endpoints_desired gauge",
        "endpoint_slice_controller_num_endpoint_slices gauge",
        "endpoint_slice_controller_desired_endpoint_slices gauge",
        "endpoint_slice_controller_changes counter",
        "endpoint_slice_controller_endpointslices_changed_per_sync histogram",
        "endpoint_slice_controller_syncs counter",
        "endpoint_slice_controller_services_count_by_traffic_distribution gauge",
        "endpoint_slice_mirroring_controller_endpoints_added_per_sync histogram",
        "endpoint_slice_mirroring_controller_endpoints_updated_per_sync histogram",
        "endpoint_slice_mirroring_controller_endpoints_removed_per_sync histogram",
        "endpoint_slice_mirroring_controller_addresses_skipped_per_sync histogram",
        "endpoint_slice_mirroring_controller_endpoints_sync_duration histogram",
        "endpoint_slice_mirroring_controller_endpoints_desired gauge",
        "endpoint_slice_mirroring_controller_num_endpoint_slices gauge",
        "endpoint_slice_mirroring_controller_desired_endpoint_slices gauge",
        "endpoint_slice_mirroring_controller_changes counter",
        "workqueue_depth gauge",
        "workqueue_adds_total counter",
        "workqueue_queue_duration_seconds histogram",
        "workqueue_work_duration_seconds histogram",
        "workqueue_unfinished_work_seconds gauge",
        "workqueue_longest_running_processor_seconds gauge",
        "workqueue_retries_total counter",
        "leader_election_master_status gauge",
    ];

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
        metrics.planned(&web, None, Part::Slices, &plan(3));
        metrics.planned(&api, None, Part::Slices, &plan(4));
        metrics.planned(&web, None, Part::Slices, &plan(2));
        let name = "endpoint_slice_controller_endpoints_desired";
        assert_eq!(line(&exposition, name), format!("{name} 6"));
        metrics.forget(&api);
        assert_eq!(line(&exposition, name), format!("{name} 2"));
    }

    #[test]
    fn services_are_counted_by_their_traffic_distribution_where_it_takes_effect() {
        let exposition = Exposition::new();
        let metrics = Metrics::new(&exposition);
        let key = ServiceKey::new("default", "web");
        let near = service("web", json!({"trafficDistribution": "PreferClose"}));
        let mut auto = near.clone();
        auto.annotations = object(json!({"service.kubernetes.io/topology-mode": "Auto"}));
        let name = "endpoint_slice_controller_services_count_by_traffic_distribution";
        for (service, count) in
            [(Some(&near), 1), (Some(&near), 1), (Some(&auto), 0), (Some(&near), 1), (None, 0)]
        {
            metrics.planned(&key, service, Part::Slices, &SlicePlan::default());
            assert_eq!(
                line(&exposition, name),
                format!("{name}{{traffic_distribution=\"PreferClose\"}} {count}")
            );
        }
    }

    #[test]
    fn all_of_upstream_s_metrics_are_exposed_with_its_types() {
        let exposition = Exposition::new();
        let metrics = Arc::new(Metrics::new(&exposition));
        let index = Arc::new(Mutex::new(Index::new(true)));
        let (queue, _outlet) = Queue::new(Parts::default(), BatchPeriods::default());
        metrics.observe(&exposition, index, Arc::new(queue), Readiness::default());
        // Those with labels appear with their first value.
        let near = service("web", json!({"trafficDistribution": "PreferClose"}));
        metrics.planned(&near.key, Some(&near), Part::Slices, &SlicePlan::default());
        metrics.changed(&near, &[(AddressFamily::V4, 1)].into());
        metrics.wrote(Part::Slices, "create");
        metrics.wrote(Part::Mirror, "create");
        metrics.synced(Part::Slices, SyncResult::Success, Duration::ZERO);
        metrics.led("lease", true);
        let text = exposition.encode().unwrap();
        let missing: Vec<&&str> =
            UPSTREAM_S.iter().filter(|metric| !text.contains(&format!("# TYPE {metric}\n"))).collect();
        assert_eq!(missing, Vec::<&&str>::new(), "in {text}");
        let documented = include_str!("../../docs/metrics.md");
        let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let undocumented: Vec<&str> = names
            .filter(|name| !name.starts_with("process_") && !documented.contains(&format!("| `{name}` |")))
            .collect();
        assert_eq!(undocumented, Vec::<&str>::new(), "not in docs/metrics.md");
        for expected in [
            "workqueue_depth{name=\"endpoint\"}",
            "workqueue_depth{name=\"endpoint_slice\"}",
            "workqueue_depth{name=\"endpoint_slice_mirroring\"}",
            "endpoint_slice_controller_endpointslices_changed_per_sync_count{topology=\"Disabled\",traffic_distribution=\"PreferClose\"} 1",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
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
