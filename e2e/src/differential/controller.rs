//! Fairlead's controller against kube-controller-manager's three endpoint controllers.
//!
//! A script of random changes (`script`) runs on two clusters (`side`) that differ in their endpoint controllers only.
//! After each step every Service is touched on both, so that events that kube-controller-manager is known to miss do not
//! show, and when both are quiet they have to have the same (`state`, `compare`): per Service, family and port set the
//! endpoints, labels, annotations, owners; slices within their maximum, and of the same sizes where nothing was deleted
//! since the Service was made. Also the planner has to find nothing to do on either (`takeover`).
//!
//! Environment: `FAIRLEAD_SEED` runs another script; `FAIRLEAD_STEPS` and `FAIRLEAD_MINUTES` say how long it is (25 steps;
//! with minutes, as many steps as fit); `FAIRLEAD_TOPOLOGY_AUTO=1` adds topology mode `Auto`;
//! `FAIRLEAD_CONTROLLER=genuine` runs the genuine controllers on both sides, which shows what the comparison itself is
//! worth.

pub mod change;
pub mod compare;
pub mod endpoints;
pub mod pod;
pub mod random;
pub mod script;
pub mod service;
pub mod side;
pub mod state;
pub mod takeover;

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    fmt::Write as _,
    hash::{Hash, Hasher},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use self::{
    change::{Change, Taken},
    compare::{Comparison, Difference},
    script::{Options, Script, Step, Touch},
    side::{ENDPOINTS_PER_SLICE, MIRRORED_PER_SUBSET, Side},
    state::{Made, Written},
};
use crate::{kubernetes, programs::Make, wait};

/// How long nothing may have been written to call a side quiet.
const QUIET: Duration = Duration::from_millis(300);
/// How long a look at both sides waits for the next.
const PAUSE: Duration = Duration::from_millis(60);
/// When all Services are touched again: a touch may have come before an older change on another watch.
const TOUCH_AGAIN: Duration = Duration::from_secs(4);
/// How long the sides may differ. kube-controller-manager repeats what failed after 1, 2, 4, ... seconds.
const DEADLINE: Duration = Duration::from_secs(25);
/// How long deleted namespaces may take to go, in the end.
const GONE_DEADLINE: Duration = Duration::from_mins(1);
/// Changes that are made at once on a side.
const PARALLEL: usize = 4;
/// Differences that are told.
const TOLD: usize = 3;
/// A namespace whose Services tell that touches were seen.
const CANARY: &str = "canary";

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What the script follows from.
    pub seed: u64,
    /// Steps, at most.
    pub steps: usize,
    /// How long, at most.
    pub time: Option<Duration>,
    /// What the script holds.
    pub options: Options,
    /// Whose controllers to compare with the genuine ones.
    pub make: Make,
}

impl Settings {
    /// From the environment; without a seed there, always the same one, so that a change is judged by what it changed.
    pub fn from_env() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let value = std::env::var(name).ok();
            value.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
        };
        let minutes = number("FAIRLEAD_MINUTES")?;
        let steps = match (number("FAIRLEAD_STEPS")?, minutes) {
            (Some(steps), _) => usize::try_from(steps)?,
            (None, Some(_)) => usize::MAX,
            (None, None) => 25,
        };
        Ok(Self {
            seed: number("FAIRLEAD_SEED")?.unwrap_or(1),
            steps,
            time: minutes.map(Duration::from_mins),
            options: Options { topology_auto: number("FAIRLEAD_TOPOLOGY_AUTO")? == Some(1) },
            make: Make::from_env("FAIRLEAD_CONTROLLER")?,
        })
    }

    /// How to run the same again, after it failed in a step.
    fn again(&self, step: usize) -> String {
        let auto = if self.options.topology_auto { " FAIRLEAD_TOPOLOGY_AUTO=1" } else { "" };
        format!("run it again with FAIRLEAD_SEED={} FAIRLEAD_STEPS={step}{auto}", self.seed)
    }
}

/// Runs a script. Returns what to tell when it went well.
pub fn run(settings: Settings) -> Result<String> {
    let began = Instant::now();
    let mut run = Run::start(settings)?;
    let up = began.elapsed();
    let mut step = 0;
    while step < settings.steps && settings.time.is_none_or(|time| began.elapsed() < time) {
        step += 1;
        run.step(step).with_context(|| format!("step {step}; {}", settings.again(step)))?;
    }
    run.await_gone().with_context(|| settings.again(step))?;
    let exceptions: Vec<String> =
        run.comparison.used.iter().map(|(exception, times)| format!("{exception:?} {times} times")).collect();
    Ok(format!(
        "{step} steps, {} changes ({} refused by both API servers), {} comparisons of Services, slowest step {:.1?}, \
         {:.0?} in all ({up:.1?} to start); exceptions: {}",
        run.changes,
        run.refused,
        run.compared,
        run.slowest,
        began.elapsed(),
        if exceptions.is_empty() { "none".to_owned() } else { exceptions.join(", ") },
    ))
}

#[derive(Debug)]
struct Run {
    sides: [Side; 2],
    script: Script,
    comparison: Comparison,
    make: Make,
    changes: usize,
    refused: usize,
    compared: usize,
    slowest: Duration,
}

impl Run {
    fn start(settings: Settings) -> Result<Self> {
        let (kcm, ours) = std::thread::scope(|scope| {
            let kcm = scope.spawn(|| Side::start("kcm", Make::Genuine));
            let ours = Side::start("ours", settings.make);
            (joined(kcm), ours)
        });
        let run = Self {
            sides: [kcm?, ours?],
            script: Script::new(settings.seed, settings.options),
            comparison: Comparison::default(),
            make: settings.make,
            changes: 0,
            refused: 0,
            compared: 0,
            slowest: Duration::ZERO,
        };
        run.both(|side| canary().iter().try_for_each(|object| side.kubernetes().apply(object).map(drop)))?;
        Ok(run)
    }

    fn step(&mut self, number: usize) -> Result<()> {
        let began = Instant::now();
        let step = if number == 1 { self.script.first() } else { self.script.next(number) };
        self.make(&step.edits)?;
        self.make(&step.changes)?;
        self.settle(number, &step)?;
        self.sides.iter_mut().try_for_each(Side::check)?;
        self.slowest = self.slowest.max(began.elapsed());
        Ok(())
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
        self.changes += changes.len();
        for ((change, kcm), ours) in changes.iter().zip(kcm).zip(ours) {
            let key = change.endpoints_key();
            let alike = kcm == ours || key.is_some_and(|key| self.comparison.is_frozen(&key));
            ensure!(alike, "the sides took a change differently, kcm {kcm:?}, ours {ours:?}: {change}");
            self.refused += usize::from(kcm.is_some());
        }
        Ok(())
    }

    /// Touches every Service and waits until both sides are quiet and have the same.
    fn settle(&mut self, number: usize, step: &Step) -> Result<()> {
        let began = Instant::now();
        let mut quiet = Quiet::new();
        while !quiet.look(self.both(Written::of)?, QUIET / 2) {
            ensure!(
                began.elapsed() < DEADLINE,
                "gave up after {DEADLINE:?} waiting for both sides to be quiet"
            );
            wait::watch(PAUSE);
        }
        let made = self.both(Made::of)?;
        let touches = self.script.touches();
        self.comparison.stuck.clear();
        let mut logged = self.sides[0].log().len();
        let mut last_touch = Instant::now();
        let mut mark = format!("{number}.0");
        self.both(|side| touch(side, &touches, &mark))?;
        let mut quiet = Quiet::new();
        loop {
            let written = self.both(Written::of)?;
            let seen = written.iter().all(|written| sings(written, &mark));
            let still = quiet.look(written, QUIET);
            if seen
                && still
                && let Some(written) = &quiet.written
            {
                let problem = match quiet.judged.take() {
                    Some(problem) => problem,
                    None => self.judge(&made, &written.clone(), step)?,
                };
                if problem.is_empty() {
                    return Ok(());
                }
                if began.elapsed() > DEADLINE {
                    bail!("{problem}");
                }
                quiet.judged = Some(problem);
            }
            if began.elapsed() > DEADLINE * 2 {
                let said = quiet.judged.unwrap_or_default();
                bail!("gave up waiting for both sides to be quiet (touches seen: {seen}) {said}");
            }
            if last_touch.elapsed() > TOUCH_AGAIN {
                // What it complains of since it was touched last, it would complain of for good.
                let log = self.sides[0].log();
                self.comparison.stuck = compare::stuck(log.get(logged..).unwrap_or_default());
                logged = log.len();
                quiet.judged = None;
                last_touch = Instant::now();
                mark = format!("{number}.{}", began.elapsed().as_secs());
                self.both(|side| touch(side, &touches, &mark))?;
            }
            wait::watch(PAUSE);
        }
    }

    /// What is wrong; empty when nothing is.
    fn judge(&mut self, made: &[Made; 2], written: &[Written; 2], step: &Step) -> Result<String> {
        let namespaces: BTreeSet<&str> = self.script.namespaces().collect();
        let script = &self.script;
        let [kcm, ours] = [0, 1].map(|side: usize| {
            state::comparable(&made[side], &written[side], &namespaces, |(namespace, name)| {
                script.is_fresh(namespace, name)
            })
        });
        let managed: BTreeSet<state::Key> =
            made[1].services.iter().filter(|service| is_managed(service)).map(state::key).collect();
        self.comparison.note(&ours, |key| managed.contains(key));
        let differences = self.comparison.differences(&kcm, &ours);
        if !differences.is_empty() {
            let words: Vec<String> = differences
                .iter()
                .take(TOLD)
                .map(|difference| format!("{}/{}", difference.key.0, difference.key.1))
                .collect();
            let logs: Vec<String> = self.sides.iter().map(|side| side.log_about(&words)).collect();
            return Ok(tell(&differences, &made[0], step) + &logs.concat());
        }
        self.compared += kcm.len();
        if self.make == Make::Genuine {
            // Nothing of ours is there to say which Endpoints the genuine controllers could not write.
            return Ok(String::new());
        }
        for ((side, made), written) in self.sides.iter().zip(made).zip(written) {
            oversized(written, &namespaces)?;
            let comparison = &self.comparison;
            let lines = takeover::unwanted(made, written, &namespaces, |key| comparison.is_frozen(key))?;
            if !lines.is_empty() {
                let lines: Vec<&str> = lines.iter().take(TOLD).map(String::as_str).collect();
                return Ok(format!(
                    "the planner finds something to do on {}:\n{}",
                    side.name(),
                    lines.join("\n")
                ));
            }
        }
        Ok(String::new())
    }

    /// What was in deleted namespaces goes, too.
    fn await_gone(&self) -> Result<()> {
        let kept: BTreeSet<&str> = self.script.namespaces().chain([CANARY, "default"]).collect();
        for side in &self.sides {
            let what = format!("deleted namespaces of {} to go", side.name());
            wait::until_ok(&what, GONE_DEADLINE, || {
                let written = Written::of(side)?;
                let left: BTreeSet<String> = written
                    .endpoints
                    .iter()
                    .chain(&written.slices)
                    .map(|object| state::key(object).0)
                    .collect();
                let left: Vec<&String> = left.iter().filter(|name| !kept.contains(name.as_str())).collect();
                ensure!(left.is_empty(), "there are still objects in {left:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Whether, and since when, nothing was written on both sides.
#[derive(Debug)]
struct Quiet {
    since: Instant,
    versions: Vec<BTreeSet<String>>,
    written: Option<[Written; 2]>,
    /// What was found wrong with what is there now.
    judged: Option<String>,
}

impl Quiet {
    fn new() -> Self {
        Self { since: Instant::now(), versions: Vec::new(), written: None, judged: None }
    }

    fn look(&mut self, written: [Written; 2], time: Duration) -> bool {
        let versions: Vec<_> = written.iter().map(Written::versions).collect();
        if versions != self.versions {
            *self = Self { versions, written: Some(written), ..Self::new() };
        }
        self.since.elapsed() >= time
    }
}

fn make(side: &Side, changes: &[Change]) -> Result<Vec<Taken>> {
    // Namespaces have to be there for what is in them.
    let is_namespace = |change: &Change| change.subject().starts_with("Namespace ");
    let mut taken: BTreeMap<usize, Taken> = BTreeMap::new();
    for (at, change) in changes.iter().enumerate().filter(|(_, change)| is_namespace(change)) {
        taken.insert(at, change.make(side.kubernetes())?);
    }
    let mut lanes: Vec<Vec<(usize, &Change)>> = vec![Vec::new(); PARALLEL];
    for (at, change) in changes.iter().enumerate().filter(|(_, change)| !is_namespace(change)) {
        lanes[lane(&change.subject())].push((at, change));
    }
    let made = in_lanes(&lanes, |(at, change)| Ok((*at, change.make(side.kubernetes())?)))?;
    taken.extend(made);
    Ok(taken.into_values().collect())
}

fn lane(subject: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    subject.hash(&mut hasher);
    usize::try_from(hasher.finish() % (PARALLEL as u64)).unwrap_or_default()
}

fn in_lanes<T: Sync, R: Send>(lanes: &[Vec<T>], job: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = lanes
            .iter()
            .map(|lane| scope.spawn(|| lane.iter().map(&job).collect::<Result<Vec<R>>>()))
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(joined(worker)?);
        }
        Ok(all)
    })
}

fn joined<T>(worker: std::thread::ScopedJoinHandle<'_, T>) -> T {
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Touches all Services, and what is mirrored, and at last the canaries.
fn touch(side: &Side, touches: &[Touch], mark: &str) -> Result<()> {
    let annotation = json!({"metadata": {"annotations": {"touched": mark}}});
    let mut lanes: Vec<Vec<Change>> = vec![Vec::new(); PARALLEL];
    for touch in touches {
        let merge = |kind| Change::Merge {
            kind,
            namespace: touch.namespace.clone(),
            name: touch.name.clone(),
            patch: annotation.clone(),
        };
        let lane = &mut lanes[lane(&touch.name)];
        lane.push(merge("Service"));
        if touch.by_hand {
            lane.push(merge("Endpoints"));
        }
    }
    in_lanes(&lanes, |change| change.make(side.kubernetes()))?;
    for (kind, name) in [("Service", "selecting"), ("Endpoints", "mirrored")] {
        let patch = json!({"metadata": {"labels": {"touched": mark}}});
        side.kubernetes().merge(kind, CANARY, name, patch)?;
    }
    Ok(())
}

fn canary() -> [Value; 4] {
    let metadata = |name: &str| json!({"name": name, "namespace": CANARY});
    let ports = json!([{"port": 80}]);
    [
        kubernetes::namespace(CANARY),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("selecting"),
            "spec": {"ports": ports, "selector": {"app": "none"}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata("mirrored"), "spec": {"ports": ports}}),
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata("mirrored"),
            "subsets": [{"addresses": [{"ip": "10.70.0.1"}], "ports": ports}]}),
    ]
}

/// Whether a touch arrived at what is written for the canaries.
fn sings(written: &Written, mark: &str) -> bool {
    let marked = |object: &Value| object["metadata"]["labels"]["touched"] == mark;
    let here = |object: &&Value| state::key(object).0 == CANARY;
    let mut slices = written.slices.iter().filter(here);
    written.endpoints.iter().filter(here).count() == 2
        && written.endpoints.iter().filter(here).all(marked)
        && written.slices.iter().filter(here).count() == 2
        && slices.all(marked)
}

fn is_managed(service: &Value) -> bool {
    service["spec"]["selector"].is_object() && service["spec"]["type"] != "ExternalName"
}

fn oversized(written: &Written, namespaces: &BTreeSet<&str>) -> Result<()> {
    for slice in written.slices.iter().filter(|slice| namespaces.contains(state::key(slice).0.as_str())) {
        let mirrored = slice["metadata"]["ownerReferences"][0]["kind"] == "Endpoints";
        let most = if mirrored { MIRRORED_PER_SUBSET } else { ENDPOINTS_PER_SLICE };
        let size = slice["endpoints"].as_array().map_or(0, Vec::len);
        ensure!(size <= most, "a slice of {:?} holds {size} endpoints", state::service_of(slice));
    }
    Ok(())
}

/// What differs, what it is about, and what was done to it last.
fn tell(differences: &[Difference], made: &Made, step: &Step) -> String {
    let mut text = format!("{} Services differ", differences.len());
    for difference in differences.iter().take(TOLD) {
        let service = made.services.iter().find(|service| state::key(service) == difference.key);
        let spec = service.map_or_else(|| "none".to_owned(), |service| service["spec"].to_string());
        let _infallible = write!(text, "\n{difference}\n  spec: {spec}");
    }
    let namespaces: BTreeSet<&str> =
        differences.iter().take(TOLD).map(|difference| difference.key.0.as_str()).collect();
    text.push_str("\nchanges of this step there:");
    for change in step.edits.iter().chain(&step.changes) {
        let subject = change.subject();
        if namespaces.iter().any(|namespace| subject.contains(&format!(" {namespace}/")))
            || subject.starts_with("Node ")
        {
            let _infallible = write!(text, "\n  {change}");
        }
    }
    text
}
