//! What can go wrong with a cluster, in words that say what to do.

use fairlead_daemon::failure::{Class, sentence};

use super::server::Query;
use crate::objects::{Kind, ReadError};

/// Why there is no answer from a cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// There is no runtime to wait in.
    #[error("waiting for the cluster")]
    Runtime(#[source] std::io::Error),
    /// Nothing says where the cluster is, or what says so cannot be used.
    #[error("there is no cluster to ask: {reason}; name a kubeconfig with --kubeconfig, or files with -f")]
    NoCluster { reason: String },
    /// There is no answer.
    #[error("{server} cannot be reached: {reason}; check the kubeconfig, its context, and the network")]
    Unreachable { server: String, reason: String },
    /// Who asks is not known.
    #[error("{server} does not accept who is asking: {reason}; check the user in the kubeconfig")]
    Unauthorized { server: String, reason: String },
    /// A right is missing.
    #[error("the right to {verb} {resource} {place} is missing ({reason}); RBAC grants it by {grant}")]
    Forbidden { verb: &'static str, resource: &'static str, place: String, reason: String, grant: String },
    /// Anything else.
    #[error("{server} failed to {verb} {resource}: {reason}")]
    Failed { server: String, verb: &'static str, resource: &'static str, reason: String },
    /// An object is not what it should be.
    #[error("{kind} {name} of the cluster cannot be read: {field}: {reason}")]
    Unreadable { kind: &'static str, name: String, field: String, reason: String },
    /// More than one of these.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Self>),
}

impl ClusterError {
    /// Why `query` failed.
    pub(super) fn of(server: &str, verb: &'static str, query: &Query, error: &kube::Error) -> Self {
        let (server, reason) = (server.to_owned(), sentence(error));
        match Class::of(error) {
            Class::Unreachable | Class::Timeout => Self::Unreachable { server, reason },
            Class::Unauthorized => Self::Unauthorized { server, reason },
            Class::Forbidden => Self::Forbidden {
                verb,
                resource: query.resource(),
                place: query.place(),
                reason,
                grant: query.grant(verb),
            },
            _ => Self::Failed { server, verb, resource: query.resource(), reason },
        }
    }

    pub(super) fn unreadable(kind: Kind, name: String, error: &ReadError) -> Self {
        let (field, reason) = (error.path().to_string(), error.inner().to_string());
        Self::Unreadable { kind: kind.as_str(), name, field, reason }
    }

    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }
}
