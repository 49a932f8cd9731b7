//! Near misses: Pods that the selector only just does not select, and what keeps them out.
//!
//! Invariant: a near miss differs from the selector in something that is named; a Pod that is selected is none.

use std::collections::BTreeMap;

use fairlead_objects::{LabelMap, Pod, Service};
use fairlead_planner::selects;
use serde::Serialize;

use crate::objects::Objects;

/// From this likeness on, one text may well be meant for the other. `api-svc` and `api-service` have 0.64.
const ALIKE: f64 = 0.6;
/// Shorter texts are part of too many others.
const SHORTEST_PART: usize = 3;

/// A Pod that is nearly selected.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NearMiss {
    /// `namespace/name`
    pub(super) pod: String,
    /// One sentence each.
    pub(super) differences: Vec<String>,
    /// The field to look at.
    pub(super) field: String,
    /// What to do about it.
    pub(super) remedy: String,
    /// Pairs of the selector that the Pod has or nearly has.
    #[serde(skip)]
    hits: usize,
}

/// Pods that are not selected.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// The nearest first.
    pub(super) near_misses: Vec<NearMiss>,
    /// Pods of the namespace that are not even near.
    pub(super) far: usize,
    /// What the Pods of the namespace have for each label of the selector, with the number of Pods.
    pub(super) values: BTreeMap<String, BTreeMap<String, usize>>,
}

/// Looks at all Pods that `service` does not select.
pub(super) fn others(objects: &Objects, service: &Service) -> Others {
    let mut others = Others::default();
    let Some(selector) = &service.selector else { return others };
    for pod in objects.pods.values() {
        let same_namespace = pod.namespace == service.key.namespace;
        match (same_namespace, selects(selector, &pod.labels)) {
            (true, true) | (false, false) => {}
            (false, true) => others.near_misses.push(elsewhere(pod, service)),
            (true, false) => {
                others.count(selector, &pod.labels);
                match near_miss(pod, selector) {
                    Some(near_miss) => others.near_misses.push(near_miss),
                    None => others.far += 1,
                }
            }
        }
    }
    others.near_misses.sort_by(|a, b| (b.hits, &a.pod).cmp(&(a.hits, &b.pod)));
    others
}

impl Others {
    fn count(&mut self, selector: &LabelMap, labels: &LabelMap) {
        for key in selector.keys() {
            if let Some(value) = labels.get(key) {
                *self.values.entry(key.to_string()).or_default().entry(value.to_string()).or_default() += 1;
            }
        }
    }
}

fn elsewhere(pod: &Pod, service: &Service) -> NearMiss {
    NearMiss {
        pod: format!("{}/{}", pod.namespace, pod.name),
        differences: vec![format!("namespace {}, wanted {}", pod.namespace, service.key.namespace)],
        field: "metadata.namespace".to_owned(),
        remedy: "a Service selects Pods of its own namespace only: put both in the same one".to_owned(),
        hits: 0,
    }
}

/// At least half of the pairs must be there or nearly so.
fn near_miss(pod: &Pod, selector: &LabelMap) -> Option<NearMiss> {
    let found: Vec<Pair<'_>> =
        selector.iter().map(|(key, value)| Pair::of(&pod.labels, key, value)).collect();
    let hits = found.iter().filter(|pair| pair.is_hit()).count();
    if hits * 2 < selector.len() {
        return None;
    }
    let wrong = selector.iter().zip(&found).filter(|(_, pair)| !matches!(pair, Pair::There));
    let fields: Vec<String> = wrong.clone().map(|((key, _), pair)| pair.field(key)).collect();
    let differences = wrong.map(|((key, value), pair)| pair.sentence(key, value)).collect();
    Some(NearMiss {
        pod: format!("{}/{}", pod.namespace, pod.name),
        differences,
        field: fields.join(", "),
        remedy: "correct the Pod's labels (where it has an owner, in its template), or the Service's spec.selector"
            .to_owned(),
        hits,
    })
}

/// What a Pod has for one pair of the selector.
enum Pair<'a> {
    There,
    /// Another value, perhaps one that looks alike.
    OtherValue {
        value: &'a str,
        alike: bool,
    },
    /// The value under a label that looks alike.
    OtherKey {
        key: &'a str,
    },
    Missing,
}

impl<'a> Pair<'a> {
    fn of(labels: &'a LabelMap, key: &str, value: &str) -> Self {
        match labels.get(key) {
            Some(found) if **found == *value => Self::There,
            Some(found) => Self::OtherValue { value: found, alike: alike(found, value) },
            None => {
                let other = labels.iter().find(|(other, found)| ***found == *value && alike(other, key));
                other.map_or(Self::Missing, |(key, _)| Self::OtherKey { key })
            }
        }
    }

    fn is_hit(&self) -> bool {
        matches!(self, Self::There | Self::OtherValue { alike: true, .. } | Self::OtherKey { .. })
    }

    fn field(&self, key: &str) -> String {
        let key = if let Self::OtherKey { key } = self { key } else { key };
        format!("metadata.labels[{key}]")
    }

    fn sentence(&self, key: &str, wanted: &str) -> String {
        match self {
            Self::OtherValue { value, .. } => format!("label {key}={value}, wanted {key}={wanted}"),
            Self::OtherKey { key: other } => format!("label {other}={wanted}, wanted {key}={wanted}"),
            Self::There | Self::Missing => format!("no label {key}, wanted {key}={wanted}"),
        }
    }
}

fn alike(found: &str, wanted: &str) -> bool {
    let (found, wanted) = (found.to_lowercase(), wanted.to_lowercase());
    let part = |part: &str, whole: &str| part.len() >= SHORTEST_PART && whole.contains(part);
    part(&found, &wanted)
        || part(&wanted, &found)
        || strsim::normalized_damerau_levenshtein(&found, &wanted) >= ALIKE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> LabelMap {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    fn differences(pod: &[(&str, &str)], selector: &[(&str, &str)]) -> Option<Vec<String>> {
        let pod = Pod { labels: labels(pod).into(), ..Pod::default() };
        near_miss(&pod, &labels(selector)).map(|near_miss| near_miss.differences)
    }

    #[test]
    fn misspelt_labels_are_near_misses_and_others_are_not() {
        let near = |pod, selector| differences(&[pod], &[selector]);
        assert_eq!(
            near(("app", "api-svc"), ("app", "api-service")).unwrap(),
            ["label app=api-svc, wanted app=api-service"]
        );
        assert_eq!(near(("app", "Web"), ("app", "web")).unwrap(), ["label app=Web, wanted app=web"]);
        assert_eq!(near(("ap", "web"), ("app", "web")).unwrap(), ["label ap=web, wanted app=web"]);
        assert_eq!(near(("app", "ngnix"), ("app", "nginx")).unwrap().len(), 1);
        for (pod, selector) in [
            (("app", "db"), ("app", "web")),
            (("app", "frontend"), ("app", "backend")),
            (("tier", "web"), ("app", "web")),
        ] {
            assert_eq!(near(pod, selector), None, "{pod:?}");
        }
    }

    #[test]
    fn pods_that_lack_some_of_several_labels_are_near_misses() {
        let selector = [("app", "web"), ("tier", "front")];
        assert_eq!(differences(&[("app", "web")], &selector).unwrap(), ["no label tier, wanted tier=front"]);
        assert_eq!(differences(&[("app", "db"), ("tier", "data")], &selector), None);
        assert_eq!(differences(&[], &selector), None);
    }
}
