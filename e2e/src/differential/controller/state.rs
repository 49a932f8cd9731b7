//! What a side has, in a form in which two sides can be compared.
//!
//! Invariants: nothing is left that an API server drew or counted (uids become what they are of; names of slices, versions,
//! times go), nor the order in which slices and their endpoints are listed, nor how endpoints of one Service, manager,
//! family and port set are dealt over its slices. Everything else of an object stays.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::side::{Objects, Side};

/// A Service by namespace and name.
pub type Key = (String, String);

/// Managers of the slices that are compared whatever their names; a slice of anybody else keeps its name.
const MANAGERS: [(&str, &str); 2] = [
    ("endpointslice-controller.k8s.io", "selected"),
    ("endpointslicemirroring-controller.k8s.io", "mirrored"),
];

/// Annotations that tell when, not what.
const TIMES: [&str; 1] = ["endpoints.kubernetes.io/last-change-trigger-time"];

/// What the endpoint controllers of a side wrote.
#[derive(Clone, Debug)]
pub struct Written {
    /// All Endpoints.
    pub endpoints: Objects,
    /// All slices.
    pub slices: Objects,
}

impl Written {
    /// Reads it.
    pub fn of(side: &Side) -> Result<Self> {
        Ok(Self {
            endpoints: side.all("/api/v1/endpoints")?,
            slices: side.all("/apis/discovery.k8s.io/v1/endpointslices")?,
        })
    }

    /// What changes when any of it does.
    pub fn versions(&self) -> BTreeSet<String> {
        let version = |object: &Value| {
            let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            format!("{} {}", field("uid"), field("resourceVersion"))
        };
        self.endpoints.iter().chain(&self.slices).map(version).collect()
    }
}

/// What the script made on a side. It stays as it is between two steps.
#[derive(Clone, Debug)]
pub struct Made {
    /// All Services.
    pub services: Objects,
    /// All Pods.
    pub pods: Objects,
    /// All Nodes.
    pub nodes: Objects,
}

impl Made {
    /// Reads it.
    pub fn of(side: &Side) -> Result<Self> {
        Ok(Self {
            services: side.all("/api/v1/services")?,
            pods: side.all("/api/v1/pods")?,
            nodes: side.all("/api/v1/nodes")?,
        })
    }
}

/// Namespace and a name of an object.
pub fn key(object: &Value) -> Key {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (field("namespace"), field("name"))
}

/// The Service that a slice says it belongs to.
pub fn service_of(slice: &Value) -> Key {
    let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap_or_default();
    (key(slice).0, service.to_owned())
}

/// What each Service of these namespaces has, with or without the Service.
pub fn comparable(
    made: &Made,
    written: &Written,
    namespaces: &BTreeSet<&str>,
    is_fresh: impl Fn(&Key) -> bool,
) -> BTreeMap<Key, Value> {
    let uids = uids(made, written);
    let auto: BTreeSet<Key> = made.services.iter().filter(|service| is_auto(service)).map(key).collect();
    let mut all: BTreeMap<Key, Value> = BTreeMap::new();
    let within = |key: &Key| namespaces.contains(key.0.as_str());
    for endpoints in written.endpoints.iter().filter(|endpoints| within(&key(endpoints))) {
        all.entry(key(endpoints)).or_insert_with(|| json!({}))["Endpoints"] =
            comparable_endpoints(endpoints, &uids);
    }
    let mut groups: BTreeMap<(Key, String), Vec<&Value>> = BTreeMap::new();
    for slice in written.slices.iter().filter(|slice| within(&key(slice))) {
        groups.entry((service_of(slice), group(slice))).or_default().push(slice);
    }
    for ((key, group), slices) in groups {
        let mut objects = comparable_group(&slices, &uids, is_fresh(&key));
        if auto.contains(&key) {
            count_hints(&mut objects);
        }
        all.entry(key).or_insert_with(|| json!({}))[group] = objects;
    }
    all
}

fn uids(made: &Made, written: &Written) -> BTreeMap<String, String> {
    let of = |kind: &'static str, objects: &Objects| {
        let named = |object: &Value| {
            let uid = object["metadata"]["uid"].as_str()?.to_owned();
            let (namespace, name) = key(object);
            Some((uid, format!("uid of {kind} {namespace}/{name}")))
        };
        objects.iter().filter_map(named).collect::<Vec<_>>()
    };
    [("Service", &made.services), ("Pod", &made.pods), ("Endpoints", &written.endpoints)]
        .into_iter()
        .flat_map(|(kind, objects)| of(kind, objects))
        .collect()
}

/// Slices that are compared together.
fn group(slice: &Value) -> String {
    let manager = slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"].as_str();
    let Some((_, manager)) = MANAGERS.into_iter().find(|(value, _)| manager == Some(value)) else {
        return format!("foreign slice {}", key(slice).1);
    };
    let family = slice["addressType"].as_str().unwrap_or_default();
    let mut ports: Vec<String> =
        list(&slice["ports"]).map(|port| without_null(port.clone()).to_string()).collect();
    ports.sort();
    format!("{manager} {family} slices with ports [{}]", ports.join(", "))
}

fn comparable_group(slices: &[&Value], uids: &BTreeMap<String, String>, fresh: bool) -> Value {
    let mut endpoints: Vec<Value> = slices
        .iter()
        .flat_map(|slice| list(&slice["endpoints"]))
        .map(|endpoint| named(without_null(endpoint.clone()), uids))
        .collect();
    endpoints.sort_by_cached_key(Value::to_string);
    let metadata: BTreeSet<String> =
        slices.iter().map(|slice| metadata(slice, uids, &["generateName"]).to_string()).collect();
    let parsed = metadata.iter().filter_map(|text| serde_json::from_str::<Value>(text).ok());
    // The order of ports in a slice is kept.
    let ports: BTreeSet<String> =
        slices.iter().map(|slice| without_null(slice["ports"].clone()).to_string()).collect();
    let mut group = json!({"endpoints": endpoints, "metadata": parsed.collect::<Vec<_>>(), "ports": ports});
    if fresh {
        let mut sizes: Vec<usize> = slices.iter().map(|slice| list(&slice["endpoints"]).count()).collect();
        sizes.sort_unstable();
        group["sizes"] = json!(sizes);
    }
    group
}

/// Whether a Service has topology mode `Auto`.
pub fn is_auto(service: &Value) -> bool {
    let annotations = &service["metadata"]["annotations"];
    let mode = ["service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"]
        .into_iter()
        .find_map(|name| annotations[name].as_str());
    matches!(mode, Some("Auto" | "auto"))
}

/// Topology mode `Auto` gives each zone its number of endpoints; which ones is drawn.
fn count_hints(group: &mut Value) {
    let mut zones: BTreeMap<String, usize> = BTreeMap::new();
    let Some(endpoints) = group["endpoints"].as_array_mut() else { return };
    for endpoint in endpoints {
        let hints = endpoint.as_object_mut().and_then(|fields| fields.remove("hints"));
        if endpoint["conditions"]["ready"] == true {
            let zone = hints.map_or_else(String::new, |hints| hints["forZones"].to_string());
            *zones.entry(zone).or_default() += 1;
        }
    }
    group["ready endpoints by hint"] = json!(zones);
}

/// The order of subsets follows from uids, and that of addresses that are equal, too; it is compared elsewhere.
fn comparable_endpoints(endpoints: &Value, uids: &BTreeMap<String, String>) -> Value {
    let mut subsets: Vec<Value> = list(&endpoints["subsets"])
        .map(|subset| {
            let mut subset = named(without_null(subset.clone()), uids);
            for field in ["addresses", "notReadyAddresses"] {
                if let Some(addresses) = subset[field].as_array_mut() {
                    addresses.sort_by_cached_key(|address| {
                        (address["ip"].to_string(), address["targetRef"]["name"].to_string())
                    });
                }
            }
            // Indexing makes what is not there.
            without_null(subset)
        })
        .collect();
    subsets.sort_by_cached_key(Value::to_string);
    json!({"metadata": metadata(endpoints, uids, &[]), "subsets": subsets})
}

fn metadata(object: &Value, uids: &BTreeMap<String, String>, also: &[&str]) -> Value {
    let mut kept = Map::new();
    for field in ["labels", "annotations", "ownerReferences", "finalizers"].iter().chain(also) {
        let mut value = object["metadata"][*field].clone();
        if let Some(annotations) = value.as_object_mut().filter(|_| *field == "annotations") {
            annotations.retain(|name, _| !TIMES.contains(&name.as_str()));
        }
        kept.insert((*field).to_owned(), value);
    }
    named(without_null(Value::Object(kept)), uids)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `null`, empty lists and empty objects mean the same as nothing.
fn without_null(value: Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_null(value)));
            Value::Object(fields.filter(|(_, value)| !empty(value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_null).collect()),
        other => other,
    }
}

/// With what every uid is of, in place of the uid. What the script itself wrote as a uid stays.
fn named(mut value: Value, uids: &BTreeMap<String, String>) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                *field = match field.as_str().filter(|_| name == "uid") {
                    Some(uid) => json!(uids.get(uid).cloned().unwrap_or_else(|| unknown(uid))),
                    None => named(field.take(), uids),
                };
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = named(item.take(), uids)),
        _ => {}
    }
    value
}

fn unknown(uid: &str) -> String {
    if uid.len() == 36 { "uid of something that is gone".to_owned() } else { uid.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, uid: &str, addresses: &[&str]) -> Value {
        let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        json!({"addressType": "IPv4", "ports": null, "endpoints": endpoints, "metadata": {
            "name": name, "namespace": "here", "uid": uid, "resourceVersion": uid,
            "labels": {"kubernetes.io/service-name": "web",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}}})
    }

    fn seen(slices: Objects, fresh: bool) -> BTreeMap<Key, Value> {
        let made = Made { services: Vec::new(), pods: Vec::new(), nodes: Vec::new() };
        let written = Written { endpoints: Vec::new(), slices };
        comparable(&made, &written, &BTreeSet::from(["here"]), |_| fresh)
    }

    #[test]
    fn names_versions_and_packing_make_no_difference() {
        let one =
            seen(vec![slice("a", "1", &["10.0.0.1", "10.0.0.2"]), slice("b", "2", &["10.0.0.3"])], false);
        let other =
            seen(vec![slice("c", "3", &["10.0.0.2"]), slice("d", "4", &["10.0.0.3", "10.0.0.1"])], false);
        assert_eq!(one, other);
        assert_ne!(one, seen(vec![slice("c", "3", &["10.0.0.2", "10.0.0.3"])], false));
    }

    #[test]
    fn sizes_make_a_difference_while_a_service_is_fresh() {
        let one = || vec![slice("a", "1", &["10.0.0.1", "10.0.0.2"]), slice("b", "2", &[])];
        let other = || vec![slice("a", "1", &["10.0.0.1"]), slice("b", "2", &["10.0.0.2"])];
        assert_eq!(seen(one(), false), seen(other(), false));
        assert_ne!(seen(one(), true), seen(other(), true));
    }
}
