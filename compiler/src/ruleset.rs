//! Rulesets: what should be installed for one family.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use fairlead_objects::Family;

use crate::{rule::Rule, rules::Rules};

/// A table of the packet filter. Ordered as they are committed: `filter` first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `filter`
    Filter,
    /// `nat`
    Nat,
    /// `mangle`
    Mangle,
    /// A table that we have nothing in.
    Other(Arc<str>),
}

impl Table {
    /// Its name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
            Self::Other(name) => name,
        }
    }

    /// The table of that name.
    pub fn named(name: &str) -> Self {
        match name {
            "filter" => Self::Filter,
            "nat" => Self::Nat,
            "mangle" => Self::Mangle,
            other => Self::Other(other.into()),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Name of a chain. Ours are at most 28 characters long, the limit of iptables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

impl ChainName {
    /// The chain called `name`.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ChainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ChainName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The chains that other software knows by name.
pub mod wellknown {
    /// Service addresses (nat), Services without endpoints (filter).
    pub const SERVICES: &str = "KUBE-SERVICES";
    /// Externally visible addresses and ports without endpoints (filter).
    pub const EXTERNAL_SERVICES: &str = "KUBE-EXTERNAL-SERVICES";
    /// Node ports (nat), health check ports (filter).
    pub const NODE_PORTS: &str = "KUBE-NODEPORTS";
    /// Masquerading (nat).
    pub const POSTROUTING: &str = "KUBE-POSTROUTING";
    /// Sets the masquerade mark (nat). Other software jumps here, too.
    pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";
    /// Lets Service traffic be forwarded (filter).
    pub const FORWARD: &str = "KUBE-FORWARD";
    /// What no source range admitted (filter).
    pub const PROXY_FIREWALL: &str = "KUBE-PROXY-FIREWALL";
    /// Protects loopback (filter). Shared with kubelet: never deleted.
    pub const FIREWALL: &str = "KUBE-FIREWALL";
    /// Empty chain whose absence shows that tables were flushed (mangle, nat, filter).
    pub const CANARY: &str = "KUBE-PROXY-CANARY";
}

/// The rules of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// In order.
    pub rules: Rules,
    /// The chain must exist, but its content belongs to others: it is created if missing and never flushed.
    pub shared: bool,
}

impl From<Rules> for Chain {
    fn from(rules: Rules) -> Self {
        Self { rules, shared: false }
    }
}

impl From<Vec<Rule>> for Chain {
    fn from(rules: Vec<Rule>) -> Self {
        Rules::from(rules).into()
    }
}

/// A rule in a built-in chain that leads to one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Table.
    pub table: Table,
    /// Built-in chain, `INPUT` for example.
    pub from: ChainName,
    /// The rule.
    pub rule: Rule,
}

/// Everything that should be installed for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Family of its addresses.
    pub family: Family,
    /// Our chains.
    pub tables: BTreeMap<Table, BTreeMap<ChainName, Chain>>,
    /// Rules of the built-in chains that lead to ours, per built-in chain from top to bottom as on a virgin node.
    pub jumps: Vec<Jump>,
}

impl Ruleset {
    /// The chain of that name.
    pub fn chain(&self, table: &Table, name: &str) -> Option<&Chain> {
        self.tables.get(table)?.get(name)
    }

    /// Number of rules in the chains of a table, without the jumps from built-in chains.
    pub fn rule_count(&self, table: &Table) -> usize {
        self.tables.get(table).map_or(0, |chains| chains.values().map(|chain| chain.rules.len()).sum())
    }
}
