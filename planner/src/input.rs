//! What a plan is made from: one Service and a consistent snapshot of everything around it.
//!
//! Invariant: the order of `pods` and `slices` does not matter.

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{EndpointSlice, Endpoints, LabelMap, Node, Pod, Service, ServiceKey, Timestamp};

use crate::Topology;

/// A snapshot of one Service's surroundings.
#[derive(Clone, Copy)]
pub struct PlanInput<'a> {
    /// The Service in question, whether or not it exists.
    pub key: &'a ServiceKey,
    /// The Service, if it exists.
    pub service: Option<&'a Service>,
    /// Pods of the Service's namespace that match its selector.
    pub pods: &'a [&'a Pod],
    /// Nodes by name.
    pub nodes: &'a dyn Nodes,
    /// The Endpoints of the same namespace and name.
    pub endpoints: Option<&'a Endpoints>,
    /// All slices of the namespace whose service-name label is this Service's name, whoever manages them.
    pub slices: &'a [&'a EndpointSlice],
    /// Names in the namespace that are in use by objects missing from `slices`: a new slice is not called so. What a
    /// caller learns from an "already exists" that its own view does not explain.
    pub taken_names: &'a [String],
    /// Which parts to plan; a part that is switched off plans nothing.
    pub parts: Parts,
    /// Sizes.
    pub limits: Limits,
    /// Times of the changes that this plan answers to.
    pub triggers: Triggers,
    /// What topology mode `Auto` needs to know; the default is that nothing is known.
    pub topology: Topology<'a>,
}

impl<'a> PlanInput<'a> {
    /// An input in which nothing but Nodes exists, with all parts on and the default limits.
    pub fn new(key: &'a ServiceKey, nodes: &'a dyn Nodes) -> Self {
        Self {
            key,
            service: None,
            pods: &[],
            nodes,
            endpoints: None,
            slices: &[],
            taken_names: &[],
            parts: Parts::default(),
            limits: Limits::default(),
            triggers: Triggers::default(),
            topology: Topology::default(),
        }
    }
}

/// The three parts of a plan, each a controller of its own in kube-controller-manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Endpoints of Services with a selector.
    pub endpoints: bool,
    /// Slices of Services with a selector.
    pub slices: bool,
    /// Slices mirrored from hand-made Endpoints of Services without a selector.
    pub mirror: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self { endpoints: true, slices: true, mirror: true }
    }
}

/// Sizes that flags can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `--max-endpoints-per-slice`; 0 is read as 1.
    pub endpoints_per_slice: usize,
    /// `--mirroring-max-endpoints-per-subset`, both families together; 0 is read as 1.
    pub mirrored_per_subset: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { endpoints_per_slice: 100, mirrored_per_subset: 1000 }
    }
}

/// Times for the trigger-time annotation, as [`crate::TriggerTimes`] finds them; `None` removes the annotation from what
/// is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    /// For the Endpoints.
    pub endpoints: Option<Timestamp>,
    /// For the slices.
    pub slices: Option<Timestamp>,
}

/// What is known of Nodes.
pub trait Nodes {
    /// Looks up a Node by name.
    fn node(&self, name: &str) -> NodeLookup<'_>;
}

/// What is known of one Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeLookup<'a> {
    /// The Node exists.
    Known(&'a Node),
    /// There is no such Node (yet).
    Missing,
    /// Nodes are not known at all (offline): nothing is concluded from that.
    Unchecked,
}

/// No information about Nodes: they are not checked and have no zones.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNodes;

impl Nodes for NoNodes {
    fn node(&self, _name: &str) -> NodeLookup<'_> {
        NodeLookup::Unchecked
    }
}

impl Nodes for BTreeMap<Arc<str>, Node> {
    fn node(&self, name: &str) -> NodeLookup<'_> {
        self.get(name).map_or(NodeLookup::Missing, NodeLookup::Known)
    }
}

/// Whether a selector matches: every pair of it is among the labels. An empty selector matches everything.
pub fn selects(selector: &LabelMap, labels: &LabelMap) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
