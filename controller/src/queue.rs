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
    contest::Contest,
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

/// Whether what `part` writes was changed by another's hand.
fn is_foreign(part: Part, cause: Cause) -> bool {
    match part {
        Part::Endpoints => matches!(cause, Cause::Endpoints | Cause::EndpointsGone),
        Part::Slices | Part::Mirror => matches!(cause, Cause::Slice | Cause::SliceGone),
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
    /// It is not taken before this.
    resting: Option<Instant>,
    /// Another's hand has changed something since the part was last taken, and nothing else has.
    foreign: bool,
    contest: Contest,
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
    /// Those that are due for no other reason than that another's hand has changed what they write.
    pub undone: Parts,
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
            let delay = |part: Part| {
                let delay = self.periods.delay(part, cause).filter(|_| part.is_in(self.parts))?;
                Some((delay, is_foreign(part, cause)))
            };
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
        let (mut taken, mut undone) = (Vec::new(), Vec::new());
        let mut waited = [None; 3];
        if let Some(slots) = self.inner.lock().keys.get_mut(key) {
            for (part, slot) in Part::ALL.into_iter().zip(slots) {
                if let Some(due) = slot.due.take_if(|due| *due <= now) {
                    waited[part.index()] = Some(now - due);
                    let oldest = slot.since.take();
                    since = since.into_iter().chain(oldest).min();
                    taken.push(part);
                    undone.extend(std::mem::take(&mut slot.foreign).then_some(part));
                }
            }
        }
        Taken { parts: part::set(taken), since, undone: part::set(undone), waited }
    }

    /// What another's hand had changed is going to be written again. Returns whether the next time will have to wait, and this
    /// one did not.
    pub fn undo(&self, key: &ServiceKey, part: Part, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        let Some(slots) = inner.keys.get_mut(key) else { return false };
        let contest = &mut slots[part.index()].contest;
        let was_on = contest.is_on(now);
        contest.repaired(now);
        contest.is_on(now) && !was_on
    }

    /// Of how many Services another's hand keeps changing what is written, by part.
    pub fn contested(&self, now: Instant) -> [usize; 3] {
        self.count(|slot| slot.contest.is_on(now))
    }

    /// A part was dealt with.
    pub fn succeeded(&self, key: &ServiceKey, part: Part) {
        if let Some(slots) = self.inner.lock().keys.get_mut(key) {
            slots[part.index()].failures = 0;
        }
    }

    /// A part was dealt with, and is not to be for a while, whatever changes.
    pub fn rest(&self, key: &ServiceKey, part: Part, until: Instant) {
        if let Some(slots) = self.inner.lock().keys.get_mut(key) {
            let slot = &mut slots[part.index()];
            slot.resting = Some(until);
            slot.due = slot.due.map(|due| due.max(until));
        }
    }

    /// A part failed: it is due again after a while, at the earliest after `at_least`. Returns how often it has failed.
    pub fn failed(&self, key: &ServiceKey, part: Part, at_least: Option<Duration>, now: Instant) -> u32 {
        let mut inner = self.inner.lock();
        let slots = inner.slots(key);
        let slot = &mut slots[part.index()];
        slot.failures = slot.failures.saturating_add(1);
        slot.foreign = false;
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

    /// Returns whether the key is due earlier than before. `delay` says how long a part may wait, and whether for another's
    /// change.
    fn mark(
        &mut self,
        key: &ServiceKey,
        now: Instant,
        delay: impl Fn(Part) -> Option<(Duration, bool)>,
        added: &[AtomicU64; 3],
    ) -> bool {
        let mut earlier = false;
        for part in Part::ALL {
            let Some((delay, foreign)) = delay(part) else { continue };
            let slot = &mut self.slots(key)[part.index()];
            let due = now + if foreign { delay.max(slot.contest.delay(now)) } else { delay };
            let due = slot.resting.map_or(due, |until| due.max(until));
            slot.foreign = foreign && (slot.foreign || slot.due.is_none());
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
mod tests;
