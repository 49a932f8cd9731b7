//! The sync loop's part in conntrack: what is to be reconciled, and when again after a failure.
//!
//! A reconcile runs beside everything else, one at a time; the next sync does not wait for it.
//!
//! Invariants: a reconcile starts only when the rules that it compares flows with are programmed; what rules decide that are
//! being written while it runs is no contradiction; what changed is done with only when a reconcile that started
//! afterwards succeeded.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use fairlead_compiler::ProxyState;
use fairlead_objects::{Family, ServiceKey};
use ipnet::IpNet;
use parking_lot::RwLock;
use tokio::{task::JoinHandle, time::Instant};
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
    demand: Demand,
    /// Of the reconcile that runs.
    verdicts: Option<Arc<RwLock<Verdicts>>>,
    /// Of reconciles that failed, or must follow the one that runs.
    retries: Schedule,
}

/// The task that a reconcile runs in.
pub(super) type Reconcile = JoinHandle<Reconciled>;

/// How a reconcile ended.
#[derive(Debug)]
pub(super) struct Reconciled {
    deleted: io::Result<u64>,
    duration: Duration,
}

impl<F: FlowTable> FlowDuty<F> {
    pub(super) fn new(family: Family, table: Arc<F>) -> Self {
        let retries = Schedule::new(Duration::ZERO);
        Self { family, table, demand: Demand::default(), verdicts: None, retries }
    }

    /// When to start without a sync before.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if self.verdicts.is_some() { None } else { self.retries.due(now) }
    }

    /// Rules are about to be written for the `dirty` Services as they are now.
    pub(super) fn refresh(&mut self, state: &ProxyState, dirty: &BTreeSet<ServiceKey>) {
        let changed = self.demand.refresh(state, dirty);
        if let Some(verdicts) = &self.verdicts {
            self.demand.amend(&mut verdicts.write(), &changed);
        }
    }

    /// Rules were repaired: what went elsewhere meanwhile is to be found, now.
    pub(super) fn suspect(&mut self) {
        self.demand.suspect();
        self.continue_later();
    }

    fn continue_later(&mut self) {
        if self.demand.is_pending() {
            self.retries.request();
        }
    }

    /// Starts to do what is to be done for the rules of `basis`, if there is anything, and unless it is being done. All
    /// that was refreshed must be programmed. Reading and deleting block, so that is beside the runtime's own threads.
    pub(super) fn start(
        &mut self,
        basis: &Basis,
        addresses: fn(Family) -> io::Result<Vec<IpNet>>,
    ) -> Option<Reconcile> {
        if self.verdicts.is_some() || !self.demand.is_pending() {
            return None;
        }
        let family = self.family;
        let own: Vec<IpAddr> = match addresses(family) {
            Ok(addresses) => addresses.iter().map(IpNet::addr).collect(),
            Err(error) => {
                warn!(%error, "cannot read the addresses of this node; UDP flows to its node ports are left alone");
                Vec::new()
            }
        };
        let verdicts = Arc::new(RwLock::new(self.demand.verdicts(&basis.config, own)?));
        self.verdicts = Some(Arc::clone(&verdicts));
        self.retries.started();
        let table = Arc::clone(&self.table);
        Some(tokio::task::spawn_blocking(move || {
            let start = Clock::now();
            let deleted = reconcile(&*table, family, &|ends| verdicts.read().contradicts(ends));
            Reconciled { deleted, duration: start.elapsed() }
        }))
    }

    pub(super) fn finish(&mut self, reconciled: Reconciled, metrics: &Metrics) {
        let Reconciled { deleted, duration } = reconciled;
        let family = self.family;
        self.verdicts = None;
        metrics.observe_reconcile(family, duration, *deleted.as_ref().unwrap_or(&0));
        match deleted {
            Ok(deleted) => {
                self.demand.settle();
                self.retries.succeeded(Instant::now());
                self.continue_later();
                if deleted > 0 {
                    info!(%family, deleted, "UDP flows deleted that went elsewhere than the rules of now");
                }
            }
            Err(error) => {
                self.demand.resume();
                let delay = self.retries.failed(Instant::now());
                warn!(%family, %error, "cannot reconcile UDP flows; trying again in {} ms", delay.as_millis());
            }
        }
    }
}
