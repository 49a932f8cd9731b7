//! More addresses than Endpoints may hold, with few Pods.
//!
//! A Service has many named ports, and each Pod lacks another one of them. So each port is a subset of its own, and a Pod's
//! address counts in nearly all subsets: 34 Pods make 1,122 addresses, 30 make 900.
//!
//! Invariant: all Pods have an address and a node.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{change::Change, random::Random, script::Touch};
use crate::kubernetes;

/// Ports of the Service, and Pods at most.
const PORTS: usize = 34;
/// Pods at first: a little too many.
const PODS: usize = 33;
const SERVICE: &str = "crowded";

/// The namespace of a crowd.
#[derive(Clone, Debug)]
pub struct Crowd {
    namespace: String,
    /// The Pods, by what they lack, and whether they are ready.
    pods: BTreeMap<usize, bool>,
}

impl Crowd {
    /// A crowd that comes in this step.
    pub fn new(step: usize, changes: &mut Vec<Change>) -> Self {
        let crowd = Self {
            namespace: format!("crowd-{step}"),
            pods: (0..PODS).map(|lacking| (lacking, true)).collect(),
        };
        changes.push(Change::Apply(kubernetes::namespace(&crowd.namespace)));
        let ports: Vec<Value> = (0..PORTS)
            .map(|port| json!({"name": name(port), "port": 1000 + port, "targetPort": name(port), "protocol": "TCP"}))
            .collect();
        changes.push(Change::Apply(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": SERVICE, "namespace": crowd.namespace},
            "spec": {"ports": ports, "selector": {"app": SERVICE}, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}})));
        changes.extend(crowd.pods.keys().map(|lacking| crowd.apply(*lacking)));
        crowd
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its Service.
    pub fn touch(&self) -> Touch {
        Touch { namespace: self.namespace.clone(), name: SERVICE.to_owned(), by_hand: false }
    }

    /// Some Pods come, go, or become something else.
    pub fn change(&mut self, random: &mut Random, changes: &mut Vec<Change>) {
        for _ in 0..3 {
            let lacking = random.below(PORTS);
            match self.pods.remove(&lacking) {
                Some(_) if random.chance(30) => changes.push(self.delete(lacking)),
                Some(ready) => {
                    self.pods.insert(lacking, !ready);
                    changes.push(self.apply(lacking));
                }
                None => {
                    self.pods.insert(lacking, true);
                    changes.push(self.apply(lacking));
                }
            }
        }
    }

    /// It goes.
    pub fn leave(&self, changes: &mut Vec<Change>) {
        changes.push(Change::Delete {
            kind: "Namespace",
            namespace: String::new(),
            name: self.namespace.clone(),
            grace: 0,
        });
        changes.extend(self.pods.keys().map(|lacking| self.delete(*lacking)));
    }

    fn delete(&self, lacking: usize) -> Change {
        Change::Delete { kind: "Pod", namespace: self.namespace.clone(), name: pod(lacking), grace: 0 }
    }

    fn apply(&self, lacking: usize) -> Change {
        let ports: Vec<Value> = (0..PORTS)
            .filter(|port| *port != lacking)
            .map(|port| json!({"name": name(port), "containerPort": 2000 + port, "protocol": "TCP"}))
            .collect();
        let ready = if self.pods.get(&lacking) == Some(&true) { "True" } else { "False" };
        let ip = format!("10.2.0.{}", lacking + 1);
        Change::Apply(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod(lacking), "namespace": self.namespace, "labels": {"app": SERVICE}},
            "spec": {"nodeName": "node2", "containers": [{"name": "main", "image": "none", "ports": ports}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready}]}}))
    }
}

fn name(port: usize) -> String {
    format!("p{port}")
}

fn pod(lacking: usize) -> String {
    format!("pod-{lacking}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In how many addresses it comes to: each Pod counts once for every set of ports that has the same Pods.
    fn addresses(crowd: &Crowd) -> usize {
        let lacked = crowd.pods.len();
        let subsets = lacked + usize::from(lacked < PORTS);
        subsets * lacked - lacked
    }

    #[test]
    fn there_are_more_addresses_than_endpoints_may_hold() {
        let crowd = Crowd::new(1, &mut Vec::new());
        assert!(addresses(&crowd) > 1000, "{}", addresses(&crowd));
    }

    #[test]
    fn pods_change_until_they_go() {
        let (mut random, mut changes) = (Random::new(1), Vec::new());
        let mut crowd = Crowd::new(1, &mut Vec::new());
        (0..20).for_each(|_| crowd.change(&mut random, &mut changes));
        assert!(changes.iter().any(|change| matches!(change, Change::Delete { .. })));
        let mut gone = Vec::new();
        crowd.leave(&mut gone);
        assert_eq!(gone.len(), crowd.pods.len() + 1);
    }
}
