//! What stands in for matches and targets that the kernel of a node was built without.
//!
//! Rules are made as if everything were there, and adapted when they enter the ruleset, so that no other module has to
//! know what may be missing. (The choice of an endpoint and session affinity are more than one rule; `chains` and `groups`
//! see to those.)
//!
//! Invariants: with a complete kernel rules stay as they are; whatever is missing, nothing is masqueraded or accepted but
//! what goes to a Service, and what a Service refuses is refused.

use std::{net::IpAddr, sync::Arc};

use fairlead_objects::Family;
use ipnet::IpNet;

use crate::{
    config::Config,
    facts::NodeFacts,
    matches::{AddressSide, ConnStates, Match},
    rule::{Rule, Target},
    rules::Rules,
    statics::loopback_v4,
};

/// The rules of a chain as this kernel can have them.
pub(crate) fn adapted(rules: Rules, config: &Config, facts: &NodeFacts) -> Rules {
    if lacks_nothing(config) {
        return rules;
    }
    // Most rules need nothing that may be missing.
    let stands_in = |rule: Arc<Rule>| match adapted_rule(Rule::clone(&rule), config, facts) {
        adapted if adapted.iter().eq([&*rule]) => vec![rule],
        adapted => adapted.into_iter().map(Rule::shared).collect(),
    };
    rules.shared().flat_map(stands_in).collect()
}

fn lacks_nothing(config: &Config) -> bool {
    let Config { comments, conn_state, marks, address_types, reject, masquerade, .. } = config;
    *comments && *conn_state && *marks && *address_types && *reject && *masquerade
}

/// What this kernel can have of a rule.
pub(crate) fn adapted_rule(rule: Rule, config: &Config, facts: &NodeFacts) -> Vec<Rule> {
    if lacks_nothing(config) {
        return vec![rule];
    }
    let rule = without_target(rule, config).and_then(|rule| without_states(rule, config));
    let Some(mut rule) = rule else { return Vec::new() };
    if !config.comments {
        rule.comment = None;
    }
    without_address_types(rule, config, facts)
}

/// The rule with a target that the kernel has, or not at all.
fn without_target(mut rule: Rule, config: &Config) -> Option<Rule> {
    match rule.target {
        Some(Target::Reject(_)) if !config.reject => rule.target = Some(Target::Drop),
        Some(Target::Masquerade { .. }) if !config.masquerade => return None,
        // Nothing would keep it from everything that leaves the node.
        Some(Target::Masquerade { .. }) if !config.marks && !config.conn_state => return None,
        Some(Target::SetMark(_)) if !config.marks => return None,
        _ => {}
    }
    Some(rule)
}

/// The rule without questions for marks and connection states, if it means something without them. What was marked is among
/// what was sent to an endpoint.
fn without_states(mut rule: Rule, config: &Config) -> Option<Rule> {
    for condition in &mut rule.matches {
        if let Match::Mark { negated, .. } = *condition
            && !config.marks
        {
            *condition = Match::ConnState { states: ConnStates::DNAT, negated };
        }
    }
    if !config.conn_state {
        // Later packets of a connection have their destination rewritten, so they seldom meet a rule for the first.
        let new = Match::ConnState { states: ConnStates::NEW, negated: false };
        rule.matches.retain(|condition| *condition != new);
        if rule.matches.iter().any(|condition| matches!(condition, Match::ConnState { .. })) {
            return None;
        }
    }
    Some(rule)
}

/// The rule for each of the node's addresses, if it asks whether one of a packet's is.
fn without_address_types(rule: Rule, config: &Config, facts: &NodeFacts) -> Vec<Rule> {
    let asked = |condition: &Match| match condition {
        Match::Local { side, negated: false } if !config.address_types => Some(*side),
        _ => None,
    };
    let Some(side) = rule.matches.iter().find_map(asked) else { return vec![rule] };
    let rest: Vec<_> = rule.matches.iter().filter(|condition| asked(condition).is_none()).cloned().collect();
    let rest = Rule { matches: rest, ..rule };
    let local = |net| match side {
        AddressSide::Source => Match::Source { net, negated: false },
        AddressSide::Destination => Match::Destination { net, negated: false },
    };
    networks(facts).into_iter().map(|net| rest.clone().when(local(net))).collect()
}

/// The node's addresses, loopback among them.
fn networks(facts: &NodeFacts) -> Vec<IpNet> {
    let loopback = match facts.family {
        Family::V4 => loopback_v4(),
        Family::V6 => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST).into(),
    };
    let own = facts.own_addresses().chain([facts.node_ip]).filter(|address| !address.is_loopback());
    let mut networks: Vec<IpNet> = own.map(IpNet::from).collect();
    networks.sort_unstable();
    networks.dedup();
    networks.insert(0, loopback);
    networks
}
