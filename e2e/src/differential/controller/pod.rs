//! Random Pods.
//!
//! Invariants: what is immutable in a Pod never changes here; a Pod that ended stays ended.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    random::Random,
    service::{APPS, TIERS},
};

/// What the script knows of a Pod.
#[derive(Clone, Debug)]
pub struct PodModel {
    /// Name.
    pub name: String,
    /// Whether it is marked as terminating.
    pub terminating: bool,
    labels: BTreeMap<&'static str, &'static str>,
    node: Option<String>,
    addresses: Vec<String>,
    phase: &'static str,
    ready: Option<&'static str>,
    hostname: Option<String>,
    subdomain: Option<String>,
    ports: usize,
}

impl PodModel {
    /// A Pod in any state. `number` is its own and gives it its addresses; `services` are names for its subdomain.
    pub fn any(
        random: &mut Random,
        name: String,
        number: usize,
        nodes: &[String],
        services: &[String],
    ) -> Self {
        let node = if random.chance(98) { random.pick(nodes).cloned() } else { None };
        let subdomain = if random.chance(30) { random.pick(services).cloned() } else { None };
        let mut pod = Self {
            hostname: random.chance(40).then(|| format!("host-{}", number % 5)),
            name,
            terminating: false,
            labels: BTreeMap::new(),
            node,
            addresses: Vec::new(),
            phase: "Running",
            ready: Some("True"),
            subdomain,
            ports: random.below(6),
        };
        pod.relabel(random);
        pod.readdress(random, number);
        match random.below(20) {
            0 => pod.phase = "Pending",
            1 => pod.addresses.clear(),
            2 => pod.phase = "Unknown",
            3..7 => pod.ready = Some("False"),
            7 => pod.ready = None,
            _ => {}
        }
        pod
    }

    /// A Pod that serves, of an app, as a rolling update brings it.
    #[must_use]
    pub fn serving(mut self, app: &'static str) -> Self {
        self.labels.insert("app", app);
        self.phase = "Running";
        self.ready = Some("True");
        self
    }

    /// Whether it has this app's label.
    pub fn is_of(&self, app: &str) -> bool {
        self.labels.get("app").is_some_and(|own| *own == app)
    }

    /// Whether it was given a node.
    pub fn has_node(&self) -> bool {
        self.node.is_some()
    }

    /// Whether deleting it with a grace period leaves it there, marked.
    pub fn lingers(&self) -> bool {
        self.node.is_some() && !matches!(self.phase, "Failed" | "Succeeded")
    }

    /// Changes one thing about it. `number` gives new addresses.
    pub fn alter(&mut self, random: &mut Random, number: usize) {
        match random.below(12) {
            0..5 => self.ready = if self.ready == Some("True") { Some("False") } else { Some("True") },
            5 => self.ready = random.one_of([None, Some("Unknown")]),
            6 | 7 => self.relabel(random),
            8 => self.readdress(random, number),
            9 => self.addresses.clear(),
            10 if !self.terminating => self.phase = random.one_of(["Failed", "Succeeded"]),
            _ if matches!(self.phase, "Failed" | "Succeeded") => self.relabel(random),
            _ => self.phase = random.one_of(["Running", "Unknown", "Pending"]),
        }
    }

    fn relabel(&mut self, random: &mut Random) {
        self.labels.insert("app", random.one_of(APPS));
        self.labels.insert("tier", random.one_of(TIERS));
    }

    fn readdress(&mut self, random: &mut Random, number: usize) {
        let (high, low) = (number / 250 % 250, number % 250 + 1);
        let (v4, v6) = (format!("10.1.{high}.{low}"), format!("fd00:1::{high:x}:{low:x}"));
        self.addresses = match random.below(8) {
            0..2 => vec![v4],
            2 => vec![v6],
            3 => vec![v6, v4],
            _ => vec![v4, v6],
        };
    }

    /// The object to apply.
    pub fn object(&self, namespace: &str) -> Value {
        let mut spec = json!({"containers": [{"name": "main", "image": "none", "ports": self.ports()}],
            "initContainers": [{"name": "side", "image": "none", "restartPolicy": "Always",
                "ports": if self.ports == 5 { json!([]) } else { json!([port("side", 9900, "TCP")]) }}]});
        for (field, value) in
            [("nodeName", &self.node), ("hostname", &self.hostname), ("subdomain", &self.subdomain)]
        {
            if let Some(value) = value {
                spec[field] = json!(value);
            }
        }
        let conditions: Vec<Value> = [("Initialized", Some("True")), ("Ready", self.ready)]
            .into_iter()
            .filter_map(|(kind, status)| Some(json!({"type": kind, "status": status?})))
            .collect();
        let addresses: Vec<Value> = self.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": self.name, "namespace": namespace, "labels": self.labels},
        "status": {
            "phase": self.phase,
            "conditions": conditions,
            "podIP": self.addresses.first(),
            "podIPs": if addresses.is_empty() { Value::Null } else { json!(addresses) },
        }})
    }

    fn ports(&self) -> Value {
        let http = |number| port("http", number, "TCP");
        match self.ports {
            0 => json!([http(8080)]),
            1 => json!([http(8081), port("dns", 5353, "UDP")]),
            2 => json!([http(8080), port("dns", 53, "UDP"), port("https", 8443, "TCP")]),
            3 => json!([]),
            // A name with another protocol than the Service asks for is no match.
            4 => json!([port("dns", 53, "TCP"), port("https", 443, "TCP"), http(80)]),
            _ => json!([http(8080), port("https", 8443, "TCP")]),
        }
    }
}

fn port(name: &str, number: u16, protocol: &str) -> Value {
    json!({"name": name, "containerPort": number, "protocol": protocol})
}
