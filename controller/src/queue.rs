//! The queue: which Services are due, for which parts, and when.
//!
//! It sits in front of kube-runtime's scheduler, which knows only one due time per key and no failures. A change sets, for
//! every part that it concerns, a due time that later changes can only bring forward (as upstream's delayed add); then the
//! key is put into the `Controller`'s Store and triggered. The reconciler takes the parts that are due and asks to be
//! called again for the others.
//!
//! Invariants: a key that has a due part is in the Store (a trigger for a missing key would be lost). Before
//! [`Queue::open`] nothing is reconciled: the Store is not ready.

use std::{
    collections::hash_map,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use fairlead_objects::ServiceKey;
use fairlead_planner::Parts;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use kube_runtime::{
    reflector::{self, ObjectRef, Store, store::Writer},
    watcher::Event,
};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use crate::{
    backoff,
    index::{Cause, Dirty},
    part::{self, Part},
    primary::Primary,
};

/// A change of our slices by another's hand is looked at no sooner than this, so that two controllers that disagree do
/// not fight at full speed (as upstream's floor for slice events).
const FOREIGN_CHANGE: Duration = Duration::from_secs(1);

/// How long each part lets changes gather (`--*-updates-batch-period`).
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchPeriods {
    /// Of Pods, for Endpoints.
    pub endpoints: Duration,
    /// Of Pods, Nodes and slices, for slices.
    pub slices: Duration,
    /// Of mirrored slices.
    pub mirror: Duration,
}

impl BatchPeriods {
    /// How long `part` may wait after a change; `None` if the change does not concern it.
    fn delay(&self, part: Part, cause: Cause) -> Option<Duration> {
        match (part, cause) {
            (_, Cause::Service | Cause::Resync) => Some(Duration::ZERO),
            (Part::Endpoints, Cause::Pod) => Some(self.endpoints),
            (Part::Endpoints, Cause::Endpoints) => Some(FOREIGN_CHANGE),
            (Part::Endpoints | Part::Mirror, Cause::EndpointsGone) | (Part::Mirror, Cause::Endpoints) => {
                Some(Duration::ZERO)
            }
            (Part::Slices, Cause::Pod | Cause::Node | Cause::SliceGone) => Some(self.slices),
            (Part::Slices, Cause::Slice) => Some(self.slices.max(FOREIGN_CHANGE)),
            (Part::Mirror, Cause::Slice | Cause::SliceGone) => Some(self.mirror),
            _ => None,
        }
    }
}

/// See the [module](self).
pub struct Queue {
    parts: Parts,
    periods: BatchPeriods,
    triggers: UnboundedSender<ObjectRef<Primary>>,
    inner: Mutex<Inner>,
    added: [AtomicU64; 3],
}

struct Inner {
    keys: FxHashMap<ServiceKey, [Slot; 3]>,
    store: Writer<Primary>,
    open: bool,
}

/// State of one part of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    due: Option<Instant>,
    /// When the oldest change came in that has not been dealt with.
    since: Option<Instant>,
    failures: u32,
}

/// What the `Controller` needs of a queue.
pub struct Outlet {
    /// The keys there is work for.
    pub store: Store<Primary>,
    /// A key whenever it should be looked at.
    pub triggers: UnboundedReceiver<ObjectRef<Primary>>,
}

/// Parts that were taken to be worked on.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Which.
    pub parts: Parts,
    /// When the oldest change came in that made them due.
    pub since: Option<Instant>,
    /// How long each part waited once it was due.
    waited: [Option<Duration>; 3],
}

impl Taken {
    /// The parts that were taken, with how long each waited once it was due.
    pub fn waited(&self) -> impl Iterator<Item = (Part, Duration)> {
        Part::ALL.into_iter().zip(self.waited).filter_map(|(part, waited)| Some((part, waited?)))
    }

    /// Whether nothing was due.
    pub fn is_empty(&self) -> bool {
        Part::ALL.into_iter().all(|part| !part.is_in(self.parts))
    }
}

impl Queue {
    /// A closed queue for these parts.
    pub fn new(parts: Parts, periods: BatchPeriods) -> (Self, Outlet) {
        let (reader, mut store) = reflector::store();
        store.apply_watcher_event(&Event::Init);
        let (sender, receiver) = unbounded();
        let inner = Mutex::new(Inner { keys: FxHashMap::default(), store, open: false });
        (
            Self { parts, periods, triggers: sender, inner, added: Default::default() },
            Outlet { store: reader, triggers: receiver },
        )
    }

    /// Lets the work begin: the index is complete.
    pub fn open(&self) {
        let mut inner = self.inner.lock();
        if !inner.open {
            inner.open = true;
            inner.store.apply_watcher_event(&Event::InitDone);
        }
    }

    /// Whether the work has begun.
    pub fn is_open(&self) -> bool {
        self.inner.lock().open
    }

    /// Adds what changes have made dirty.
    pub fn mark(&self, dirty: Dirty, now: Instant) {
        let mut inner = self.inner.lock();
        for (key, cause) in dirty {
            let delay =
                |part: Part| if part.is_in(self.parts) { self.periods.delay(part, cause) } else { None };
            if inner.mark(&key, now, delay, &self.added) {
                self.trigger(&key);
            }
        }
    }

    /// Adds these keys, due at once.
    pub fn mark_all(&self, keys: impl IntoIterator<Item = ServiceKey>, now: Instant) {
        self.mark(keys.into_iter().map(|key| (key, Cause::Resync)).collect(), now);
    }

    fn trigger(&self, key: &ServiceKey) {
        // Fails only when the Controller is gone, at the end of the process.
        drop(self.triggers.unbounded_send(Primary::reference(key)));
    }

    /// Takes the parts of a key that are due.
    pub fn take(&self, key: &ServiceKey, now: Instant) -> Taken {
        let mut since: Option<Instant> = None;
        let mut taken = Vec::new();
        let mut waited = [None; 3];
        if let Some(slots) = self.inner.lock().keys.get_mut(key) {
            for (part, slot) in Part::ALL.into_iter().zip(slots) {
                if let Some(due) = slot.due.take_if(|due| *due <= now) {
                    waited[part.index()] = Some(now - due);
                    let oldest = slot.since.take();
                    since = since.into_iter().chain(oldest).min();
                    taken.push(part);
                }
            }
        }
        Taken { parts: part::set(taken), since, waited }
    }

    /// A part was dealt with.
    pub fn succeeded(&self, key: &ServiceKey, part: Part) {
        if let Some(slots) = self.inner.lock().keys.get_mut(key) {
            slots[part.index()].failures = 0;
        }
    }

    /// A part failed: it is due again after a while, at the earliest after `at_least`. Returns how often it has failed.
    pub fn failed(&self, key: &ServiceKey, part: Part, at_least: Option<Duration>, now: Instant) -> u32 {
        let mut inner = self.inner.lock();
        let slots = inner.slots(key);
        let slot = &mut slots[part.index()];
        slot.failures = slot.failures.saturating_add(1);
        let retry = now + backoff::delay(slot.failures).max(at_least.unwrap_or_default());
        slot.due = Some(slot.due.map_or(retry, |due| due.min(retry)));
        slot.since = slot.since.or(Some(now));
        slot.failures
    }

    /// How often a part has failed in a row.
    pub fn failures(&self, key: &ServiceKey, part: Part) -> u32 {
        self.inner.lock().keys.get(key).map_or(0, |slots| slots[part.index()].failures)
    }

    /// Forgets that anything is due, because it is not for us to do.
    pub fn drop_due(&self, key: &ServiceKey) {
        if let Some(slots) = self.inner.lock().keys.get_mut(key) {
            *slots = [Slot::default(); 3];
        }
    }

    /// How long until the next part of a key is due.
    pub fn next(&self, key: &ServiceKey, now: Instant) -> Option<Duration> {
        let inner = self.inner.lock();
        let due = inner.keys.get(key)?.iter().filter_map(|slot| slot.due).min()?;
        Some(due.saturating_duration_since(now))
    }

    /// Forgets a key that nothing exists of any more, unless there is something to do for it. Returns whether it did.
    pub fn retire(&self, key: &ServiceKey) -> bool {
        let mut inner = self.inner.lock();
        if inner.keys.get(key).is_none_or(|slots| slots.iter().any(|slot| slot.due.is_some())) {
            return false;
        }
        inner.keys.remove(key);
        inner.store.apply_watcher_event(&Event::Delete(Primary::from(key)));
        true
    }

    /// How many items were added, by part.
    pub fn added(&self) -> [u64; 3] {
        self.added.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// How many are due, by part.
    pub fn ready(&self, now: Instant) -> [usize; 3] {
        self.count(|slot| slot.due.is_some_and(|due| due <= now))
    }

    /// How many parts are due or waiting, by part.
    pub fn depth(&self) -> [usize; 3] {
        self.count(|slot| slot.due.is_some())
    }

    fn count(&self, counts: impl Fn(&Slot) -> bool) -> [usize; 3] {
        let inner = self.inner.lock();
        let mut depth = [0; 3];
        for slots in inner.keys.values() {
            for (count, slot) in depth.iter_mut().zip(slots) {
                *count += usize::from(counts(slot));
            }
        }
        depth
    }
}

impl Inner {
    /// The slots of a key, which is put into the Store if it is new.
    fn slots(&mut self, key: &ServiceKey) -> &mut [Slot; 3] {
        match self.keys.entry(key.clone()) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => {
                let primary = Primary::from(key);
                let event = if self.open { Event::Apply(primary) } else { Event::InitApply(primary) };
                self.store.apply_watcher_event(&event);
                entry.insert([Slot::default(); 3])
            }
        }
    }

    /// Returns whether the key is due earlier than before.
    fn mark(
        &mut self,
        key: &ServiceKey,
        now: Instant,
        delay: impl Fn(Part) -> Option<Duration>,
        added: &[AtomicU64; 3],
    ) -> bool {
        let mut earlier = false;
        for part in Part::ALL {
            let Some(delay) = delay(part) else { continue };
            let slot = &mut self.slots(key)[part.index()];
            let due = now + delay;
            slot.since = slot.since.or(Some(now));
            if slot.due.is_none() {
                added[part.index()].fetch_add(1, Ordering::Relaxed);
            }
            if slot.due.is_none_or(|known| due < known) {
                slot.due = Some(due);
                earlier = true;
            }
        }
        earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Parts = Parts { endpoints: true, slices: true, mirror: true };

    fn queue(periods: BatchPeriods) -> (Queue, Outlet) {
        Queue::new(ALL, periods)
    }

    fn key() -> ServiceKey {
        ServiceKey::new("default", "web")
    }

    fn mark(queue: &Queue, cause: Cause, now: Instant) {
        queue.mark(Dirty::one(key(), cause), now);
    }

    fn triggered(outlet: &mut Outlet) -> usize {
        let mut count = 0;
        while outlet.triggers.try_recv().is_ok() {
            count += 1;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn changes_concern_only_their_parts() {
        let (queue, _outlet) = queue(BatchPeriods::default());
        let now = Instant::now();
        mark(&queue, Cause::Pod, now);
        assert_eq!(queue.take(&key(), now).parts, Parts { endpoints: true, slices: true, mirror: false });
        mark(&queue, Cause::Node, now);
        assert_eq!(queue.take(&key(), now).parts, Parts { endpoints: false, slices: true, mirror: false });
        mark(&queue, Cause::Service, now);
        assert_eq!(queue.take(&key(), now).parts, ALL);
        assert!(queue.take(&key(), now).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn batch_window_is_opened_by_the_first_change_and_not_extended() {
        let (queue, _outlet) =
            queue(BatchPeriods { slices: Duration::from_secs(3), ..BatchPeriods::default() });
        let start = Instant::now();
        mark(&queue, Cause::Node, start);
        mark(&queue, Cause::Node, start + Duration::from_secs(2));
        assert!(queue.take(&key(), start + Duration::from_secs(2)).is_empty());
        assert_eq!(queue.next(&key(), start + Duration::from_secs(2)), Some(Duration::from_secs(1)));
        let taken = queue.take(&key(), start + Duration::from_secs(3));
        assert!(taken.parts.slices);
        assert_eq!(taken.since, Some(start));
    }

    #[tokio::test(start_paused = true)]
    async fn service_event_ends_a_batch_window() {
        let (queue, mut outlet) =
            queue(BatchPeriods { slices: Duration::from_secs(3), ..BatchPeriods::default() });
        let now = Instant::now();
        mark(&queue, Cause::Node, now);
        mark(&queue, Cause::Service, now);
        assert!(queue.take(&key(), now).parts.slices);
        assert_eq!(triggered(&mut outlet), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failed_part_backs_off_alone_and_success_clears_it() {
        let (queue, _outlet) = queue(BatchPeriods::default());
        let now = Instant::now();
        mark(&queue, Cause::Pod, now);
        queue.take(&key(), now);
        queue.succeeded(&key(), Part::Slices);
        assert_eq!(queue.failed(&key(), Part::Endpoints, None, now), 1);
        assert_eq!(queue.next(&key(), now), Some(Duration::from_millis(5)));
        let later = now + Duration::from_millis(5);
        assert_eq!(queue.take(&key(), later).parts, part::set([Part::Endpoints]));
        assert_eq!(queue.failed(&key(), Part::Endpoints, None, later), 2);
        assert_eq!(queue.next(&key(), later), Some(Duration::from_secs(1)));
        queue.take(&key(), later + Duration::from_secs(1));
        queue.succeeded(&key(), Part::Endpoints);
        assert_eq!(queue.failures(&key(), Part::Endpoints), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn change_during_backoff_is_tried_at_once() {
        let (queue, _outlet) = queue(BatchPeriods::default());
        let now = Instant::now();
        for _ in 0..5 {
            queue.failed(&key(), Part::Slices, None, now);
            queue.take(&key(), now + Duration::from_mins(5));
        }
        queue.failed(&key(), Part::Slices, None, now);
        assert!(queue.next(&key(), now) > Some(Duration::from_secs(10)));
        mark(&queue, Cause::Pod, now);
        assert!(queue.take(&key(), now).parts.slices);
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_asks_for_patience_gets_it() {
        let (queue, _outlet) = queue(BatchPeriods::default());
        let now = Instant::now();
        queue.failed(&key(), Part::Slices, Some(Duration::from_secs(7)), now);
        assert_eq!(queue.next(&key(), now), Some(Duration::from_secs(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn key_is_in_the_store_for_as_long_as_there_is_work() {
        let (queue, outlet) = queue(BatchPeriods::default());
        let now = Instant::now();
        mark(&queue, Cause::Service, now);
        queue.open();
        assert!(
            outlet.store.get(&Primary::reference(&key())).is_some(),
            "marked before the queue was opened"
        );
        assert!(!queue.retire(&key()), "it is due");
        queue.take(&key(), now);
        assert!(queue.retire(&key()));
        assert!(outlet.store.is_empty());
        mark(&queue, Cause::Service, now);
        assert!(outlet.store.get(&Primary::reference(&key())).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_are_switched_off_are_never_due() {
        let (queue, mut outlet) = Queue::new(part::set([Part::Mirror]), BatchPeriods::default());
        let now = Instant::now();
        mark(&queue, Cause::Pod, now);
        assert!(queue.take(&key(), now).is_empty());
        assert_eq!(triggered(&mut outlet), 0);
    }
}
