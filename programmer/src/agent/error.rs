//! Why the node agent ended, and how that is told.

use std::{io, path::PathBuf};

use fairlead_daemon::{admin::ListenError, client::ClientError, failure};
use tokio::task::JoinError;

use crate::{configuration::ConfigurationError, netfilter::ToolError, node_watch::NoPodNetworks};

/// Why the node agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Flags that cannot be used, one per line.
    #[error("{0}")]
    Flags(String),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The configuration file says something else now. Whoever supervises us starts us again, as with kube-proxy.
    #[error("the configuration {} changed: ending, to be started again with it", .0.display())]
    ConfigurationChanged(PathBuf),
    /// The packet filter cannot be used.
    #[error("cannot use the packet filter")]
    Netfilter(#[source] ToolError),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Signals cannot be listened to.
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    /// An address is taken, and `--bind-address-hard-fail` is set.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The Node lacks what rules need.
    #[error(transparent)]
    Node(#[from] NoPodNetworks),
    /// The configuration could not be printed.
    #[error("cannot print the configuration")]
    Dump(#[source] serde_json::Error),
    /// The configuration could not be written.
    #[error("cannot write the configuration to {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Rules could not be removed; the log says which.
    #[error("{0} problems while removing rules")]
    Cleanup(usize),
    /// A task ended with a panic.
    #[error("a task ended unexpectedly")]
    Task(#[from] JoinError),
}

impl AgentError {
    /// Exit code: 2 for bad input, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Flags(_) | Self::Configuration(_)) { 2 } else { 1 }
    }

    /// The error and its causes in one line (one line for each flag that is wrong).
    pub fn sentence(&self) -> String {
        match self {
            Self::Flags(lines) => lines.clone(),
            other => failure::chain(other),
        }
    }
}
