//! Churn: random changes of a cluster, one after the other, until told to stop.
//!
//! Invariants: what is changed, and in which order, follows from the seed; how far it gets does not. Every change is made,
//! however long the API server is away: when the churn has stopped, its last change is there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::{
    differential::controller::{
        change::Change,
        script::{Script, Step},
    },
    kubernetes::Kubernetes,
    wait,
};

/// How long the API server may be away.
const OUTAGE: Duration = Duration::from_mins(1);

/// A running churn.
#[derive(Debug)]
pub struct Churn {
    worker: Option<JoinHandle<Result<()>>>,
    end: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
}

impl Churn {
    /// Makes the nodes, namespaces, Pods and Services of a seed, and goes on changing them.
    pub fn start(kubernetes: &Kubernetes, seed: u64) -> Result<Self> {
        // What an earlier churn deleted has the names of what this one makes.
        wait::until_ok("deleted namespaces to be gone", OUTAGE, || {
            let namespaces: Vec<Value> = kubernetes.list("Namespace", "", "")?;
            let going = |namespace: &&Value| namespace["metadata"]["deletionTimestamp"].is_string();
            let left = namespaces.iter().filter(going).count();
            ensure!(left == 0, "{left} are left");
            Ok(())
        })?;
        let mut script = Script::tame(seed);
        for step in [script.first(), script.next(2)] {
            make_all(kubernetes, &step, |_| true)?;
        }
        let (end, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let worker = {
            let (kubernetes, end, made) = (kubernetes.clone(), Arc::clone(&end), Arc::clone(&made));
            std::thread::spawn(move || {
                for number in 3.. {
                    let go_on = |_: &Change| {
                        made.fetch_add(1, Ordering::Relaxed);
                        !end.load(Ordering::Relaxed)
                    };
                    if !make_all(&kubernetes, &script.next(number), go_on)? {
                        break;
                    }
                }
                Ok(())
            })
        };
        Ok(Self { worker: Some(worker), end, made })
    }

    /// How many changes have been made.
    pub fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Waits until so many more changes have been made, which tells that the API server takes them.
    pub fn await_more(&self, changes: usize) -> Result<()> {
        let goal = self.made() + changes;
        let enough = || self.made() >= goal || self.worker.as_ref().is_none_or(JoinHandle::is_finished);
        wait::until_true("changes to be made", OUTAGE, enough, || format!("{} of {goal}", self.made()))
    }

    /// Ends it after the present change. Returns how many were made.
    pub fn stop(mut self) -> Result<usize> {
        self.end.store(true, Ordering::Relaxed);
        let worker = self.worker.take().context("it was stopped before")?;
        worker.join().map_err(|_| anyhow!("the churn panicked"))??;
        Ok(self.made())
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// Makes the changes of a step while `go_on` says so after each; returns whether it did to the end.
fn make_all(kubernetes: &Kubernetes, step: &Step, mut go_on: impl FnMut(&Change) -> bool) -> Result<bool> {
    for change in step.edits.iter().chain(&step.changes) {
        // A refusal is an answer, too: names are used again while what had them is still going.
        wait::until_ok(&format!("the API server to take: {change}"), OUTAGE, || change.make(kubernetes))?;
        if !go_on(change) {
            return Ok(false);
        }
    }
    Ok(true)
}
