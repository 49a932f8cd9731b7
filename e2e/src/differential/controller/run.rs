//! A script that runs on both sides.
//!
//! Invariant: a step is over when both sides have been touched and quiet, and nothing differs that no exception excuses.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Report,
    change::{Change, Taken},
    compare::{Comparison, Difference},
    complaints::Follower,
    facts,
    quiet::{self, CANARY, Glance, Quiet, joined},
    script::{Script, Step},
    shadow::Shadow,
    side::{ENDPOINTS_PER_SLICE, MIRRORED_PER_SUBSET, Side},
    state::{self, Key, Made, Written},
    takeover::{self, Unwanted},
};
use crate::{programs::Make, wait};

/// How long nothing may have been written to call a side quiet.
const QUIET: Duration = Duration::from_millis(300);
/// How long a look at both sides waits for the next.
const PAUSE: Duration = Duration::from_millis(100);
/// When Services that differ are touched again: the touch may have come before an older change on another watch, and what
/// kube-controller-manager complains of for good it has to complain of twice.
const TOUCH_AGAIN: Duration = Duration::from_millis(1200);
/// How long the sides may differ. kube-controller-manager repeats what failed after 1, 2, 4, ... seconds.
const DEADLINE: Duration = Duration::from_secs(25);
/// How long deleted namespaces may take to go, in the end.
const GONE_DEADLINE: Duration = Duration::from_mins(1);
/// Differences that are told.
const TOLD: usize = 3;

/// A running script.
#[derive(Debug)]
pub struct Run {
    // Asks a process of a side.
    shadow: Shadow,
    sides: [Side; 2],
    make: Make,
    script: Script,
    comparison: Comparison,
    complaints: Follower,
    report: Report,
}

/// What is wrong at a quiet point.
#[derive(Debug)]
struct Problem {
    /// The Services that it is about.
    keys: BTreeSet<Key>,
    text: String,
}

impl Run {
    /// Starts both sides.
    pub fn start(seed: u64, make: Make) -> Result<Self> {
        let (kcm, ours) = std::thread::scope(|scope| {
            let kcm = scope.spawn(|| {
                let mut side = Side::start("kcm", Make::Genuine)?;
                let shadow = side.start_shadow()?;
                anyhow::Ok((side, shadow))
            });
            let ours = Side::start("ours", make);
            (joined(kcm), ours)
        });
        let (kcm, shadow) = kcm?;
        let run = Self {
            shadow,
            sides: [kcm, ours?],
            make,
            script: Script::new(seed),
            comparison: Comparison::default(),
            complaints: Follower::default(),
            report: Report::default(),
        };
        run.both(|side| {
            quiet::canary().iter().try_for_each(|object| side.kubernetes().apply(object).map(drop))
        })?;
        Ok(run)
    }

    /// Makes a step, counted from 1.
    pub fn step(&mut self, number: usize) -> Result<()> {
        let began = Instant::now();
        let step = self.script.step(number);
        self.make(&step.edits)?;
        self.make(&step.changes)?;
        self.settle(number, &step)?;
        self.sides.iter_mut().try_for_each(Side::check)?;
        self.report.slowest = self.report.slowest.max((began.elapsed(), number));
        Ok(())
    }

    /// What was in deleted namespaces goes, too.
    pub fn finish(mut self) -> Result<Report> {
        let mut kept = self.script.namespaces();
        kept.extend([CANARY, "default"].map(str::to_owned));
        for side in &self.sides {
            let what = format!("deleted namespaces of {} to go", side.name());
            wait::until_ok(&what, GONE_DEADLINE, || {
                let written = Written::of(side)?;
                let all = written.endpoints.iter().chain(&written.slices);
                let left: BTreeSet<String> = all.map(|object| state::key(object).0).collect();
                let left: Vec<&String> = left.iter().filter(|name| !kept.contains(*name)).collect();
                ensure!(left.is_empty(), "there are still objects in {left:?}");
                Ok(())
            })?;
        }
        self.report.exceptions = self.comparison.used;
        self.report.shadowed = self.shadow.comparisons();
        Ok(self.report)
    }

    /// Does the same on both sides, at once.
    fn both<T: Send>(&self, job: impl Fn(&Side) -> Result<T> + Sync) -> Result<[T; 2]> {
        let [kcm, ours] = &self.sides;
        let (kcm, ours) = std::thread::scope(|scope| {
            let kcm = scope.spawn(|| job(kcm));
            let ours = job(ours);
            (joined(kcm), ours)
        });
        Ok([kcm?, ours?])
    }

    /// Makes changes; both API servers have to take or refuse each alike, but for hand edits of Endpoints that one side is
    /// known to have otherwise, or not at all.
    fn make(&mut self, changes: &[Change]) -> Result<()> {
        let [kcm, ours] = self.both(|side| make(side, changes))?;
        self.report.changes += changes.len();
        for ((change, kcm), ours) in changes.iter().zip(kcm).zip(ours) {
            let key = change.endpoints_key();
            let alike = kcm == ours || key.is_some_and(|key| self.comparison.is_frozen(&key));
            ensure!(alike, "the sides took a change differently, kcm {kcm:?}, ours {ours:?}: {change}");
            self.report.refused += usize::from(kcm.is_some());
        }
        Ok(())
    }

    /// Touches every Service and waits until both sides are quiet and have the same.
    fn settle(&mut self, number: usize, step: &Step) -> Result<()> {
        let began = Instant::now();
        let mut quiet = Quiet::new();
        while !quiet.look(self.both(Glance::at)?, QUIET / 2) {
            ensure!(
                began.elapsed() < DEADLINE,
                "gave up after {DEADLINE:?} waiting for both sides to be quiet"
            );
            wait::watch(PAUSE);
        }
        let made = self.both(Made::of)?;
        let services = self.script.touches();
        let mut chosen = services.clone();
        let mut differed: BTreeSet<Key> = BTreeSet::new();
        self.complaints.begin(&self.sides[0].log());
        for round in 0.. {
            let touch = Instant::now();
            let mark = format!("{number}.{round}");
            self.both(|side| quiet::touch(side, &chosen, &mark))?;
            let written = self.answer(&mark)?;
            let Some(problem) = self.judge(&made, &written, step)? else {
                break;
            };
            ensure!(began.elapsed() < DEADLINE, "{}", problem.text);
            let about: Vec<&str> = problem.text.lines().take(3).collect();
            println!("step {number}, {:.1?}: {}", began.elapsed(), about.join(" | "));
            wait::watch(TOUCH_AGAIN.saturating_sub(touch.elapsed()));
            self.complaints.turn(&self.sides[0].log());
            // Also those that are excused by now: what is complained of for good is complained of at each touch.
            differed.extend(problem.keys);
            chosen = services.iter().filter(|touch| differed.contains(&touch.key())).cloned().collect();
        }
        self.complaints.settle(&self.sides[0].log());
        Ok(())
    }

    /// Waits until both sides have answered a touch and are quiet, and says what they have then.
    fn answer(&self, mark: &str) -> Result<[Written; 2]> {
        let began = Instant::now();
        let mut quiet = Quiet::new();
        loop {
            let still = quiet.look(self.both(Glance::at)?, QUIET);
            let seen = quiet.is_answered(mark);
            if still && seen {
                return self.both(Written::of);
            }
            ensure!(
                began.elapsed() < DEADLINE,
                "gave up after {DEADLINE:?} waiting for both sides to be quiet (touches answered: {seen})"
            );
            wait::watch(PAUSE);
        }
    }

    /// What is wrong, if anything.
    fn judge(&mut self, made: &[Made; 2], written: &[Written; 2], step: &Step) -> Result<Option<Problem>> {
        let namespaces = self.script.namespaces();
        let script = &self.script;
        let [kcm, ours] = [0, 1].map(|side: usize| {
            state::comparable(&made[side], &written[side], &namespaces, |(namespace, name)| {
                script.is_fresh(namespace, name)
            })
        });
        let complaints = self.complaints.repeated(&self.sides[0].log());
        self.comparison.note(&ours, facts::of(&made[1]), complaints);
        let differences = self.comparison.differences(&kcm, &ours);
        if !differences.is_empty() {
            return Ok(Some(self.tell(&differences, made, written, step)));
        }
        self.report.compared += kcm.len();
        self.report.truncated += ours.values().filter(|objects| state::is_truncated(objects)).count();
        if self.make == Make::Genuine {
            // Nothing of ours is there to say which Endpoints the genuine controllers could not write.
            return Ok(None);
        }
        let mut unwanted = self.unwanted(made, written, &namespaces)?;
        unwanted.extend(self.diverging(&namespaces)?);
        let text: Vec<&str> = unwanted.iter().take(TOLD).map(|(_, text)| text.as_str()).collect();
        let text = text.join("\n");
        let keys: BTreeSet<Key> = unwanted.into_iter().map(|(key, _)| key).collect();
        Ok((!keys.is_empty()).then(|| Problem { text: text + &self.logs_about(&keys), keys }))
    }

    /// What the planner would write on either side.
    fn unwanted(
        &mut self,
        made: &[Made; 2],
        written: &[Written; 2],
        namespaces: &BTreeSet<String>,
    ) -> Result<Vec<(Key, String)>> {
        let mut all = Vec::new();
        for (at, side) in self.sides.iter().enumerate() {
            oversized(&written[at], namespaces)?;
            let found = takeover::unwanted(&made[at], &written[at], namespaces)?;
            let comparison = &mut self.comparison;
            let unexcused = found.into_iter().filter(|Unwanted { key, part, hints_only, .. }| {
                at == 1 || comparison.excuse_write(key, *part, *hints_only).is_none()
            });
            all.extend(unexcused.map(|unwanted| {
                let (namespace, name) = &unwanted.key;
                let text =
                    format!("on {}, the planner would {namespace}/{name}: {}", side.name(), unwanted.write);
                (unwanted.key, text)
            }));
        }
        Ok(all)
    }

    /// What the shadow complains of.
    fn diverging(&mut self, namespaces: &BTreeSet<String>) -> Result<Vec<(Key, String)>> {
        let mut all = Vec::new();
        for divergence in self.shadow.divergences()? {
            let key = divergence.key();
            let within = namespaces.contains(&key.0);
            let hints_only = divergence.hints_only();
            if within && self.comparison.excuse_write(&key, divergence.part()?, hints_only).is_none() {
                all.push((key, format!("the shadow says: {}", divergence.tell())));
            }
        }
        Ok(all)
    }

    fn logs_about(&self, keys: &BTreeSet<Key>) -> String {
        let words: Vec<String> =
            keys.iter().take(TOLD).map(|(namespace, name)| format!("{namespace}/{name}")).collect();
        self.sides.iter().map(|side| side.log_about(&words)).collect()
    }

    /// What differs, what it is about, and what was done to it last.
    fn tell(
        &self,
        differences: &[Difference],
        made: &[Made; 2],
        written: &[Written; 2],
        step: &Step,
    ) -> Problem {
        let mut text = format!("{} Services differ", differences.len());
        for difference in differences.iter().take(TOLD) {
            let _infallible = write!(text, "\n{difference}");
            for (side, (made, written)) in self.sides.iter().zip(made.iter().zip(written)) {
                let name = side.name();
                for object in there(&difference.key, made, written) {
                    let _infallible = write!(text, "\n  {name} has {object}");
                }
            }
        }
        let keys: BTreeSet<Key> = differences.iter().map(|difference| difference.key.clone()).collect();
        let namespaces: BTreeSet<String> =
            keys.iter().take(TOLD).map(|(namespace, _)| format!(" {namespace}/")).collect();
        text.push_str("\nchanges of this step there:");
        for change in step.edits.iter().chain(&step.changes) {
            let subject = change.subject();
            let near = namespaces.iter().any(|namespace| subject.contains(namespace.as_str()));
            if near || subject.starts_with("Node ") {
                let _infallible = write!(text, "\n  {change}");
            }
        }
        text.push_str(&self.logs_about(&keys));
        Problem { keys, text }
    }
}

/// The objects of a Service, in full but for managed fields.
fn there(key: &Key, made: &Made, written: &Written) -> Vec<Value> {
    let services = made.services.iter().filter(|service| state::key(service) == *key);
    let endpoints = written.endpoints.iter().filter(|endpoints| state::key(endpoints) == *key);
    let slices = written.slices.iter().filter(|slice| state::service_of(slice) == *key);
    let mut objects: Vec<Value> = services.chain(endpoints).chain(slices).cloned().collect();
    for object in &mut objects {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    }
    objects
}

fn make(side: &Side, changes: &[Change]) -> Result<Vec<Taken>> {
    // Namespaces have to be there for what is in them.
    let (first, others): (Vec<_>, Vec<_>) =
        changes.iter().enumerate().partition(|(_, change)| change.subject().starts_with("Namespace "));
    let one = |&(at, change): &(usize, &Change)| Ok((at, change.make(side.kubernetes())?));
    let mut taken: Vec<(usize, Taken)> = first.iter().map(one).collect::<Result<_>>()?;
    taken.extend(quiet::in_lanes(&others, |(_, change)| change.subject(), one)?);
    taken.sort_by_key(|(at, _)| *at);
    Ok(taken.into_iter().map(|(_, taken)| taken).collect())
}

fn oversized(written: &Written, namespaces: &BTreeSet<String>) -> Result<()> {
    for slice in written.slices.iter().filter(|slice| namespaces.contains(&state::key(slice).0)) {
        let mirrored = slice["metadata"]["ownerReferences"][0]["kind"] == "Endpoints";
        let most = if mirrored { MIRRORED_PER_SUBSET } else { ENDPOINTS_PER_SLICE };
        let size = slice["endpoints"].as_array().map_or(0, Vec::len);
        ensure!(size <= most, "a slice of {:?} holds {size} endpoints", state::service_of(slice));
    }
    Ok(())
}
