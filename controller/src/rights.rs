//! Rights to write that turned out to be missing, for the log and for readiness.
//!
//! Invariant: each is logged when it is found missing and when it is there after all, not with every refused write.

use std::collections::BTreeMap;

use fairlead_daemon::readiness::Gate;
use parking_lot::Mutex;

use crate::{execute::Operation, part::Part};

/// What was refused last, by what it was needed for.
#[derive(Debug)]
pub struct Rights {
    gate: Gate,
    missing: Mutex<BTreeMap<(Part, &'static str), String>>,
}

impl Rights {
    /// Shown by `gate`, which is open: work goes on with the rights that there are.
    pub fn new(gate: Gate) -> Self {
        gate.open();
        Self { gate, missing: Mutex::default() }
    }

    /// The API server refused that.
    pub fn refused(&self, part: Part, operation: Operation, message: &str) {
        let resource = match part {
            Part::Endpoints => "endpoints",
            Part::Slices | Part::Mirror => "endpointslices",
        };
        let verb = operation.as_str();
        let mut missing = self.missing.lock();
        if missing.contains_key(&(part, verb)) {
            return;
        }
        let remedy = format!("allow this identity to {verb} {resource} (RBAC)");
        tracing::warn!(%part, "a right is missing: {message}; {remedy}");
        missing.insert((part, verb), remedy);
        self.show(&missing);
    }

    /// The API server allowed that.
    pub fn allowed(&self, part: Part, operation: Operation) {
        let mut missing = self.missing.lock();
        if missing.remove(&(part, operation.as_str())).is_some() {
            tracing::info!(%part, operation = operation.as_str(), "a right that was missing is there");
            self.show(&missing);
        }
    }

    fn show(&self, missing: &BTreeMap<(Part, &'static str), String>) {
        if missing.is_empty() {
            self.gate.well();
        } else {
            let remedies: Vec<&str> = missing.values().map(String::as_str).collect();
            self.gate.trouble(remedies.join("; "));
        }
    }
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
}
