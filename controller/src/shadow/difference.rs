//! Differences between an object that is there and the one that we would leave, in words.
//!
//! Invariant: what the planner does not compare (versions, the trigger time, managed fields) is not named here either.

use std::collections::BTreeMap;

use fairlead_objects::{EndpointSlice, Endpoints, ObjectMeta, labels};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// More differences of one object than these are not listed.
const MOST: usize = 20;

/// Between slices; `None` is one that is not there.
pub(super) fn slices(there: Option<&EndpointSlice>, ours: Option<&EndpointSlice>) -> Vec<String> {
    let view = |slice: &EndpointSlice| {
        let endpoints =
            slice.endpoints.iter().map(|endpoint| (endpoint.addresses.join(","), value(endpoint)));
        json!({
            "metadata": metadata(&slice.metadata),
            "addressType": value(&slice.address_type),
            "ports": value(&slice.ports),
            "endpoints": keyed(endpoints),
        })
    };
    compare(there.map(view), ours.map(view))
}

/// Between Endpoints.
pub(super) fn endpoints(there: Option<&Endpoints>, ours: Option<&Endpoints>) -> Vec<String> {
    let view = |endpoints: &Endpoints| json!({"metadata": metadata(&endpoints.metadata), "subsets": value(&endpoints.subsets)});
    compare(there.map(view), ours.map(view))
}

fn metadata(metadata: &ObjectMeta) -> Value {
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.remove(labels::TRIGGER_TIME);
    json!({
        "labels": value(&metadata.labels.clone().unwrap_or_default()),
        "annotations": value(&annotations),
        "ownerReferences": value(&metadata.owner_references.clone().unwrap_or_default()),
    })
}

fn value(object: &impl Serialize) -> Value {
    // Types of ours always serialise; if one did not, its difference would only be missing from the words.
    serde_json::to_value(object).unwrap_or_default()
}

/// Items by what they are called; later ones of the same name get a number.
fn keyed(items: impl Iterator<Item = (String, Value)>) -> Value {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut map = Map::new();
    for (key, item) in items {
        let count = seen.entry(key.clone()).or_default();
        *count += 1;
        map.insert(if *count > 1 { format!("{key}#{count}") } else { key }, item);
    }
    Value::Object(map)
}

fn compare(there: Option<Value>, ours: Option<Value>) -> Vec<String> {
    let mut found = Vec::new();
    match (there, ours) {
        (Some(there), Some(ours)) => walk("", &there, &ours, &mut found),
        (None, Some(_)) => found.push("it is not there".to_owned()),
        (Some(_), None) => found.push("it is there, and should not be".to_owned()),
        (None, None) => {}
    }
    if found.len() > MOST {
        let more = found.len() - MOST;
        found.truncate(MOST);
        found.push(format!("and {more} more"));
    }
    found
}

fn walk(path: &str, there: &Value, ours: &Value, found: &mut Vec<String>) {
    let child = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (there, ours) {
        (Value::Object(there), Value::Object(ours)) => {
            let keys: std::collections::BTreeSet<&String> = there.keys().chain(ours.keys()).collect();
            for key in keys {
                walk(
                    &child(key),
                    there.get(key).unwrap_or(&Value::Null),
                    ours.get(key).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            for position in 0..left.len().max(right.len()) {
                let at = |items: &[Value]| items.get(position).cloned().unwrap_or_default();
                walk(&format!("{path}[{position}]"), &at(left), &at(right), found);
            }
        }
        _ if there == ours => {}
        (Value::Null, ours) => found.push(format!("{path}: not there, expected {ours}")),
        (there, Value::Null) => found.push(format!("{path}: {there} is there, expected nothing")),
        (there, ours) => found.push(format!("{path}: {there} is there, expected {ours}")),
    }
}
