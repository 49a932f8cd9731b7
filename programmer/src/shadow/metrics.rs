//! What is measured in shadow mode. Nothing of kube-proxy's names is here: those are the other proxy's to report.
//!
//! Invariant: label values come from fixed sets.

use std::{sync::atomic::AtomicU64, time::Duration};

use fairlead_compiler::Discord;
use fairlead_daemon::metrics::Counter;
use fairlead_objects::Family as IpFamily;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Label of metrics that each family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct FamilyLabels {
    ip_family: &'static str,
}

/// Labels of divergences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    ip_family: &'static str,
    kind: &'static str,
}

/// All of them. Clones share their values.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    comparisons: Family<FamilyLabels, Counter>,
    duration: Family<FamilyLabels, Histogram>,
    last: Family<FamilyLabels, Gauge<f64, AtomicU64>>,
    present: Family<FamilyLabels, Gauge>,
    diverged: Family<KindLabels, Counter>,
    diverging: Family<KindLabels, Gauge>,
    expected: Family<FamilyLabels, Gauge>,
}

/// Seconds from 1 ms, doubling, up to 16 s.
fn durations() -> Histogram {
    Histogram::new((0..15_i32).map(|exponent| 0.001 * 2_f64.powi(exponent)))
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            comparisons: Family::default(),
            duration: Family::new_with_constructor(durations),
            last: Family::default(),
            present: Family::default(),
            diverged: Family::default(),
            diverging: Family::default(),
            expected: Family::default(),
        };
        let to = registry.sub_registry_with_prefix("fairlead_programmer_shadow");
        let help = "Times that all frontends were compared with what another proxy programmed";
        to.register("comparisons_total", help, metrics.comparisons.clone());
        let help = "Time to read the rules of another proxy and to compare them";
        to.register("comparison_duration_seconds", help, metrics.duration.clone());
        let help = "When the rules of another proxy were read last, and found to be compared";
        to.register("last_comparison_timestamp_seconds", help, metrics.last.clone());
        let help = "1 if another proxy has rules here that can be compared, else 0";
        to.register("proxy_present", help, metrics.present.clone());
        let help = "Frontends that clients were found to fare differently at, by how they differ";
        to.register("divergences_total", help, metrics.diverged.clone());
        let help = "Frontends that clients fare differently at, by how they differ";
        to.register("divergences", help, metrics.diverging.clone());
        let help = "Frontends that clients may fare differently at, by a documented difference";
        to.register("expected_differences", help, metrics.expected.clone());
        metrics
    }

    /// The family is there, and nothing is known of it.
    pub(super) fn begin(&self, family: IpFamily) {
        for kind in Discord::ALL {
            self.diverging.get_or_create(&kind_labels(family, kind)).set(0);
        }
        self.present.get_or_create(&labels(family)).set(0);
    }

    /// Everything was read, and compared if anything had changed.
    pub(super) fn looked(&self, family: IpFamily, compared: bool, duration: Duration, unix_time: f64) {
        let labels = labels(family);
        if compared {
            self.comparisons.get_or_create(&labels).inc();
        }
        self.duration.get_or_create(&labels).observe(duration.as_secs_f64());
        self.last.get_or_create(&labels).set(unix_time);
    }

    /// Whether there is something to compare with.
    pub(super) fn set_present(&self, family: IpFamily, present: bool) {
        self.present.get_or_create(&labels(family)).set(present.into());
    }

    /// A divergence counts from now on.
    pub(super) fn count(&self, family: IpFamily, kind: Discord) {
        self.diverged.get_or_create(&kind_labels(family, kind)).inc();
    }

    /// So many divergences of each kind there are now, and so many expected differences.
    pub(super) fn set(&self, family: IpFamily, kinds: impl Fn(Discord) -> usize, expected: usize) {
        let number = |count: usize| count.try_into().unwrap_or(i64::MAX);
        for kind in Discord::ALL {
            self.diverging.get_or_create(&kind_labels(family, kind)).set(number(kinds(kind)));
        }
        self.expected.get_or_create(&labels(family)).set(number(expected));
    }
}

fn labels(family: IpFamily) -> FamilyLabels {
    FamilyLabels { ip_family: family.as_str() }
}

fn kind_labels(family: IpFamily, kind: Discord) -> KindLabels {
    KindLabels { ip_family: family.as_str(), kind: kind.as_str() }
}
