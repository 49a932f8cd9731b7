//! The account of a trace for readers: rules as they stand, in the order in which chains call each other, with a remark
//! where a rule decides something.
//!
//! Invariants: only rules that held are shown; a rule is shown once per chain that leads to it.

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr};

use fairlead_compiler::{
    Affinity, ChainName, Destination, Dump, Match, Origin, Outcome, Packet, Policy, Rule, Share, Table,
    Target, Trace, wellknown,
};
use fairlead_objects::Family;

use super::{
    counters::{Counter, Counters},
    decision,
};

/// Deepest nesting that is shown; the kernel refuses loops, a text may have them.
const DEPTH: usize = 16;

/// The account as text, with a line break at the end.
pub(super) fn text(dump: &Dump, counters: &Counters, packet: &Packet, node: &str, trace: &Trace) -> String {
    let mut account = Account { dump, counters, packet, trace, text: String::new() };
    account.packet(node);
    for (table, chain) in hooks(&packet.origin) {
        account.hook(&table, &ChainName::from(chain));
    }
    account.verdict();
    if !counters.is_empty() {
        account.decisions();
    }
    account.affinity();
    account.text
}

/// The built-in chains that a packet may pass, in order.
fn hooks(origin: &Origin) -> [(Table, &'static str); 4] {
    match origin {
        Origin::Interface(_) => [
            (Table::Nat, "PREROUTING"),
            (Table::Filter, "INPUT"),
            (Table::Filter, "FORWARD"),
            (Table::Nat, "POSTROUTING"),
        ],
        Origin::Node => [
            (Table::Nat, "OUTPUT"),
            (Table::Filter, "OUTPUT"),
            (Table::Nat, "POSTROUTING"),
            (Table::Filter, "INPUT"),
        ],
    }
}

struct Account<'a> {
    dump: &'a Dump,
    counters: &'a Counters,
    packet: &'a Packet,
    trace: &'a Trace,
    text: String,
}

impl Account<'_> {
    fn line(&mut self, indent: usize, line: &str) {
        // Writing to a String cannot fail.
        _ = writeln!(self.text, "{:indent$}{line}", "");
    }

    fn packet(&mut self, node: &str) {
        let Packet { source, destination, destination_port, protocol, origin, .. } = self.packet;
        let to = SocketAddr::new(*destination, *destination_port);
        let family = Family::of(*source);
        let how = match origin {
            Origin::Node => "sent by the node itself".to_owned(),
            Origin::Interface(None) => "arriving from outside or from a Pod".to_owned(),
            Origin::Interface(Some(name)) => format!("arriving on {name}"),
        };
        self.line(0, &format!("{source} to {to}/{protocol} ({family}) at {node}, {how}"));
    }

    fn hook(&mut self, table: &Table, name: &ChainName) {
        if !self.held(table, name).is_empty() {
            self.line(0, "");
            self.line(0, &format!("{table} {name}"));
            self.chain(table, name, 0, 2);
        }
    }

    /// The rules of a chain that held, each followed by those of the chain that it leads to.
    fn chain(&mut self, table: &Table, name: &ChainName, depth: usize, indent: usize) {
        let dump = self.dump;
        let held = self.held(table, name);
        let Some(last) = held.last().filter(|_| depth <= DEPTH) else { return };
        let width = (last + 1).to_string().len();
        let rules = dump.chain(table, name.as_str()).map(|chain| &chain.rules);
        for (index, rule) in held.iter().filter_map(|index| Some((index, rules?.get(*index)?))) {
            let comment = rule.comment.as_ref().map(|comment| format!("  # {comment}")).unwrap_or_default();
            let counter = self.counters.at(table, name, *index);
            let counter = counter.map(|counter| format!("  ({counter})")).unwrap_or_default();
            self.line(indent, &format!("{:>width$}  {}{comment}{counter}", index + 1, specification(rule)));
            let below = indent + width + 2;
            if let Some(remark) = self.remark(name, rule) {
                self.line(below, &format!("=> {remark}"));
            }
            if let Some(next) = rule.next_chain() {
                self.next_chain(table, next, depth, below);
            }
        }
    }

    fn next_chain(&mut self, table: &Table, name: &ChainName, depth: usize, indent: usize) {
        if self.held(table, name).is_empty() {
            let rules = self.dump.chain(table, name.as_str()).map_or(0, |chain| chain.rules.len());
            let nothing = match rules {
                0 => "is empty".to_owned(),
                1 => "its only rule does not hold".to_owned(),
                rules => format!("none of its {rules} rules holds"),
            };
            self.line(indent, &format!("{name}: {nothing}"));
        } else {
            self.line(indent, name.as_str());
            self.chain(table, name, depth + 1, indent + 2);
        }
    }

    /// Positions of the rules that held.
    fn held(&self, table: &Table, name: &ChainName) -> BTreeSet<usize> {
        let here = self.trace.path.iter().filter(|step| step.table == *table && step.chain == *name);
        here.map(|step| step.index).collect()
    }

    fn remark(&self, chain: &ChainName, rule: &Rule) -> Option<String> {
        let hairpin =
            rule.matches.iter().any(|m| matches!(m, Match::Bpf(program) if program.is_same_address()));
        match &rule.target {
            Some(Target::Dnat(to)) => Some(match self.share_of(*to) {
                Some(share) if share != Share::ALL => {
                    format!("the destination becomes {to}, for {share} of the connections")
                }
                _ => format!("the destination becomes {to}"),
            }),
            Some(Target::Accept) if hairpin => Some("if the endpoint is the sender itself".to_owned()),
            Some(Target::SetMark(_)) if hairpin => {
                Some("if the endpoint is the sender itself: marked for masquerading".to_owned())
            }
            Some(Target::SetMark(_)) if chain.as_str() == wellknown::MARK_MASQ => {
                Some("marked for masquerading".to_owned())
            }
            Some(Target::Masquerade { .. }) => Some("the source becomes the node's address".to_owned()),
            Some(Target::Drop) => Some("dropped without an answer".to_owned()),
            Some(Target::Reject(_)) => Some("refused with an answer".to_owned()),
            Some(Target::Jump(_)) => random(rule).map(|share| format!("{share} of those that come here")),
            _ => None,
        }
    }

    /// How many of all connections end at `to`.
    fn share_of(&self, to: SocketAddr) -> Option<Share> {
        let mut targets =
            self.trace.targets.iter().filter(|target| target.address == to.ip() && target.port == to.port());
        let first = targets.next()?.probability;
        Some(targets.fold(first, |sum, target| sum.or(target.probability)))
    }

    fn verdict(&mut self) {
        let sentence = match self.trace.outcome {
            Outcome::Accepted => "reaches an endpoint",
            Outcome::NoMatch => "no Service rewrites the packet; it passes as it is",
            Outcome::Rejected => "no endpoint is reached, and the client is told so",
            Outcome::Dropped => "no endpoint is reached, and the client hears nothing",
        };
        let verdict = self.trace.outcome.as_str();
        self.line(0, "");
        self.line(0, &format!("verdict: {verdict} ({sentence})"));
        self.policy();
        let targets = self.trace.targets.clone();
        let width = targets.iter().map(|target| share(target.probability).len()).max().unwrap_or(0);
        for target in &targets {
            self.target(target, width);
        }
        if self.trace.shares.len() > 1 {
            let others: Vec<_> =
                self.trace.shares.iter().filter(|(outcome, _)| **outcome != Outcome::Accepted).collect();
            for (outcome, part) in others {
                self.line(2, &format!("{:<width$}  {}", share(*part), outcome.as_str()));
            }
        }
    }

    /// The chains by whose policy it may be dropped. A packet that no rule dropped was dropped at the end of one.
    fn policies(&self) -> Vec<(Table, &'static str)> {
        let drops = |rule: &Rule| matches!(rule.target, Some(Target::Drop));
        let mut held = self.trace.path.iter().filter_map(|step| decision::rule(self.dump, step));
        if !self.trace.shares.contains_key(&Outcome::Dropped) || held.any(drops) {
            return Vec::new();
        }
        let drops = |(table, name): &(Table, &str)| {
            self.dump.chain(table, name).is_some_and(|chain| chain.policy == Some(Policy::Drop))
        };
        hooks(&self.packet.origin).into_iter().filter(drops).collect()
    }

    fn policy(&mut self) {
        let names: Vec<String> =
            self.policies().iter().map(|(table, name)| format!("{table} {name}")).collect();
        if !names.is_empty() {
            self.line(2, &format!("by the policy DROP of {}", names.join(" or ")));
        }
    }

    /// The rules that decide, with what they have decided before. Rules of nat meet the first packet of a connection only.
    fn decisions(&mut self) {
        let told = |what: String, counter: Option<Counter>| match counter {
            Some(counter) => format!("{what} ({counter})"),
            None => what,
        };
        let trace = self.trace;
        let deciding = trace.path.iter().filter(|step| decision::decides(self.dump, trace, step));
        let mut lines: Vec<String> = deciding
            .map(|step| {
                let rule = decision::rule(self.dump, step).map(specification).unwrap_or_default();
                let place = format!("{} {}, rule {}", step.table, step.chain, step.index + 1);
                format!("{}: {rule}", told(place, self.counters.of_rule(step)))
            })
            .collect();
        lines.extend(self.policies().into_iter().map(|(table, name)| {
            let counter = self.counters.of_policy(&table, &ChainName::from(name));
            told(format!("{table} {name}, its policy DROP"), counter)
        }));
        match lines.as_slice() {
            [] => self.line(0, "decided by no rule"),
            lines => {
                let nat =
                    if trace.outcome == Outcome::Accepted { "; nat counts first packets only" } else { "" };
                self.line(0, &format!("decided by (with what met it before{nat})"));
                for line in lines {
                    self.line(2, line);
                }
            }
        }
    }

    fn target(&mut self, target: &Destination, width: usize) {
        let to = SocketAddr::new(target.address, target.port);
        let source = if target.masquerade {
            "source rewritten to the node's address".to_owned()
        } else {
            format!("source stays {}", self.packet.source)
        };
        let share = share(target.probability);
        self.line(2, &format!("{share:<width$}  {to}, {source}"));
    }

    /// Traces are those of clients that come for the first time.
    fn affinity(&mut self) {
        let seconds: BTreeSet<u32> = self
            .trace
            .path
            .iter()
            .filter_map(|step| self.dump.chain(&step.table, step.chain.as_str()))
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.matches)
            .filter_map(|condition| match condition {
                Match::Affinity { action: Affinity::Recall { seconds }, .. } => Some(*seconds),
                _ => None,
            })
            .collect();
        for seconds in seconds {
            self.line(
                0,
                &format!(
                    "session affinity: this is a client's first connection; those that follow within {seconds} s go to the same endpoint"
                ),
            );
        }
    }
}

/// A rule without its comment; bytecode that we know is called by what it asks.
fn specification(rule: &Rule) -> String {
    let mut text = Rule { comment: None, ..rule.clone() }.to_string();
    if text.is_empty() {
        return "(no condition, no target)".to_owned();
    }
    for condition in &rule.matches {
        if let Match::Bpf(program) = condition
            && program.is_same_address()
        {
            text = text.replace(&condition.to_string(), "-m bpf <source equals destination>");
        }
    }
    text
}

/// Of all connections.
fn share(share: Share) -> String {
    if share == Share::ALL { "all".to_owned() } else { share.to_string() }
}

fn random(rule: &Rule) -> Option<Share> {
    rule.matches.iter().find_map(|condition| match condition {
        Match::Random(probability) => Some(probability.share()),
        _ => None,
    })
}
