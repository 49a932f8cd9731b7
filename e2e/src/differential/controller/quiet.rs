//! Quiet points: touching every Service, and seeing that both sides have answered and are done.

use std::{
    collections::{BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{change::Change, script::Touch, side::Side, state};
use crate::kubernetes;

/// Changes that are made at once on a side.
const PARALLEL: usize = 6;

/// A namespace whose Services tell that touches were seen.
pub const CANARY: &str = "canary";

/// What a glance at an object shows.
#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    metadata: Metadata,
}

#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    uid: String,
    resource_version: String,
    #[serde(default)]
    labels: Labels,
}

#[derive(Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    touched: Option<String>,
}

/// What a glance at a side shows of all that its controllers wrote.
#[derive(Debug, PartialEq, Eq)]
pub struct Glance([BTreeSet<Item>; 2]);

impl Glance {
    /// Looks.
    pub fn at(side: &Side) -> Result<Self> {
        let all = |path| anyhow::Ok(side.all_metadata(path)?.into_iter().collect());
        Ok(Self([all(state::ENDPOINTS)?, all(state::SLICES)?]))
    }

    /// Whether a touch arrived at what is written for both canaries.
    fn answers(&self, mark: &str) -> bool {
        self.0.iter().all(|items| {
            let here = items.iter().filter(|item| item.metadata.namespace == CANARY);
            let marks: Vec<Option<&str>> = here.map(|item| item.metadata.labels.touched.as_deref()).collect();
            marks == [Some(mark); 2]
        })
    }
}

/// Whether, and since when, nothing was written on both sides.
#[derive(Debug)]
pub struct Quiet {
    since: Instant,
    seen: Vec<Glance>,
}

impl Default for Quiet {
    fn default() -> Self {
        Self::new()
    }
}

impl Quiet {
    /// Nothing was seen yet.
    pub fn new() -> Self {
        Self { since: Instant::now(), seen: Vec::new() }
    }

    /// Takes in a glance at both sides; whether they have been like this for so long.
    pub fn look(&mut self, glances: [Glance; 2], time: Duration) -> bool {
        if glances[..] != self.seen[..] {
            *self = Self { since: Instant::now(), seen: glances.into() };
        }
        self.since.elapsed() >= time
    }

    /// Whether a touch of this mark arrived at what both have written.
    pub fn is_answered(&self, mark: &str) -> bool {
        !self.seen.is_empty() && self.seen.iter().all(|glance| glance.answers(mark))
    }
}

/// Makes jobs side by side, those of one subject in their order. What they return is in the order of the jobs.
pub fn in_lanes<T: Sync, R: Send>(
    jobs: &[T],
    subject: impl Fn(&T) -> String,
    job: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut lanes: Vec<Vec<(usize, &T)>> = (0..PARALLEL).map(|_| Vec::new()).collect();
    for (at, one) in jobs.iter().enumerate() {
        let mut hasher = DefaultHasher::new();
        subject(one).hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % (PARALLEL as u64)).unwrap_or_default();
        if let Some(lane) = lanes.get_mut(lane) {
            lane.push((at, one));
        }
    }
    let work = |lane: &Vec<(usize, &T)>| {
        lane.iter().map(|(at, one)| Ok((*at, job(one)?))).collect::<Result<Vec<(usize, R)>>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = lanes.iter().map(|lane| scope.spawn(|| work(lane))).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(joined(worker)?);
        }
        all.sort_by_key(|(at, _)| *at);
        Ok(all.into_iter().map(|(_, result)| result).collect())
    })
}

/// What a thread returned.
pub fn joined<T>(worker: std::thread::ScopedJoinHandle<'_, T>) -> T {
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Touches Services, and what is mirrored, and at last the canaries.
pub fn touch(side: &Side, touches: &[Touch], mark: &str) -> Result<()> {
    let annotation = json!({"metadata": {"annotations": {"touched": mark}}});
    let mut changes = Vec::new();
    for touch in touches {
        let kinds: &[&'static str] = if touch.by_hand { &["Service", "Endpoints"] } else { &["Service"] };
        changes.extend(kinds.iter().map(|kind| Change::Merge {
            kind,
            namespace: touch.namespace.clone(),
            name: touch.name.clone(),
            patch: annotation.clone(),
        }));
    }
    in_lanes(&changes, Change::subject, |change| change.make(side.kubernetes()))?;
    for (kind, name) in [("Service", "selecting"), ("Endpoints", "mirrored")] {
        let patch = json!({"metadata": {"labels": {"touched": mark}}});
        side.kubernetes().merge(kind, CANARY, name, patch)?;
    }
    Ok(())
}

/// The canaries.
pub fn canary() -> [Value; 4] {
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
