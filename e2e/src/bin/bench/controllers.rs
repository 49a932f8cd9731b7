//! The controller beside the genuine one, on the same data: how fast, for how much.
//!
//! Each of the two runs alone on an API server of its own that holds the same objects. Latency is the time from sending a
//! Pod's new status to the slice that shows it arriving on a watch; writes and bytes are what the API server counted.

mod cluster;
mod load;
mod usage;

use std::time::Duration;

use anyhow::Result;
use cluster::{Cluster, Make};
use load::Load;
use usage::Usage;

use crate::report::{Samples, heading, row, text};

const SERVICES: usize = 1_000;
const PODS_EACH: usize = 10;
const NODES: usize = 50;
const FLIPS_A_SECOND: u32 = 50;
const CHURN: Duration = Duration::from_secs(30);
const ROLLED: usize = 1_000;

/// Runs the phases for one after the other: cold start, churn, rolling update.
pub(crate) fn measure() -> Result<()> {
    heading(
        "Controllers: 1,000 Services x 10 Pods on 50 nodes, and a Service of 1,000 Pods",
        &["Controller", "Phase", "Took", "Latency p50", "p99", "CPU", "Peak RSS", "Writes", "Written"],
    );
    for make in [Make::Genuine, Make::Ours] {
        let mut cluster = Cluster::start()?;
        let kubeconfig = cluster.kubeconfig()?;
        let namespace = cluster.namespace();
        let load = Load::connect(&namespace, &kubeconfig);
        load.fill(NODES, SERVICES, PODS_EACH)?;
        load.fill_one("rolled", NODES, ROLLED)?;
        let before = load.written()?;
        let process = cluster.start_controller(make)?;
        let took = load.await_slices(SERVICES * PODS_EACH + ROLLED)?;
        let mut usage = Usage::of(process, load.written()?);
        print(make, "cold start", took, &Samples::default(), &usage.since(&Usage::idle(before)));

        let (took, latencies) = load.churn(SERVICES, PODS_EACH, FLIPS_A_SECOND, CHURN)?;
        let after = Usage::of(process, load.written()?);
        print(make, "churn, 50 flips a second", took, &latencies, &after.since(&usage));
        usage = after;

        let took = load.roll("rolled", NODES, ROLLED)?;
        let after = Usage::of(process, load.written()?);
        print(make, "rolling update", took, &Samples::default(), &after.since(&usage));
    }
    Ok(())
}

fn print(make: Make, phase: &str, took: Duration, latencies: &Samples, usage: &Usage) {
    let [p50, p99] = if latencies.is_empty() { ["-".to_owned(), "-".to_owned()] } else { latencies.cells() };
    row(&[
        make.name().to_owned(),
        phase.to_owned(),
        text(took),
        p50,
        p99,
        text(usage.cpu),
        format!("{} MiB", usage.peak_rss >> 20),
        usage.written.requests.to_string(),
        format!("{:.1} MB", usage.written.megabytes()),
    ]);
}
