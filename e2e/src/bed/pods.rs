//! The Pods of a bed: the parts of scheduler, kubelet and Deployment controller that a test needs.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Bed;
use crate::{
    plan::Node,
    pod::{self, Pod, PodSpec},
};

impl Bed {
    /// A Pod, by its name or `namespace/name`.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(&key(name)).with_context(|| format!("no Pod {name}"))
    }

    /// All Pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Makes a Pod: namespace, link, servers, object, status.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<()> {
        let node = self.node(spec.node)?.clone();
        let number = self.next_address(&node)?;
        let name = format!("pod-{}-{}", spec.namespace, spec.name);
        let netns = self.network.add_pod(&self.record, &node, number, &name)?;
        let addresses = node.pod(number);
        let mut pod = Pod { spec, node, addresses, netns, number, servers: Vec::new() };
        pod.serve(self.options.families)?;
        let mut object = pod.spec.object(&pod.node);
        self.kubernetes().apply(&object)?;
        object["status"] = self.pod_status(&pod);
        self.kubernetes().apply(&object)?;
        self.pods.insert((pod.spec.namespace.clone(), pod.spec.name.clone()), pod);
        Ok(())
    }

    /// As real address managers do: an address is used again as late as possible, because the kernel remembers the
    /// connections of the Pod that had it.
    fn next_address(&mut self, node: &Node) -> Result<u8> {
        let taken: Vec<u8> =
            self.pods.values().filter(|pod| pod.node.number == node.number).map(|pod| pod.number).collect();
        let last = self.last_addresses.entry(node.number).or_insert(1);
        let mut following = (*last..=254).skip(1).chain(2..=254);
        let next = following.find(|number| !taken.contains(number)).context("the Pod network is full")?;
        *last = next;
        Ok(next)
    }

    /// Makes a Pod ready or not.
    pub fn set_ready(&mut self, name: &str, ready: bool) -> Result<()> {
        let pod = self.pods.get_mut(&key(name)).with_context(|| format!("no Pod {name}"))?;
        pod.spec.ready = ready;
        let pod = self.pod(name)?;
        let mut object = pod.spec.object(&pod.node);
        object["status"] = self.pod_status(pod);
        self.kubernetes().apply(&object).map(drop)
    }

    /// Marks a Pod as terminating; it goes on answering until [`Bed::delete_pod`].
    pub fn terminate_pod(&self, name: &str) -> Result<()> {
        let (namespace, name) = pod::split(name);
        self.kubernetes().delete("Pod", namespace, name, 600)
    }

    /// Ends a Pod: its object, its servers, its link.
    pub fn delete_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(&key(name)).with_context(|| format!("no Pod {name}"))?;
        self.end_pod(&pod)
    }

    pub(super) fn end_pod(&self, pod: &Pod) -> Result<()> {
        self.kubernetes().delete("Pod", &pod.spec.namespace, &pod.spec.name, 0)?;
        // The link first: it would go with the namespace, at a moment of the kernel's choice.
        self.network.remove_pod(&pod.node, pod.number)
    }

    /// Makes the Pods of a Deployment, in the Deployment controller's stead. Other objects need nothing.
    pub fn make_pods_of(&mut self, object: &Value) -> Result<()> {
        if object.get("kind").and_then(Value::as_str) != Some("Deployment") {
            return Ok(());
        }
        let replicas = object.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
        for (n, node) in (1..=replicas).zip((1..=self.options.nodes).cycle()) {
            self.add_pod(PodSpec::from_deployment(object, n, node)?)?;
        }
        Ok(())
    }

    fn pod_status(&self, pod: &Pod) -> Value {
        let families = self.options.families;
        pod::status(&pod.addresses.known(families), &pod.node.addresses.known(families), pod.spec.ready)
    }
}

fn key(reference: &str) -> (String, String) {
    let (namespace, name) = pod::split(reference);
    (namespace.to_owned(), name.to_owned())
}
