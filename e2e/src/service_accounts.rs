//! The ServiceAccounts of `manifests/rbac/`, and tokens for them.
//!
//! Invariant: programs of ours run with exactly the rules of these files; nothing is added for the tests.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    examples,
    kubernetes::{self, Kubernetes},
    pki::Pki,
    tools,
};

/// The namespace of all of them.
pub const NAMESPACE: &str = "kube-system";

/// How long tokens last: longer than any test.
const LASTS: u32 = 7 * 24 * 3600;

/// The objects of a file of `manifests/rbac/`, such as `controller`.
pub fn manifest(name: &str) -> Result<Vec<Value>> {
    let path = tools::repository().join("manifests/rbac").join(format!("{name}.yaml"));
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    examples::parse(&text).with_context(|| format!("in {}", path.display()))
}

/// Applies these manifests, and writes a kubeconfig for each ServiceAccount in them.
pub fn establish(kubernetes: &Kubernetes, pki: &Pki, manifests: &[&str]) -> Result<()> {
    // The API server makes it, too, but not at once.
    kubernetes.apply(&kubernetes::namespace(NAMESPACE))?;
    for name in manifests {
        for object in manifest(name)? {
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
