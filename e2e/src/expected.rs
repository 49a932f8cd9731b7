//! What the endpoint controllers should have written by now: the planner's answer over what the API server holds.
//!
//! Invariant: nothing is taken from a controller. All objects are read afresh, every Service that exists, or that
//! something was ever written for, is planned, and the planner's own checker looks at what it thinks is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_objects::{
    EndpointSlice, Endpoints, Node, NodeObject, ObjectMeta, Pod, PodObject, Service, ServiceKey,
    ServiceObject, labels,
};
use fairlead_planner::{EndpointsPlan, Limits, Plan, PlanInput};
use serde_json::Value;

use crate::{kubernetes::Kubernetes, wait};

/// How many lines are told of what is not right.
const TOLD: usize = 4;

/// All that plans are made from.
#[derive(Debug)]
struct World {
    nodes: BTreeMap<Arc<str>, Node>,
    services: BTreeMap<ServiceKey, Service>,
    pods: BTreeMap<Arc<str>, Vec<Pod>>,
    endpoints: BTreeMap<ServiceKey, Endpoints>,
    slices: BTreeMap<ServiceKey, Vec<EndpointSlice>>,
}

/// Waits until Endpoints and slices of all namespaces equal the plan of everything else, but for namespaces that are
/// being deleted.
pub fn await_plan(kubernetes: &Kubernetes, limits: Limits, deadline: Duration) -> Result<()> {
    wait::until_ok("all objects to equal the plan of the final state", deadline, || {
        let lines = World::read(kubernetes)?.unwanted(limits);
        let told = lines.iter().take(TOLD).cloned().collect::<Vec<_>>().join("\n");
        ensure!(lines.is_empty(), "{} deviations:\n{told}", lines.len());
        Ok(())
    })
}

impl World {
    fn read(kubernetes: &Kubernetes) -> Result<Self> {
        let namespaces: Vec<Value> = kubernetes.list("Namespace", "", "")?;
        let going: BTreeSet<String> = namespaces
            .iter()
            .filter(|namespace| namespace["metadata"]["deletionTimestamp"].is_string())
            .filter_map(|namespace| Some(namespace["metadata"]["name"].as_str()?.to_owned()))
            .collect();
        let stays = |key: &ServiceKey| !going.contains(&*key.namespace);
        let nodes: Vec<NodeObject> = kubernetes.list("Node", "", "")?;
        let services: Vec<ServiceObject> = kubernetes.list("Service", "", "")?;
        let mut world = Self {
            nodes: nodes
                .into_iter()
                .map(|node| (node.metadata.name.as_deref().unwrap_or_default().into(), node.into()))
                .collect(),
            services: services
                .into_iter()
                .map(Service::from)
                .map(|service| (service.key.clone(), service))
                .filter(|(key, _)| stays(key))
                .collect(),
            pods: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            slices: BTreeMap::new(),
        };
        for pod in kubernetes.list::<PodObject>("Pod", "", "")?.into_iter().map(Pod::from) {
            world.pods.entry(Arc::clone(&pod.namespace)).or_default().push(pod);
        }
        for endpoints in kubernetes.list::<Endpoints>("Endpoints", "", "")? {
            let key = key(&endpoints.metadata)?;
            if stays(&key) {
                world.endpoints.insert(key, endpoints);
            }
        }
        for slice in kubernetes.list::<EndpointSlice>("EndpointSlice", "", "")? {
            let Some(key) = slice.service_key().filter(|key| stays(key)) else { continue };
            world.slices.entry(key).or_default().push(slice);
        }
        // The API server looks after its own Service by itself.
        let own = ServiceKey::new("default", "kubernetes");
        world.services.remove(&own);
        world.endpoints.remove(&own);
        world.slices.remove(&own);
        Ok(world)
    }

    /// What the planner would change, and what its checker finds; a line for each.
    fn unwanted(&self, limits: Limits) -> Vec<String> {
        let keys: BTreeSet<&ServiceKey> =
            self.services.keys().chain(self.endpoints.keys()).chain(self.slices.keys()).collect();
        let mut lines = Vec::new();
        for key in keys {
            let service = self.services.get(key);
            let selector = service.and_then(|service| service.selector.as_ref());
            let selected = |pod: &&Pod| {
                selector.is_some_and(|selector| fairlead_planner::selects(selector, &pod.labels))
            };
            let pods: Vec<&Pod> =
                self.pods.get(&key.namespace).into_iter().flatten().filter(selected).collect();
            let slices: Vec<&EndpointSlice> = self.slices.get(key).into_iter().flatten().collect();
            let endpoints = self.endpoints.get(key);
            let input = PlanInput {
                service,
                pods: &pods,
                endpoints,
                slices: &slices,
                limits,
                ..PlanInput::new(key, &self.nodes)
            };
            let plan = fairlead_planner::plan(&input);
            describe(key, &plan, &mut lines);
            lines.extend(
                fairlead_planner::check(&plan, &input).iter().map(|finding| format!("{key}: {finding}")),
            );
            let anew = fairlead_planner::plan(&PlanInput { endpoints: None, ..input });
            if let (EndpointsPlan::Create(wanted), Some(found)) = (anew.endpoints, endpoints)
                && (wanted.subsets != found.subsets || !managed(found))
            {
                lines.push(format!("{key}: Endpoints hold {}, planned {}", text(found), text(&wanted)));
            }
        }
        lines
    }
}

fn managed(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(labels::ENDPOINTS_MANAGED_BY)).map(String::as_str)
        == Some(labels::ENDPOINTS_CONTROLLER)
}

fn describe(key: &ServiceKey, plan: &Plan, lines: &mut Vec<String>) {
    match &plan.endpoints {
        EndpointsPlan::Keep => {}
        EndpointsPlan::Create(wanted) => lines.push(format!("{key}: missing Endpoints {}", text(wanted))),
        EndpointsPlan::Update(wanted) => lines.push(format!("{key}: Endpoints should be {}", text(wanted))),
        EndpointsPlan::Delete(_) => lines.push(format!("{key}: Endpoints should be gone")),
    }
    for part in [&plan.slices, &plan.mirror] {
        lines.extend(part.create.iter().map(|slice| format!("{key}: missing slice {}", text(slice))));
        lines.extend(part.update.iter().map(|slice| format!("{key}: slice should be {}", text(slice))));
        lines.extend(part.delete.iter().map(|slice| format!("{key}: slice {} should be gone", slice.name)));
    }
}

fn text(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| error.to_string())
}

fn key(metadata: &ObjectMeta) -> Result<ServiceKey> {
    let namespace = metadata.namespace.as_deref().context("an object without namespace")?;
    Ok(ServiceKey::new(namespace, metadata.name.as_deref().unwrap_or_default()))
}
