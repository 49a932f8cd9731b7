//! Divergence: where the objects that are there differ from those that the plan leaves, endpoint by endpoint.
//!
//! Slices are compared by what they say together, not one by one: how endpoints are packed is no difference.
//!
//! Invariant: where nothing is there at all, nothing is compared: then the plan itself tells everything.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_objects::{Endpoint, EndpointPort, EndpointSlice, Endpoints, Protocol, SlicePort};
use fairlead_planner::EndpointsPlan;
use serde::Serialize;

use crate::{objects::Objects, snapshot::Decision};

/// What is said of an endpoint without ports.
const NO_PORT: &str = "no port";

/// An endpoint that is there otherwise than planned.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Divergence {
    /// `EndpointSlice` or `Endpoints`.
    pub(super) object: &'static str,
    pub(super) address: String,
    /// The Pod or whatever else stands behind it; empty if nothing is known to.
    pub(super) target: String,
    /// What is there; empty for nothing.
    pub(super) present: Vec<String>,
    /// What the controller would leave; empty for nothing.
    pub(super) planned: Vec<String>,
}

/// What is said of an address: words that may differ one by one. An address may be said to be several things.
#[derive(Default)]
struct Entry {
    target: String,
    words: BTreeSet<Vec<String>>,
}

type Entries = BTreeMap<String, Entry>;

/// Compares what is there with the plan.
pub(super) fn divergences(
    objects: &Objects,
    decision: &Decision<'_>,
    given: &[&EndpointSlice],
) -> Vec<Divergence> {
    let planned: Vec<&EndpointSlice> = decision.outcome.slices.iter().collect();
    let mut found = Vec::new();
    if !given.is_empty() {
        found = compare("EndpointSlice", of_slices(given), of_slices(&planned));
    }
    let planned = match &decision.plan.endpoints {
        EndpointsPlan::Keep => return found,
        EndpointsPlan::Create(endpoints) | EndpointsPlan::Update(endpoints) => Some(endpoints),
        EndpointsPlan::Delete(_) => None,
    };
    if let Some(given) = objects.endpoints.get(&decision.service.key) {
        let planned = planned.map(of_endpoints).unwrap_or_default();
        found.extend(compare("Endpoints", of_endpoints(given), planned));
    }
    found
}

fn compare(object: &'static str, mut present: Entries, mut planned: Entries) -> Vec<Divergence> {
    let addresses: BTreeSet<String> = present.keys().chain(planned.keys()).cloned().collect();
    let one = |address: String| {
        let (present, planned) =
            (present.remove(&address).unwrap_or_default(), planned.remove(&address).unwrap_or_default());
        let (is, shall_be) =
            (distinct(&present.words, &planned.words), distinct(&planned.words, &present.words));
        let target = if planned.target.is_empty() { present.target } else { planned.target };
        let differs = !is.is_empty() || !shall_be.is_empty();
        differs.then_some(Divergence { object, address, target, present: is, planned: shall_be })
    };
    addresses.into_iter().filter_map(one).collect()
}

/// What one side says: in full where the other says nothing of the address, else the words that the other does not say.
fn distinct(words: &BTreeSet<Vec<String>>, others: &BTreeSet<Vec<String>>) -> Vec<String> {
    let said: BTreeSet<&String> = others.iter().flatten().collect();
    let differing = |entry: &Vec<String>| {
        let new: Vec<&str> = entry.iter().filter(|word| !said.contains(word)).map(String::as_str).collect();
        new.join(", ")
    };
    if others.is_empty() {
        // The state is enough, but for an endpoint that serves nothing.
        let matters = |(position, word): &(usize, &String)| *position == 0 || *word == NO_PORT;
        let brief = |entry: &Vec<String>| {
            let told: Vec<&str> =
                entry.iter().enumerate().filter(matters).map(|(_, word)| word.as_str()).collect();
            told.join(", ")
        };
        return words.iter().map(brief).collect();
    }
    words.difference(others).map(differing).filter(|text| !text.is_empty()).collect()
}

fn of_slices(slices: &[&EndpointSlice]) -> Entries {
    let mut entries = Entries::new();
    for slice in slices {
        let port = |port: &SlicePort| {
            port_text(port.name.as_deref().unwrap_or_default(), port.port, port.protocol.unwrap_or_default())
        };
        let ports = listed(slice.ports.iter().map(port));
        for endpoint in &slice.endpoints {
            let entry = entries.entry(endpoint.addresses.join(",")).or_default();
            if let Some(target) = &endpoint.target_ref {
                entry.target = format!("{} {}", target.kind, target.name);
            }
            entry.words.insert(words(endpoint, &ports));
        }
    }
    entries
}

/// The state comes first.
fn words(endpoint: &Endpoint, ports: &str) -> Vec<String> {
    let conditions = endpoint.conditions;
    let ready = if conditions.ready == Some(false) { "not ready" } else { "ready" };
    let state = match (conditions.terminating == Some(true), conditions.serving != Some(false)) {
        (false, _) => ready.to_owned(),
        (true, true) => format!("{ready}, terminating but serving"),
        (true, false) => format!("{ready}, terminating"),
    };
    let mut words = vec![state, ports.to_owned()];
    let mut say = |what: &str, value: Option<String>| {
        words.push(value.map_or_else(|| format!("no {what}"), |value| format!("{what} {value}")));
    };
    say("node", endpoint.node_name.clone());
    say("zone", endpoint.zone.clone());
    say("hostname", endpoint.hostname.clone());
    let hints = endpoint.hints.as_ref().map(|hints| {
        let names: Vec<&str> =
            hints.for_zones.iter().chain(&hints.for_nodes).map(|hint| hint.name.as_str()).collect();
        names.join(" ")
    });
    say("hints", hints);
    say("uid", endpoint.target_ref.as_ref().map(|target| target.uid.clone()));
    words
}

fn of_endpoints(endpoints: &Endpoints) -> Entries {
    let mut entries = Entries::new();
    for subset in &endpoints.subsets {
        let port = |port: &EndpointPort| port_text(&port.name, Some(port.port), port.protocol);
        let ports = listed(subset.ports.iter().map(port));
        let ready = subset.addresses.iter().map(|address| ("ready", address));
        let all = ready.chain(subset.not_ready_addresses.iter().map(|address| ("not ready", address)));
        for (state, address) in all {
            let entry = entries.entry(address.ip.clone()).or_default();
            if let Some(target) = &address.target_ref {
                entry.target = format!("{} {}", target.kind, target.name);
            }
            entry.words.insert(vec![state.to_owned(), ports.clone()]);
        }
    }
    entries
}

fn port_text(name: &str, number: Option<i32>, protocol: Protocol) -> String {
    let name = if name.is_empty() { String::new() } else { format!("{name}:") };
    let number = number.map_or_else(|| "all".to_owned(), |number| number.to_string());
    format!("{name}{number}/{protocol}")
}

fn listed(ports: impl Iterator<Item = String>) -> String {
    let mut ports: Vec<String> = ports.collect();
    ports.sort();
    if ports.is_empty() { NO_PORT.to_owned() } else { ports.join(" ") }
}
