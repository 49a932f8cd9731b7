//! The ServiceAccounts of the chart, as plain YAML has them, and tokens for them.
//!
//! Invariant: programs of ours run with exactly the rights that the chart gives them; nothing is added for the tests.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    chart, examples,
    kubernetes::{self, Kubernetes},
    pki::Pki,
};

/// The namespace of all of them.
pub const NAMESPACE: &str = chart::NAMESPACE;

/// Profiles whose accounts differ in what they may do.
const PROFILES: [&str; 2] = ["replace", "shadow"];
/// Kinds of objects that are about rights.
const KINDS: [&str; 5] = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];

/// How long tokens last: longer than any test.
const LASTS: u32 = 7 * 24 * 3600;

/// The objects that give the accounts of a profile their rights.
fn rights(profile: &str) -> Result<Vec<Value>> {
    let mut objects = examples::parse(&chart::rendered(profile)?)?;
    objects.retain(|object| KINDS.iter().any(|kind| object["kind"] == *kind));
    Ok(objects)
}

/// The objects that give an account its rights.
pub fn manifest(account: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for profile in PROFILES {
        all.extend(rights(profile)?.into_iter().filter(|object| object["metadata"]["name"] == account));
    }
    Ok(all)
}

/// Gives all accounts their rights, and writes a kubeconfig for each.
pub fn establish(kubernetes: &Kubernetes, pki: &Pki) -> Result<()> {
    // The API server makes it, too, but not at once.
    kubernetes.apply(&kubernetes::namespace(NAMESPACE))?;
    for profile in PROFILES {
        for object in rights(profile)? {
            kubernetes.apply(&object)?;
            if object["kind"] == "ServiceAccount" {
                let account = object["metadata"]["name"].as_str().context("a ServiceAccount without name")?;
                add_token(kubernetes, pki, account, account)?;
            }
        }
    }
    Ok(())
}

/// Gets a token for a ServiceAccount and writes it into a kubeconfig of that name; returns the path.
pub fn add_token(kubernetes: &Kubernetes, pki: &Pki, account: &str, file: &str) -> Result<PathBuf> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": LASTS}});
    let answer = kubernetes.ask(&path, &request)?;
    pki.add_token(file, answer["status"]["token"].as_str().context("an answer without token")?)
}
