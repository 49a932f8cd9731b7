//! The comparison of one family: when to look, and what follows from it.
//!
//! ```text
//!  changes, basis, sentinel ──> due ──> look (reads) ──> compare (pure) ──> ledger
//!                                ^                                            │
//!                                └──────────── something may count soon ──────┘
//! ```
//!
//! Invariants: at most one look runs at a time; after a look there is rest, longer the more it cost, so that looking takes a
//! tenth of a processor at most; nothing is compared before both initial lists are in and the Node is known.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use fairlead_compiler::{Comparison, Dump, NodeFacts, ProxyState, Rulebook, Subject, compare};
use fairlead_daemon::{failure, readiness::Gate};
use fairlead_objects::{Family, ServiceKey};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinHandle},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    ledger::{Ledger, Moment, News},
    look::{LookError, Rules, Sight, concerns, look},
    metrics::Metrics,
};
use crate::{
    feed::{Change, Kind},
    own_node::Basis,
    sentinel::Sentinel,
};

/// How long after a change to look: more of it may be under way.
const SETTLING: Duration = Duration::from_secs(1);
/// Rest after a look: at least this, and this many times what it took.
const LEAST_REST: Duration = Duration::from_secs(2);
const REST_FACTOR: u32 = 9;
/// How often to look where nothing tells of changes, or nothing could be compared.
const BLIND_PERIOD: Duration = Duration::from_secs(30);
/// How often to look without a reason.
const PERIOD: Duration = Duration::from_hours(1);
/// So many divergences are logged at once; all of them are in the report.
const LOGGED: usize = 20;

/// Settings and connections.
pub(super) struct Wiring<R> {
    pub(super) family: Family,
    /// What the other proxy programmed.
    pub(super) rules: Arc<R>,
    /// What it should be made from.
    pub(super) changes: mpsc::Receiver<Change>,
    /// What else; `None` until our Node is known or given up on.
    pub(super) basis: watch::Receiver<Option<Basis>>,
    /// Reads the interface addresses of the node.
    pub(super) addresses: fn(Family) -> io::Result<Vec<IpNet>>,
    /// Tells when rules change.
    pub(super) sentinel: Sentinel,
    /// Opened by the first comparison; carries what hinders it now.
    pub(super) gate: Gate,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) metrics: Metrics,
}

/// What our rules are made from, and our rules.
struct Book {
    state: ProxyState,
    rules: Option<(Rulebook, Basis)>,
    dirty: BTreeSet<ServiceKey>,
}

/// What is under way.
enum Work {
    Nothing,
    Looking(JoinHandle<Result<Sight, LookError>>),
    Comparing(JoinHandle<(Book, Comparison)>),
}

enum Done {
    Looked(Result<Sight, LookError>),
    Compared(Box<(Book, Comparison)>),
}

/// The comparison of one family.
pub(super) struct Lane<R> {
    wiring: Wiring<R>,
    /// Absent while it is compared.
    book: Option<Book>,
    services_listed: bool,
    slices_listed: bool,
    /// The rules that were compared last, unless something else changed since.
    known: Option<u64>,
    /// The rules of the look that is under way.
    seen: u64,
    due: Instant,
    /// Something changed since the last look began.
    asked: bool,
    /// No look before.
    rest: Instant,
    began: Instant,
}

impl<R: Rules> Lane<R> {
    /// That knows nothing yet.
    pub(super) fn new(wiring: Wiring<R>) -> Self {
        let now = Instant::now();
        let book = Book { state: ProxyState::new(wiring.family), rules: None, dirty: BTreeSet::new() };
        wiring.metrics.begin(wiring.family);
        Self {
            wiring,
            book: Some(book),
            services_listed: false,
            slices_listed: false,
            known: None,
            seen: 0,
            due: now,
            asked: true,
            rest: now,
            began: now,
        }
    }

    /// Runs until `shutdown`. An error is a defect: a comparison panicked.
    pub(super) async fn run(mut self, shutdown: CancellationToken) -> Result<(), JoinError> {
        let mut work = Work::Nothing;
        loop {
            let idle = matches!(work, Work::Nothing);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                done = finished(&mut work) => {
                    work = match done? {
                        Done::Looked(sight) => self.looked(sight),
                        Done::Compared(compared) => self.compared(*compared),
                    };
                }
                Some(change) = self.wiring.changes.recv(), if self.book.is_some() => self.take_in(change),
                Ok(()) = self.wiring.basis.changed() => self.request(true),
                () = self.wiring.sentinel.stirred(true) => {
                    if !self.wiring.sentinel.take(&concerns).is_nothing() {
                        self.request(false);
                    }
                }
                () = sleep_until(self.due.max(self.rest)), if idle && self.is_informed() => {
                    work = self.start_look();
                }
            }
        }
    }

    fn is_informed(&self) -> bool {
        self.services_listed && self.slices_listed && self.wiring.basis.borrow().is_some()
    }

    /// Takes in a change, and all others that wait already.
    fn take_in(&mut self, first: Change) {
        let mut next = Some(first);
        while let Some(change) = next {
            self.apply(change);
            next = self.wiring.changes.try_recv().ok();
        }
    }

    fn apply(&mut self, change: Change) {
        let Some(book) = &mut self.book else { return };
        match change {
            Change::Service(service) => book.state.set_service(&service),
            Change::ServiceGone(key) => book.state.remove_service(&key),
            Change::Slice(slice) => book.state.set_slice(&slice),
            Change::SliceGone(key) => book.state.remove_slice(&key.namespace, &key.name),
            Change::Listed(Kind::Services) => self.services_listed = true,
            Change::Listed(Kind::EndpointSlices) => self.slices_listed = true,
        }
        let dirty = book.state.take_dirty();
        if !dirty.is_empty() {
            book.dirty.extend(dirty);
            self.request(true);
        }
    }

    /// Something changed: on our side (`ours`), or in the kernel.
    fn request(&mut self, ours: bool) {
        if ours {
            self.known = None;
        }
        self.asked = true;
        self.wiring.ledger.lock().pending = true;
        self.due = self.due.min(Instant::now() + SETTLING);
    }

    fn start_look(&mut self) -> Work {
        self.began = Instant::now();
        self.due = self.began + PERIOD;
        self.asked = false;
        let (rules, known) = (Arc::clone(&self.wiring.rules), self.known);
        Work::Looking(tokio::spawn(async move { look(&*rules, known).await }))
    }

    fn looked(&mut self, sight: Result<Sight, LookError>) -> Work {
        let started = sight.and_then(|sight| match sight {
            Sight::Same => Ok(None),
            Sight::Rules(print, dump) => {
                self.seen = print;
                self.start_comparison(dump)
            }
        });
        match started {
            Ok(Some(work)) => return work,
            Ok(None) => {
                let news = self.wiring.ledger.lock().unchanged(Moment::now());
                self.conclude(&news, false);
            }
            Err(LookError::Absent) if self.has_nothing_to_compare() => self.idle(),
            Err(error) => self.hindered(&error),
        }
        Work::Nothing
    }

    /// A cluster of one family has nodes that could have both.
    fn has_nothing_to_compare(&self) -> bool {
        self.book.as_ref().is_some_and(|book| book.state.services().next().is_none())
    }

    /// Nobody programmed this family, and nobody has to.
    fn idle(&mut self) {
        let Wiring { ref ledger, ref gate, .. } = self.wiring;
        gate.open();
        let mut ledger = ledger.lock();
        ledger.forget();
        ledger.obstacle = Some("no Services, and no rules".to_owned());
        ledger.pending = self.asked;
        drop(ledger);
        self.take_rest();
        self.due = self.due.min(Instant::now() + BLIND_PERIOD);
    }

    fn start_comparison(&mut self, dump: Dump) -> Result<Option<Work>, LookError> {
        let Some(basis) = self.basis_now()? else { return Ok(None) };
        let Some(mut book) = self.book.take() else { return Ok(None) };
        // What arrives from here on has to be compared again.
        self.known = Some(self.seen);
        Ok(Some(Work::Comparing(tokio::task::spawn_blocking(move || {
            let comparison = book.compare(&dump, basis);
            (book, comparison)
        }))))
    }

    /// The basis with the interface addresses as they are now: a packet to any of them is for the node.
    fn basis_now(&self) -> Result<Option<Basis>, LookError> {
        let addresses = (self.wiring.addresses)(self.wiring.family).map_err(LookError::Addresses)?;
        let basis = self.wiring.basis.borrow().clone();
        Ok(basis.map(|basis| Basis { facts: NodeFacts { addresses, ..basis.facts }, ..basis }))
    }

    fn compared(&mut self, (book, comparison): (Book, Comparison)) -> Work {
        self.book = Some(book);
        let Comparison { services, frontends, packets, ref differences } = comparison;
        let milliseconds = self.began.elapsed().as_millis();
        let family = self.wiring.family;
        debug!(%family, services, frontends, packets, differences = differences.len(), milliseconds, "compared");
        if !self.wiring.gate.is_open() {
            info!(%family, services, frontends, packets, milliseconds, "compared with the other proxy for the first time");
        }
        let news = self.wiring.ledger.lock().compared(comparison, Moment::now());
        self.conclude(&news, true);
        Work::Nothing
    }

    /// A look came to its end.
    fn conclude(&mut self, news: &News, compared: bool) {
        let Wiring { family, ref ledger, ref metrics, ref gate, .. } = self.wiring;
        let now = Moment::now();
        metrics.looked(family, compared, self.began.elapsed(), now.time.as_duration().as_secs_f64());
        metrics.set_present(family, true);
        for difference in &news.begun {
            metrics.count(family, difference.discord);
        }
        gate.open();
        // Whoever asks and hears that nothing is pending finds it in the log.
        self.tell(news);
        let mut ledger = ledger.lock();
        ledger.obstacle = None;
        ledger.pending = self.asked;
        metrics.set(family, |kind| ledger.count(kind), ledger.expected.len());
        let ripe = ledger.due();
        drop(ledger);
        self.take_rest();
        let blind = matches!(self.wiring.sentinel, Sentinel::Off).then(|| now.instant + BLIND_PERIOD);
        self.due = [ripe, blind].into_iter().flatten().fold(self.due, Instant::min);
    }

    fn take_rest(&mut self) {
        let rest = self.began.elapsed().saturating_mul(REST_FACTOR).max(LEAST_REST);
        self.rest = Instant::now() + rest;
    }

    fn tell(&self, news: &News) {
        let family = self.wiring.family;
        for difference in news.begun.iter().take(LOGGED) {
            warn!(%family, kind = difference.discord.as_str(), "divergence: {difference}");
        }
        for difference in news.over.iter().take(LOGGED) {
            info!(%family, kind = difference.discord.as_str(), "divergence is over: {}, {}", difference.owner(), difference.frontend);
        }
        let silent = news.begun.len().saturating_sub(LOGGED) + news.over.len().saturating_sub(LOGGED);
        if silent > 0 {
            warn!(%family, "{silent} more divergences began or are over; /debug/divergence lists those that stand");
        }
    }

    /// Nothing can be compared now.
    fn hindered(&mut self, error: &LookError) {
        let Wiring { family, ref ledger, ref metrics, ref gate, .. } = self.wiring;
        let text = failure::chain(error);
        if gate.trouble(text.clone()) {
            warn!(%family, "cannot compare: {text}");
        }
        let mut ledger = ledger.lock();
        ledger.obstacle = Some(text);
        if matches!(error, LookError::Absent | LookError::Ipvs) {
            // What was found before says nothing any more.
            ledger.forget();
            metrics.set_present(family, false);
            metrics.set(family, |_| 0, 0);
        }
        drop(ledger);
        self.known = None;
        self.take_rest();
        self.due = self.due.min(Instant::now() + BLIND_PERIOD);
    }
}

impl Book {
    /// Brings our rules up to date, and compares.
    fn compare(&mut self, installed: &Dump, basis: Basis) -> Comparison {
        let dirty = std::mem::take(&mut self.dirty);
        let mut rules = match self.rules.take() {
            Some((mut rules, known)) if known == basis => {
                rules.refresh(&self.state, &dirty);
                rules
            }
            _ => {
                let mut rules = Rulebook::new(basis.config.clone(), basis.facts.clone());
                rules.refresh(&self.state, &self.state.services().map(|(key, _)| key.clone()).collect());
                rules
            }
        };
        // Nobody writes them.
        drop(rules.take_changes());
        let comparison = compare(Subject {
            installed,
            desired: rules.ruleset(),
            state: &self.state,
            config: &basis.config,
            facts: &basis.facts,
        });
        self.rules = Some((rules, basis));
        comparison
    }
}

/// Waits until what is under way is done.
async fn finished(work: &mut Work) -> Result<Done, JoinError> {
    match work {
        Work::Nothing => std::future::pending().await,
        Work::Looking(job) => job.await.map(Done::Looked),
        Work::Comparing(job) => job.await.map(|compared| Done::Compared(Box::new(compared))),
    }
}

#[cfg(test)]
mod tests;
