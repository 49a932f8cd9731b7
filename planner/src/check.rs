//! Checker.
use crate::{Plan, PlanInput};
/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding { /// Which invariant.
    pub invariant: &'static str, /// Where and how.
    pub detail: String }
impl std::fmt::Display for Finding { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{}: {}", self.invariant, self.detail) } }
/// Checks.
pub fn check(_plan: &Plan, _input: &PlanInput<'_>) -> Vec<Finding> { Vec::new() }
