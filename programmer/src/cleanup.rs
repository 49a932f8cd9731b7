//! `--cleanup`: removes what we (or kube-proxy) wrote, and nothing else.
//!
//! What is ours is decided by chain names and by the pairs of built-in chain and target that jumps of ours have, on
//! the text that `iptables-save` prints: foreign rules need not be understood, and a jump is deleted by the very line
//! that was printed. KUBE-FIREWALL is shared with kubelet and stays, with its jumps.
//!
//! Order: jumps first, so that no packet meets half-removed chains; then chains are emptied, then deleted, in portions
//! that iptables-nft handles in linear time.
//!
//! Invariant: a chain of ours that a foreign rule still uses is emptied but not deleted, and reported.

use std::collections::BTreeSet;

use crate::netfilter::{Netfilter, ToolError};

/// Chains per restore.
const PORTION: usize = 500;

/// Jumps from built-in chains: table, built-in chain, our chain (as kube-proxy's jump rules).
const JUMPS: [(&str, &str, &str); 12] = [
    ("filter", "INPUT", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "FORWARD", "KUBE-EXTERNAL-SERVICES"),
    ("filter", "INPUT", "KUBE-NODEPORTS"),
    ("filter", "FORWARD", "KUBE-SERVICES"),
    ("filter", "OUTPUT", "KUBE-SERVICES"),
    ("filter", "FORWARD", "KUBE-FORWARD"),
    ("filter", "INPUT", "KUBE-PROXY-FIREWALL"),
    ("filter", "OUTPUT", "KUBE-PROXY-FIREWALL"),
    ("filter", "FORWARD", "KUBE-PROXY-FIREWALL"),
    ("nat", "OUTPUT", "KUBE-SERVICES"),
    ("nat", "PREROUTING", "KUBE-SERVICES"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
];

/// Tables that hold chains of ours, the chains with fixed names in each.
const TABLES: [(&str, &[&str]); 3] = [
    (
        "filter",
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
        ],
    ),
    ("nat", &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY"]),
    ("mangle", &["KUBE-PROXY-CANARY"]),
];

/// Prefixes of the chains of Services and of dispatch.
const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];

/// Why a table could not be cleaned.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// It could not be read.
    #[error("reading table {table}")]
    Read {
        /// Its name.
        table: &'static str,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// It could not be changed.
    #[error("cleaning table {table}")]
    Write {
        /// Its name.
        table: &'static str,
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
        /// Its name.
        table: &'static str,
        /// The chains.
        chains: String,
    },
}

/// Removes everything of ours from one family. Goes on with the next table after an error.
pub async fn clean(netfilter: &impl Netfilter) -> Vec<CleanupError> {
    let mut errors = Vec::new();
    for (table, fixed) in TABLES {
        match netfilter.save(table).await {
            Ok(save) => {
                let inventory = Inventory::read(table, fixed, &save);
                errors.extend(remove(netfilter, table, &inventory).await.err());
                errors.extend(inventory.in_use(table));
            }
            Err(source) => errors.push(CleanupError::Read { table, source }),
        }
    }
    errors
}

async fn remove(netfilter: &impl Netfilter, table: &'static str, inventory: &Inventory<'_>) -> Result<(), CleanupError> {
    for document in inventory.documents(table) {
        netfilter.restore(&document).await.map_err(|source| CleanupError::Write { table, source })?;
    }
    Ok(())
}

/// What is ours in one table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Inventory<'a> {
    /// Jumps to our chains from built-in chains, as `CHAIN MATCHES... -j TARGET`.
    jumps: Vec<&'a str>,
    /// Chains of ours.
    chains: BTreeSet<&'a str>,
    /// Chains of ours that rules of others use.
    in_use: BTreeSet<&'a str>,
}

impl<'a> Inventory<'a> {
    fn read(table: &str, fixed: &[&str], save: &'a str) -> Self {
        let ours = |chain: &str| {
            fixed.contains(&chain) || (table != "mangle" && PREFIXES.iter().any(|prefix| chain.starts_with(prefix)))
        };
        let mut inventory = Self::default();
        for line in save.lines() {
            if let Some(declaration) = line.strip_prefix(':') {
                inventory.chains.extend(declaration.split(' ').next().filter(|chain| ours(chain)));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let chain = rule.split(' ').next().unwrap_or_default();
                let Some(target) = target(rule).filter(|target| ours(target)) else { continue };
                if JUMPS.contains(&(table, chain, target)) {
                    inventory.jumps.push(rule);
                } else if !ours(chain) {
                    inventory.in_use.insert(target);
                }
            }
        }
        inventory
    }

    fn documents(&self, table: &str) -> Vec<String> {
        let jumps: Vec<String> = self.jumps.iter().map(|rule| format!("-D {rule}\n")).collect();
        let chains: Vec<&str> = self.chains.iter().copied().collect();
        let flush = |portion: &[&str]| portion.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect::<String>();
        let delete = |portion: &[&str]| {
            let free = portion.iter().filter(|chain| !self.in_use.contains(*chain));
            free.map(|chain| format!("-X {chain}\n")).collect::<String>()
        };
        let bodies = [jumps.concat()].into_iter();
        let bodies = bodies.chain(chains.chunks(PORTION).map(flush)).chain(chains.chunks(PORTION).map(delete));
        bodies.filter(|body| !body.is_empty()).map(|body| format!("*{table}\n{body}COMMIT\n")).collect()
    }

    fn in_use(&self, table: &'static str) -> Option<CleanupError> {
        let chains = self.in_use.iter().copied().collect::<Vec<_>>().join(", ");
        (!chains.is_empty()).then_some(CleanupError::InUse { table, chains })
    }
}

/// The chain that a printed rule jumps to. Targets come after all matches, so the last `-j` or `-g` counts: text in a
/// comment cannot be taken for one.
fn target(rule: &str) -> Option<&str> {
    let jump = rule.rfind(" -j ").into_iter().chain(rule.rfind(" -g ")).max()?;
    rule.get(jump + 4..)?.split(' ').next()
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
        assert!(filter.contains("-A INPUT -j KUBE-FIREWALL\n-A INPUT -j KUBE-NODEPORTS-OF-SOMEONE\n"), "{filter}");
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
        let model = Model::with(&[NAT.replace("-A CNI-HOSTPORT -s 10.0.0.0/8 -j KUBE-MARK-MASQ\n", "").as_str(), FILTER]);
        model.refuse(1);
        let errors = clean(&model).await;
        assert!(matches!(errors.as_slice(), [CleanupError::Write { table: "filter", .. }]), "{errors:?}");
        assert!(!model.save("nat").await.unwrap().contains("KUBE-SERVICES -"));
    }
}
