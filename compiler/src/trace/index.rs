//! An index over long chains: which of their rules can hold for a destination at all.
//!
//! A flat list of Services has a rule for each, and all but one ask for another address. With an index, a walk costs what
//! the rules cost that it may meet, not what all do.
//!
//! Invariant: a walk with an index meets the rules that hold in the same order as one without.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::packet::Flight;
use crate::{
    dump::{Dump, InstalledChain},
    matches::Match,
    rule::Rule,
    ruleset::{ChainName, Table},
};

/// Shorter chains are walked rule by rule.
const SHORT: usize = 24;

/// The long chains of a dump.
#[derive(Clone, Debug, Default)]
pub(super) struct Index<'a> {
    tables: BTreeMap<&'a Table, BTreeMap<&'a ChainName, ChainIndex>>,
}

/// Positions of rules, each list in order.
#[derive(Clone, Debug, Default)]
pub(super) struct ChainIndex {
    by_address: HashMap<IpAddr, Vec<usize>>,
    /// Of those that name no single address.
    by_port: HashMap<u16, Vec<usize>>,
    others: Vec<usize>,
}

impl<'a> Index<'a> {
    /// Of all long chains.
    pub(super) fn of(dump: &'a Dump) -> Self {
        let tables = dump.tables.iter().map(|(table, chains)| {
            let long = chains.iter().filter(|(_, chain)| chain.rules.len() > SHORT);
            (table, long.map(|(name, chain)| (name, ChainIndex::of(chain))).collect())
        });
        Self { tables: tables.collect() }
    }

    /// Of one chain, if it is long.
    pub(super) fn chain(&self, table: &Table, name: &ChainName) -> Option<&ChainIndex> {
        self.tables.get(table)?.get(name)
    }
}

impl ChainIndex {
    fn of(chain: &InstalledChain) -> Self {
        let mut index = Self::default();
        for (position, rule) in chain.rules.iter().enumerate() {
            let list = match asked_for(rule) {
                (Some(address), _) => index.by_address.entry(address).or_default(),
                (None, Some(port)) => index.by_port.entry(port).or_default(),
                (None, None) => &mut index.others,
            };
            list.push(position);
        }
        index
    }

    /// The first rule at `from` or behind it that may hold.
    pub(super) fn next(&self, from: usize, flight: &Flight<'_>) -> Option<usize> {
        let first = |list: &[usize]| list.get(list.partition_point(|position| *position < from)).copied();
        let of = |list: Option<&Vec<usize>>| list.and_then(|list| first(list));
        let address = of(self.by_address.get(&flight.destination()));
        let port = of(self.by_port.get(&flight.port()));
        [address, port, first(&self.others)].into_iter().flatten().min()
    }
}

/// The single destination address and port that a rule asks for.
pub(crate) fn asked_for(rule: &Rule) -> (Option<IpAddr>, Option<u16>) {
    let (mut address, mut port) = (None, None);
    for condition in &rule.matches {
        match condition {
            Match::Destination { net, negated: false } if net.prefix_len() == net.max_prefix_len() => {
                address = Some(net.addr());
            }
            Match::DestinationPort { ports, negated: false, .. } if ports.first == ports.last => {
                port = Some(ports.first);
            }
            _ => {}
        }
    }
    (address, port)
}
