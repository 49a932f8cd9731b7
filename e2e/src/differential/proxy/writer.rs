//! Writing steps to the API server: only what differs from what it has, by the cheapest request that does it.

use std::{collections::BTreeMap, panic::resume_unwind, thread};

use anyhow::{Context, Result};
use serde_json::Value;

use super::world::{Doomed, Step};
use crate::kubernetes::Kubernetes;

/// Deletions under way at once.
const PARALLEL: usize = 8;
const SERVICE: &str = "Service";
const SLICE: &str = "EndpointSlice";

/// What was written. Nothing else is there when it begins.
#[derive(Debug, Default)]
pub(super) struct Writer {
    written: BTreeMap<Doomed, Value>,
}

impl Writer {
    /// Brings the API server to the end of a step.
    pub(super) fn write(&mut self, kubernetes: &Kubernetes, step: &Step) -> Result<()> {
        let mut doomed: Vec<Doomed> = step.delete.iter().cloned().collect();
        doomed.retain(|one| self.written.remove(one).is_some());
        let (mut slices, mut services) = (Vec::new(), Vec::new());
        for object in &step.apply {
            let identity = identity(object)?;
            let before = self.written.insert(identity.clone(), object.clone());
            match (before, identity.kind) {
                (Some(before), _) if before == *object => {}
                (before, SLICE) => {
                    // One that is created is not another's to apply later: it comes anew.
                    doomed.extend(before.map(|_| identity));
                    slices.push(object.clone());
                }
                _ => services.push(object.clone()),
            }
        }
        delete_all(kubernetes, &doomed)?;
        kubernetes.apply_all(&services)?;
        kubernetes.create_all(&slices)
    }
}

fn identity(object: &Value) -> Result<Doomed> {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let kind = if object["kind"] == SERVICE { SERVICE } else { SLICE };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let (namespace, name) = namespace.zip(name).context("an object without a name")?;
    Ok(Doomed { kind, namespace, name })
}

/// Deletes objects, several at a time.
pub(super) fn delete_all(kubernetes: &Kubernetes, doomed: &[Doomed]) -> Result<()> {
    let remove = |part: &[Doomed]| {
        part.iter()
            .try_for_each(|Doomed { kind, namespace, name }| kubernetes.delete(kind, namespace, name, 0))
    };
    thread::scope(|scope| {
        let parts = doomed.chunks(doomed.len().div_ceil(PARALLEL).max(1));
        let workers: Vec<_> = parts.map(|part| scope.spawn(move || remove(part))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
