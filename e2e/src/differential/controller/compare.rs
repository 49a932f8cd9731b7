//! The comparison of two sides, and its exceptions.
//!
//! Invariant: what differs is a [`Difference`], or is excused by an [`Exception`], which only ever excuses the genuine side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value;

use super::{
    complaints::{Complaints, Part},
    exception::Exception,
    side::MIRRORED_PER_SUBSET,
    state::Key,
};

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

/// What the objects that the script made say about a Service.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether a controller writes its Endpoints.
    pub managed: bool,
    /// Whether it has topology mode `Auto`.
    pub auto: bool,
    /// The port sets that its Pods have, as groups of slices are called after.
    pub port_sets: BTreeSet<String>,
}

/// Compares, and remembers what exceptions need to remember.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Facts about all Services that are there.
    facts: BTreeMap<Key, Facts>,
    /// Services whose Endpoints the genuine controller could not write; what it mirrors of them is old, too.
    frozen: BTreeSet<Key>,
    /// Services with a mirrored slice that does not hold all addresses.
    cut: BTreeSet<Key>,
    /// Slices that the genuine controller says that it cannot write.
    complaints: Complaints,
    /// Slices that it could not write when their Service became one that it leaves alone.
    abandoned: Complaints,
    /// How often each exception was needed.
    pub used: BTreeMap<Exception, usize>,
}

impl Comparison {
    /// To be called at each quiet point, before anything else.
    pub fn note(&mut self, ours: &BTreeMap<Key, Value>, facts: BTreeMap<Key, Facts>, complaints: Complaints) {
        self.abandoned.append(&mut std::mem::replace(&mut self.complaints, complaints));
        self.abandoned.retain(|(key, _), _| facts.get(key).is_some_and(|facts| !facts.managed));
        self.facts = facts;
        for (key, objects) in ours {
            if has_address_without_node(&objects["Endpoints"]) {
                self.frozen.insert(key.clone());
            } else if self.facts.get(key).is_some_and(|facts| facts.managed) {
                self.frozen.remove(key);
            }
        }
        self.frozen.retain(|key| ours.contains_key(key));
        let cut = ours.iter().filter(|(_, objects)| is_cut(objects));
        self.cut = cut.map(|(key, _)| key.clone()).collect();
    }

    /// Whether the genuine controller could not write the Endpoints of a Service.
    pub fn is_frozen(&self, key: &Key) -> bool {
        self.frozen.contains(key)
    }

    /// Why the genuine side may not be as Fairlead would leave it; `hints_only` says that it is about hints and nothing
    /// else.
    pub fn excuse_write(&mut self, key: &Key, part: Part, hints_only: bool) -> Option<Exception> {
        let auto = self.facts.get(key).is_some_and(|facts| facts.auto);
        if hints_only && auto {
            self.use_up(Exception::HintsDealtAgain);
            return Some(Exception::HintsDealtAgain);
        }
        self.excuse(key, part)
    }

    /// Why the genuine side may differ.
    fn excuse(&self, key: &Key, part: Part) -> Option<Exception> {
        let frozen = part != Part::Selected && self.frozen.contains(key);
        let cut = part == Part::Mirrored && self.cut.contains(key);
        let gone = part == Part::Selected && !self.facts.contains_key(key);
        [(frozen, Exception::PodWithoutNode), (cut, Exception::MirrorCut), (gone, Exception::GoneService)]
            .into_iter()
            .find_map(|(holds, exception)| holds.then_some(exception))
            .or_else(|| {
                let about = (key.clone(), part);
                self.complaints.get(&about).or_else(|| self.abandoned.get(&about)).copied()
            })
    }

    fn use_up(&mut self, exception: Exception) {
        *self.used.entry(exception).or_default() += 1;
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
            self.use_up(Exception::MirroredGenerateName);
        }
        for part in [Part::Endpoints, Part::Selected, Part::Mirrored] {
            if let Some(exception) = self.excuse(key, part)
                && drop_excused(exception, part, &mut kcm, &mut ours)
            {
                self.use_up(exception);
            }
        }
        let port_sets = self.facts.get(key).map(|facts| facts.port_sets.clone()).unwrap_or_default();
        let dropped = drop_empty_slices(&mut kcm, &ours, |_| true)
            + drop_empty_slices(&mut ours, &kcm, |ports| port_sets.contains(ports));
        (0..dropped).for_each(|_| self.use_up(Exception::EmptySlice));
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

/// Takes out of both what an exception is about; whether they differed there.
fn drop_excused(exception: Exception, part: Part, kcm: &mut Value, ours: &mut Value) -> bool {
    if exception == Exception::MirrorCut {
        return drop_drawn(kcm, ours);
    }
    let drop_from = |side: &mut Value| {
        let mut kept = side.as_object_mut().map(std::mem::take).unwrap_or_default();
        let names: Vec<String> =
            kept.keys().filter(|name| Part::of_group(name) == Some(part)).cloned().collect();
        let dropped: Vec<_> = names.into_iter().filter_map(|name| kept.remove_entry(&name)).collect();
        *side = if kept.is_empty() { Value::Null } else { Value::Object(kept) };
        dropped
    };
    if exception == Exception::GoneService {
        return !drop_from(kcm).is_empty();
    }
    drop_from(kcm) != drop_from(ours)
}

/// The endpoints of mirrored slices that are full on both sides.
fn drop_drawn(kcm: &mut Value, ours: &mut Value) -> bool {
    let mut differed = false;
    let (Some(kcm), Some(ours)) = (kcm.as_object_mut(), ours.as_object_mut()) else { return false };
    for (name, group) in kcm.iter_mut().filter(|(name, _)| Part::of_group(name) == Some(Part::Mirrored)) {
        let Some(other) = ours.get_mut(name) else { continue };
        if is_full(group) && is_full(other) {
            differed |= group["endpoints"] != other["endpoints"];
            group["endpoints"].take();
            other["endpoints"].take();
        }
    }
    differed
}

fn is_full(group: &Value) -> bool {
    group["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == MIRRORED_PER_SUBSET)
}

/// Whether there is a full mirrored slice, and there are two subsets of the same ports, which a slice holds together.
fn is_cut(objects: &Value) -> bool {
    let full = objects
        .as_object()
        .into_iter()
        .flatten()
        .any(|(name, group)| Part::of_group(name) == Some(Part::Mirrored) && is_full(group));
    let mut seen = BTreeSet::new();
    let mut subsets = objects["Endpoints"]["subsets"].as_array().into_iter().flatten();
    full && subsets.any(|subset| !seen.insert(subset["ports"].to_string()))
}

/// From the metadata of mirrored slices; whether there was any.
fn drop_generate_name(objects: &mut Value) -> bool {
    let groups = objects.as_object_mut().into_iter().flatten();
    let mut dropped = false;
    for (_, group) in groups.filter(|(name, _)| Part::of_group(name) == Some(Part::Mirrored)) {
        for metadata in group["metadata"].as_array_mut().into_iter().flatten() {
            dropped |= metadata.as_object_mut().is_some_and(|fields| fields.remove("generateName").is_some());
        }
    }
    dropped
}

/// Groups of slices without endpoints that only `some` has, where both have another one of the manager and family, and
/// whose ports are right; how many there were.
fn drop_empty_slices(some: &mut Value, other: &Value, is_right: impl Fn(&str) -> bool) -> usize {
    let (Some(some), Some(other)) = (some.as_object_mut(), other.as_object()) else { return 0 };
    let split = |name: &str| {
        let (kind, ports) = name.split_once(" slices with ports ")?;
        Some((kind.to_owned(), ports.to_owned()))
    };
    let common: BTreeSet<String> = some
        .keys()
        .filter(|name| other.contains_key(*name))
        .filter_map(|name| split(name).map(|(kind, _)| kind))
        .collect();
    let before = some.len();
    some.retain(|name, group| {
        let is_empty = group["endpoints"].as_array().is_some_and(Vec::is_empty);
        let excused = split(name).is_some_and(|(kind, ports)| common.contains(&kind) && is_right(&ports));
        let selected = Part::of_group(name) == Some(Part::Selected);
        other.contains_key(name) || !selected || !is_empty || !excused
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
mod tests;
