//! Watches: every object of a kind, by value, for ever.
//!
//! ```text
//!  kube's watcher (streaming list, else list + watch) ──> Watch ──> Init, InitApply*, InitDone, (Apply | Delete)*, Init, ...
//!                                                           └────> Gate: synced, or what is wrong
//! ```
//!
//! The initial list is streamed (`sendInitialEvents`); where the API server refuses that, or answers without ever ending
//! the list, the watch falls back to list and watch, and stays there.
//!
//! Invariants: the stream never ends and never yields an error. After any error, and after a list that starts over without
//! having been completed, it pauses, longer each time. An error is logged when it changes, not each time it happens.

use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt, stream, stream::BoxStream};
use kube::{Api, Resource};
use kube_runtime::{
    utils::Backoff,
    watcher::{self, Config, DefaultBackoff, InitialListStrategy, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout_at};

pub use kube_runtime::watcher::Event;

use crate::{
    failure::{self, Class},
    readiness::Gate,
};

/// A streamed list that says nothing for so long will not end.
const SILENCE: Duration = Duration::from_secs(10);
/// A page of a list takes longer: nothing is heard until all of it has arrived.
const PAGE_SILENCE: Duration = Duration::from_mins(1);
/// A streamed list that is still going on after so long is a plain watch by a server that does not know better.
const LONGEST_LIST: Duration = Duration::from_mins(3);
/// A watch that has not failed for so long has recovered, even if nothing happened that it could have reported.
const QUIET: Duration = Duration::from_secs(15);
/// While the server cannot be reached, it is tried at least this often: nobody else is kept waiting by it.
const LONGEST_OUTAGE_PAUSE: Duration = Duration::from_secs(10);
/// Unclear refusals of a streamed list before it is not asked for any more.
const REFUSALS: u32 = 2;

type Results<K> = BoxStream<'static, watcher::Result<Event<K>>>;

/// Watches all objects that `api` and `config` select. The strategy in `config` is the first one tried.
pub fn watch<K>(api: Api<K>, config: Config, gate: Gate) -> impl Stream<Item = Event<K>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let open = move |strategy: InitialListStrategy| {
        let config = Config { initial_list_strategy: strategy, ..config.clone() };
        watcher(api.clone(), config).boxed()
    };
    watch_with(open, gate, K::plural(&()).into_owned())
}

/// As [`watch`], over anything that behaves as kube's watcher does. `resource` is what RBAC calls the kind.
fn watch_with<K: Send + 'static>(
    open: impl FnMut(InitialListStrategy) -> Results<K> + Send + 'static,
    gate: Gate,
    resource: String,
) -> impl Stream<Item = Event<K>> + Send {
    let watch = Watch::new(open, gate, resource);
    stream::unfold(watch, |mut watch| async { Some((watch.next().await, watch)) })
}

struct Watch<K, F> {
    open: F,
    stream: Results<K>,
    strategy: InitialListStrategy,
    gate: Gate,
    resource: String,
    backoff: DefaultBackoff,
    refusals: u32,
    /// Class of the last error since the watch was well.
    last: Option<Class>,
    /// The initial list, until it is complete.
    listing: Option<Listing>,
    /// To pause before asking again.
    pause: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Listing {
    /// Its start was announced.
    begun: bool,
    since: Instant,
    heard: Instant,
}

impl Listing {
    fn now(begun: bool) -> Self {
        let now = Instant::now();
        Self { begun, since: now, heard: now }
    }
}

impl<K, F> Watch<K, F>
where
    F: FnMut(InitialListStrategy) -> Results<K>,
{
    fn new(mut open: F, gate: Gate, resource: String) -> Self {
        let strategy = InitialListStrategy::StreamingList;
        let stream = open(strategy.clone());
        let backoff = DefaultBackoff::default();
        let listing = Some(Listing::now(false));
        Self {
            open,
            stream,
            strategy,
            gate,
            resource,
            backoff,
            refusals: 0,
            last: None,
            listing,
            pause: None,
        }
    }

    async fn next(&mut self) -> Event<K> {
        loop {
            if let Some(pause) = self.pause.take() {
                sleep(pause).await;
                self.heard();
            }
            let item = match self.deadline() {
                Some(deadline) => timeout_at(deadline, self.stream.next()).await,
                None => Ok(self.stream.next().await),
            };
            match item {
                Err(_elapsed) => self.too_slow(),
                Ok(None) => self.reopen(),
                Ok(Some(Err(error))) => self.failed(&error),
                Ok(Some(Ok(event))) => {
                    self.observe(&event);
                    return event;
                }
            }
        }
    }

    /// Keeps track of the list.
    fn observe(&mut self, event: &Event<K>) {
        match event {
            Event::Init => {
                if self.listing.replace(Listing::now(true)).is_some_and(|listing| listing.begun) {
                    // The last list broke off. A server that closes every list must not be asked in a loop.
                    self.pause = self.backoff.next();
                }
            }
            Event::InitDone => {
                self.listing = None;
                self.refusals = 0;
                self.last = None;
                self.backoff.reset();
                let first = !self.gate.is_open();
                let recovered = self.gate.well();
                self.gate.open();
                if first || recovered {
                    tracing::info!(resource = self.resource, "watching");
                }
            }
            Event::InitApply(_) => self.heard(),
            Event::Apply(_) | Event::Delete(_) => self.well(),
        }
    }

    fn heard(&mut self) {
        if let Some(listing) = &mut self.listing {
            listing.heard = Instant::now();
        }
    }

    fn well(&self) {
        if self.gate.well() {
            tracing::info!(resource = self.resource, "watching again");
        }
    }

    /// When to stop waiting: for a list that does not end, or for a new error after the last one.
    fn deadline(&self) -> Option<Instant> {
        let Some(listing) = self.listing else {
            return self.gate.is_troubled().then(|| Instant::now() + QUIET);
        };
        Some(match self.strategy {
            InitialListStrategy::StreamingList => (listing.heard + SILENCE).min(listing.since + LONGEST_LIST),
            InitialListStrategy::ListWatch => listing.heard + PAGE_SILENCE,
        })
    }

    fn too_slow(&mut self) {
        if self.listing.is_none() {
            return self.well();
        }
        self.report("the API server did not finish the initial list in time".to_owned(), "");
        self.fall_back();
    }

    fn failed(&mut self, error: &watcher::Error) {
        let (class, sentence) = explain(error);
        if self.last.replace(class).is_some_and(|last| last != class) {
            // Something has changed, such as that the server answers again: no reason to go on waiting as long as before.
            self.backoff.reset();
        }
        self.pause = self.backoff.next();
        if matches!(class, Class::Unreachable | Class::Timeout) {
            self.pause = self.pause.map(|pause| pause.min(LONGEST_OUTAGE_PAUSE));
        }
        if self.listing.is_some() && self.strategy == InitialListStrategy::StreamingList {
            // Invalid is the answer of a server that knows streamed lists and has them switched off.
            self.refusals += match class {
                Class::Invalid => REFUSALS,
                Class::NotFound | Class::Other => 1,
                _ => 0,
            };
            if self.refusals >= REFUSALS {
                tracing::debug!(resource = self.resource, "streamed list refused: {sentence}");
                return self.fall_back();
            }
        }
        let remedy = match class {
            Class::Forbidden => format!("allow this identity to list and watch {} (RBAC)", self.resource),
            Class::Unauthorized => "check the credentials in the kubeconfig or service account".to_owned(),
            Class::Unreachable | Class::Timeout => {
                "check that the API server runs and can be reached from here".to_owned()
            }
            Class::NotFound => format!(
                "this API server knows no {} of the version that is needed: Kubernetes 1.21 is the oldest that does",
                self.resource
            ),
            _ => String::new(),
        };
        self.report(format!("{}: {sentence}", class.as_str()), &remedy);
        if class == Class::Gone {
            // A version that is gone at the start of a watch would be asked for again and again.
            self.reopen();
        }
    }

    fn report(&self, trouble: String, remedy: &str) {
        let text = if remedy.is_empty() { trouble } else { format!("{trouble}; {remedy}") };
        if self.gate.trouble(text.as_str()) {
            tracing::warn!(resource = self.resource, "cannot watch: {text}");
        } else {
            tracing::debug!(resource = self.resource, "still cannot watch: {text}");
        }
    }

    fn fall_back(&mut self) {
        if self.strategy == InitialListStrategy::StreamingList {
            tracing::info!(
                resource = self.resource,
                "no streamed list from this API server; listing in pages instead"
            );
            self.strategy = InitialListStrategy::ListWatch;
            self.reopen();
            // Nothing is known yet against asking in the other way at once.
            self.pause = None;
            return;
        }
        self.reopen();
    }

    fn reopen(&mut self) {
        self.stream = (self.open)(self.strategy.clone());
        self.listing = Some(Listing::now(false));
        if self.pause.is_none() {
            self.pause = self.backoff.next();
        }
    }
}

fn explain(error: &watcher::Error) -> (Class, String) {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => (Class::of(error), failure::sentence(error)),
        watcher::Error::WatchError(status) => {
            let error = kube::Error::Api(status.clone());
            (Class::of(&error), failure::sentence(&error))
        }
        watcher::Error::NoResourceVersion => (Class::Other, error.to_string()),
    }
}

#[cfg(test)]
mod tests;
