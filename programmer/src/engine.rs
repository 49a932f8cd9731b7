//! Makes the kernel hold the rulebook's rules: the changes only, or after a comparison with everything installed.
//!
//! ```text
//!  partial:  Rulebook ── take_changes ──────────────────────────> Delta ── batches ── render ──> restore
//!  full:     save nat, filter ── parse ──> diff with the ruleset ──┘
//! ```
//!
//! Invariants: a partial sync is only asked for when the kernel holds what the rulebook held before its last changes;
//! after any error that is unknown, and the next sync must be full. A full sync compares typed rules and writes only
//! what differs, so it leaves no gap, and it writes nothing when there is nothing to repair.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fairlead_compiler::{
    Chain, ChainName, ChainRef, Delta, Dump, ParseError, Rulebook, Table, diff, parse, render, wellknown,
};
use fairlead_objects::ServiceKey;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::{
    drift::{self, Drift},
    netfilter::{Netfilter, Refusal, ToolError, Variant, declares, is_unreadable},
    sentinel::Suspicion,
};

/// Services per restore in a full load on nft, where one large transaction costs more than many small ones.
const SERVICES_PER_RESTORE: usize = 500;
/// Tables that hold something of ours; in mangle it is only the canary.
const TABLES: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];
/// Whoever flushes the tables does so one after the other: how often, and how long, to look whether all are done.
const FLUSH_POLL: Duration = Duration::from_millis(100);
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// Why rules could not be programmed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// A table could not be read.
    #[error("reading table {table}")]
    Read {
        /// Which.
        table: Table,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// What is installed could not be understood.
    #[error("understanding the installed rules")]
    Understand(#[source] ParseError),
    /// Rules could not be written.
    #[error("writing rules (part {part} of {parts})")]
    Write {
        /// Number of the document, from 1.
        part: usize,
        /// Of how many.
        parts: usize,
        /// Why.
        #[source]
        source: ToolError,
    },
}

impl SyncError {
    /// A constant word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Understand(_) => "parse",
            Self::Read { source, .. } | Self::Write { source, .. } => source.category(),
        }
    }

    /// What was said of a document that was not accepted because of what it holds.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Write { source: ToolError::Refused { refusal, .. }, .. } => Some(refusal),
            _ => None,
        }
    }

    /// Whether a document was refused.
    pub fn is_restore(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Documents that were restored.
    pub documents: usize,
    /// Chains that were written.
    pub chains: usize,
    /// Chains that were deleted.
    pub deleted: usize,
    /// Jumps from built-in chains that were inserted.
    pub jumps: usize,
    /// Rules that were written, by table.
    pub rules: BTreeMap<Table, usize>,
    /// Processes that wrote: one for each document, with those for canaries.
    pub writers: usize,
    /// How what was installed differed, if it was compared.
    pub drift: Drift,
}

impl Report {
    fn add(&mut self, delta: &Delta) {
        self.documents += 1;
        self.writers += 1;
        self.chains += delta.put.len();
        self.deleted += delta.delete.len();
        self.jumps += delta.hook.len();
        for (chain, content) in &delta.put {
            *self.rules.entry(chain.table.clone()).or_default() += content.rules.len();
        }
    }
}

/// The rules of one family, and the kernel that should have them.
#[derive(Debug)]
pub struct Engine<N> {
    netfilter: Arc<N>,
    /// What should be installed.
    pub rulebook: Rulebook,
    /// A full sync succeeded: the jumps are there, unless somebody removed them.
    hooked: bool,
}

impl<N: Netfilter> Engine<N> {
    /// Programs what `rulebook` says through `netfilter`. The first sync must be full.
    pub fn new(netfilter: Arc<N>, rulebook: Rulebook) -> Self {
        Self { netfilter, rulebook, hooked: false }
    }

    /// Writes the rulebook's changes since the last sync.
    pub async fn partial(&mut self) -> Result<Report, SyncError> {
        let delta = self.rulebook.take_changes();
        self.write(delta).await
    }

    /// Compares what is installed with the whole ruleset, writes the differences, and sees that the canaries are there.
    ///
    /// Of a table that iptables cannot print, because nft wrote into it, all of our chains are written; as upstream does at
    /// every sync.
    pub async fn full(&mut self) -> Result<Report, SyncError> {
        // They are contained in the differences.
        self.rulebook.forget_changes();
        let (mut installed, mut canaries) = (Dump::default(), Delta::default());
        let mut unreadable = Vec::new();
        for table in TABLES {
            // A large text: gone before the next one comes.
            let save = self.read(table.clone()).await?;
            if is_unreadable(&save) {
                warn!(%table, "iptables cannot print what nft wrote into a table; writing all of our rules there");
                unreadable.push(table.clone());
            }
            if !declares(&save, wellknown::CANARY) {
                let canary = ChainRef::new(table.clone(), ChainName::from(wellknown::CANARY));
                canaries.put.insert(canary, Chain::default());
            }
            if table != Table::Mangle {
                installed.tables.extend(parse(&save).map_err(SyncError::Understand)?.tables);
            }
        }
        let mut delta = diff(&installed, self.rulebook.ruleset());
        // Jumps that cannot be seen must not grow in number.
        delta.hook.retain(|jump| !self.hooked || !unreadable.contains(&jump.table));
        // What cannot be read is no proof that it differs.
        let drift = if unreadable.is_empty() { Drift::of(&delta, &installed) } else { Drift::default() };
        drop(installed);
        let report = self.write(delta).await?;
        self.hooked = true;
        // They are no rules of ours, so a restart that only finds one missing has repaired nothing.
        let canaries = self.write(canaries).await?;
        Ok(Report { drift, writers: report.writers + canaries.writers, ..report })
    }

    /// Compares what is suspected, and writes the differences. The rulebook's changes must have been written.
    pub async fn verify(&mut self, suspicion: &Suspicion) -> Result<Report, SyncError> {
        let chains = match suspicion {
            Suspicion::Nothing => return Ok(Report::default()),
            Suspicion::Everything => return self.full().await,
            Suspicion::Chains(chains) if chains.iter().any(is_canary) => return self.full().await,
            Suspicion::Chains(chains) => chains,
        };
        let mut lines = BTreeMap::new();
        for chain in chains {
            let read = self.netfilter.chain(chain.table.as_str(), chain.name.as_str()).await;
            let read = read.map_err(|source| SyncError::Read { table: chain.table.clone(), source })?;
            // A built-in chain that cannot be printed is there all the same.
            if read.is_some() || self.rulebook.ruleset().chain(&chain.table, chain.name.as_str()).is_some() {
                lines.insert(chain.clone(), read);
            }
        }
        let (delta, installed) =
            drift::of_chains(self.rulebook.ruleset(), &lines).map_err(SyncError::Understand)?;
        let drift = Drift::of(&delta, &installed);
        Ok(Report { drift, ..self.write(delta).await? })
    }

    /// Whether another program flushed our tables: the canary in mangle is gone.
    pub async fn flushed(&self) -> Result<bool, SyncError> {
        if self.has_canary(Table::Mangle).await? {
            return Ok(false);
        }
        let patience = Instant::now() + FLUSH_PATIENCE;
        while self.has_canary(Table::Nat).await? || self.has_canary(Table::Filter).await? {
            if Instant::now() >= patience {
                warn!("the canary chain is gone from table mangle only; checking all rules");
                break;
            }
            sleep(FLUSH_POLL).await;
        }
        Ok(true)
    }

    /// Entries of x_tables that filter and nat should hold of ours, but for jumps and canaries, whose number is fixed: a
    /// chain has two besides its rules.
    pub fn entries(&self) -> [usize; 2] {
        let ruleset = self.rulebook.ruleset();
        let chains = |table: &Table| ruleset.tables.get(table).map_or(0, BTreeMap::len);
        [Table::Filter, Table::Nat].map(|table| ruleset.rule_count(&table) + 2 * chains(&table))
    }

    /// Whether it matters to us what others do to a chain.
    pub fn concerns(&self, chain: &ChainRef) -> bool {
        drift::concerns(self.rulebook.ruleset(), chain)
    }

    /// The Services that a refused line is about.
    pub fn owners(&self, refusal: &Refusal) -> Vec<ServiceKey> {
        let line = refusal.culprit.as_deref().and_then(|line| line.strip_prefix("-A "));
        let Some((chain, rule)) = line.and_then(|line| line.split_once(' ')) else { return Vec::new() };
        self.rulebook.owners(chain, rule)
    }

    /// How many rules a table should hold.
    pub fn rule_counts(&self) -> [(&'static str, usize); 2] {
        let ruleset = self.rulebook.ruleset();
        [("filter", ruleset.rule_count(&Table::Filter)), ("nat", ruleset.rule_count(&Table::Nat))]
    }

    async fn write(&self, delta: Delta) -> Result<Report, SyncError> {
        let portion = match self.netfilter.variant() {
            Variant::Nft => SERVICES_PER_RESTORE,
            // Each restore copies the whole table, so one must do.
            Variant::Legacy => usize::MAX,
        };
        let mut report = Report::default();
        let batches = delta.batches(portion);
        let parts = batches.len();
        for (index, batch) in batches.iter().enumerate() {
            let restored = self.netfilter.restore(&render(batch)).await;
            restored.map_err(|source| SyncError::Write { part: index + 1, parts, source })?;
            report.add(batch);
        }
        Ok(report)
    }

    async fn has_canary(&self, table: Table) -> Result<bool, SyncError> {
        let save = self.read(table).await?;
        Ok(declares(&save, wellknown::CANARY) || is_unreadable(&save))
    }

    async fn read(&self, table: Table) -> Result<String, SyncError> {
        self.netfilter.save(table.as_str()).await.map_err(|source| SyncError::Read { table, source })
    }
}

fn is_canary(chain: &ChainRef) -> bool {
    chain.name.as_str() == wellknown::CANARY
}
