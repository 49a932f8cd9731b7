//! What is read on each scrape: sizes, depths, and which watches are in sync.

use std::{fmt, sync::Arc};

use fairlead_daemon::readiness::Readiness;
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};
use tokio::time::Instant;

use super::{
    resource,
    workqueue::{self, Running},
};
use crate::{
    index::{Index, Kind},
    part::Part,
    queue::Queue,
};

pub(super) struct Collected {
    pub(super) index: Arc<Mutex<Index>>,
    pub(super) queue: Arc<Queue>,
    pub(super) readiness: Readiness,
    pub(super) running: Arc<Mutex<Running>>,
}

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collected").finish_non_exhaustive()
    }
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_workqueue(&mut encoder)?;
        let sizes = self.index.lock().sizes();
        let objects =
            Kind::ALL.into_iter().zip(sizes.objects).map(|(kind, size)| (resource(kind).to_owned(), size));
        gauges(&mut encoder, "fairlead_index_objects", "Objects in the index", "resource", objects)?;
        let depth = Part::ALL
            .into_iter()
            .zip(self.queue.depth())
            .map(|(part, depth)| (part.word().to_owned(), depth));
        gauges(&mut encoder, "fairlead_queue_depth", "Services with a change to deal with", "part", depth)?;
        let contested = Part::ALL.into_iter().zip(self.queue.contested(Instant::now()));
        let contested = contested.map(|(part, count)| (part.word().to_owned(), count));
        let help = "Services where something else keeps changing what is written";
        gauges(&mut encoder, "fairlead_contested_services", help, "part", contested)?;
        let gates = self.readiness.gates();
        let synced = gates.iter().map(|gate| (gate.name().to_owned(), usize::from(gate.is_open())));
        gauges(
            &mut encoder,
            "fairlead_watch_synced",
            "1 once the initial list is complete",
            "watch",
            synced,
        )?;
        let troubled = gates.iter().map(|gate| (gate.name().to_owned(), usize::from(gate.is_troubled())));
        gauges(&mut encoder, "fairlead_watch_failing", "1 while a watch cannot be kept up", "watch", troubled)
    }
}

impl Collected {
    fn encode_workqueue(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = Instant::now();
        let (ready, added) = (self.queue.ready(now), self.queue.added());
        let ages = Part::ALL.map(|part| self.running.lock().ages(part, now));
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        #[allow(clippy::cast_precision_loss, reason = "a count of additions stays far below 2^52")]
        let added = added.map(|n| n as f64);
        let (gauge, counter) = (MetricType::Gauge, MetricType::Counter);
        for (name, help, kind, values) in [
            ("workqueue_depth", "Items that are due and wait to be worked on", gauge, ready.map(count)),
            ("workqueue_adds_total", "Items that were added", counter, added),
            (
                "workqueue_unfinished_work_seconds",
                "How long the work in progress has been going on, all of it added up",
                gauge,
                ages.map(|(sum, _)| sum.as_secs_f64()),
            ),
            (
                "workqueue_longest_running_processor_seconds",
                "How long the longest work in progress has been going on",
                gauge,
                ages.map(|(_, longest)| longest.as_secs_f64()),
            ),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (part, value) in Part::ALL.into_iter().zip(values) {
                let labels = workqueue::queue(part);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl Iterator<Item = (String, usize)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, count) in values {
        let labels = [(label, value)];
        ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
