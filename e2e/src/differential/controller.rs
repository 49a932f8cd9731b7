//! Fairlead's controller against kube-controller-manager's three endpoint controllers.
//!
//! A script of random changes (`script`) runs on two clusters (`side`) that differ in their endpoint controllers only.
//! After each step every Service is touched on both, so that events that kube-controller-manager is known to miss do not
//! show, and when both are quiet (`quiet`) they have to have the same (`state`, `compare`): per Service, family and port set
//! the endpoints, labels, annotations, owners; slices within their maximum, and of the same sizes where nothing was deleted
//! since the Service was made. Also the planner has to find nothing to do on either (`takeover`), and nor has Fairlead's
//! controller in shadow mode beside the genuine ones (`shadow`). What may differ is in `exception`.
//!
//! Environment: `FAIRLEAD_SEED` runs another script; `FAIRLEAD_STEPS` says how long it is (100 steps); `FAIRLEAD_MINUTES` runs
//! script after script, each of another seed and on new clusters, for so long; `FAIRLEAD_CONTROLLER=genuine` runs the genuine
//! controllers on both sides, which shows what the comparison itself is worth.

pub mod change;
pub mod compare;
pub mod complaints;
pub mod crowd;
pub mod endpoints;
pub mod exception;
pub mod facts;
#[cfg(test)]
mod faults;
pub mod pod;
pub mod quiet;
pub mod random;
pub mod run;
pub mod script;
pub mod service;
pub mod shadow;
pub mod side;
pub mod state;
pub mod takeover;

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use self::{exception::Exception, run::Run};
use crate::programs::Make;

/// Steps of a script, unless the environment says otherwise.
const STEPS: usize = 100;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What the script follows from.
    pub seed: u64,
    /// Steps of a script.
    pub steps: usize,
    /// How long to run script after script; one script only if there is none.
    pub time: Option<Duration>,
    /// Whose controllers to compare with the genuine ones.
    pub make: Make,
}

impl Settings {
    /// From the environment. One script is always the same, so that a change is judged by what it changed; a long run
    /// begins somewhere else each time.
    pub fn from_env() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let value = std::env::var(name).ok();
            value.map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
        };
        let time = number("FAIRLEAD_MINUTES")?.map(Duration::from_mins);
        let first = match time {
            None => 1,
            Some(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        Ok(Self {
            seed: number("FAIRLEAD_SEED")?.unwrap_or(first),
            steps: number("FAIRLEAD_STEPS")?.map_or(Ok(STEPS), usize::try_from)?,
            time,
            make: Make::from_env("FAIRLEAD_CONTROLLER")?,
        })
    }
}

/// What a script came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Changes that were made.
    pub changes: usize,
    /// Of these, refused by both API servers.
    pub refused: usize,
    /// How often a Service was compared.
    pub compared: usize,
    /// Of these, with truncated Endpoints.
    pub truncated: usize,
    /// How often the shadow looked at a Service.
    pub shadowed: u64,
    /// The slowest step, and which it was.
    pub slowest: (Duration, usize),
    /// How often each exception was needed.
    pub exceptions: BTreeMap<Exception, usize>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { changes, refused, compared, truncated, shadowed, slowest, exceptions } = self;
        write!(f, "{changes} changes ({refused} refused by both API servers), ")?;
        write!(f, "{compared} comparisons of Services ({truncated} truncated), {shadowed} by the shadow, ")?;
        write!(f, "slowest step {:.1?} (the {}th), exceptions {exceptions:?}", slowest.0, slowest.1)
    }
}

/// Runs a script, or as many as there is time for. Tells of each when it went well.
pub fn run(settings: Settings) -> Result<()> {
    let began = Instant::now();
    for seed in settings.seed.. {
        let Settings { steps, make, .. } = settings;
        println!("seed {seed}, {steps} steps");
        let start = Instant::now();
        let report = script(seed, steps, make).with_context(|| {
            format!("run the script again with FAIRLEAD_SEED={seed} FAIRLEAD_STEPS={steps}")
        })?;
        println!("seed {seed}: {:.0?}, {report}", start.elapsed());
        if settings.time.is_none_or(|time| began.elapsed() >= time) {
            break;
        }
    }
    Ok(())
}

fn script(seed: u64, steps: usize, make: Make) -> Result<Report> {
    let mut run = Run::start(seed, make)?;
    for step in 1..=steps {
        run.step(step).with_context(|| format!("seed {seed}, step {step}"))?;
    }
    run.finish()
}
