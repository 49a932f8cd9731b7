//! How long a plan takes.

use std::{collections::BTreeMap, convert::Infallible, hint::black_box, sync::Arc};

use anyhow::Result;
use fairlead_objects::{
    EndpointSlice, Node, Pod,
    builders::{node, pod, service},
};
use fairlead_planner::{Outcome, PlanInput, outcome, plan};
use serde_json::json;

use crate::report::{Samples, heading, row};

const PODS: u32 = 1_000;
const NODES: u32 = 50;
const RUNS: usize = 200;

/// Plans a Service of 1,000 Pods on 50 nodes: from nothing, with nothing to do, and after one Pod changed.
pub(crate) fn measure() -> Result<()> {
    let service = service("big", json!({}));
    let nodes: BTreeMap<Arc<str>, Node> = (0..NODES)
        .map(|n| format!("node{n}"))
        .map(|name| (name.as_str().into(), node(&name, "172.30.0.1", "zone-a")))
        .collect();
    let pods: Vec<Pod> = (0..PODS)
        .map(|i| {
            pod(
                &format!("big-{i}"),
                "big",
                &format!("node{}", i % NODES),
                &format!("10.244.{}.{}", i / 250, i % 250 + 2),
            )
        })
        .collect();

    heading("Plan of a Service with 1,000 Pods on 50 nodes", &["What", "p50", "p99"]);
    let base = PlanInput { service: Some(&service), ..PlanInput::new(&service.key, &nodes) };
    let views: Vec<&Pod> = pods.iter().collect();
    let empty = PlanInput { pods: &views, ..base };
    print("from nothing", &empty)?;

    let Outcome { endpoints, slices } = outcome(&empty, &plan(&empty));
    let stored: Vec<EndpointSlice> = slices.into_iter().map(as_stored).collect();
    let slices: Vec<&EndpointSlice> = stored.iter().collect();
    let settled = PlanInput { endpoints: endpoints.as_ref(), slices: &slices, ..empty };
    print("nothing to do", &settled)?;

    let mut pods = pods.clone();
    if let Some(pod) = pods.first_mut() {
        pod.ready = false;
    }
    let views: Vec<&Pod> = pods.iter().collect();
    print("one Pod not ready", &PlanInput { pods: &views, ..settled })
}

/// The API server gives every object a uid and a version.
fn as_stored(mut slice: EndpointSlice) -> EndpointSlice {
    slice.metadata.uid = slice.metadata.name.clone();
    slice.metadata.resource_version = Some("1".to_owned());
    slice
}

fn print(what: &str, input: &PlanInput<'_>) -> Result<()> {
    let samples = Samples::of(RUNS, || {
        black_box(plan(black_box(input)));
        Ok::<(), Infallible>(())
    })?;
    let [p50, p99] = samples.cells();
    row(&[what.to_owned(), p50, p99]);
    Ok(())
}
