//! A small cluster for tests: what exists around one Service, planned and executed as a controller would.
//!
//! Every plan that is made here goes through the checker, and what is executed must leave nothing to do.

#![allow(dead_code, reason = "each test binary uses its own part of it")]
#![allow(clippy::expect_used, reason = "a fixture that cannot be made is a failed test")]

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{
    EndpointSlice, Endpoints, Node, ObjectMeta, Pod, Service, ServiceKey, Timestamp,
    builders::{node, pod},
};
use fairlead_planner::{
    Limits, NoNodes, Nodes, Parts, Plan, PlanInput, Remembered, SlicePlan, Topology, Triggers, ZoneShares,
    check, outcome, plan,
};

/// Everything around the Service `web`.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) key: ServiceKey,
    pub(crate) service: Option<Service>,
    pub(crate) pods: Vec<Pod>,
    /// `None`: Nodes are not known at all.
    pub(crate) nodes: Option<BTreeMap<Arc<str>, Node>>,
    pub(crate) endpoints: Option<Endpoints>,
    pub(crate) slices: Vec<EndpointSlice>,
    pub(crate) parts: Parts,
    pub(crate) limits: Limits,
    pub(crate) triggers: Triggers,
    /// What the last plan that was executed remembers.
    pub(crate) remembered: Remembered,
    pub(crate) writes: u64,
}

impl World {
    /// A Service with Node `n1` in zone `z1` and nothing else.
    pub(crate) fn new(service: Service) -> Self {
        let nodes = BTreeMap::from([(Arc::from("n1"), node("n1", "192.168.0.1", "z1"))]);
        Self {
            key: service.key.clone(),
            service: Some(service),
            pods: Vec::new(),
            nodes: Some(nodes),
            endpoints: None,
            slices: Vec::new(),
            parts: Parts::default(),
            limits: Limits::default(),
            triggers: Triggers::default(),
            remembered: Remembered::default(),
            writes: 0,
        }
    }

    /// The same with some Pods.
    pub(crate) fn with_pods(self, pods: impl IntoIterator<Item = Pod>) -> Self {
        Self { pods: pods.into_iter().collect(), ..self }
    }

    /// The same with these parts only.
    pub(crate) fn only(self, parts: Parts) -> Self {
        Self { parts, ..self }
    }

    pub(crate) fn service_mut(&mut self) -> &mut Service {
        self.service.as_mut().expect("the test's Service exists")
    }

    /// Plans, and checks the plan.
    pub(crate) fn plan(&self) -> Plan {
        self.with_input(|input| {
            let plan = plan(input);
            assert_eq!(check(&plan, input), [], "the checker is silent");
            plan
        })
    }

    /// Plans, executes the plan, and makes sure that nothing is left to do.
    pub(crate) fn sync(&mut self) -> Plan {
        let plan = self.plan();
        self.execute(&plan);
        let again = self.plan();
        assert!(again.is_empty(), "a second plan has nothing to do, but: {again:#?}");
        plan
    }

    /// Stores what a plan leaves behind, as an API server would.
    pub(crate) fn execute(&mut self, plan: &Plan) {
        let left = self.with_input(|input| outcome(input, plan));
        let written: Vec<String> = [&plan.slices, &plan.mirror]
            .into_iter()
            .flat_map(|part| part.create.iter().chain(&part.update))
            .filter_map(|slice| slice.metadata.name.clone())
            .collect();
        self.remembered.clone_from(&plan.topology);
        self.endpoints = left.endpoints;
        if let Some(endpoints) = &mut self.endpoints {
            self.writes += 1;
            store(&mut endpoints.metadata, "uid-endpoints".to_owned(), self.writes);
        }
        self.slices = left.slices;
        for slice in &mut self.slices {
            let name = slice.metadata.name.clone().unwrap_or_default();
            if written.contains(&name) {
                self.writes += 1;
                store(&mut slice.metadata, format!("uid-{name}"), self.writes);
            }
        }
    }

    pub(crate) fn with_input<R>(&self, run: impl FnOnce(&PlanInput<'_>) -> R) -> R {
        let pods: Vec<&Pod> = self.pods.iter().collect();
        let slices: Vec<&EndpointSlice> = self.slices.iter().collect();
        let nodes: &dyn Nodes = match &self.nodes {
            Some(nodes) => nodes,
            None => &NoNodes,
        };
        let shares = self.shares();
        run(&PlanInput {
            key: &self.key,
            service: self.service.as_ref(),
            pods: &pods,
            nodes,
            endpoints: self.endpoints.as_ref(),
            slices: &slices,
            taken_names: &[],
            parts: self.parts,
            limits: self.limits,
            triggers: self.triggers,
            topology: Topology { shares: shares.as_ref(), remembered: Some(&self.remembered) },
        })
    }

    /// The shares of the zones of all Nodes.
    pub(crate) fn shares(&self) -> Option<ZoneShares> {
        ZoneShares::of(self.nodes.iter().flat_map(BTreeMap::values))
    }

    /// Sizes of all slices that exist, smallest first.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self.slices.iter().map(|slice| slice.endpoints.len()).collect();
        sizes.sort_unstable();
        sizes
    }
}

fn store(metadata: &mut ObjectMeta, uid: String, version: u64) {
    metadata.uid.get_or_insert(uid);
    metadata.resource_version = Some(version.to_string());
}

/// `count` ready Pods of the Service `web` on Node `n1`, the first with number `from`.
pub(crate) fn pods(from: usize, count: usize) -> Vec<Pod> {
    (from..from + count)
        .map(|i| {
            pod(
                &format!("pod-{i:04}"),
                "web",
                "n1",
                &format!("10.{}.{}.{}", i / 65536, i / 256 % 256, i % 256),
            )
        })
        .collect()
}

/// How many creates, updates and deletes a part of a plan has.
pub(crate) fn actions(part: &SlicePlan) -> (usize, usize, usize) {
    (part.create.len(), part.update.len(), part.delete.len())
}

pub(crate) const ENDPOINTS: Parts = Parts { endpoints: true, slices: false, mirror: false };
pub(crate) const SLICES: Parts = Parts { endpoints: false, slices: true, mirror: false };
pub(crate) const MIRROR: Parts = Parts { endpoints: false, slices: false, mirror: true };

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time within range")
}
