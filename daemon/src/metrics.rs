//! The metrics of a daemon and their exposition in Prometheus' text format (0.0.4).
//!
//! OpenMetrics forces `_total` upon counters; the names of Kubernetes' own components do not all have it, and dashboards
//! and alerts know those names. [`Counter`] therefore prints under exactly the name that it was registered with, and the
//! exposition is the older text format, where that is allowed.
//!
//! Invariant: no metric has a label whose values an outsider can make unbounded.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, TypedMetric},
    registry::Registry,
};

use crate::process;

/// A counter that keeps its name. Clones are the same counter.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Adds `count`.
    pub fn inc_by(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Counter {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Counter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        // As a gauge is written: without the suffix. The type line still says counter.
        encoder.encode_gauge(&self.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// All metrics of a daemon. Clones share the registry.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry that holds the metrics of the process itself.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Lets `register` add metrics.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock())
    }

    /// The text of an exposition.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.registry.lock())?;
        Ok(with_short_bounds(&text))
    }
}

/// Bounds of buckets as Go writes them, `le="5"` and not `le="5.0"`: they are labels, and queries know them as text.
fn with_short_bounds(text: &str) -> String {
    const LABEL: &str = "le=\"";
    let mut short = String::with_capacity(text.len());
    let mut parts = text.split(LABEL);
    short.push_str(parts.next().unwrap_or_default());
    for part in parts {
        // The end of another label's name is no bound.
        let is_bound = short.ends_with(['{', ',']);
        let (value, rest) = part.split_at(part.find('"').unwrap_or_default());
        let value = value.strip_suffix(".0").filter(|_| is_bound).unwrap_or(value);
        short.extend([LABEL, value, rest]);
    }
    short
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{family::Family, histogram::Histogram};

    use super::*;

    #[test]
    fn counters_keep_the_name_they_were_registered_with() {
        let metrics = Metrics::new();
        let changes = Family::<[(&'static str, &'static str); 1], Counter>::default();
        metrics.register(|registry| {
            registry.register("endpoint_slice_controller_changes", "Number of changes", changes.clone());
        });
        changes.get_or_create(&[("operation", "create")]).inc_by(3);
        let text = metrics.encode().unwrap();
        assert!(text.contains("# TYPE endpoint_slice_controller_changes counter\n"), "{text}");
        assert!(text.contains("endpoint_slice_controller_changes{operation=\"create\"} 3\n"), "{text}");
        assert!(!text.contains("changes_total"), "{text}");
    }

    #[test]
    fn process_metrics_are_there() {
        let text = Metrics::new().encode().unwrap();
        for name in
            ["process_resident_memory_bytes", "process_start_time_seconds", "process_cpu_seconds_total"]
        {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let value: f64 = line.rsplit(' ').next().unwrap_or_default().parse().unwrap_or(-1.0);
            assert!(value >= 0.0, "{name}: {line:?} in {text}");
        }
    }

    #[test]
    fn histograms_are_written_as_prometheus_expects() {
        let metrics = Metrics::new();
        let histogram = Histogram::new([0.1, 1.0]);
        metrics.register(|registry| registry.register("latency_seconds", "Latency", histogram.clone()));
        histogram.observe(0.5);
        let text = metrics.encode().unwrap();
        for line in ["{le=\"0.1\"} 0\n", "{le=\"1\"} 1\n", "{le=\"+Inf\"} 1\n"] {
            assert!(text.contains(&format!("latency_seconds_bucket{line}")), "{text}");
        }
    }

    #[test]
    fn only_bounds_are_shortened() {
        let text = "a_bucket{x=\"1.0\",le=\"2.0\"} 3.0\na{role=\"4.0\"} 1\n";
        assert_eq!(with_short_bounds(text), "a_bucket{x=\"1.0\",le=\"2\"} 3.0\na{role=\"4.0\"} 1\n");
    }
}
