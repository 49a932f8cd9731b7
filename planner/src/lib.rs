//! Decides which Endpoints and EndpointSlices should exist for a Service, and why.
//!
//! ```text
//!  Service, Pods, Nodes ─┐                     ┌─> endpoints: what to write to core/v1 Endpoints
//!                        ├─> PlanInput ─ plan ─┼─> slices:    what to write for a Service with a selector
//!  Endpoints, slices ────┘                     ├─> mirror:    what to write for hand-made Endpoints
//!  (what exists now)                           └─> notes:     what was left out, and why
//! ```
//!
//! The behaviour is that of kube-controller-manager's endpoints, endpointslice and endpointslice-mirroring controllers
//! (Kubernetes 1.36), computed for one Service at a time from one snapshot, so that the two APIs do not disagree.
//!
//! The controller and the command line depend on this crate; it depends on nothing that could do I/O. It knows no
//! client, no clock and no randomness: times and node facts come in as arguments, names are derived from what they name.
//!
//! Invariants, which [`check`] verifies independently for any plan:
//!
//! * [`plan`] is total and deterministic: the same input gives the same plan, in whatever order lists arrive.
//! * Executing a plan and planning again gives an empty plan.
//! * Nothing is touched that another manager owns; nothing is written without the version it was derived from.
//!
//! ```
//! use fairlead_objects::{EndpointSlice, ServiceKey, ServiceObject};
//! use fairlead_planner::{NoNodes, PlanInput, plan};
//!
//! let service: ServiceObject = serde_json::from_str(
//!     r#"{"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}"#,
//! )?;
//! let service = service.into();
//! let key = ServiceKey::new("default", "web");
//! let plan = plan(&PlanInput { service: Some(&service), ..PlanInput::new(&key, &NoNodes) });
//! // Without Pods there is still one slice, so that consumers know that the Service was seen.
//! let [EndpointSlice { endpoints, .. }] = &plan.slices.create[..] else { panic!("one slice") };
//! assert!(endpoints.is_empty());
//! # Ok::<(), serde_json::Error>(())
//! ```

mod check;
mod digest;
mod endpoints;
mod hints;
mod input;
mod membership;
mod mirror;
mod naming;
mod note;
mod outcome;
mod packing;
mod plan;
mod port;
mod slices;
mod subset;
mod topology;
mod trigger;

pub use check::{Finding, Invariant, check};
pub use endpoints::MAX_ADDRESSES;
pub use hints::traffic_distribution;
pub use input::{Limits, NoNodes, NodeLookup, Nodes, Parts, PlanInput, Triggers, selects};
pub use note::{Gap, Level, Note, NoteKind, Scope, Subject};
pub use outcome::{Outcome, outcome};
pub use plan::{Churn, EndpointsPlan, ObjectRef, Plan, SlicePlan, plan};
pub use slices::PLACEHOLDER_UID;
pub use subset::repack;
pub use topology::{Remembered, Topology, Unhinted, ZoneCounts, ZoneShares, is_topology_auto};
pub use trigger::TriggerTimes;
