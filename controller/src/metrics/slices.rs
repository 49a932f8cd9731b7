//! Metrics about slices and mirrored slices: sums over the newest plan of each Service.
//!
//! Invariant: a gauge is the sum over the Services that are known here; it changes with each plan.

use std::collections::BTreeMap;

use fairlead_daemon::metrics::Counter;
use fairlead_objects::{AddressType, EndpointSlice, Family as AddressFamily, Service, ServiceKey};
use fairlead_planner::{SlicePlan, is_topology_auto, traffic_distribution};
use parking_lot::Mutex;
use prometheus_client::{
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use rustc_hash::FxHashMap;

use super::{Label, Labels, counts, float, gauge};

/// Prometheus' default buckets, which upstream uses for this count.
const DEFAULT_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Values of `trafficDistribution` that take effect.
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];

/// Metrics that the slices and the mirrored slices both have.
#[derive(Debug)]
pub(super) struct SliceMetrics {
    added: Histogram,
    removed: Histogram,
    desired_endpoints: Gauge,
    slices: Gauge,
    desired_slices: Gauge,
    pub(super) changes: Family<Label, Counter>,
    services: Mutex<FxHashMap<ServiceKey, [i64; 3]>>,
}

impl SliceMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
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
    pub(super) fn planned(&self, key: &ServiceKey, plan: &SlicePlan) {
        let slices = plan.unchanged + plan.create.len() + plan.update.len();
        let new = [gauge(plan.desired_endpoints), gauge(slices), gauge(plan.desired_slices)];
        self.put(key, (new != [0; 3]).then_some(new));
    }

    /// Endpoints that come and go in one sync.
    pub(super) fn churned(&self, added: usize, removed: usize) {
        self.added.observe(float(added));
        self.removed.observe(float(removed));
    }

    pub(super) fn put(&self, key: &ServiceKey, new: Option<[i64; 3]>) {
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

    pub(super) fn forget_all(&self) {
        self.services.lock().clear();
        for gauge in [&self.desired_endpoints, &self.slices, &self.desired_slices] {
            gauge.set(0);
        }
    }
}

/// Metrics that only slices of Services with a selector have.
#[derive(Debug)]
pub(super) struct HintMetrics {
    changed: Family<Labels, Histogram, fn() -> Histogram>,
    distributions: Family<Label, Gauge>,
    services: Mutex<FxHashMap<ServiceKey, &'static str>>,
}

impl HintMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let changed: fn() -> Histogram = || Histogram::new(DEFAULT_BUCKETS);
        let this = Self {
            changed: Family::new_with_constructor(changed),
            distributions: Family::default(),
            services: Mutex::default(),
        };
        registry.register(
            "endpointslices_changed_per_sync",
            "EndpointSlices changed on each sync, by what hints they carry",
            this.changed.clone(),
        );
        registry.register(
            "services_count_by_traffic_distribution",
            "Services by their trafficDistribution, where it takes effect",
            this.distributions.clone(),
        );
        this
    }

    /// A Service was planned; `None` if it is gone.
    pub(super) fn planned(&self, key: &ServiceKey, service: Option<&Service>) {
        let new = service.filter(|service| service.selector.is_some()).and_then(distribution);
        let mut services = self.services.lock();
        let old = match new {
            Some(new) => services.insert(key.clone(), new),
            None => services.remove(key),
        };
        if old == new {
            return;
        }
        for (value, change) in [(old, -1), (new, 1)] {
            if let Some(value) = value {
                self.distributions.get_or_create(&[("traffic_distribution", value)]).inc_by(change);
            }
        }
    }

    /// A plan's slices were written.
    pub(super) fn wrote(&self, service: &Service, changed: &BTreeMap<AddressFamily, usize>) {
        let topology = if is_topology_auto(service) { "Auto" } else { "Disabled" };
        let labels =
            [("topology", topology), ("traffic_distribution", distribution(service).unwrap_or_default())];
        for count in changed.values() {
            self.changed.get_or_create(&labels).observe(float(*count));
        }
    }

    pub(super) fn forget_all(&self) {
        self.services.lock().clear();
        // Upstream goes on reporting a value without Services as 0.
        for value in DISTRIBUTIONS {
            if let Some(count) = self.distributions.get(&[("traffic_distribution", value)]) {
                count.set(0);
            }
        }
    }
}

fn distribution(service: &Service) -> Option<&'static str> {
    let value = traffic_distribution(service)?;
    DISTRIBUTIONS.into_iter().find(|known| *known == value)
}

/// How many slices a plan writes and deletes, by address type. `existing` are those that it was made from.
pub(crate) fn changed_slices<'a>(
    plan: &'a SlicePlan,
    existing: impl Iterator<Item = &'a EndpointSlice>,
) -> BTreeMap<AddressFamily, usize> {
    let mut changed: BTreeMap<AddressFamily, usize> = plan.churn.keys().map(|family| (*family, 0)).collect();
    let deleted = existing.filter(|slice| {
        let name = slice.metadata.name.as_deref();
        plan.delete.iter().any(|gone| Some(gone.name.as_str()) == name)
    });
    for slice in plan.create.iter().chain(&plan.update).chain(deleted) {
        let family = AddressFamily::ALL.into_iter().find(|f| AddressType::from(*f) == slice.address_type);
        if let Some(family) = family {
            *changed.entry(family).or_default() += 1;
        }
    }
    changed
}
