//! The rights of `manifests/rbac/controller.yaml`: enough, each of them needed and asked for, and named when it is missing.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed,
    replica::{Host, Replica},
    service_accounts::{self, NAMESPACE},
    wait,
};
use serde_json::{Value, json};

use crate::{WITHOUT_ELECTION, in_churn};

const DEADLINE: Duration = Duration::from_secs(20);
const ACCOUNT: &str = "fairlead-controller";
/// What precedes the name of a right in the log and in readiness.
const ALLOW: &str = "allow this identity to ";
const ALL_THERE: &str = "[+]rights ok";

/// A right that a manifest gives, and the role without it.
struct Given {
    verb: String,
    group: String,
    resource: String,
    /// The only object that it is for, if it is for one.
    name: Option<String>,
    role: Value,
    reduced: Value,
}

impl Given {
    /// Its name, as kubectl has it.
    fn words(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        format!("{} {}{dot}{}", self.verb, self.resource, self.group)
    }

    /// Puts the reduced role in place, or the whole one again, and waits until the API server goes by it.
    fn set(&self, bed: &Bed, whole: bool) -> Result<()> {
        bed.kubernetes().apply(if whole { &self.role } else { &self.reduced })?;
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((&self.resource, ""));
        let question = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}"),
            "resourceAttributes": {"verb": self.verb, "group": self.group, "resource": resource,
                "subresource": subresource, "namespace": NAMESPACE, "name": self.name}}});
        wait::until_ok(&format!("the right to {} to be there: {whole}", self.words()), DEADLINE, || {
            let answer =
                bed.kubernetes().ask("/apis/authorization.k8s.io/v1/subjectaccessreviews", &question)?;
            ensure!(answer["status"]["allowed"] == whole, "{}", answer["status"]);
            Ok(())
        })
    }
}

/// All rights of the manifest.
fn given() -> Result<Vec<Given>> {
    let mut all = Vec::new();
    for role in service_accounts::manifest("controller")? {
        for (at, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
            for (resource, verb) in
                texts(&rule["resources"]).flat_map(|r| texts(&rule["verbs"]).map(move |v| (r, v)))
            {
                let mut reduced = role.clone();
                reduced["rules"] = without(&role["rules"], at, resource, verb);
                all.push(Given {
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

/// The rights that a text names, by verb and resource.
fn named(text: &str) -> BTreeSet<String> {
    let words = |part: &str| part.split([' ', ';', '\n']).take(2).collect::<Vec<_>>().join(" ");
    text.split(ALLOW).skip(1).map(words).collect()
}

pub(crate) fn each_missing_right_is_named_and_no_other(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[])?;
    wait::until_ok("the rights to be asked for", DEADLINE, || {
        let (_, page) = replica.page(bed, "/readyz")?;
        ensure!(page.contains(ALL_THERE), "{page}");
        Ok(())
    })?;
    replica.process.kill()?;
    let given = given()?;
    for right in &given {
        right.set(bed, false)?;
        let outcome = is_named(bed, right);
        right.set(bed, true)?;
        outcome.with_context(|| format!("without the right to {}", right.words()))?;
    }
    println!("  {} rights", given.len());
    Ok(())
}

fn is_named(bed: &Bed, right: &Given) -> Result<()> {
    let mut replica = Replica::launch(bed, Host::nth(0), &[])?;
    let expected = BTreeSet::from([right.words()]);
    wait::until_ok("readiness and the log to name it", DEADLINE, || {
        let (_, page) = replica.page(bed, "/readyz")?;
        let log = replica.log();
        let line = page.lines().find(|line| line.contains("]rights")).unwrap_or_default();
        ensure!(named(line) == expected, "readiness: {page}");
        ensure!(named(&log).contains(&right.words()), "log: {log}");
        Ok(())
    })?;
    replica.process.kill()
}

pub(crate) fn a_right_that_is_taken_away_in_churn_is_named_until_it_is_back(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[WITHOUT_ELECTION])?;
    let given = given()?;
    let wanted = "update endpointslices.discovery.k8s.io";
    let right =
        given.iter().find(|right| right.words() == wanted).context("no such right in the manifest")?;
    in_churn(bed, |bed, churn, _| {
        right.set(bed, false)?;
        let refused = replica.await_page(bed, "/readyz", &format!("{ALLOW}{wanted}"));
        right.set(bed, true)?;
        refused?;
        churn.await_more(50)
    })?;
    replica.await_page(bed, "/readyz", ALL_THERE)?;
    replica.process.check()
}
