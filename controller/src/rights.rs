//! Rights that are missing, for the log and for readiness: those that the API server says are, when it is asked, and those
//! that it refused a write for.
//!
//! Invariants: each is logged when it is found missing and when it is there after all, not with every look or refusal. Who
//! lacks a right at start that no cluster can do without is not ready.

mod needed;

use std::collections::BTreeMap;

use fairlead_daemon::{
    readiness::Gate,
    rights::{Answer, Review, remedy},
};
use parking_lot::Mutex;

pub use self::needed::needed;
use crate::{execute::Operation, part::Part};

/// What is missing.
#[derive(Debug)]
pub struct Rights {
    gate: Gate,
    missing: Mutex<Missing>,
}

#[derive(Debug, Default)]
struct Missing {
    reviewed: Review,
    /// What was refused last, by what it was needed for. It may be refused although RBAC allows it.
    refused: BTreeMap<(Part, &'static str), String>,
}

impl Rights {
    /// Shown by `gate`, which opens with an answer that lacks nothing of importance. Work goes on with the rights that there
    /// are.
    pub fn new(gate: Gate) -> Self {
        Self { gate, missing: Mutex::default() }
    }

    /// The API server was asked which ones of those that we need are missing.
    pub fn answered(&self, answer: Answer) {
        let mut missing = self.missing.lock();
        missing.reviewed.take(answer);
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
        missing.reviewed.show(&self.gate, missing.refused.values().cloned());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fairlead_daemon::readiness::Readiness;

    use super::*;

    #[test]
    fn missing_rights_are_named_until_they_are_there() {
        let readiness = Readiness::default();
        let rights = Rights::new(readiness.gate("rights"));
        rights.answered(Answer::Missing(BTreeSet::new()));
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
            Answer::Missing(all.iter().filter(|found| found.to_string() == right).cloned().collect())
        };
        rights.answered(missing("create"));
        rights.refused(Part::Slices, Operation::Create, "no");
        assert_eq!(readiness.to_string().matches("create endpointslices").count(), 1);
        // Allowed in another namespace, or a moment ago.
        rights.allowed(Part::Slices, Operation::Create);
        assert!(readiness.to_string().contains("create endpointslices"));
        rights.answered(missing("delete"));
        let text = readiness.to_string();
        assert!(text.contains("delete endpointslices") && !text.contains("create endpointslices"), "{text}");
        rights.answered(Answer::Missing(BTreeSet::new()));
        assert_eq!(readiness.to_string(), "[+]rights ok\n");
    }
}
