//! One change of a cluster, as somebody outside the endpoint controllers makes it.
//!
//! Invariant: a change means the same on two clusters, although names that a controller or the API server chose differ.

use anyhow::Result;
use serde_json::{Value, json};

use super::state::Key;
use crate::kubernetes::Kubernetes;

/// A change.
#[derive(Clone, Debug)]
pub enum Change {
    /// Create an object, or make it what is given.
    Apply(Value),
    /// Merge a patch into an object.
    Merge {
        /// Kind.
        kind: &'static str,
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// What to merge.
        patch: Value,
    },
    /// Delete an object.
    Delete {
        /// Kind.
        kind: &'static str,
        /// Namespace; empty for objects without one.
        namespace: String,
        /// Name.
        name: String,
        /// For a Pod, how long it stays, marked as terminating.
        grace: u32,
    },
    /// Edit a slice that a controller made, by hand.
    EditSlice {
        /// Namespace.
        namespace: String,
        /// Its Service.
        service: String,
        /// The controller that looks after it, and will repair it.
        manager: &'static str,
        /// Which one of the controller's, counted in the order of contents, and around.
        rank: usize,
        /// What to do to it.
        edit: SliceEdit,
    },
}

/// What a hand does to a slice.
#[derive(Clone, Debug)]
pub enum SliceEdit {
    /// Delete it.
    Delete,
    /// Merge this into it.
    Patch(Value),
    /// Put one address there that is nobody's, in place of all.
    Stranger,
    /// Delete it, but keep it from going.
    Hold,
    /// Let go all that are held.
    Release,
}

/// What keeps a slice from going.
const FINALIZER: &str = "example.com/held";

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Apply(object) => write!(f, "apply {object}"),
            Self::Merge { patch, .. } => write!(f, "merge into {}: {patch}", self.subject()),
            Self::Delete { grace, .. } => write!(f, "delete {} (grace {grace} s)", self.subject()),
            Self::EditSlice { rank, edit, .. } => write!(f, "{rank}th {}: {edit:?}", self.subject()),
        }
    }
}

/// How the API server took a change: nothing, or the code that it refused it with.
pub type Taken = Option<u16>;

impl Change {
    /// The Service whose Endpoints it changes, if it does.
    pub fn endpoints_key(&self) -> Option<Key> {
        match self {
            Self::Merge { kind: "Endpoints", namespace, name, .. }
            | Self::Delete { kind: "Endpoints", namespace, name, .. } => {
                Some((namespace.clone(), name.clone()))
            }
            _ => None,
        }
    }

    /// The object that it is about: changes of the same one keep their order.
    pub fn subject(&self) -> String {
        match self {
            Self::Apply(object) => {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
                format!(
                    "{} {}/{}",
                    object["kind"].as_str().unwrap_or_default(),
                    text("namespace"),
                    text("name")
                )
            }
            Self::Merge { kind, namespace, name, .. } | Self::Delete { kind, namespace, name, .. } => {
                format!("{kind} {namespace}/{name}")
            }
            Self::EditSlice { namespace, service, .. } => format!("slice of {namespace}/{service}"),
        }
    }

    /// Makes it. An error is what keeps the test from going on; a refusal of the API server is not.
    pub fn make(&self, kubernetes: &Kubernetes) -> Result<Taken> {
        let result = match self {
            Self::Apply(object) => kubernetes.apply(object).map(drop),
            Self::Merge { kind, namespace, name, patch } => {
                kubernetes.merge(kind, namespace, name, patch.clone()).map(drop)
            }
            Self::Delete { kind, namespace, name, grace } => kubernetes.delete(kind, namespace, name, *grace),
            Self::EditSlice { namespace, service, manager, rank, edit } => {
                edit_slice(kubernetes, (namespace, service, manager), *rank, edit)
            }
        };
        match result {
            Ok(()) => Ok(None),
            Err(error) => refusal(&error).map(Some).ok_or(error),
        }
    }
}

/// The code of an answer that says that the request, not the server, is at fault.
fn refusal(error: &anyhow::Error) -> Option<u16> {
    let found = error.chain().find_map(|cause| cause.downcast_ref::<kube::Error>())?;
    match found {
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            Some(status.code)
        }
        _ => None,
    }
}

fn edit_slice(
    kubernetes: &Kubernetes,
    (namespace, service, manager): (&str, &str, &str),
    rank: usize,
    edit: &SliceEdit,
) -> Result<()> {
    let labels = format!(
        "kubernetes.io/service-name={service},endpointslice.kubernetes.io/managed-by={manager}.k8s.io"
    );
    let mut slices: Vec<Value> = kubernetes.list("EndpointSlice", namespace, &labels)?;
    if matches!(edit, SliceEdit::Release) {
        let held = slices.iter().filter(|slice| !slice["metadata"]["deletionTimestamp"].is_null());
        return held.into_iter().try_for_each(|slice| {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            let patch = json!({"metadata": {"finalizers": null}});
            kubernetes.merge("EndpointSlice", namespace, name, patch).map(drop)
        });
    }
    slices.retain(|slice| slice["metadata"]["deletionTimestamp"].is_null());
    slices.sort_by_cached_key(content);
    let Some(slice) = slices.get(rank % slices.len().max(1)) else {
        return Ok(());
    };
    let name = slice["metadata"]["name"].as_str().unwrap_or_default();
    let patch = match edit {
        SliceEdit::Delete | SliceEdit::Release => {
            return kubernetes.delete("EndpointSlice", namespace, name, 0);
        }
        SliceEdit::Hold => {
            let patch = json!({"metadata": {"finalizers": [FINALIZER]}});
            kubernetes.merge("EndpointSlice", namespace, name, patch)?;
            return kubernetes.delete("EndpointSlice", namespace, name, 0);
        }
        SliceEdit::Patch(patch) => patch.clone(),
        SliceEdit::Stranger => {
            let address = if slice["addressType"] == "IPv6" { "fd00:99::1" } else { "10.99.0.1" };
            json!({"endpoints": [{"addresses": [address], "conditions": {"ready": true}}]})
        }
    };
    kubernetes.merge("EndpointSlice", namespace, name, patch).map(drop)
}

/// What a slice is sorted by: nothing that is drawn or counted by an API server.
fn content(slice: &Value) -> String {
    let mut addresses: Vec<String> = slice["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|endpoint| endpoint["addresses"].to_string())
        .collect();
    addresses.sort();
    let mut ports: Vec<String> =
        slice["ports"].as_array().into_iter().flatten().map(Value::to_string).collect();
    ports.sort();
    format!("{} {ports:?} {addresses:?}", slice["addressType"])
}
