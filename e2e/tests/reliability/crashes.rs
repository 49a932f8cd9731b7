//! Crashes of the controller, and others that write the same objects.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use fairlead_e2e::{
    Bed, audit,
    differential::controller::random::Random,
    kubernetes::Kubernetes,
    replica::{Host, Replica},
    wait,
};
use serde_json::{Value, json};

use crate::{WITHOUT_ELECTION, in_churn, rounds, writes};

/// Lives in a round.
const LIVES: usize = 8;
/// The longest life, in milliseconds from the start of the process.
const LIFE: usize = 1200;

pub(crate) fn it_is_killed_at_random_points_of_churn(bed: &mut Bed) -> Result<()> {
    let mut last = in_churn(bed, |bed, _, random| {
        let (mut wrote, lives) = (0, LIVES * rounds()?);
        for _ in 0..lives {
            let before = writes(bed)?.len();
            let mut replica = Replica::launch(bed, Host::nth(0), &[WITHOUT_ELECTION])?;
            wait::watch(Duration::from_millis(random.below(LIFE).try_into()?));
            replica.process.check()?;
            replica.process.kill()?;
            wrote += usize::from(writes(bed)?.len() > before);
        }
        ensure!(wrote > lives / 4, "it wrote in {wrote} of {lives} lives only");
        println!("  killed {lives} times, {wrote} of them after it had begun to write");
        Replica::start(bed, Host::nth(0), &[WITHOUT_ELECTION])
    })?;
    last.process.check()
}

/// Conflicts to be met before the storm ends.
const CONFLICTS: usize = 6;
/// How many others edit at once.
const OTHERS: usize = 3;
/// How often each edits the same few objects before it turns to others.
const ROUNDS: usize = 60;

pub(crate) fn others_edit_its_objects_at_full_speed(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[WITHOUT_ELECTION])?;
    let before = writes(bed)?.len();
    in_churn(bed, |bed, churn, random| {
        let (end, edits) = (AtomicBool::new(false), AtomicUsize::new(0));
        let kubernetes = bed.kubernetes();
        std::thread::scope(|scope| {
            let storm: Vec<_> = (0..OTHERS)
                .map(|_| {
                    let mut random = Random::new(random.below(usize::MAX) as u64);
                    let (end, edits) = (&end, &edits);
                    scope.spawn(move || {
                        while !end.load(Ordering::Relaxed) {
                            edits.fetch_add(hammer(kubernetes, &mut random)?, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            let met = wait::until_ok("conflicts", Duration::from_secs(30), || {
                let conflicts = conflicts(bed, before)?;
                ensure!(conflicts >= CONFLICTS, "{conflicts}");
                Ok(())
            });
            end.store(true, Ordering::Relaxed);
            let stormed: Result<()> = storm
                .into_iter()
                .try_for_each(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            met.and(stormed)
        })?;
        churn.await_more(30)?;
        println!("  {} edits by others, {} conflicts", edits.into_inner(), conflicts(bed, before)?);
        Ok(())
    })?;
    replica.process.check()
}

fn conflicts(bed: &Bed, before: usize) -> Result<usize> {
    let answers = audit::answers(writes(bed)?.get(before..).unwrap_or_default());
    Ok(answers.get(&409).copied().unwrap_or_default())
}

/// Spoils a slice and Endpoints that controllers write again and again, without looking at what is there. Returns how often.
fn hammer(kubernetes: &Kubernetes, random: &mut Random) -> Result<usize> {
    let mut chosen = Vec::new();
    for kind in ["EndpointSlice", "Endpoints"] {
        let mut objects: Vec<Value> = kubernetes.list(kind, "", "")?;
        objects.retain(|object| object["metadata"]["namespace"] != "default");
        chosen.extend(random.pick(&objects).cloned().map(|object| (kind, object)));
    }
    let mut edits = 0;
    for _ in 0..ROUNDS {
        for (kind, object) in &chosen {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let mark = random.below(1000);
            let patch = match *kind {
                "EndpointSlice" if random.chance(50) => json!({"endpoints": []}),
                _ => json!({"metadata": {"labels": {"by-hand": mark.to_string()}}}),
            };
            // It may be gone by now; the storm goes on.
            edits += usize::from(kubernetes.merge(kind, text("namespace"), text("name"), patch).is_ok());
        }
    }
    Ok(edits)
}
