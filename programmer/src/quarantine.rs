//! Quarantine: one Service whose rules are refused must not keep all others from being programmed.
//!
//! A document is accepted or refused as a whole. If the program names the line, the Service behind it is left out. If it
//! does not, and it keeps happening, those that changed since the last success are suspected: all are left out, and then let in again by halves,
//! until those that make the sync fail are found.
//!
//! ```text
//!  refused ──> named? ── yes ──────────────────────────────────> held
//!                └ no ──> isolate ──> try a group ── refused ──> halve it ── one left ──> held
//!                            │            └─ accepted: the next group
//!                            └ refused: no Service's fault
//! ```
//!
//! Invariants: pure, the time is an argument; a Service that is held is tried again when it changes, less often each time
//! that this fails; the hunt ends, whatever is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fairlead_objects::ServiceKey;
use tokio::time::Instant;

/// A rule that is about more Services than this accuses none of them.
const FEW: usize = 4;
/// Named Services that are held one after the other, without a success in between, before halves are tried.
const MOST_NAMED: usize = 8;
/// Refusals in a row that name nobody, before a hunt begins: leaving out Services that work is worse than waiting for
/// what passes by itself, such as another program's half-finished change.
const MOST_UNNAMED: usize = 3;
/// Groups that are tried in one hunt. What is left then is held without a proof.
const MOST_TRIALS: usize = 100;
/// How long a Service is held at least, doubled with each time.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(10);

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing special.
    Proceed,
    /// Sync at once: what is excluded changed.
    Again,
}

/// A Service that was found guilty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub service: ServiceKey,
    /// What was said of its rules.
    pub reason: String,
}

/// The Services of one family that are left out, and the hunt for more.
#[derive(Debug, Default)]
pub struct Quarantine {
    held: BTreeMap<ServiceKey, Hold>,
    /// How often each Service was held, as long as it exists.
    times: BTreeMap<ServiceKey, u32>,
    /// What changed since the last success.
    suspects: BTreeSet<ServiceKey>,
    hunt: Option<Hunt>,
    named: usize,
    unnamed: usize,
    /// The last failure was no Service's fault: no hunt before the next success.
    baffled: bool,
    verdicts: Vec<Verdict>,
}

#[derive(Debug)]
struct Hold {
    reason: String,
    until: Instant,
    changed: bool,
}

#[derive(Debug)]
struct Hunt {
    stage: Stage,
    /// Left out until it is their turn.
    waiting: Vec<Vec<ServiceKey>>,
    trials: usize,
}

#[derive(Debug)]
enum Stage {
    /// Without all suspects.
    Isolating,
    /// With this group.
    Trying(Vec<ServiceKey>),
}

impl Quarantine {
    /// These Services changed, or are gone as `exists` tells.
    pub fn note(&mut self, changed: &BTreeSet<ServiceKey>, exists: impl Fn(&ServiceKey) -> bool) {
        for key in changed {
            if exists(key) {
                self.suspects.insert(key.clone());
                if let Some(hold) = self.held.get_mut(key) {
                    hold.changed = true;
                }
            } else {
                self.suspects.remove(key);
                self.held.remove(key);
                self.times.remove(key);
            }
        }
    }

    /// When a Service that is held and changed may be tried again.
    pub fn due(&self) -> Option<Instant> {
        self.held.values().filter(|hold| hold.changed).map(|hold| hold.until).min()
    }

    /// Lets those go that changed and were held for long enough, or `all`.
    pub fn release(&mut self, now: Instant, all: bool) {
        let free: Vec<_> = self
            .held
            .iter()
            .filter(|(_, hold)| all || (hold.changed && hold.until <= now))
            .map(|(key, _)| key.clone())
            .collect();
        for key in free {
            self.held.remove(&key);
            self.suspects.insert(key);
        }
    }

    /// The Services to leave out now.
    pub fn excluded(&self) -> BTreeSet<ServiceKey> {
        let waiting = self.hunt.iter().flat_map(|hunt| hunt.waiting.iter().flatten());
        self.held.keys().chain(waiting).cloned().collect()
    }

    /// The Services that are held, and why.
    pub fn held(&self) -> impl Iterator<Item = (&ServiceKey, &str)> {
        self.held.iter().map(|(key, hold)| (key, hold.reason.as_str()))
    }

    /// Services that were found guilty since the last call.
    pub fn take_verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.verdicts)
    }

    /// A document was refused for `reason`, by a line about `owners`, if any. `everyone` is suspected if nothing changed.
    pub fn refused(
        &mut self,
        reason: &str,
        owners: Vec<ServiceKey>,
        everyone: impl FnOnce() -> BTreeSet<ServiceKey>,
        now: Instant,
    ) -> Advice {
        let owners = if owners.len() <= FEW { owners } else { Vec::new() };
        match self.hunt.take() {
            None => self.accuse(reason, owners, everyone, now),
            Some(Hunt { stage: Stage::Isolating, .. }) => {
                self.baffled = true;
                Advice::Proceed
            }
            Some(Hunt { stage: Stage::Trying(group), mut waiting, trials }) => {
                let named: Vec<_> = owners.into_iter().filter(|key| group.contains(key)).collect();
                let guilty = if group.len() == 1 { group.clone() } else { named };
                if guilty.is_empty() {
                    let (left, right) = group.split_at(group.len() / 2);
                    waiting.extend([right.to_vec(), left.to_vec()]);
                } else {
                    waiting.push(group.into_iter().filter(|key| !guilty.contains(key)).collect());
                    self.hold(guilty, reason, now);
                }
                self.hunt = Some(Hunt { stage: Stage::Isolating, waiting, trials });
                Advice::Again
            }
        }
    }

    fn accuse(
        &mut self,
        reason: &str,
        owners: Vec<ServiceKey>,
        everyone: impl FnOnce() -> BTreeSet<ServiceKey>,
        now: Instant,
    ) -> Advice {
        if self.baffled {
            return Advice::Proceed;
        }
        if !owners.is_empty() && self.named < MOST_NAMED {
            self.named += 1;
            self.hold(owners, reason, now);
            return Advice::Again;
        }
        self.unnamed += 1;
        if self.unnamed < MOST_UNNAMED {
            return Advice::Proceed;
        }
        let mut suspects = std::mem::take(&mut self.suspects);
        if suspects.is_empty() {
            suspects = everyone();
        }
        let suspects: Vec<_> = suspects.into_iter().filter(|key| !self.held.contains_key(key)).collect();
        if suspects.is_empty() {
            self.baffled = true;
            return Advice::Proceed;
        }
        self.hunt = Some(Hunt { stage: Stage::Isolating, waiting: vec![suspects], trials: 0 });
        Advice::Again
    }

    /// A sync succeeded.
    pub fn succeeded(&mut self, now: Instant) -> Advice {
        self.named = 0;
        self.unnamed = 0;
        self.baffled = false;
        let Some(Hunt { mut waiting, trials, .. }) = self.hunt.take() else {
            self.suspects.clear();
            return Advice::Proceed;
        };
        waiting.retain(|group| !group.is_empty());
        if trials >= MOST_TRIALS {
            let rest = waiting.into_iter().flatten().collect();
            self.hold(rest, "too many Services are refused to tell which", now);
            return Advice::Proceed;
        }
        match waiting.pop() {
            None => Advice::Proceed,
            Some(group) => {
                self.hunt = Some(Hunt { stage: Stage::Trying(group), waiting, trials: trials + 1 });
                Advice::Again
            }
        }
    }

    fn hold(&mut self, services: Vec<ServiceKey>, reason: &str, now: Instant) {
        for service in services {
            self.suspects.remove(&service);
            let times = self.times.entry(service.clone()).or_default();
            let time = SHORTEST.saturating_mul(2_u32.saturating_pow(*times)).min(LONGEST);
            *times = times.saturating_add(1);
            let until = now.checked_add(time).unwrap_or(now);
            self.held.insert(service.clone(), Hold { reason: reason.to_owned(), until, changed: false });
            self.verdicts.push(Verdict { service, reason: reason.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> ServiceKey {
        ServiceKey::new("default", format!("svc-{number:03}"))
    }

    fn keys(numbers: impl IntoIterator<Item = usize>) -> BTreeSet<ServiceKey> {
        numbers.into_iter().map(key).collect()
    }

    /// Syncs until nothing more is to be done at once. Returns how many syncs that took.
    fn settle(quarantine: &mut Quarantine, all: usize, bad: &BTreeSet<ServiceKey>, named: bool) -> usize {
        for sync in 1..1000 {
            let excluded = quarantine.excluded();
            let found: Vec<_> = bad.iter().filter(|key| !excluded.contains(*key)).cloned().collect();
            let now = Instant::now();
            let advice = if found.is_empty() {
                quarantine.succeeded(now)
            } else {
                let owners = if named { found[..1].to_vec() } else { Vec::new() };
                quarantine.refused("no", owners, || keys(0..all), now)
            };
            let waits_for_more = !found.is_empty() && !named && sync < MOST_UNNAMED;
            if advice == Advice::Proceed && !waits_for_more {
                return sync;
            }
        }
        panic!("the hunt does not end");
    }

    #[test]
    fn named_service_is_held_at_once() {
        let mut quarantine = Quarantine::default();
        quarantine.note(&keys(0..100), |_| true);
        assert_eq!(settle(&mut quarantine, 100, &keys([7]), true), 2);
        assert_eq!(quarantine.excluded(), keys([7]));
        assert_eq!(quarantine.take_verdicts(), [Verdict { service: key(7), reason: "no".to_owned() }]);
    }

    #[test]
    fn unnamed_services_are_found_by_halves_and_all_others_are_let_in() {
        for bad in [keys([0]), keys([99]), keys([3, 4, 77])] {
            let mut quarantine = Quarantine::default();
            quarantine.note(&keys(0..100), |_| true);
            let syncs = settle(&mut quarantine, 100, &bad, false);
            assert_eq!(quarantine.excluded(), bad);
            assert!(syncs <= 25 * bad.len() + 4, "{syncs} syncs for {bad:?}");
        }
    }

    #[test]
    fn only_what_changed_is_suspected() {
        let mut quarantine = Quarantine::default();
        quarantine.note(&keys(0..100), |_| true);
        settle(&mut quarantine, 100, &keys([]), false);
        quarantine.note(&keys([5, 6]), |_| true);
        let refused = |quarantine: &mut Quarantine| {
            quarantine.refused("no", Vec::new(), || keys(0..100), Instant::now())
        };
        assert_eq!(refused(&mut quarantine), Advice::Proceed, "it may pass");
        assert_eq!(refused(&mut quarantine), Advice::Proceed);
        assert_eq!(refused(&mut quarantine), Advice::Again);
        assert_eq!(quarantine.excluded(), keys([5, 6]));
    }

    #[test]
    fn failure_that_is_no_services_fault_ends_the_hunt_and_lets_all_in() {
        let mut quarantine = Quarantine::default();
        quarantine.note(&keys(0..100), |_| true);
        let refused = |quarantine: &mut Quarantine| {
            quarantine.refused("no", Vec::new(), || keys(0..100), Instant::now())
        };
        let advice: Vec<_> = (0..4).map(|_| refused(&mut quarantine)).collect();
        assert_eq!(advice, [Advice::Proceed, Advice::Proceed, Advice::Again, Advice::Proceed]);
        assert!(quarantine.excluded().is_empty());
        assert_eq!(refused(&mut quarantine), Advice::Proceed, "no second hunt for the same reason");
    }

    #[test]
    fn hunt_ends_even_if_everything_is_refused() {
        let mut quarantine = Quarantine::default();
        quarantine.note(&keys(0..500), |_| true);
        settle(&mut quarantine, 500, &keys(0..500), false);
        assert_eq!(quarantine.excluded(), keys(0..500));
    }

    #[tokio::test(start_paused = true)]
    async fn held_service_is_tried_again_when_it_changes_and_less_often_each_time() {
        let mut quarantine = Quarantine::default();
        quarantine.note(&keys(0..3), |_| true);
        settle(&mut quarantine, 3, &keys([1]), true);
        assert_eq!(quarantine.due(), None);
        let mut waits = Vec::new();
        for _ in 0..3 {
            quarantine.note(&keys([1]), |_| true);
            let due = quarantine.due().unwrap();
            waits.push(due.duration_since(Instant::now()).as_secs());
            quarantine.release(Instant::now(), false);
            assert_eq!(quarantine.excluded(), keys([1]), "not before its time");
            tokio::time::sleep_until(due).await;
            quarantine.release(Instant::now(), false);
            assert!(quarantine.excluded().is_empty());
            settle(&mut quarantine, 3, &keys([1]), true);
        }
        assert_eq!(waits, [5, 10, 20]);
        quarantine.note(&keys([1]), |_| false);
        assert!(quarantine.excluded().is_empty(), "it is deleted");
    }
}
