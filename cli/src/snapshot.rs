//! Snapshots: what the planner is asked about each Service, and what it answers.
//!
//! Invariant: every Service is planned from the same input exactly as the controller would plan it, one by one.

use std::collections::HashMap;

use fairlead_objects::{EndpointSlice, Pod, Service, ServiceKey};
use fairlead_planner::{
    Finding, Level, Note, Outcome, Plan, PlanInput, Topology, ZoneShares, check, outcome, plan, selects,
};

use crate::{
    defaulting::defaulted,
    objects::{Objects, Origin},
};

/// Objects, arranged by Service.
pub(crate) struct Snapshot<'a> {
    objects: &'a Objects,
    pods: PodsByLabel<'a>,
    slices: HashMap<ServiceKey, Vec<&'a EndpointSlice>>,
    /// What topology mode `Auto` deals endpoints by.
    shares: Option<ZoneShares>,
}

/// Pods by namespace and one of their labels, so that a selector looks at few of them.
type PodsByLabel<'a> = HashMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>;

/// A plan with all that it was made from.
pub(crate) struct Decision<'a> {
    /// The Service with the defaults of an API server.
    pub(crate) service: Service,
    /// The Pods that it selects.
    pub(crate) pods: Vec<&'a Pod>,
    pub(crate) plan: Plan,
    /// What executing the plan leaves behind.
    pub(crate) outcome: Outcome,
    /// What the independent checker finds wrong with the plan: nothing, or there is a bug.
    pub(crate) findings: Vec<Finding>,
}

impl<'a> Snapshot<'a> {
    /// Arranges `objects`.
    pub(crate) fn new(objects: &'a Objects) -> Self {
        let mut pods = PodsByLabel::new();
        for pod in objects.pods.values() {
            for (key, value) in pod.labels.iter() {
                pods.entry((&pod.namespace, key, value)).or_default().push(pod);
            }
        }
        let mut slices = HashMap::<_, Vec<_>>::new();
        for slice in objects.slices.values() {
            if let Some(key) = slice.service_key() {
                slices.entry(key).or_default().push(slice);
            }
        }
        let shares = ZoneShares::of(objects.nodes.values());
        Self { objects, pods, slices, shares }
    }

    /// The slices of a Service that are there, whoever manages them, by name.
    pub(crate) fn slices(&self, key: &ServiceKey) -> &[&'a EndpointSlice] {
        self.slices.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether it is known what the slices of `service` are made from.
    pub(crate) fn is_planned(&self, service: &Service) -> bool {
        match (self.objects.origin, &service.selector) {
            (Origin::Controller { .. }, _) => true,
            (Origin::Programmer, _) => false,
            (Origin::Files, Some(_)) => !self.objects.pods.is_empty(),
            (Origin::Files, None) => self.objects.endpoints.contains_key(&service.key),
        }
    }

    /// What executing the plan for `service` would leave behind, and what was left out of it.
    pub(crate) fn outcome(&self, service: &Service) -> (Outcome, Vec<Note>) {
        let decision = self.decision(service);
        (decision.outcome, decision.plan.notes)
    }

    /// What the planner decides about `service`.
    pub(crate) fn decision(&self, service: &Service) -> Decision<'a> {
        let pods = self.members(service);
        let service = defaulted(service, self.objects.dual_stack.contains(&service.key), &pods);
        let input = PlanInput {
            service: Some(&service),
            pods: &pods,
            endpoints: self.objects.endpoints.get(&service.key),
            slices: self.slices(&service.key),
            topology: Topology { shares: self.shares.as_ref(), remembered: None },
            ..PlanInput::new(&service.key, self.objects)
        };
        let plan = plan(&input);
        let outcome = outcome(&input, &plan);
        let findings = check(&plan, &input);
        Decision { service: service.into_owned(), pods, plan, outcome, findings }
    }

    fn members(&self, service: &Service) -> Vec<&'a Pod> {
        let Some(selector) = &service.selector else { return Vec::new() };
        let candidates =
            selector.iter().map(|(key, value)| self.labelled(&service.key.namespace, key, value));
        let fewest = candidates.min_by_key(|pods| pods.len()).unwrap_or_default();
        fewest.iter().copied().filter(|pod| selects(selector, &pod.labels)).collect()
    }

    fn labelled<'s>(&'s self, namespace: &'s str, key: &'s str, value: &'s str) -> &'s [&'a Pod] {
        self.pods.get(&(namespace, key, value)).map_or(&[], Vec::as_slice)
    }
}

/// The notes that a user has to know of, as whole lines.
pub(crate) fn warnings(notes: &[Note]) -> impl Iterator<Item = String> {
    notes.iter().filter(|note| note.level() == Level::Warning).map(|note| format!("warning: {note}"))
}

/// The warning that is due when Pods are planned without any Node.
pub(crate) fn node_warning(objects: &Objects) -> Option<String> {
    (objects.origin == Origin::Files && objects.nodes.is_empty() && !objects.pods.is_empty()).then(|| {
        "warning: no Node object in the input: the Nodes of Pods are not checked, and endpoints have no zone".to_owned()
    })
}
