//! `fairlead explain service`: why Pods serve a Service, or why they do not.
//!
//! ```text
//!  files, or ─> objects ─> snapshot ─> plan, notes ─> gates per Pod ─┐
//!  cluster                    │           └─────────> divergence ────┼─> report ─> account or JSON
//!                             └──────> other Pods ──> near misses ───┘
//! ```
//!
//! Invariant: what is said of a Pod that was left out is what the planner noted; nothing is judged a second time here.

mod account;
mod divergence;
mod gates;
mod nearness;
mod report;

use fairlead_objects::ServiceKey;

use crate::{
    Answer,
    args::{ExplainService, ReportFormat},
    cluster::Scope,
    objects::Objects,
    output,
    snapshot::{Snapshot, node_warning},
    supply,
};
use report::Report;

/// The Service is not among the objects.
#[derive(Debug, thiserror::Error)]
#[error("Service {key}: is not in {place}; {present}")]
struct UnknownService {
    key: ServiceKey,
    place: &'static str,
    /// What there is instead.
    present: String,
}

/// Explains one Service.
pub(crate) fn run(args: &ExplainService) -> anyhow::Result<Answer> {
    let (objects, mut notices) = supply::objects(&args.supply, Scope::Service(&args.service))?;
    let Some(service) = objects.services.get(&args.service) else {
        return Err(unknown(&args.service, &objects).into());
    };
    notices.extend(node_warning(&objects));
    let snapshot = Snapshot::new(&objects);
    let report = Report::new(&objects, &snapshot, service);
    let bug = |finding| format!("warning: the planner and its checker disagree, which is a bug: {finding}");
    notices.extend(report.findings.iter().map(bug));
    let output = match args.output.output {
        ReportFormat::Text => account::text(&report),
        ReportFormat::Json => output::json(&report)?,
        ReportFormat::Yaml => output::yaml(&report)?,
    };
    Ok(Answer { yes: report.has_endpoint, notices, output })
}

fn unknown(key: &ServiceKey, objects: &Objects) -> UnknownService {
    let of_namespace: Vec<&str> = objects
        .services
        .keys()
        .filter(|other| other.namespace == key.namespace)
        .map(|other| &*other.name)
        .collect();
    let elsewhere: Vec<String> =
        objects.services.keys().filter(|other| other.name == key.name).map(ToString::to_string).collect();
    let present = if !elsewhere.is_empty() {
        format!("there is {}", elsewhere.join(", "))
    } else if of_namespace.is_empty() {
        format!("there is no Service in namespace {}", key.namespace)
    } else {
        let nearest = of_namespace.iter().max_by(|a, b| {
            let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, &key.name);
            likeness(a).total_cmp(&likeness(b)).then(b.cmp(a))
        });
        let others = of_namespace.len() - 1;
        let nearest = nearest.copied().unwrap_or_default();
        let more = if others == 0 { String::new() } else { format!(" and {others} more") };
        format!("namespace {} has {nearest}{more}", key.namespace)
    };
    UnknownService { key: key.clone(), place: objects.origin.place(), present }
}
