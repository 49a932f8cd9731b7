//! Removal of everything that is ours, or kube-proxy's, and of nothing else.
//!
//! KUBE-FIREWALL and its jumps stay: kubelet uses them, too.

use std::collections::BTreeSet;

use crate::{
    delta::{ChainRef, Delta},
    diff::foreign_callees,
    dump::Dump,
    names,
    rule::{Rule, Target},
    ruleset::{Chain, ChainName, Jump, Table, wellknown},
    statics,
};

/// Chains that only mode ipvs has.
const IPVS_NODE_PORT: &str = "KUBE-NODE-PORT";
const IPVS_LOAD_BALANCER: &str = "KUBE-LOAD-BALANCER";
const IPVS_SOURCE_RANGES: &str = "KUBE-SOURCE-RANGES-FIREWALL";
const IPVS_FILTER: &str = "KUBE-IPVS-FILTER";
const IPVS_OUT_FILTER: &str = "KUBE-IPVS-OUT-FILTER";

/// What to do so that nothing of ours is left in `installed`, and nothing of kube-proxy's mode ipvs.
pub fn cleanup(installed: &Dump) -> Delta {
    let jumps = jumps().into_iter().chain(ipvs_jumps()).collect();
    remove(installed, jumps, |table, name| is_ours(table, name) || is_of_ipvs(table, name))
}

/// What to do so that nothing is left of kube-proxy's mode ipvs that we have no use for. Chains that both modes have are
/// ours by now.
pub fn cleanup_ipvs(installed: &Dump) -> Delta {
    remove(installed, ipvs_jumps(), is_of_ipvs)
}

/// Ours, as they are on every kernel.
fn jumps() -> Vec<Jump> {
    let mut jumps = Vec::new();
    for Jump { table, from, rule } in statics::all_jumps() {
        let to_firewall = rule.next_chain().is_some_and(|chain| chain.as_str() == wellknown::FIREWALL);
        if to_firewall {
            continue;
        }
        let bare = Rule { comment: None, ..rule.clone() };
        let stateless = |rule: &Rule| Rule { matches: Vec::new(), ..rule.clone() };
        let mut shapes = vec![stateless(&rule), stateless(&bare), rule, bare];
        shapes.dedup();
        for rule in shapes {
            let jump = Jump { table: table.clone(), from: from.clone(), rule };
            if !jumps.contains(&jump) {
                jumps.push(jump);
            }
        }
    }
    jumps
}

/// Those of mode ipvs that mode iptables does not have.
fn ipvs_jumps() -> Vec<Jump> {
    let filter = |from: &str, to: &str, comment: &str| Jump {
        table: Table::Filter,
        from: from.into(),
        rule: Rule::to(Target::Jump(to.into())).because(comment),
    };
    vec![
        filter("INPUT", IPVS_NODE_PORT, "kubernetes health check rules"),
        filter("INPUT", wellknown::PROXY_FIREWALL, "kube-proxy firewall rules"),
        filter("FORWARD", wellknown::PROXY_FIREWALL, "kube-proxy firewall rules"),
        filter("INPUT", IPVS_FILTER, "kubernetes ipvs access filter"),
        filter("OUTPUT", IPVS_OUT_FILTER, "kubernetes ipvs access filter"),
    ]
}

/// Removes rules of built-in chains, and the chains of which `is_ours` is true.
fn remove(installed: &Dump, jumps: Vec<Jump>, is_ours: impl Fn(&Table, &ChainName) -> bool) -> Delta {
    let mut delta = Delta::default();
    for jump in jumps {
        let present = installed.chain(&jump.table, jump.from.as_str());
        let copies = present.map_or(0, |chain| chain.rules.iter().filter(|rule| **rule == jump.rule).count());
        delta.unhook.extend(std::iter::repeat_n(jump, copies));
    }
    for table in [Table::Filter, Table::Nat, Table::Mangle] {
        add_chains(installed, &table, |name| is_ours(&table, name), &mut delta);
    }
    delta
}

fn add_chains(installed: &Dump, table: &Table, is_ours: impl Fn(&ChainName) -> bool, delta: &mut Delta) {
    let ours: BTreeSet<&ChainName> =
        installed.chains(table).map(|(name, _)| name).filter(|name| is_ours(name)).collect();
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

fn is_of_ipvs(table: &Table, name: &ChainName) -> bool {
    let chains: &[&str] = match table {
        Table::Filter => &[IPVS_NODE_PORT, IPVS_SOURCE_RANGES, IPVS_FILTER, IPVS_OUT_FILTER],
        Table::Nat => &[IPVS_NODE_PORT, IPVS_LOAD_BALANCER],
        Table::Mangle | Table::Other(_) => &[],
    };
    chains.contains(&name.as_str())
}
