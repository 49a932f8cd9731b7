//! Taking rights away one by one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    kubernetes::Kubernetes,
    service_accounts::{self, NAMESPACE},
    wait,
};

/// How long the API server may take to go by a changed role.
const DEADLINE: Duration = Duration::from_secs(20);

/// A right that a manifest gives, and the role without it.
#[derive(Clone, Debug)]
pub struct Given {
    account: String,
    verb: String,
    group: String,
    resource: String,
    /// The only object that it is for, if it is for one.
    name: Option<String>,
    role: Value,
    reduced: Value,
}

impl Given {
    /// All rights that the chart gives to an account.
    pub fn to(account: &str) -> Result<Vec<Self>> {
        Self::by(account, &service_accounts::manifest(account)?)
    }

    /// All rights that these objects give to an account.
    pub fn by(account: &str, objects: &[Value]) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for role in objects {
            for (at, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
                let pairs =
                    texts(&rule["resources"]).flat_map(|r| texts(&rule["verbs"]).map(move |v| (r, v)));
                for (resource, verb) in pairs {
                    let mut reduced = role.clone();
                    reduced["rules"] = without(&role["rules"], at, resource, verb);
                    all.push(Self {
                        account: account.to_owned(),
                        verb: verb.to_owned(),
                        group: rule["apiGroups"][0].as_str().context("a rule without group")?.to_owned(),
                        resource: resource.to_owned(),
                        name: rule["resourceNames"][0].as_str().map(str::to_owned),
                        role: role.clone(),
                        reduced,
                    });
                }
            }
        }
        Ok(all)
    }

    /// Its name, as kubectl has it.
    pub fn words(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        format!("{} {}{dot}{}", self.verb, self.resource, self.group)
    }

    /// Does something without it, and gives it back.
    pub fn without<T>(&self, kubernetes: &Kubernetes, job: impl FnOnce() -> Result<T>) -> Result<T> {
        self.set(kubernetes, false)?;
        let outcome = job();
        self.set(kubernetes, true)?;
        outcome.with_context(|| format!("without the right to {}", self.words()))
    }

    /// Puts the reduced role in place, or the whole one again, and waits until the API server goes by it.
    pub fn set(&self, kubernetes: &Kubernetes, whole: bool) -> Result<()> {
        kubernetes.apply(if whole { &self.role } else { &self.reduced })?;
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        let namespace = self.role["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE);
        let question = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": format!("system:serviceaccount:{NAMESPACE}:{}", self.account),
            "resourceAttributes": {"verb": self.verb, "group": self.group, "resource": resource,
                "subresource": subresource, "namespace": namespace, "name": self.name}}});
        wait::until_ok(&format!("the right to {} to be there: {whole}", self.words()), DEADLINE, || {
            let answer = kubernetes.ask("/apis/authorization.k8s.io/v1/subjectaccessreviews", &question)?;
            ensure!(answer["status"]["allowed"] == whole, "{}", answer["status"]);
            Ok(())
        })
    }
}

fn texts(list: &Value) -> impl Iterator<Item = &str> + Clone {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The rules without one verb for one resource of one of them.
fn without(rules: &Value, at: usize, resource: &str, verb: &str) -> Value {
    let mut rules = rules.as_array().cloned().unwrap_or_default();
    let rule = rules.remove(at);
    let but = |list: &Value, text: &str| {
        texts(list).filter(|found| *found != text).map(str::to_owned).collect::<Vec<_>>()
    };
    let (mut others, mut same) = (rule.clone(), rule.clone());
    others["resources"] = json!(but(&rule["resources"], resource));
    same["resources"] = json!([resource]);
    same["verbs"] = json!(but(&rule["verbs"], verb));
    rules.extend(
        [others, same]
            .into_iter()
            .filter(|rule| rule["resources"][0].is_string() && rule["verbs"][0].is_string()),
    );
    json!(rules)
}

/// What precedes the name of a right in logs and in readiness.
pub const ALLOW: &str = "allow this identity to ";

/// The rights that a text names as missing, by verb and resource.
pub fn named(text: &str) -> std::collections::BTreeSet<String> {
    let words = |part: &str| part.split([' ', ';', '\n']).take(2).collect::<Vec<_>>().join(" ");
    text.split(ALLOW).skip(1).map(words).collect()
}
