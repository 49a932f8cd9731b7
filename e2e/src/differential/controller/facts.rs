//! What the objects that the script made say about a Service, worked out here, not by the planner.
//!
//! Invariant: nothing in here knows the code under test.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    compare::Facts,
    state::{self, Key, Made},
};

/// The facts about all Services that are there.
pub fn of(made: &Made) -> BTreeMap<Key, Facts> {
    let mut pods: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for pod in made.pods.iter().filter(|pod| is_member(pod)) {
        pods.entry(state::key(pod).0).or_default().push(pod);
    }
    let facts = |service: &Value| {
        let key = state::key(service);
        let chosen = pods.get(&key.0).into_iter().flatten().filter(|pod| selects(service, pod));
        let port_sets = chosen.map(|pod| state::port_set(ports(service, pod).iter())).collect();
        (key, Facts { managed: is_managed(service), auto: state::is_auto(service), port_sets })
    };
    made.services.iter().map(facts).collect()
}

/// Whether a controller writes the Endpoints of a Service.
fn is_managed(service: &Value) -> bool {
    service["spec"]["selector"].is_object() && service["spec"]["type"] != "ExternalName"
}

/// Whether a Pod has not ended, and has an address.
fn is_member(pod: &Value) -> bool {
    let status = &pod["status"];
    let ended = status["phase"] == "Failed" || status["phase"] == "Succeeded";
    !ended && status["podIPs"].as_array().is_some_and(|addresses| !addresses.is_empty())
}

fn selects(service: &Value, pod: &Value) -> bool {
    let Some(selector) = service["spec"]["selector"].as_object() else { return false };
    selector.iter().all(|(key, value)| &pod["metadata"]["labels"][key] == value)
}

/// The ports of a Pod's endpoint.
fn ports(service: &Value, pod: &Value) -> Vec<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let containers = list(&pod["spec"]["containers"]).into_iter().chain(
        list(&pod["spec"]["initContainers"]).into_iter().filter(|one| one["restartPolicy"] == "Always"),
    );
    let named: Vec<Value> = containers.flat_map(|container| list(&container["ports"])).collect();
    let resolve = |port: &Value| {
        let target = &port["targetPort"];
        let found = named.iter().find(|one| &one["name"] == target && one["protocol"] == port["protocol"]);
        let number = if target.is_string() {
            found.map(|one| one["containerPort"].clone())
        } else {
            Some(target.clone())
        };
        let name = port["name"].as_str().unwrap_or_default();
        let mut resolved = json!({"name": name, "port": number?, "protocol": port["protocol"]});
        if port["appProtocol"].is_string() {
            resolved["appProtocol"] = port["appProtocol"].clone();
        }
        Some(resolved)
    };
    list(&service["spec"]["ports"]).iter().filter_map(resolve).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn port_sets_are_those_of_selected_pods_that_have_an_address() {
        let service = json!({"metadata": {"namespace": "here", "name": "web"}, "spec": {"selector": {"app": "red"}, "ports": [
            {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http", "appProtocol": "h2c"},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
        ]}});
        let pod = |app: &str, phase: &str, ports: Value| {
            json!({"metadata": {"namespace": "here", "labels": {"app": app}},
                "spec": {"containers": [{"ports": ports}]},
                "status": {"phase": phase, "podIPs": [{"ip": "10.0.0.1"}]}})
        };
        let http = json!([{"name": "http", "containerPort": 8080, "protocol": "TCP"}]);
        let made = Made {
            services: vec![service],
            pods: vec![
                pod("red", "Running", http.clone()),
                pod("red", "Failed", json!([])),
                pod("blue", "Running", json!([])),
            ],
            nodes: Vec::new(),
        };
        let expected = [
            json!({"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "h2c"}),
            json!({"name": "dns", "port": 5353, "protocol": "UDP"}),
        ];
        let facts = of(&made).into_values().next().unwrap();
        assert!(facts.managed);
        assert_eq!(facts.port_sets, BTreeSet::from([state::port_set(expected.iter())]));
    }
}
