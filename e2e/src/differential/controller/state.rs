//! What a side has, in a form in which two sides can be compared.
//!
//! Invariants: nothing is left that an API server drew or counted (uids become what they are of; names of slices, versions,
//! times go), nor the order in which slices and their endpoints are listed, nor how endpoints of one Service, manager,
//! family and port set are dealt over its slices. Everything else of an object stays. What follows from uids is left to
//! [`super::takeover`]: the order in Endpoints, and which addresses those hold that are truncated; and so is what follows from
//! the past, the zones of topology mode `Auto`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::side::{Objects, Side};

/// Where all Endpoints are.
pub const ENDPOINTS: &str = "/api/v1/endpoints";
/// Where all slices are.
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// A Service by namespace and name.
pub type Key = (String, String);

/// Managers of the slices that are compared whatever their names; a slice of anybody else keeps its name.
const MANAGERS: [(&str, &str); 2] = [
    ("endpointslice-controller.k8s.io", "selected"),
    ("endpointslicemirroring-controller.k8s.io", "mirrored"),
];

/// What stands for the addresses of Endpoints that do not hold all.
const HELD: &str = "addresses held";

/// Says that Endpoints do not hold all addresses.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

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
        Ok(Self { endpoints: side.all(ENDPOINTS)?, slices: side.all(SLICES)? })
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
    namespaces: &BTreeSet<String>,
    is_fresh: impl Fn(&Key) -> bool,
) -> BTreeMap<Key, Value> {
    let uids = uids(made, written);
    let auto: BTreeSet<Key> = made.services.iter().filter(|service| is_auto(service)).map(key).collect();
    let mut all: BTreeMap<Key, Value> = BTreeMap::new();
    let within = |key: &Key| namespaces.contains(&key.0);
    for endpoints in written.endpoints.iter().filter(|endpoints| within(&key(endpoints))) {
        all.entry(key(endpoints)).or_insert_with(|| json!({}))["Endpoints"] =
            comparable_endpoints(endpoints, &uids);
    }
    let mut groups: BTreeMap<(Key, String), Vec<&Value>> = BTreeMap::new();
    for slice in written.slices.iter().filter(|slice| within(&key(slice))) {
        groups.entry((service_of(slice), group(slice))).or_default().push(slice);
    }
    for ((key, group), slices) in groups {
        if group == TAKEN {
            // A hand took them as they were packed.
            all.entry(key).or_insert_with(|| json!({}))[group] = json!(slices.len());
            continue;
        }
        let mut objects = comparable_group(&slices, &uids, is_fresh(&key));
        if let (true, Some((kind, _))) = (auto.contains(&key), group.split_once(" slices with ports ")) {
            let counts = format!("{kind} ready endpoints by hint");
            let counts = &mut all.entry(key.clone()).or_insert_with(|| json!({}))[counts];
            count_hints(&mut objects, counts, is_fresh(&key));
        }
        all.entry(key).or_insert_with(|| json!({}))[group] = objects;
    }
    all
}

/// Whether what a Service has are Endpoints that do not hold all addresses.
pub fn is_truncated(objects: &Value) -> bool {
    objects["Endpoints"][HELD].is_number()
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

/// The group of slices that a controller wrote, and that a hand gave to somebody else, or holds by a finalizer.
const TAKEN: &str = "selected slices taken from their controller";

/// Slices that are compared together.
fn group(slice: &Value) -> String {
    let manager = slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"].as_str();
    let going = !slice["metadata"]["deletionTimestamp"].is_null();
    let Some((_, manager)) = MANAGERS.into_iter().find(|(value, _)| manager == Some(value) && !going) else {
        if going || slice["metadata"]["generateName"].is_string() {
            return TAKEN.to_owned();
        }
        return format!("foreign slice {}", key(slice).1);
    };
    let family = slice["addressType"].as_str().unwrap_or_default();
    format!("{manager} {family} slices with ports {}", port_set(list(&slice["ports"])))
}

/// A set of ports, as the groups of slices that have it are called.
#[allow(single_use_lifetimes, reason = "inside `impl Trait` it cannot be left out")]
pub fn port_set<'p>(ports: impl Iterator<Item = &'p Value>) -> String {
    let mut ports: Vec<String> = ports.map(|port| without_null(port.clone()).to_string()).collect();
    ports.sort();
    format!("[{}]", ports.join(", "))
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

/// Topology mode `Auto` gives each zone its number of endpoints, of all that a Service has in a family; which ones is
/// drawn. Takes the hints out of a group of slices, and adds them up. What is good enough is kept, so the numbers of a
/// Service that is not fresh depend on its past; whether they are good enough is left to [`super::takeover`].
fn count_hints(group: &mut Value, counts: &mut Value, fresh: bool) {
    for endpoint in group["endpoints"].as_array_mut().into_iter().flatten() {
        let hints = endpoint.as_object_mut().and_then(|fields| fields.remove("hints"));
        if endpoint["conditions"]["ready"] == true {
            let zone = match hints {
                None => "none".to_owned(),
                Some(hints) if fresh => hints["forZones"].to_string(),
                Some(_) => "some zone".to_owned(),
            };
            let count = counts[&zone].as_u64().unwrap_or(0);
            counts[zone] = json!(count + 1);
        }
    }
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
    let metadata = metadata(endpoints, uids, &[]);
    if metadata["annotations"][OVER_CAPACITY].is_string() {
        let lists = subsets.iter().flat_map(|subset| [&subset["addresses"], &subset["notReadyAddresses"]]);
        let held: usize = lists.map(|addresses| list(addresses).count()).sum();
        return json!({"metadata": metadata, (HELD): held});
    }
    json!({"metadata": metadata, "subsets": subsets})
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
        comparable(&made, &written, &BTreeSet::from(["here".to_owned()]), |_| fresh)
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
