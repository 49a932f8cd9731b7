//! Rights that are missing, for the log and for readiness: those that the API server says are (`review`), and those that it
//! refused a write for.
//!
//! Invariant: each is logged when it is found missing and when it is there after all, not with every look or refusal.

mod needed;
pub mod review;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use fairlead_daemon::readiness::Gate;
use parking_lot::Mutex;

pub use self::needed::{Right, needed};
use crate::{execute::Operation, part::Part};

/// What is missing.
#[derive(Debug)]
pub struct Rights {
    gate: Gate,
    missing: Mutex<Missing>,
}

#[derive(Debug, Default)]
struct Missing {
    /// By the last review.
    reviewed: BTreeSet<Right>,
    /// What was refused last, by what it was needed for. It may be refused although RBAC allows it.
    refused: BTreeMap<(Part, &'static str), String>,
}

impl Rights {
    /// Shown by `gate`, which is open: work goes on with the rights that there are.
    pub fn new(gate: Gate) -> Self {
        gate.open();
        Self { gate, missing: Mutex::default() }
    }

    /// The API server said which ones of those that we need are missing.
    pub fn reviewed(&self, now: BTreeSet<Right>) {
        let mut missing = self.missing.lock();
        for right in now.difference(&missing.reviewed) {
            tracing::warn!("a right is missing; {}", remedy(right));
        }
        for right in missing.reviewed.difference(&now) {
            tracing::info!("a right that was missing is there: {right}");
        }
        missing.reviewed = now;
        self.show(&missing);
    }

    /// The API server refused that.
    pub fn refused(&self, part: Part, operation: Operation, message: &str) {
        let resource = match part {
            Part::Endpoints => "endpoints",
            Part::Slices | Part::Mirror => "endpointslices.discovery.k8s.io",
        };
        let verb = operation.as_str();
        let mut missing = self.missing.lock();
        if missing.refused.contains_key(&(part, verb)) {
            return;
        }
        let remedy = remedy(format_args!("{verb} {resource}"));
        tracing::warn!(%part, "a right is missing: {message}; {remedy}");
        missing.refused.insert((part, verb), remedy);
        self.show(&missing);
    }

    /// The API server allowed that.
    pub fn allowed(&self, part: Part, operation: Operation) {
        let mut missing = self.missing.lock();
        if missing.refused.remove(&(part, operation.as_str())).is_some() {
            tracing::info!(%part, operation = operation.as_str(), "a right that was missing is there");
            self.show(&missing);
        }
    }

    fn show(&self, missing: &Missing) {
        let reviewed = missing.reviewed.iter().map(remedy);
        let remedies: BTreeSet<String> = reviewed.chain(missing.refused.values().cloned()).collect();
        if remedies.is_empty() {
            self.gate.well();
        } else {
            self.gate.trouble(remedies.into_iter().collect::<Vec<_>>().join("; "));
        }
    }
}

fn remedy(right: impl Display) -> String {
    format!("allow this identity to {right} (RBAC)")
}

#[cfg(test)]
mod tests {
    use fairlead_daemon::readiness::Readiness;

    use super::*;

    #[test]
    fn missing_rights_are_named_until_they_are_there() {
        let readiness = Readiness::default();
        let rights = Rights::new(readiness.gate("rights"));
        rights.refused(Part::Slices, Operation::Create, "no");
        rights.refused(Part::Slices, Operation::Create, "no, in another namespace");
        rights.refused(Part::Endpoints, Operation::Update, "no");
        rights.allowed(Part::Endpoints, Operation::Create);
        let text = readiness.to_string();
        assert!(text.contains("create endpointslices") && text.contains("update endpoints"), "{text}");
        rights.allowed(Part::Slices, Operation::Create);
        assert!(!readiness.to_string().contains("create endpointslices"));
        rights.allowed(Part::Endpoints, Operation::Update);
        assert_eq!(readiness.to_string(), "[+]rights ok\n");
    }

    #[test]
    fn a_right_that_is_missing_by_review_and_by_refusal_is_named_once() {
        let readiness = Readiness::default();
        let rights = Rights::new(readiness.gate("rights"));
        let all = needed(fairlead_planner::Parts::default(), true, None);
        let missing = |verb: &str| {
            let right = format!("{verb} endpointslices.discovery.k8s.io");
            all.iter().filter(|found| found.to_string() == right).cloned().collect::<BTreeSet<_>>()
        };
        rights.reviewed(missing("create"));
        rights.refused(Part::Slices, Operation::Create, "no");
        assert_eq!(readiness.to_string().matches("create endpointslices").count(), 1);
        // Allowed in another namespace, or a moment ago.
        rights.allowed(Part::Slices, Operation::Create);
        assert!(readiness.to_string().contains("create endpointslices"));
        rights.reviewed(missing("delete"));
        let text = readiness.to_string();
        assert!(text.contains("delete endpointslices") && !text.contains("create endpointslices"), "{text}");
        rights.reviewed(BTreeSet::new());
        assert_eq!(readiness.to_string(), "[+]rights ok\n");
    }
}
