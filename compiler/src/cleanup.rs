//! Removal of everything that is ours, or kube-proxy's, and of nothing else.
//!
//! KUBE-FIREWALL and its jumps stay: kubelet uses them, too.

use std::collections::BTreeSet;

use crate::{
    delta::{ChainRef, Delta},
    diff::foreign_callees,
    dump::Dump,
    names,
    rule::Target,
    ruleset::{Chain, ChainName, Table, wellknown},
    statics,
};

/// What to do so that nothing of ours is left in `installed`.
pub fn cleanup(installed: &Dump) -> Delta {
    let mut delta = Delta::default();
    for jump in statics::jumps() {
        let to_firewall = jump.rule.next_chain().is_some_and(|chain| chain.as_str() == wellknown::FIREWALL);
        if to_firewall {
            continue;
        }
        let present = installed.chain(&jump.table, jump.from.as_str());
        let copies = present.map_or(0, |chain| chain.rules.iter().filter(|rule| **rule == jump.rule).count());
        delta.unhook.extend(std::iter::repeat_n(jump, copies));
    }
    for table in [Table::Filter, Table::Nat, Table::Mangle] {
        add_chains(installed, &table, &mut delta);
    }
    delta
}

fn add_chains(installed: &Dump, table: &Table, delta: &mut Delta) {
    let ours: BTreeSet<&ChainName> =
        installed.chains(table).map(|(name, _)| name).filter(|name| is_ours(table, name)).collect();
    let unhooked: Vec<Target> = delta.unhook.iter().filter_map(|jump| jump.rule.target.clone()).collect();
    let mut pinned = foreign_callees(installed, table, |name| ours.contains(name));
    // The built-in chains lead to ours by the jumps that are being removed; a different rule of theirs still pins.
    pinned.retain(|name| {
        !unhooked.contains(&Target::Jump((*name).clone()))
            || is_pinned_otherwise(installed, table, name, &ours, delta)
    });
    for name in ours {
        let reference = ChainRef::new(table.clone(), name.clone());
        if pinned.contains(name) {
            delta.put.insert(reference, Chain::default());
        } else {
            delta.delete.insert(reference);
        }
    }
}

/// Whether a rule leads to `name` that is neither in one of our chains nor among those being removed.
fn is_pinned_otherwise(
    installed: &Dump,
    table: &Table,
    name: &ChainName,
    ours: &BTreeSet<&ChainName>,
    delta: &Delta,
) -> bool {
    let foreign = installed.chains(table).filter(|(chain, _)| !ours.contains(chain));
    let mut callers = foreign.flat_map(|(from, chain)| chain.rules.iter().map(move |rule| (from, rule)));
    callers.any(|(from, rule)| {
        let removed =
            delta.unhook.iter().any(|jump| jump.table == *table && jump.from == *from && jump.rule == *rule);
        rule.next_chain() == Some(name) && !removed
    })
}

fn is_ours(table: &Table, name: &ChainName) -> bool {
    use wellknown::{
        CANARY, EXTERNAL_SERVICES, FORWARD, MARK_MASQ, NODE_PORTS, POSTROUTING, PROXY_FIREWALL, SERVICES,
    };
    let fixed: &[&str] = match table {
        Table::Filter => &[SERVICES, EXTERNAL_SERVICES, FORWARD, NODE_PORTS, PROXY_FIREWALL, CANARY],
        Table::Nat => &[SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, CANARY],
        Table::Mangle => &[CANARY],
        Table::Other(_) => &[],
    };
    fixed.contains(&name.as_str()) || names::is_service_chain(table, name)
}
