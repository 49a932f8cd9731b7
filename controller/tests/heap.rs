//! What the index costs in memory: bytes on the heap for each Pod that it holds, counted by an allocator that knows every block.
//!
//! Pods come in as text, as an API server sends them on a watch, and through the same types as in the daemon. What the index
//! keeps of them is counted when all are in.
//!
//! One test: the allocator counts for the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt;

use fairlead_controller::index::{Index, Kind};
use fairlead_objects::{
    PodObject, Service, ServiceObject,
    builders::{RealisticPods, Workload},
};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// One for each workload.
fn service(app: &str) -> Service {
    let object: ServiceObject = serde_json::from_value(json!({
        "metadata": {"name": app, "namespace": "shop", "uid": app, "resourceVersion": "1"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "selector": {"app.kubernetes.io/name": app},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]},
    }))
    .unwrap();
    object.into()
}

/// Bytes for each Pod.
struct Cost {
    /// In the index, when all Pods are in.
    kept: usize,
    /// At the worst moment while they came in.
    peak: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes per Pod in the index, at most {} while it was fed", self.kept, self.peak)
    }
}

/// Feeds an index that knows the Services.
fn cost(workload: Workload, count: usize) -> Cost {
    let pods = RealisticPods::new(workload, count);
    let mut index = Index::new(true);
    for app in pods.apps() {
        drop(index.apply_service(service(&app)));
    }
    // Where a block was asked for is not looked at: a short way back is found soon.
    let _profiler = dhat::Profiler::builder().testing().trim_backtraces(Some(4)).build();
    index.begin(Kind::Pods);
    for text in pods.texts() {
        drop(index.apply_pod(serde_json::from_str::<PodObject>(&text).unwrap().into()));
    }
    drop(index.sweep(Kind::Pods));
    let stats = dhat::HeapStats::get();
    let [.., held] = index.sizes().objects;
    assert_eq!(held, count);
    let services = pods.apps().map(|app| index.snapshot(&service(&app).key).pods.len());
    assert_eq!(services.sum::<usize>(), count, "the Services do not have all Pods");
    Cost { kept: stats.curr_bytes / count, peak: stats.max_bytes / count }
}

/// A tenth above what it was when this was written, and at most twice that while Pods come in.
#[test]
fn pods_in_the_index_stay_within_their_budget() {
    for (name, workload, count, budget) in [
        ("Deployments", Workload::Deployment, 10_000, 470),
        // Rarer, and each has a set of labels of its own.
        ("StatefulSets", Workload::StatefulSet, 2_000, 940),
    ] {
        let cost = cost(workload, count);
        println!("{count} Pods of {name}: {cost}");
        assert!(cost.kept <= budget && cost.peak <= 2 * budget, "{name}: {cost}; the budget is {budget}");
    }
}
