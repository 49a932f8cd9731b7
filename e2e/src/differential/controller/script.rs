//! The script: a random cluster, and random changes to it, step by step.
//!
//! Invariants: the script follows from the seed alone; it never looks at a cluster. What leaves kube-controller-manager
//! stuck for good (slices that it tracks are relabelled) is made good some steps later, by another Service of the name.

mod hands;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    change::Change, crowd::Crowd, endpoints, pod::PodModel, random::Random, service::ServiceModel, state::Key,
};
use crate::kubernetes;

const NAMESPACES: usize = 4;
const SERVICES: usize = 9;
const PODS: usize = 16;
const NODES: usize = 7;
/// A crowd comes every so many steps, and stays for some.
const CROWD_EVERY: usize = 50;
const CROWD_COMES: usize = 10;
const CROWD_GOES: usize = 16;
/// A namespace is replaced every so many steps.
const REPLACED_EVERY: usize = 20;
const ZONES: [&str; 3] = ["east", "north", "west"];

/// What happens between two quiet points.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// By hand on what controllers wrote, before anything else: beside other changes they would race with the controllers.
    pub edits: Vec<Change>,
    /// The rest; changes of one object are made in this order, others beside each other.
    pub changes: Vec<Change>,
}

/// What the script knows of the cluster.
#[derive(Clone, Debug)]
pub struct Script {
    random: Random,
    is_tame: bool,
    crowd: Option<Crowd>,
    spaces: Vec<Space>,
    /// Numbers given to Pods and namespaces.
    serial: usize,
    nodes_changed: bool,
}

/// A namespace.
#[derive(Clone, Debug)]
struct Space {
    name: String,
    services: BTreeMap<String, ServiceModel>,
    pods: BTreeMap<String, PodModel>,
    /// Whether Pods change in this step.
    pods_changed: bool,
    /// Services that change in this step, or what was written for them.
    changed: BTreeSet<String>,
    /// Services whose slices are in a stranger's hand, and for how many steps from now.
    robbed: BTreeMap<String, usize>,
    /// Services of which a slice is kept from being deleted.
    held: Vec<String>,
}

/// A Service to touch at a quiet point.
#[derive(Clone, Debug)]
pub struct Touch {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Whether its Endpoints are made by hand: then they are touched, too.
    pub by_hand: bool,
}

impl Touch {
    /// The Service.
    pub fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

impl Script {
    /// The script of a seed.
    pub fn new(seed: u64) -> Self {
        Self { is_tame: false, ..Self::tame(seed) }
    }

    /// A script without what takes special care afterwards: slices are not taken from their controllers, topology mode
    /// `Auto` is not used, which is dealt by what was there before.
    pub fn tame(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            is_tame: true,
            crowd: None,
            spaces: Vec::new(),
            serial: 0,
            nodes_changed: true,
        }
    }

    /// The next step, counted from 1.
    pub fn step(&mut self, number: usize) -> Step {
        let mut step = if number == 1 { self.first() } else { self.next(number) };
        self.change_crowd(number, &mut step);
        step
    }

    /// The first step: nodes, namespaces, Pods. Services come with the second, so that they find all Pods.
    pub fn first(&mut self) -> Step {
        let mut step = Step::default();
        for number in 1..=NODES {
            let node = self.node(number);
            step.changes.push(Change::Apply(node));
        }
        for _ in 0..NAMESPACES {
            self.open_namespace(&mut step);
        }
        step
    }

    /// Another step.
    pub fn next(&mut self, number: usize) -> Step {
        let mut step = Step::default();
        self.nodes_changed = number > 2 && self.random.chance(20);
        for space in &mut self.spaces {
            space.pods_changed = false;
            space.changed.clear();
        }
        if self.nodes_changed {
            self.change_node(&mut step);
        }
        for at in 0..self.spaces.len() {
            self.change_space(at, number, &mut step);
        }
        if number.is_multiple_of(REPLACED_EVERY) {
            self.replace_namespace(&mut step);
        }
        step
    }

    /// Now and then there are more addresses than Endpoints may hold.
    fn change_crowd(&mut self, number: usize, step: &mut Step) {
        match (number % CROWD_EVERY, &mut self.crowd) {
            (CROWD_COMES, None) => self.crowd = Some(Crowd::new(number, &mut step.changes)),
            (CROWD_GOES, Some(crowd)) => {
                crowd.leave(&mut step.changes);
                self.crowd = None;
            }
            (_, Some(crowd)) => crowd.change(&mut self.random, &mut step.changes),
            _ => {}
        }
    }

    /// All Services of namespaces that are there to stay.
    pub fn touches(&self) -> Vec<Touch> {
        let touch = |space: &Space, service: &ServiceModel| Touch {
            namespace: space.name.clone(),
            name: service.name.clone(),
            by_hand: service.selector.is_none(),
        };
        self.spaces
            .iter()
            .flat_map(|space| space.services.values().map(|service| touch(space, service)))
            .chain(self.crowd.iter().map(Crowd::touch))
            .collect()
    }

    /// The namespaces that are there to stay.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let crowd = self.crowd.iter().map(Crowd::namespace);
        self.spaces.iter().map(|space| space.name.as_str()).chain(crowd).map(str::to_owned).collect()
    }

    /// Whether the sizes of a Service's slices are the same on both sides.
    pub fn is_fresh(&self, namespace: &str, name: &str) -> bool {
        let space = self.spaces.iter().find(|space| space.name == namespace);
        space.and_then(|space| space.services.get(name)).is_some_and(|service| service.fresh)
    }

    fn open_namespace(&mut self, step: &mut Step) {
        self.serial += 1;
        let name = format!("space-{}", self.serial);
        step.changes.push(Change::Apply(kubernetes::namespace(&name)));
        let mut space = Space {
            name,
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            pods_changed: true,
            changed: BTreeSet::new(),
            robbed: BTreeMap::new(),
            held: Vec::new(),
        };
        for _ in 0..PODS * 2 / 3 {
            let pod = self.new_pod(&space);
            step.changes.push(Change::Apply(pod.object(&space.name)));
            space.pods.insert(pod.name.clone(), pod);
        }
        self.spaces.push(space);
    }

    fn replace_namespace(&mut self, step: &mut Step) {
        let gone = self.spaces.remove(self.random.below(self.spaces.len()));
        let about = format!(" {}/", gone.name);
        // Beside its deletion they would be refused or not, as it happens.
        step.edits.retain(|change| !change.subject().contains(&about));
        step.changes.retain(|change| {
            matches!(change, Change::Delete { kind: "Pod", .. }) || !change.subject().contains(&about)
        });
        step.changes.push(Change::Delete {
            kind: "Namespace",
            namespace: String::new(),
            name: gone.name.clone(),
            grace: 0,
        });
        // There is no kubelet to end them, and nothing else goes before they are gone.
        step.changes.extend(gone.pods.into_keys().map(|name| Change::Delete {
            kind: "Pod",
            namespace: gone.name.clone(),
            name,
            grace: 0,
        }));
        self.open_namespace(step);
    }

    fn node(&mut self, number: usize) -> Value {
        let mut labels = json!({});
        if self.random.chance(85) {
            labels["topology.kubernetes.io/zone"] = json!(self.random.one_of(ZONES));
        }
        if number == 1 {
            labels["node-role.kubernetes.io/control-plane"] = json!("");
        }
        let ready = if self.random.chance(85) { "True" } else { "False" };
        // Always the same of one Node: kube-controller-manager does not see it change.
        let cpu = if number.is_multiple_of(3) { "1500m" } else { "3" };
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{number}"), "labels": labels},
            "status": {"allocatable": {"cpu": cpu},
                "conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn change_node(&mut self, step: &mut Step) {
        let number = self.random.below(NODES) + 1;
        step.changes.push(if self.random.chance(25) {
            Change::Delete { kind: "Node", namespace: String::new(), name: format!("node{number}"), grace: 0 }
        } else {
            let node = self.node(number);
            Change::Apply(node)
        });
        for service in self.spaces.iter_mut().flat_map(|space| space.services.values_mut()) {
            service.fresh = false;
        }
    }

    /// In some steps only Pods change, in some only Services, in some both, and in few all stays as it is.
    fn change_space(&mut self, at: usize, number: usize, step: &mut Step) {
        let (pods, services) = match self.random.below(10) {
            _ if number <= 2 => (false, true),
            0..4 => (true, false),
            4..6 => (false, true),
            6..9 => (true, true),
            _ => (false, false),
        };
        let mut space = self.spaces.swap_remove(at);
        hands::release(&mut space, step);
        if number > 2 && self.random.chance(40) {
            self.edit(&mut space, number, step);
        }
        if pods {
            self.change_pods(&mut space, step);
        }
        hands::replace_robbed(&mut space, step);
        if services {
            let count = if number <= 2 { SERVICES } else { 1 + self.random.below(3) };
            for _ in 0..count {
                self.change_service(&mut space, step);
            }
        }
        self.spaces.push(space);
        let last = self.spaces.len() - 1;
        self.spaces.swap(at, last);
    }

    fn change_pods(&mut self, space: &mut Space, step: &mut Step) {
        space.pods_changed = true;
        for service in space.services.values_mut() {
            service.fresh = false;
        }
        if self.random.chance(12) {
            return self.roll(space, step);
        }
        for _ in 0..=self.random.below(6) {
            self.change_pod(space, step);
        }
    }

    fn new_pod(&mut self, space: &Space) -> PodModel {
        self.serial += 1;
        // One more than there are: a Pod may be of a node that is not there.
        let nodes: Vec<String> = (1..=NODES + 1).map(|number| format!("node{number}")).collect();
        let services: Vec<String> = (0..SERVICES).map(|number| format!("service-{number}")).collect();
        // Few names, so that they are used again.
        let free = (0..=space.pods.len())
            .map(|number| format!("pod-{number}"))
            .find(|name| !space.pods.contains_key(name));
        let number = self.serial;
        PodModel::any(&mut self.random, free.unwrap_or_default(), number, &nodes, &services)
    }

    fn change_pod(&mut self, space: &mut Space, step: &mut Step) {
        let namespace = space.name.clone();
        let names: Vec<String> = space.pods.keys().cloned().collect();
        let chosen = self.random.pick(&names).cloned();
        let add = space.pods.len() < PODS && self.random.chance(30);
        let Some(name) = chosen.filter(|_| !add) else {
            let pod = self.new_pod(space);
            step.changes.push(Change::Apply(pod.object(&namespace)));
            space.pods.insert(pod.name.clone(), pod);
            return;
        };
        let action = self.random.below(10);
        let Some(pod) = space.pods.get_mut(&name) else { return };
        let delete =
            |grace| Change::Delete { kind: "Pod", namespace: namespace.clone(), name: name.clone(), grace };
        match action {
            0..7 => {
                self.serial += 1;
                pod.alter(&mut self.random, self.serial);
                step.changes.push(Change::Apply(pod.object(&namespace)));
            }
            7 | 8 if pod.lingers() && !pod.terminating => {
                pod.terminating = true;
                step.changes.push(delete(60));
            }
            _ => {
                step.changes.push(delete(0));
                if self.random.chance(30) {
                    // The same name and addresses, another Pod.
                    pod.terminating = false;
                    step.changes.push(Change::Apply(pod.object(&namespace)));
                } else {
                    space.pods.remove(&name);
                }
            }
        }
    }

    /// A rolling update: all Pods of an app are replaced, as many as were there.
    fn roll(&mut self, space: &mut Space, step: &mut Step) {
        let app = self.random.one_of(super::service::APPS);
        let old: Vec<String> =
            space.pods.values().filter(|pod| pod.is_of(app)).map(|pod| pod.name.clone()).collect();
        let mut new = Vec::new();
        for name in &old {
            let pod = self.new_pod(space).serving(app);
            step.changes.push(Change::Apply(pod.object(&space.name)));
            new.push(pod.name.clone());
            space.pods.insert(pod.name.clone(), pod);
            step.changes.push(Change::Delete {
                kind: "Pod",
                namespace: space.name.clone(),
                name: name.clone(),
                grace: 0,
            });
        }
        space.pods.retain(|name, _| !old.contains(name));
    }

    fn change_service(&mut self, space: &mut Space, step: &mut Step) {
        let namespace = space.name.clone();
        let name = format!("service-{}", self.random.below(SERVICES));
        if !space.changed.insert(name.clone()) {
            return;
        }
        let robbed = space.robbed.contains_key(&name);
        let settled = !space.pods_changed && !self.nodes_changed && !robbed;
        let delete =
            Change::Delete { kind: "Service", namespace: namespace.clone(), name: name.clone(), grace: 0 };
        let service = match space.services.remove(&name) {
            Some(mut service) if self.random.chance(75) => {
                service.alter(&mut self.random, settled);
                service
            }
            Some(_) => {
                step.changes.push(delete);
                if self.random.chance(40) {
                    return;
                }
                // kube-controller-manager, having seen the deletion only, may delete Endpoints that are made by hand
                // before it sees the new Service.
                self.new_service(name, settled).selecting(&mut self.random)
            }
            None => self.new_service(name, settled),
        };
        step.changes.push(Change::Apply(service.object(&namespace)));
        if service.selector.is_none() && self.random.chance(75) {
            let endpoints = endpoints::by_hand(&mut self.random, &namespace, &service.name);
            step.changes.push(Change::Apply(endpoints));
        }
        space.services.insert(service.name.clone(), service);
    }

    fn new_service(&mut self, name: String, settled: bool) -> ServiceModel {
        let mut service = ServiceModel::any(&mut self.random, name, !self.is_tame);
        service.fresh = settled;
        service
    }
}

#[cfg(test)]
mod tests;
