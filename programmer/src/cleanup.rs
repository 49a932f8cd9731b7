//! `--cleanup`: removes what we (or kube-proxy) wrote, and nothing else.
//!
//! The compiler decides what that is. Here it is taken apart: jumps first, so that no packet meets half-removed chains;
//! then chains are emptied, then deleted, in portions, because on iptables-nft one large transaction costs more than
//! many small ones.
//!
//! Invariant: a chain of ours that a foreign rule still uses is emptied but not deleted, and reported.

use fairlead_compiler::{
    Chain, ChainRef, Delta, Dump, ParseError, Table, cleanup, cleanup_ipvs, parse, render,
};

use crate::netfilter::{Netfilter, ToolError};

/// Chains per restore.
const PORTION: usize = 500;
/// Tables that hold chains of ours.
const TABLES: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

/// Why a table could not be cleaned.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// It could not be read.
    #[error("reading table {table}")]
    Read {
        /// Which.
        table: Table,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// What it holds could not be understood.
    #[error("understanding table {table}")]
    Understand {
        /// Which.
        table: Table,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// It could not be changed.
    #[error("cleaning table {table}")]
    Write {
        /// Which.
        table: Table,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// Rules that are not ours still use chains of ours.
    #[error(
        "table {table}: chains {chains} were emptied but not deleted, because rules of other programs use them; \
         remove those rules and repeat"
    )]
    InUse {
        /// Which.
        table: Table,
        /// The chains.
        chains: String,
    },
}

/// Whether a save shows anything of ours.
pub fn concerns(save: &str) -> bool {
    // What is not understood is looked at closer.
    parse(save).map_or(true, |dump| !cleanup(&dump).is_empty())
}

/// Removes everything of ours, and of kube-proxy's mode ipvs, from one family. Goes on with the next table after an error.
pub async fn clean(netfilter: &impl Netfilter) -> Vec<CleanupError> {
    clean_by(netfilter, cleanup).await
}

/// Removes what only kube-proxy's mode ipvs has. What it shares with us stays as it is.
pub async fn clean_ipvs(netfilter: &impl Netfilter) -> Vec<CleanupError> {
    clean_by(netfilter, cleanup_ipvs).await
}

async fn clean_by(netfilter: &impl Netfilter, removal: fn(&Dump) -> Delta) -> Vec<CleanupError> {
    let mut errors = Vec::new();
    for table in TABLES {
        errors.extend(clean_table(netfilter, table, removal).await.err());
    }
    errors
}

async fn clean_table(
    netfilter: &impl Netfilter,
    table: Table,
    removal: fn(&Dump) -> Delta,
) -> Result<(), CleanupError> {
    let save = netfilter.save(table.as_str()).await;
    let save = save.map_err(|source| CleanupError::Read { table: table.clone(), source })?;
    let dump = parse(&save).map_err(|source| CleanupError::Understand { table: table.clone(), source })?;
    let delta = removal(&dump);
    let in_use: Vec<&str> = delta.put.keys().map(|chain| chain.name.as_str()).collect();
    let in_use = in_use.join(", ");
    for step in steps(delta) {
        let restored = netfilter.restore(&render(&step)).await;
        restored.map_err(|source| CleanupError::Write { table: table.clone(), source })?;
    }
    if in_use.is_empty() { Ok(()) } else { Err(CleanupError::InUse { table, chains: in_use }) }
}

/// The removal, in steps that each leave something consistent.
fn steps(delta: Delta) -> Vec<Delta> {
    let Delta { put, delete, unhook, .. } = delta;
    let chains: Vec<ChainRef> = delete.into_iter().collect();
    let empty: Vec<ChainRef> = put.into_keys().chain(chains.iter().cloned()).collect();
    let flush = |portion: &[ChainRef]| {
        let put = portion.iter().map(|chain| (chain.clone(), Chain::default())).collect();
        Delta { put, ..Delta::default() }
    };
    let remove =
        |portion: &[ChainRef]| Delta { delete: portion.iter().cloned().collect(), ..Delta::default() };
    let mut steps = vec![Delta { unhook, ..Delta::default() }];
    steps.extend(empty.chunks(PORTION).map(flush));
    steps.extend(chains.chunks(PORTION).map(remove));
    steps.retain(|step| !step.is_empty());
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::model::Model;

    const NAT: &str = "*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"mine -j KUBE-SERVICES\" -j CNI-HOSTPORT
-A CNI-HOSTPORT -s 10.0.0.0/8 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-AAAAAAAAAAAAAAAA
COMMIT
";
    const FILTER: &str = "*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-NODEPORTS-OF-SOMEONE - [0:0]
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -j KUBE-FIREWALL
-A INPUT -j KUBE-NODEPORTS-OF-SOMEONE
-A KUBE-FIREWALL -d 127.0.0.0/8 -j DROP
COMMIT
";

    #[tokio::test]
    async fn own_chains_go_and_foreign_ones_stay() {
        let model = Model::with(&[NAT, FILTER]);
        let errors = clean(&model).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().contains("KUBE-MARK-MASQ"), "{}", errors[0]);
        let nat = model.save("nat").await.unwrap();
        assert_eq!(
            nat,
            "*nat
:CNI-HOSTPORT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:POSTROUTING ACCEPT [0:0]
:PREROUTING ACCEPT [0:0]
-A CNI-HOSTPORT -s 10.0.0.0/8 -j KUBE-MARK-MASQ
-A PREROUTING -m comment --comment \"mine -j KUBE-SERVICES\" -j CNI-HOSTPORT
COMMIT
"
        );
        let filter = model.save("filter").await.unwrap();
        assert!(
            filter.contains("-A INPUT -j KUBE-FIREWALL\n-A INPUT -j KUBE-NODEPORTS-OF-SOMEONE\n"),
            "{filter}"
        );
        assert!(!filter.contains(":KUBE-NODEPORTS -"), "{filter}");
    }

    #[tokio::test]
    async fn clean_tables_are_not_written() {
        let model = Model::with(&["*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"]);
        assert!(clean(&model).await.is_empty());
        assert_eq!(model.restores(), 0);
    }

    #[tokio::test]
    async fn refused_table_does_not_keep_the_others_from_being_cleaned() {
        let model = Model::with(&[
            NAT.replace("-A CNI-HOSTPORT -s 10.0.0.0/8 -j KUBE-MARK-MASQ\n", "").as_str(),
            FILTER,
        ]);
        model.refuse(1);
        let errors = clean(&model).await;
        assert!(
            matches!(errors.as_slice(), [CleanupError::Write { table: Table::Filter, .. }]),
            "{errors:?}"
        );
        assert!(!model.save("nat").await.unwrap().contains("KUBE-SERVICES -"));
    }
}
