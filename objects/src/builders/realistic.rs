//! Pods as large as real ones, as the text of watch events: for tests and benches of memory.
//!
//! Each has everything that an API server sends and we do not read: managed fields, volumes, probes, the status of its containers.

use serde_json::{Value, json};

/// Pods of one workload.
const REPLICAS: usize = 100;
/// Pods of one node.
const PODS_PER_NODE: usize = 20;

/// How the labels of the Pods of one workload differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Not at all.
    Deployment,
    /// Each Pod has its name and its number among its labels.
    StatefulSet,
}

/// Pods in namespace `shop`, many of each workload and many on each node.
#[derive(Clone, Debug)]
pub struct RealisticPods {
    workload: Workload,
    count: usize,
    text: String,
}

impl RealisticPods {
    /// `count` Pods.
    ///
    /// # Panics
    /// Never: the template is part of this crate.
    #[allow(clippy::expect_used, reason = "only for tests, where it is the assertion")]
    pub fn new(workload: Workload, count: usize) -> Self {
        let mut pod: Value = serde_json::from_str(include_str!("pod.json")).expect("the template is JSON");
        if workload == Workload::StatefulSet {
            let labels = pod["metadata"]["labels"].as_object_mut().expect("the template has labels");
            labels.remove("pod-template-hash");
            labels.insert("controller-revision-hash".to_owned(), json!("APP-HASH"));
            labels.insert("apps.kubernetes.io/pod-index".to_owned(), json!("NUMBER"));
            labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), json!("POD_NAME"));
            pod["spec"]["hostname"] = json!("POD_NAME");
            pod["spec"]["subdomain"] = json!("APP");
        }
        Self { workload, count, text: pod.to_string() }
    }

    /// The text of each Pod.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        (0..self.count).map(|number| self.text(number))
    }

    /// The value of the label `app.kubernetes.io/name` of each workload.
    pub fn apps(&self) -> impl Iterator<Item = String> {
        (0..self.count).step_by(REPLICAS).map(app)
    }

    fn text(&self, number: usize) -> String {
        let (app, replica) = (app(number), number % REPLICAS);
        let hash = format!("{:010x}", (number / REPLICAS) * 7_919);
        let name = match self.workload {
            Workload::Deployment => format!("{app}-{hash}-{:05x}", replica * 7_919),
            Workload::StatefulSet => format!("{app}-{replica}"),
        };
        let node = number % (self.count / PODS_PER_NODE).max(1);
        let [high, low] = [number / 250, number % 250];
        self.text
            .replace("POD_NAME", &name)
            .replace("POD_UID", &format!("8d4f2b1a-0000-4000-8000-{number:012x}"))
            .replace("POD_IP", &format!("10.{}.{}.{}", 128 + high / 250, high % 250, low + 2))
            .replace("NODE_NAME", &format!("worker-{node:04}.example.internal"))
            .replace("VERSION", &(1_000_000 + number).to_string())
            .replace("NUMBER", &replica.to_string())
            .replace("HASH", &hash)
            .replace("APP", &app)
    }
}

fn app(pod: usize) -> String {
    format!("checkout-{:03}", pod / REPLICAS)
}
