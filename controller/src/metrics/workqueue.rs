//! client-go's workqueue metrics, under the names of kube-controller-manager's queues. A queue's item is a part of a Service.
//!
//! Invariant: what is being worked on is in the list of it, however the work ends.

use std::{sync::Arc, time::Duration};

use fairlead_daemon::metrics::Counter;
use parking_lot::Mutex;
use prometheus_client::{
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::time::Instant;

use super::Label;
use crate::{part::Part, queue::Taken};

/// client-go's buckets: 10 ns to 1000 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(1e-8, 10.0, 12))
}

type Durations = Family<Label, Histogram, fn() -> Histogram>;

/// What is counted as things happen; depths and ages are read on each scrape.
#[derive(Debug)]
pub(super) struct Workqueue {
    waited: Durations,
    worked: Durations,
    retries: Family<Label, Counter>,
    running: Arc<Mutex<Running>>,
}

/// When the work began that is going on, by part.
#[derive(Debug, Default)]
pub(super) struct Running {
    next: u64,
    items: Vec<(u64, Part, Instant)>,
}

/// Work that is going on. It ends when this is dropped, also when the term ends in the middle of it.
#[derive(Debug)]
pub struct Work {
    ids: Vec<u64>,
    worked: Durations,
    running: Arc<Mutex<Running>>,
}

/// The name of a part's queue, as upstream.
pub(super) fn queue(part: Part) -> Label {
    let name = match part {
        Part::Endpoints => "endpoint",
        Part::Slices => "endpoint_slice",
        Part::Mirror => "endpoint_slice_mirroring",
    };
    [("name", name)]
}

impl Workqueue {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let durations: fn() -> Histogram = durations;
        let this = Self {
            waited: Family::new_with_constructor(durations),
            worked: Family::new_with_constructor(durations),
            retries: Family::default(),
            running: Arc::default(),
        };
        for part in Part::ALL {
            drop(this.waited.get_or_create(&queue(part)));
            drop(this.worked.get_or_create(&queue(part)));
            drop(this.retries.get_or_create(&queue(part)));
        }
        registry.register(
            "workqueue_queue_duration_seconds",
            "How long an item waited in the queue once it was due",
            this.waited.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "How long an item was worked on",
            this.worked.clone(),
        );
        registry.register(
            "workqueue_retries_total",
            "Items that were put back after a failure",
            this.retries.clone(),
        );
        this
    }

    /// Work begins on what was taken.
    pub(super) fn begin(&self, taken: &Taken, now: Instant) -> Work {
        let mut running = self.running.lock();
        let mut ids = Vec::new();
        for (part, waited) in taken.waited() {
            self.waited.get_or_create(&queue(part)).observe(waited.as_secs_f64());
            running.next += 1;
            let id = running.next;
            running.items.push((id, part, now));
            ids.push(id);
        }
        drop(running);
        Work { ids, worked: self.worked.clone(), running: Arc::clone(&self.running) }
    }

    pub(super) fn retried(&self, part: Part) {
        self.retries.get_or_create(&queue(part)).inc();
    }

    pub(super) fn running(&self) -> Arc<Mutex<Running>> {
        Arc::clone(&self.running)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut running = self.running.lock();
        for id in &self.ids {
            if let Some(position) = running.items.iter().position(|(known, ..)| known == id) {
                let (_, part, since) = running.items.swap_remove(position);
                self.worked.get_or_create(&queue(part)).observe((now - since).as_secs_f64());
            }
        }
    }
}

impl Running {
    /// For how long all that is going on has been going on, added up, and the longest of it.
    pub(super) fn ages(&self, part: Part, now: Instant) -> (Duration, Duration) {
        let ages = self.items.iter().filter(|(_, of, _)| *of == part).map(|(_, _, since)| now - *since);
        ages.fold((Duration::ZERO, Duration::ZERO), |(sum, longest), age| (sum + age, longest.max(age)))
    }
}
