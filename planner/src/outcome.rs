//! What a plan leaves behind once it is executed.
//!
//! Invariant: objects that the plan does not mention are returned as they came in.

use std::collections::BTreeMap;

use fairlead_objects::{EndpointSlice, Endpoints};

use crate::{EndpointsPlan, Plan, PlanInput, SlicePlan};

/// The objects of a Service after its plan was executed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The Endpoints, if there is one.
    pub endpoints: Option<Endpoints>,
    /// All slices of the Service, other managers' included, sorted by name.
    pub slices: Vec<EndpointSlice>,
}

/// Applies a plan to the objects that it was made from.
pub fn outcome(input: &PlanInput<'_>, plan: &Plan) -> Outcome {
    let mut slices: BTreeMap<String, EndpointSlice> =
        input.slices.iter().map(|slice| (name(slice), (*slice).clone())).collect();
    for part in [&plan.slices, &plan.mirror] {
        apply(part, &mut slices);
    }
    let endpoints = match &plan.endpoints {
        EndpointsPlan::Keep => input.endpoints.cloned(),
        EndpointsPlan::Create(endpoints) | EndpointsPlan::Update(endpoints) => Some(endpoints.clone()),
        EndpointsPlan::Delete(_) => None,
    };
    Outcome { endpoints, slices: slices.into_values().collect() }
}

fn apply(part: &SlicePlan, slices: &mut BTreeMap<String, EndpointSlice>) {
    slices.extend(part.create.iter().chain(&part.update).map(|slice| (name(slice), slice.clone())));
    for gone in &part.delete {
        slices.remove(&gone.name);
    }
}

fn name(slice: &EndpointSlice) -> String {
    slice.metadata.name.clone().unwrap_or_default()
}
