//! From documents to objects, by kind.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    Problems, Source,
    document::{self, Document, Step},
    fields,
    problem::Problem,
};
use crate::objects::{DEFAULT_NAMESPACE, Kind, Objects};

/// Objects, problems and notices, as they come in.
#[derive(Default)]
pub(crate) struct Collection {
    objects: Objects,
    problems: Vec<Problem>,
    notices: Vec<String>,
    /// Where each object was seen, by `Kind namespace/name`.
    seen: HashMap<String, String>,
}

/// An object of a document: the document itself, or an item of a List in it.
struct Item<'a> {
    document: &'a Document<'a>,
    /// Where it stands in the document.
    prefix: Vec<Step>,
    api_version: String,
    kind: String,
    /// `Kind namespace/name`.
    subject: String,
}

impl Collection {
    /// Adds everything in `source`.
    pub(crate) fn add(&mut self, source: &Source) {
        for document in document::split(&source.name, &source.text) {
            match document.parse() {
                Ok(Value::Null) => {}
                Ok(value) => self.add_value(&document, Vec::new(), value, None),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    /// The objects and the notices, or all problems.
    pub(crate) fn finish(self) -> Result<(Objects, Vec<String>), Problems> {
        if self.problems.is_empty() { Ok((self.objects, self.notices)) } else { Err(Problems(self.problems)) }
    }

    /// Adds an object or the items of a List. `default` is what items of a typed list are when they do not say.
    fn add_value(
        &mut self,
        document: &Document<'_>,
        prefix: Vec<Step>,
        mut value: Value,
        default: Option<(&str, &str)>,
    ) {
        if !value.is_object() {
            let found = match &value {
                Value::Array(_) => "a list".to_owned(),
                other => other.to_string(),
            };
            let message =
                format!("found {found}, expected a Kubernetes object: a mapping with apiVersion and kind");
            return self.problems.push(document.problem_at(&prefix, message));
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let api_version = text("apiVersion").or_else(|| default.map(|(version, _)| version.to_owned()));
        let kind = text("kind").or_else(|| default.map(|(_, kind)| kind.to_owned()));
        let (Some(api_version), Some(kind)) = (api_version.clone(), kind.clone()) else {
            let missing = if kind.is_none() { "kind" } else { "apiVersion" };
            let message = "missing; expected a Kubernetes object with apiVersion and kind".to_owned();
            let path: Vec<Step> = prefix.into_iter().chain([missing.into()]).collect();
            return self.problems.push(document.problem_at(&path, message));
        };
        if let (Some(item_kind), true) = (kind.strip_suffix("List"), value.get("items").is_some()) {
            let items = value.get_mut("items").map(Value::take).unwrap_or_default();
            let default = (!item_kind.is_empty()).then_some((api_version.as_str(), item_kind));
            return self.add_items(document, prefix, items, default);
        }
        let subject = subject(&api_version, &kind, &value);
        let item = Item { document, prefix, api_version, kind, subject };
        self.add_object(&item, value);
    }

    fn add_items(
        &mut self,
        document: &Document<'_>,
        mut prefix: Vec<Step>,
        items: Value,
        default: Option<(&str, &str)>,
    ) {
        prefix.push("items".into());
        match items {
            Value::Null => {}
            Value::Array(items) => {
                for (index, item) in items.into_iter().enumerate() {
                    let path = prefix.iter().cloned().chain([Step::Index(index)]).collect();
                    self.add_value(document, path, item, default);
                }
            }
            other => {
                let message = format!("found {other}, expected a list of objects");
                self.problems.push(document.problem_at(&prefix, message));
            }
        }
    }

    fn add_object(&mut self, item: &Item<'_>, value: Value) {
        let Some(kind) = Kind::named(&item.api_version, &item.kind) else { return self.skip(item) };
        let before = self.problems.len();
        if value.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
            let message = "missing; expected the name of the object".to_owned();
            self.problems.push(item.problem(&["metadata".into(), "name".into()], message));
        }
        let found = fields::check(&item.kind, &value);
        self.problems.extend(found.into_iter().map(|(path, message)| item.problem(&path, message)));
        if self.problems.len() > before {
            return;
        }
        if let Some(first) = self.seen.insert(item.subject.clone(), item.document.place()) {
            let place = item.document.place();
            self.notices.push(format!("warning: {place}: {} replaces the one in {first}", item.subject));
        }
        if let Err(problem) = self.insert(item, kind, value) {
            self.problems.push(problem);
        }
    }

    /// The kind is not needed, or it is needed in another version.
    fn skip(&mut self, item: &Item<'_>) {
        let place = item.document.place();
        let known = Kind::ALL.into_iter().find(|kind| kind.as_str() == item.kind);
        // A group of its own with the same kind (Knative's Service) is simply another kind.
        let same_group = |version: &str| group(version) == group(&item.api_version);
        match known.map(Kind::api_version).filter(|version| same_group(version)) {
            Some(version) => {
                let message = format!("found {:?}, expected {version:?}", item.api_version);
                self.problems.push(item.problem(&["apiVersion".into()], message));
            }
            None => self
                .notices
                .push(format!("skipped: {place}: {} {} is not needed", item.api_version, item.subject)),
        }
    }

    fn insert(&mut self, item: &Item<'_>, kind: Kind, value: Value) -> Result<(), Problem> {
        self.objects.add(kind, value).map_err(|error| item.name(item.document.misread(&item.prefix, &error)))
    }
}

impl Item<'_> {
    fn problem(&self, path: &[Step], message: String) -> Problem {
        let path: Vec<Step> = self.prefix.iter().chain(path).cloned().collect();
        self.name(self.document.problem_at(&path, message))
    }

    fn name(&self, problem: Problem) -> Problem {
        Problem { subject: Some(self.subject.clone()), ..problem }
    }
}

/// `Kind namespace/name`. Of kinds that are not needed it is not known whether they have namespaces: they get none.
fn subject(api_version: &str, kind: &str, value: &Value) -> String {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("/metadata/name").unwrap_or("(no name)");
    let namespaced = Kind::named(api_version, kind).is_some_and(Kind::is_namespaced);
    match text("/metadata/namespace").or_else(|| namespaced.then_some(DEFAULT_NAMESPACE)) {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
