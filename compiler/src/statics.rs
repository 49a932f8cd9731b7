//! Rules that depend on settings and node facts only, and the jumps from built-in chains, as in kube-proxy's iptables proxier.

use std::net::IpAddr;

use fairlead_objects::Family;
use ipnet::{IpNet, Ipv4Net};

use crate::{
    config::Config,
    counters,
    facts::NodeFacts,
    hairpin::Bytecode,
    matches::{AddressSide, ConnStates, Match},
    rule::{Mark, Rule, Target},
    ruleset::{Chain, ChainName, Jump, Table, wellknown},
    substitutes,
};

/// Comment of the rules that lead to KUBE-NODEPORTS.
const NODE_PORTS_COMMENT: &str =
    "kubernetes service nodeports; NOTE: this must be the last rule in this chain";

/// 127.0.0.0/8
pub(crate) fn loopback_v4() -> IpNet {
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8).into()
}

/// The chains that no Service has a part in.
pub(crate) fn chains(config: &Config, facts: &NodeFacts) -> Vec<(Table, ChainName, Chain)> {
    let firewall = if config.localhost_node_ports_active(facts.family) {
        Chain::from(vec![block_loopback()])
    } else {
        Chain { shared: true, ..Chain::default() }
    };
    vec![
        (Table::Filter, wellknown::FORWARD.into(), forward(config, facts.family).into()),
        (Table::Filter, wellknown::FIREWALL.into(), firewall),
        (Table::Nat, wellknown::POSTROUTING.into(), postrouting(config, facts.family).into()),
        (Table::Nat, wellknown::MARK_MASQ.into(), vec![set_mark(config)].into()),
    ]
}

fn set_mark(config: &Config) -> Rule {
    Rule::to(Target::SetMark(Mark::bits(config.masquerade_mark())))
}

/// Packets whose chosen endpoint is where they came from, or nothing without xt_bpf.
fn hairpin(config: &Config, family: Family, rule: Rule) -> Option<Rule> {
    let to_itself = Match::Bpf(Bytecode::same_address(family));
    config
        .bpf
        .then(|| rule.when(Match::ConnState { states: ConnStates::DNAT, negated: false }).when(to_itself))
}

/// The mark is cleared before masquerading: an encapsulated packet that comes by again is not masqueraded twice.
fn postrouting(config: &Config, family: Family) -> Vec<Rule> {
    let mark = config.masquerade_mark();
    let mut rules: Vec<_> = hairpin(config, family, set_mark(config)).into_iter().collect();
    rules.extend([
        Rule::to(Target::Return).when(Match::Mark { mark: Mark::bits(mark), negated: true }),
        Rule::to(Target::SetMark(Mark::flip(mark))),
        Rule::to(Target::Masquerade { random_fully: config.random_fully })
            .because("kubernetes service traffic requiring SNAT"),
    ]);
    rules
}

/// Lets Service traffic be forwarded where the policy of FORWARD is DROP.
fn forward(config: &Config, family: Family) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(4);
    if !config.liberal_tcp {
        let invalid = Match::ConnState { states: ConnStates::INVALID, negated: false };
        let mut rule = Rule::to(Target::Drop).when(invalid);
        if config.nfacct {
            rule = rule.when(Match::Counter(counters::INVALID.into()));
        }
        rules.push(rule);
    }
    let marked = Match::Mark { mark: Mark::bits(config.masquerade_mark()), negated: false };
    rules.push(Rule::to(Target::Accept).when(marked).because("kubernetes forwarding rules"));
    let accept = Rule::to(Target::Accept).because("kubernetes forwarding rules");
    rules.extend(hairpin(config, family, accept));
    let known = ConnStates::RELATED.or(ConnStates::ESTABLISHED);
    rules.push(
        Rule::to(Target::Accept)
            .when(Match::ConnState { states: known, negated: false })
            .because("kubernetes forwarding conntrack rule"),
    );
    rules
}

/// What makes `route_localnet` safe. kubelet maintains the same rule, so its text is fixed.
fn block_loopback() -> Rule {
    let allowed = ConnStates::RELATED.or(ConnStates::ESTABLISHED).or(ConnStates::DNAT);
    Rule::to(Target::Drop)
        .because("block incoming localnet connections")
        .when(Match::Destination { net: loopback_v4(), negated: false })
        .when(Match::Source { net: loopback_v4(), negated: true })
        .when(Match::ConnState { states: allowed, negated: true })
}

/// The last rules of nat KUBE-SERVICES: which of the node's addresses accept node ports.
pub(crate) fn node_port_dispatch(config: &Config, facts: &NodeFacts) -> Vec<Rule> {
    let jump = || Rule::to(Target::Jump(wellknown::NODE_PORTS.into())).because(NODE_PORTS_COMMENT);
    let on_loopback = config.localhost_node_ports_active(facts.family);
    if config.node_ports_match_all(facts.family) && config.address_types {
        let mut rule = jump().when(Match::Local { side: AddressSide::Destination, negated: false });
        let excluded = match facts.family {
            Family::V4 if on_loopback => None,
            Family::V4 => Some(loopback_v4()),
            Family::V6 => Some(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST).into()),
        };
        if let Some(net) = excluded {
            rule = rule.when(Match::Destination { net, negated: true });
        }
        return vec![rule];
    }
    let mut addresses: Vec<_> =
        facts.own_addresses().filter(|address| config.accepts_node_ports(*address)).collect();
    addresses.retain(|address| on_loopback || !address.is_loopback());
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into_iter().map(|address| jump().when(Match::destination(address))).collect()
}

/// The jumps of [`all_jumps`] as this kernel can have them.
pub(crate) fn jumps(config: &Config, facts: &NodeFacts) -> Vec<Jump> {
    let adapted = all_jumps().into_iter().flat_map(|Jump { table, from, rule }| {
        let rules = substitutes::adapted_rule(rule, config, facts);
        rules.into_iter().map(move |rule| Jump { table: table.clone(), from: from.clone(), rule })
    });
    adapted.collect()
}

/// The jumps from built-in chains, per chain from top to bottom as kube-proxy leaves them on a virgin node.
pub(crate) fn all_jumps() -> Vec<Jump> {
    const PORTALS: &str = "kubernetes service portals";
    const EXTERNAL: &str = "kubernetes externally-visible service portals";
    const LOAD_BALANCERS: &str = "kubernetes load balancer firewall";
    const HEALTH: &str = "kubernetes health check service ports";
    const FORWARDING: &str = "kubernetes forwarding rules";
    const POSTROUTING: &str = "kubernetes postrouting rules";
    let new = Match::ConnState { states: ConnStates::NEW, negated: false };
    let jump = |table, from: &str, to: &str, comment: &str, only_new: bool| {
        let rule = Rule::to(Target::Jump(to.into())).because(comment);
        Jump { table, from: from.into(), rule: if only_new { rule.when(new.clone()) } else { rule } }
    };
    let filter = |from, to, comment, only_new| jump(Table::Filter, from, to, comment, only_new);
    let nat = |from, to, comment| jump(Table::Nat, from, to, comment, false);
    vec![
        filter("INPUT", wellknown::FIREWALL, "", false),
        filter("INPUT", wellknown::PROXY_FIREWALL, LOAD_BALANCERS, true),
        filter("INPUT", wellknown::NODE_PORTS, HEALTH, false),
        filter("INPUT", wellknown::EXTERNAL_SERVICES, EXTERNAL, true),
        filter("FORWARD", wellknown::PROXY_FIREWALL, LOAD_BALANCERS, true),
        filter("FORWARD", wellknown::FORWARD, FORWARDING, false),
        filter("FORWARD", wellknown::SERVICES, PORTALS, true),
        filter("FORWARD", wellknown::EXTERNAL_SERVICES, EXTERNAL, true),
        filter("OUTPUT", wellknown::FIREWALL, "", false),
        filter("OUTPUT", wellknown::PROXY_FIREWALL, LOAD_BALANCERS, true),
        filter("OUTPUT", wellknown::SERVICES, PORTALS, true),
        nat("PREROUTING", wellknown::SERVICES, PORTALS),
        nat("OUTPUT", wellknown::SERVICES, PORTALS),
        nat("POSTROUTING", wellknown::POSTROUTING, POSTROUTING),
    ]
}
