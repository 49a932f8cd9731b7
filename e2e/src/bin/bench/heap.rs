//! What Pods cost in memory: as Kubernetes' own type, as they are read, and in the controller's index.
//!
//! Each is held by a process of its own, whose resident set says what holding them adds. (`controller/tests/heap.rs` counts the
//! bytes that are asked for, and asserts a budget.)

use std::{env, fs, hint::black_box, process::Command};

use anyhow::{Context, Result, ensure};
use fairlead_controller::index::{Index, Kind};
use fairlead_objects::{
    PodObject,
    builders::{RealisticPods, Workload},
};
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;

use crate::report::{heading, row};

/// Tells a process what to hold.
const HOLD: &str = "FAIRLEAD_BENCH_HOLD";

const PODS: usize = 50_000;
/// Kubernetes' own type would need gigabytes for all.
const FEW: usize = 5_000;

/// What is held, of which workload, and how many.
const CASES: [(&str, &str, Workload, usize); 4] = [
    ("full", "Kubernetes' own type", Workload::Deployment, FEW),
    ("lean", "as they are read", Workload::Deployment, FEW),
    ("index", "in the index, of Deployments", Workload::Deployment, PODS),
    ("index-sets", "in the index, of StatefulSets", Workload::StatefulSet, PODS),
];

/// Measures all; in a process that [`HOLD`] asks for, one.
pub(crate) fn measure() -> Result<()> {
    if let Ok(asked) = env::var(HOLD) {
        let case = CASES.into_iter().find(|(name, ..)| *name == asked);
        let (name, _, workload, count) = case.with_context(|| format!("{HOLD}={asked}"))?;
        println!("{}", held(name, &RealisticPods::new(workload, count))?);
        return Ok(());
    }
    heading("Memory of Pods", &["Held", "Pods", "bytes per Pod"]);
    for (name, title, _, count) in CASES {
        let output = Command::new(env::current_exe()?).arg("heap").env(HOLD, name).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes: usize = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        row(&[title.to_owned(), count.to_string(), (bytes / count).to_string()]);
    }
    Ok(())
}

/// By how many bytes holding `pods` makes this process larger.
fn held(name: &str, pods: &RealisticPods) -> Result<usize> {
    // What reading one takes is there already.
    drop(read::<Pod>(&RealisticPods::new(Workload::Deployment, 1))?);
    let before = resident()?;
    let after = match name {
        "full" => sized(&read::<Pod>(pods)?),
        "lean" => sized(&read::<PodObject>(pods)?),
        _ => {
            let mut index = Index::new(true);
            index.begin(Kind::Pods);
            for text in pods.texts() {
                drop(index.apply_pod(serde_json::from_str::<PodObject>(&text)?.into()));
            }
            sized(&index)
        }
    };
    Ok(after?.saturating_sub(before))
}

fn read<T: DeserializeOwned>(pods: &RealisticPods) -> Result<Vec<T>> {
    pods.texts().map(|text| Ok(serde_json::from_str(&text)?)).collect()
}

/// The size of this process while it holds `value`.
fn sized<T>(value: &T) -> Result<usize> {
    let size = resident();
    black_box(value);
    size
}

/// In bytes.
fn resident() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}
