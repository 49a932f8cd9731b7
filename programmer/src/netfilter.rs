//! The packet filter as the rest of the crate sees it: text in, text out, errors that say what was refused.
//!
//! [`Netfilter`] is the only seam between the sync loop and the kernel. [`Tool`] drives the iptables programs; tests
//! drive an in-memory model. iptables is driven through its command line because that is the only stable interface it
//! has, and because both variants (legacy and nft) stand behind the same one.
//!
//! Invariants: one value is one address family; nothing here decides what the rules are; a failed restore changed
//! nothing in the table that failed (each table of a document is committed atomically).

use std::{fmt, future::Future};

pub mod counters;
pub mod detection;
pub mod features;
pub mod metrics;
pub mod refusal;
pub mod tool;

#[cfg(test)]
pub(crate) mod model;

pub use detection::detect;
pub use features::{Feature, Features};
pub use refusal::Refusal;
pub use tool::{Tool, ToolError};

/// Which kernel interface the iptables programs write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Variant {
    /// Rules are written to nf_tables; a change costs what changed.
    Nft,
    /// Rules are written to x_tables; a change copies the whole table.
    Legacy,
}

impl Variant {
    /// The infix of the programs' names: `iptables-nft-restore`.
    pub fn infix(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.infix())
    }
}

/// Reading and writing the rules of one family. All calls wait for the kernel, so they are futures.
pub trait Netfilter: Send + Sync + 'static {
    /// The variant that stands behind it.
    fn variant(&self) -> Variant;

    /// `iptables-save -t TABLE`: everything in the table, whoever made it. Empty if the table does not exist; see also
    /// [`is_unreadable`].
    fn save(&self, table: &str) -> impl Future<Output = Result<String, ToolError>> + Send;

    /// The rules of one chain as a save prints them, or `None` if there is no such chain. Where a single chain cannot be
    /// read for less than a whole table, it is taken from that.
    fn chain(
        &self,
        table: &str,
        chain: &str,
    ) -> impl Future<Output = Result<Option<Vec<String>>, ToolError>> + Send {
        async move { Ok(crate::drift::lines_of(&self.save(table).await?, chain)) }
    }

    /// `iptables-restore --noflush --counters`: chains that the document declares are replaced, all others stay.
    fn restore(&self, document: &str) -> impl Future<Output = Result<(), ToolError>> + Send;
}

/// Whether the output of a save declares `chain`.
pub fn declares(save: &str, chain: &str) -> bool {
    save.lines().any(|line| line.strip_prefix(':').and_then(|rest| rest.split(' ').next()) == Some(chain))
}

/// Whether a save says that the table cannot be printed, because nft wrote into it what iptables has no words for.
pub fn is_unreadable(save: &str) -> bool {
    save.lines().any(|line| line.starts_with("# Table `") && line.contains("' is incompatible"))
}
