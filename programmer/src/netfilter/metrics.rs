//! Metrics of what the packet filter can do and has counted.

use fairlead_objects::Family as IpFamily;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    counters::PacketCounts,
    features::{Feature, Features},
};

/// Labels of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FeatureLabels {
    feature: &'static str,
    ip_family: &'static str,
}

/// Registers the features that were found, and kube-proxy's metrics of counted packets.
pub fn register(registry: &mut Registry, found: &[(IpFamily, Features)]) {
    let features = Family::<FeatureLabels, Gauge>::default();
    for (family, found) in found {
        for feature in Feature::ALL {
            let labels = FeatureLabels { feature: feature.as_str(), ip_family: family.as_str() };
            features.get_or_create(&labels).set(found.has(feature).into());
        }
    }
    let help = "Whether the kernel has a feature that rules use if it is there (1) or something that stands in for it (0)";
    registry.register("fairlead_kernel_feature", help, features);
    registry.register_collector(Box::new(PacketCounts));
}
