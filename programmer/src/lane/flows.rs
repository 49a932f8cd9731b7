//! The sync loop's part in conntrack: what is to be reconciled, and when again after a failure.
//!
//! Invariant: a reconcile runs only when the rules that it compares flows with are programmed.

use std::{
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use fairlead_objects::Family;
use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    conntrack::{Demand, FlowTable, Verdicts, reconcile},
    metrics::Metrics,
    own_node::Basis,
    schedule::Schedule,
};

/// What one family has to do about flows.
#[derive(Debug)]
pub(super) struct FlowDuty<F> {
    family: Family,
    table: Arc<F>,
    pub(super) demand: Demand,
    /// Of reconciles that failed.
    retries: Schedule,
}

/// One reconcile, ready to run.
#[derive(Debug)]
pub(super) struct Order<F> {
    family: Family,
    table: Arc<F>,
    verdicts: Verdicts,
}

/// How a reconcile ended.
#[derive(Debug)]
pub(super) struct Reconciled {
    deleted: io::Result<u64>,
    duration: Duration,
}

impl<F: FlowTable> FlowDuty<F> {
    pub(super) fn new(family: Family, table: Arc<F>) -> Self {
        Self { family, table, demand: Demand::default(), retries: Schedule::new(Duration::ZERO) }
    }

    /// When to try again, after a failure.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.retries.due(now)
    }

    /// Rules were repaired: what went elsewhere meanwhile is to be found, now.
    pub(super) fn suspect(&mut self) {
        self.demand.suspect();
        if self.demand.is_pending() {
            self.retries.request();
        }
    }

    /// What is to be done for the rules of `basis`, if anything.
    pub(super) fn order(
        &self,
        basis: &Basis,
        addresses: fn(Family) -> io::Result<Vec<IpNet>>,
    ) -> Option<Order<F>> {
        if !self.demand.is_pending() {
            return None;
        }
        let own: Vec<IpAddr> = match addresses(self.family) {
            Ok(addresses) => addresses.iter().map(IpNet::addr).collect(),
            Err(error) => {
                warn!(%error, "cannot read the addresses of this node; UDP flows to its node ports are left alone");
                Vec::new()
            }
        };
        let verdicts = self.demand.verdicts(&basis.config, own)?;
        Some(Order { family: self.family, table: Arc::clone(&self.table), verdicts })
    }

    pub(super) fn finish(&mut self, reconciled: Reconciled, metrics: &Metrics) {
        let Reconciled { deleted, duration } = reconciled;
        let family = self.family;
        metrics.observe_reconcile(family, duration, *deleted.as_ref().unwrap_or(&0));
        match deleted {
            Ok(deleted) => {
                self.demand.settle();
                self.retries.started();
                self.retries.succeeded(Instant::now());
                if deleted > 0 {
                    info!(%family, deleted, "UDP flows deleted that went elsewhere than the rules of now");
                }
            }
            Err(error) => {
                let delay = self.retries.failed(Instant::now());
                warn!(%family, %error, "cannot reconcile UDP flows; trying again in {} ms", delay.as_millis());
            }
        }
    }
}

impl<F: FlowTable> Order<F> {
    /// Reads and deletes, which block, beside the runtime's own threads.
    pub(super) async fn run(self) -> Reconciled {
        let start = Clock::now();
        let work = move || reconcile(&*self.table, self.family, &self.verdicts);
        let deleted =
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        Reconciled { deleted, duration: start.elapsed() }
    }
}
