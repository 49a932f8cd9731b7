//! The comparison of two sides, and its exceptions.
//!
//! Invariant: an exception is one of [`Exception`], each of which stands in `docs/differences.md`; everything else that
//! differs is a [`Difference`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value;

use super::state::Key;

/// Where the two sides may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exception {
    /// Endpoints with a Pod that has an address and no node.
    PodWithoutNode,
    /// The field `generateName` of mirrored slices.
    MirroredGenerateName,
    /// An empty slice beside others.
    EmptySlice,
    /// Mirrored slices of both families.
    MirrorRecycling,
    /// A genuine controller that takes its own view for outdated, for good.
    StuckTracker,
}

impl Exception {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::PodWithoutNode,
        Self::MirroredGenerateName,
        Self::EmptySlice,
        Self::MirrorRecycling,
        Self::StuckTracker,
    ];

    /// What `docs/differences.md` calls it.
    pub fn subject(self) -> &'static str {
        match self {
            Self::PodWithoutNode => "Pod with an address and no `nodeName`",
            Self::MirroredGenerateName => "Mirrored slice that is written again",
            Self::EmptySlice => "Slice without endpoints beside others",
            Self::MirrorRecycling => "Mirrored slices of both families that are recycled",
            Self::StuckTracker => "Slice that is relabelled, or waits for a finalizer",
        }
    }

    /// Why it is right that the sides differ.
    pub fn reason(self) -> &'static str {
        match self {
            Self::PodWithoutNode => {
                "kube-controller-manager sends an empty nodeName for a Pod that has an address and no node; the API server \
                 refuses the Endpoints, which stay as they were until the Pod goes. Fairlead leaves nodeName out."
            }
            Self::MirroredGenerateName => {
                "kube-controller-manager sends a mirrored slice without generateName when it writes it again; Fairlead \
                 keeps the field, as both do for slices of Services with a selector."
            }
            Self::EmptySlice => {
                "a slice without endpoints is left alone as long as some Pod, even one that is not published, has its port \
                 set; whether there is one depends on what a controller saw between two changes."
            }
            Self::MirrorRecycling => {
                "with new slices of both families and an old one to recycle, kube-controller-manager takes the wrong one for \
                 recycled, and creates one that exists until a retry draws another order."
            }
            Self::StuckTracker => {
                "kube-controller-manager remembers a slice that it will never see again, and waits for it until it is \
                 restarted; a deletion that it hears of before the answer to its own write is enough."
            }
        }
    }
}

/// Something that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The Service.
    pub key: Key,
    /// Where, what the genuine side has, what ours has.
    pub lines: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}/{}", self.key.0, self.key.1)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Compares, and remembers what exceptions need to remember.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Services whose Endpoints the genuine controller could not write; what it mirrors of them is old, too.
    frozen: BTreeSet<Key>,
    /// Services whose slices the genuine controller says that it cannot write, and why.
    pub stuck: BTreeMap<Key, Exception>,
    /// How often each exception was needed.
    pub used: BTreeMap<Exception, usize>,
}

impl Comparison {
    /// To be called at each quiet point, before [`Comparison::differences`]. `managed` says whether a controller writes the
    /// Endpoints of a Service.
    pub fn note(&mut self, ours: &BTreeMap<Key, Value>, managed: impl Fn(&Key) -> bool) {
        for (key, objects) in ours {
            if has_address_without_node(&objects["Endpoints"]) {
                self.frozen.insert(key.clone());
            } else if managed(key) {
                self.frozen.remove(key);
            }
        }
        self.frozen.retain(|key| ours.contains_key(key));
    }

    /// Whether the genuine controller could not write what belongs to a Service.
    pub fn is_frozen(&self, key: &Key) -> bool {
        self.frozen.contains(key) || self.stuck.contains_key(key)
    }

    /// What differs, without exceptions.
    pub fn differences(
        &mut self,
        kcm: &BTreeMap<Key, Value>,
        ours: &BTreeMap<Key, Value>,
    ) -> Vec<Difference> {
        let keys: BTreeSet<&Key> = kcm.keys().chain(ours.keys()).collect();
        keys.into_iter().filter_map(|key| self.difference(key, kcm.get(key), ours.get(key))).collect()
    }

    fn difference(&mut self, key: &Key, kcm: Option<&Value>, ours: Option<&Value>) -> Option<Difference> {
        let mut kcm = kcm.cloned().unwrap_or(Value::Null);
        let mut ours = ours.cloned().unwrap_or(Value::Null);
        if kcm == ours {
            return None;
        }
        if drop_generate_name(&mut kcm) | drop_generate_name(&mut ours) {
            *self.used.entry(Exception::MirroredGenerateName).or_default() += 1;
        }
        if self.frozen.contains(key) {
            *self.used.entry(Exception::PodWithoutNode).or_default() += 1;
            for side in [&mut kcm, &mut ours] {
                if let Some(objects) = side.as_object_mut() {
                    objects.retain(|name, _| name != "Endpoints" && !name.starts_with("mirrored"));
                }
            }
        }
        if let Some(exception) = self.stuck.get(key) {
            *self.used.entry(*exception).or_default() += 1;
            for side in [&mut kcm, &mut ours] {
                if let Some(objects) = side.as_object_mut() {
                    let selected = *exception == Exception::StuckTracker;
                    objects.retain(|name, _| {
                        let lost = name.starts_with("mirrored") || selected && name.starts_with("selected");
                        !lost
                    });
                }
            }
        }
        let dropped = drop_empty_slices(&mut kcm, &ours) + drop_empty_slices(&mut ours, &kcm);
        if dropped > 0 {
            *self.used.entry(Exception::EmptySlice).or_default() += dropped;
        }
        let mut lines = Vec::new();
        describe("", &kcm, &ours, &mut lines);
        if let (false, Some(fields)) = (lines.is_empty(), kcm.as_object()) {
            let same = fields.iter().filter(|(name, value)| ours.get(name.as_str()) == Some(*value));
            let same: Vec<&str> = same.map(|(name, _)| name.as_str()).collect();
            if !same.is_empty() {
                lines.push(format!("(the same: {})", same.join("; ")));
            }
        }
        (!lines.is_empty()).then(|| Difference { key: key.clone(), lines })
    }
}

/// What kube-controller-manager's log says about slices that it cannot write.
pub fn stuck(log: &str) -> BTreeMap<Key, Exception> {
    let mut stuck = BTreeMap::new();
    for line in log.lines() {
        let exception =
            if line.contains("endpointslicemirroring_controller") && line.contains("already exists") {
                Exception::MirrorRecycling
            } else if line.contains("EndpointSlice informer cache is out of date") {
                Exception::StuckTracker
            } else {
                continue;
            };
        let key = line.split(" key=\"").nth(1).and_then(|rest| rest.split('"').next()?.split_once('/'));
        if let Some((namespace, name)) = key {
            stuck.insert((namespace.to_owned(), name.to_owned()), exception);
        }
    }
    stuck
}

/// From the metadata of mirrored slices; whether there was any.
fn drop_generate_name(objects: &mut Value) -> bool {
    let groups = objects.as_object_mut().into_iter().flatten();
    let mut dropped = false;
    for (_, group) in groups.filter(|(name, _)| name.starts_with("mirrored")) {
        for metadata in group["metadata"].as_array_mut().into_iter().flatten() {
            dropped |= metadata.as_object_mut().is_some_and(|fields| fields.remove("generateName").is_some());
        }
    }
    dropped
}

/// Groups of slices without endpoints that only `some` has, where both have another one of the manager and family; how
/// many there were.
fn drop_empty_slices(some: &mut Value, other: &Value) -> usize {
    let (Some(some), Some(other)) = (some.as_object_mut(), other.as_object()) else { return 0 };
    let kind = |name: &str| name.split(" slices with ports ").next().map(str::to_owned);
    let common: BTreeSet<Option<String>> =
        some.keys().filter(|name| other.contains_key(*name)).map(|name| kind(name)).collect();
    let before = some.len();
    some.retain(|name, group| {
        let is_empty = group["endpoints"].as_array().is_some_and(Vec::is_empty);
        other.contains_key(name)
            || !name.starts_with("selected")
            || !is_empty
            || !common.contains(&kind(name))
    });
    before - some.len()
}

/// In Endpoints that a controller made: those made by hand may lack anything.
fn has_address_without_node(endpoints: &Value) -> bool {
    let subsets = endpoints["subsets"].as_array().into_iter().flatten();
    endpoints["metadata"]["labels"]["endpoints.kubernetes.io/managed-by"] == "endpoint-controller"
        && subsets
            .flat_map(|subset| [&subset["addresses"], &subset["notReadyAddresses"]])
            .flat_map(|addresses| addresses.as_array().into_iter().flatten())
            .any(|address| address["nodeName"].is_null() && address["targetRef"]["kind"] == "Pod")
}

/// One line for each place that differs. Lists are told by what only one side has.
fn describe(place: &str, kcm: &Value, ours: &Value, lines: &mut Vec<String>) {
    match (kcm, ours) {
        (kcm, ours) if kcm == ours => {}
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let place = if place.is_empty() { name.clone() } else { format!("{place}: {name}") };
                let get =
                    |fields: &serde_json::Map<String, Value>| fields.get(name).cloned().unwrap_or_default();
                describe(&place, &get(a), &get(b), lines);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            let only = |some: &[Value], others: &[Value]| {
                let only: Vec<String> =
                    some.iter().filter(|item| !others.contains(item)).map(Value::to_string).collect();
                only.join("\n      ")
            };
            let (only_kcm, only_ours) = (only(a, b), only(b, a));
            if only_kcm.is_empty() && only_ours.is_empty() {
                lines.push(format!("{place}: order or number: kcm {kcm}, ours {ours}"));
            } else {
                lines.push(format!("{place}:\n    only kcm: {only_kcm}\n    only ours: {only_ours}"));
            }
        }
        (kcm, ours) => lines.push(format!("{place}: kcm {kcm}, ours {ours}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(objects: Value) -> BTreeMap<Key, Value> {
        BTreeMap::from([(("here".to_owned(), "web".to_owned()), objects)])
    }

    fn endpoints(address: &Value) -> Value {
        json!({"Endpoints": {
            "metadata": {"labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}},
            "subsets": [{"addresses": [address]}]}})
    }

    #[test]
    fn differences_are_told_where_they_are() {
        let (kcm, ours) =
            (one(json!({"a": {"b": [1, 2], "c": 1}})), one(json!({"a": {"b": [2, 3], "c": 1}})));
        let found = Comparison::default().differences(&kcm, &ours);
        assert_eq!(found[0].to_string(), "Service here/web\n  a: b:\n    only kcm: 1\n    only ours: 3");
        assert!(Comparison::default().differences(&kcm, &kcm).is_empty());
    }

    #[test]
    fn the_log_tells_what_is_stuck() {
        let log = "I1 1 endpointslicemirroring_controller.go:278] \"Error mirroring\" key=\"a/b\" err=\"x already exists\"\n\
                   I1 1 other.go:1] \"fine\" key=\"a/c\"";
        let key = ("a".to_owned(), "b".to_owned());
        assert_eq!(stuck(log), BTreeMap::from([(key, Exception::MirrorRecycling)]));
    }

    #[test]
    fn every_exception_is_documented() {
        let page = std::fs::read_to_string(crate::tools::repository().join("docs/differences.md")).unwrap();
        for exception in Exception::ALL {
            assert!(page.contains(&format!("| {} |", exception.subject())), "{exception:?}");
            assert!(!exception.reason().is_empty());
        }
    }

    #[test]
    fn an_empty_slice_is_excepted_beside_others_only() {
        let group = |addresses: &[&str]| json!({"endpoints": addresses});
        let (here, empty) = ("selected IPv4 slices with ports [1]", "selected IPv4 slices with ports []");
        let without = one(json!({(here): group(&["10.0.0.1"])}));
        let with = one(json!({(here): group(&["10.0.0.1"]), (empty): group(&[])}));
        assert!(Comparison::default().differences(&without, &with).is_empty());
        let alone = one(json!({(empty): group(&[])}));
        assert_eq!(Comparison::default().differences(&one(json!({})), &alone).len(), 1);
        let full = one(json!({(here): group(&["10.0.0.1"]), (empty): group(&["10.0.0.2"])}));
        assert_eq!(Comparison::default().differences(&without, &full).len(), 1);
    }

    #[test]
    fn endpoints_of_a_pod_without_node_are_excepted_until_a_controller_wrote_others() {
        let mut comparison = Comparison::default();
        let without = one(endpoints(&json!({"ip": "10.0.0.1", "targetRef": {"kind": "Pod"}})));
        let with = one(endpoints(&json!({"ip": "10.0.0.1", "nodeName": "a", "targetRef": {"kind": "Pod"}})));
        let empty = one(json!({}));
        comparison.note(&without, |_| true);
        assert!(comparison.differences(&empty, &without).is_empty());
        comparison.note(&with, |_| false);
        assert!(comparison.differences(&empty, &with).is_empty());
        comparison.note(&with, |_| true);
        assert_eq!(comparison.differences(&empty, &with).len(), 1);
    }
}
