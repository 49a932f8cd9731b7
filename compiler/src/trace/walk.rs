//! The walk: hooks one after the other, in each the rules of a built-in chain and of the chains that it leads to.

use std::net::IpAddr;

use super::{
    Host, Origin, Outcome, Packet, Step,
    index::{ChainIndex, Index},
    packet::{Answer, Flight},
    recall::Recalls,
};
use crate::{
    dump::{Dump, InstalledChain, Policy},
    probability::Share,
    rule::{Rule, Target},
    ruleset::{ChainName, Table},
};

/// Deepest nesting of chains; the kernel refuses loops, a text may have them.
const DEPTH: usize = 64;

/// The rules that packets meet.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) dump: &'a Dump,
    /// May be empty; then every rule of a chain is looked at.
    pub(super) index: &'a Index<'a>,
    pub(super) recalls: &'a Recalls<'a>,
    /// Whether the path is wanted.
    pub(super) told: bool,
    /// Whether conntrack calls the packet INVALID.
    pub(super) invalid: bool,
}

impl<'a> Rules<'a> {
    /// The top of a chain, if there is such a chain.
    fn frame(self, table: &Table, name: &str) -> Option<Frame<'a>> {
        if self.invalid && *table == Table::Nat {
            return None;
        }
        let (name, chain) = self.dump.tables.get(table)?.get_key_value(name)?;
        Some(Frame { name, chain, index: self.index.chain(table, name), next: 0 })
    }
}

/// One way that packets take, to its end.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) masquerade: bool,
    /// For how many seconds the client will be led there again, if it is remembered.
    pub(super) affinity: Option<u32>,
    pub(super) share: Share,
    pub(super) path: Vec<Step>,
}

/// A built-in chain on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    NatPrerouting,
    NatOutput,
    Input,
    Forward,
    Output,
    NatPostrouting,
}

impl Hook {
    fn chain(self) -> (Table, &'static str) {
        match self {
            Self::NatPrerouting => (Table::Nat, "PREROUTING"),
            Self::NatOutput => (Table::Nat, "OUTPUT"),
            Self::Input => (Table::Filter, "INPUT"),
            Self::Forward => (Table::Filter, "FORWARD"),
            Self::Output => (Table::Filter, "OUTPUT"),
            Self::NatPostrouting => (Table::Nat, "POSTROUTING"),
        }
    }

    /// Where a packet goes that this hook lets pass; `None` is out of here.
    fn next(self, flight: &Flight<'_>) -> Option<Self> {
        match self {
            Self::NatPrerouting if flight.is_to_host() => Some(Self::Input),
            Self::NatPrerouting => Some(Self::Forward),
            Self::Forward | Self::Output => Some(Self::NatPostrouting),
            Self::NatOutput => Some(Self::Output),
            Self::NatPostrouting if flight.packet.origin == Origin::Node && flight.is_to_host() => {
                Some(Self::Input)
            }
            Self::NatPostrouting | Self::Input => None,
        }
    }
}

/// A place in a chain.
#[derive(Clone)]
struct Frame<'a> {
    name: &'a ChainName,
    chain: &'a InstalledChain,
    index: Option<&'a ChainIndex>,
    next: usize,
}

/// A packet at a place in the rules.
#[derive(Clone)]
struct Walker<'a> {
    flight: Flight<'a>,
    hook: Hook,
    frames: Vec<Frame<'a>>,
    affinity: Option<u32>,
    share: Share,
    path: Vec<Step>,
}

/// What became of a packet at a rule.
enum Event {
    Continue,
    Pass,
    End(Outcome),
}

/// Follows a packet on all its ways, the likely-first order of the rules.
pub(super) fn ends(rules: Rules<'_>, packet: &Packet, host: &Host) -> Vec<End> {
    let hook = match packet.origin {
        Origin::Node => Hook::NatOutput,
        Origin::Interface(_) => Hook::NatPrerouting,
    };
    let Rules { invalid, .. } = rules;
    let flight = Flight { packet, host, rewritten: None, masquerade: false, mark: 0, looped: false, invalid };
    let (frames, path) = (Vec::new(), Vec::new());
    let mut first = Walker { flight, hook, frames, affinity: None, share: Share::ALL, path };
    first.enter(rules);
    let (mut waiting, mut ends) = (vec![first], Vec::new());
    while let Some(walker) = waiting.pop() {
        ends.push(walker.run(rules, &mut waiting));
    }
    ends
}

impl<'a> Walker<'a> {
    /// Starts at the top of the hook's built-in chain.
    fn enter(&mut self, rules: Rules<'a>) {
        let (table, name) = self.hook.chain();
        self.frames = rules.frame(&table, name).into_iter().collect();
    }

    /// Runs to the end; ways that branch off are left in `waiting`.
    fn run(mut self, rules: Rules<'a>, waiting: &mut Vec<Self>) -> End {
        loop {
            let event = match self.next_rule() {
                Some(rule) => self.meet(rule, rules, waiting),
                None => self.leave_chain(),
            };
            match event {
                Event::Continue => {}
                Event::End(outcome) => return self.end(outcome),
                Event::Pass => {
                    let Some(hook) = self.hook.next(&self.flight) else {
                        let delivered = self.flight.rewritten.is_some();
                        return self.end(if delivered { Outcome::Accepted } else { Outcome::NoMatch });
                    };
                    self.flight.looped |= self.hook == Hook::NatPostrouting;
                    self.hook = hook;
                    self.enter(rules);
                }
            }
        }
    }

    fn next_rule(&mut self) -> Option<&'a Rule> {
        let frame = self.frames.last_mut()?;
        let position = match frame.index {
            Some(index) => index.next(frame.next, &self.flight)?,
            None => frame.next,
        };
        let rule = frame.chain.rules.get(position)?;
        frame.next = position + 1;
        Some(rule)
    }

    /// The end of a chain: back to the caller, or the policy of the built-in chain.
    fn leave_chain(&mut self) -> Event {
        let policy = self.frames.pop().and_then(|frame| frame.chain.policy);
        match (self.frames.is_empty(), policy) {
            (true, Some(Policy::Drop)) => Event::End(Outcome::Dropped),
            (true, _) => Event::Pass,
            (false, _) => Event::Continue,
        }
    }

    fn meet(&mut self, rule: &'a Rule, rules: Rules<'a>, waiting: &mut Vec<Self>) -> Event {
        match self.flight.answer(&rule.matches) {
            Answer::No => return Event::Continue,
            Answer::Yes => {}
            Answer::Maybe(share) => {
                let mut other = self.clone();
                other.share = self.share.and(share.complement());
                if other.share != Share::NONE {
                    waiting.push(other);
                }
                self.share = self.share.and(share);
                if self.share == Share::NONE {
                    // Cannot happen; the other way has everything.
                    return self.take_last(waiting);
                }
            }
        }
        if rules.told {
            self.record(rule);
        }
        self.affinity = self.affinity.or_else(|| self.recall(rule, rules));
        self.act(rule, rules)
    }

    /// For how long the rule has its chain's caller lead the client here again.
    fn recall(&self, rule: &Rule, rules: Rules<'_>) -> Option<u32> {
        let [.., caller, frame] = self.frames.as_slice() else { return None };
        rules.recalls.seconds(rule, frame.name, (caller.name, caller.next))
    }

    /// Becomes the way that was set aside last.
    fn take_last(&mut self, waiting: &mut Vec<Self>) -> Event {
        if let Some(other) = waiting.pop() {
            *self = other;
        }
        Event::Continue
    }

    fn record(&mut self, rule: &Rule) {
        if let Some(frame) = self.frames.last() {
            self.path.push(Step {
                table: self.hook.chain().0,
                chain: frame.name.clone(),
                index: frame.next.saturating_sub(1),
                rule: rule.to_string(),
            });
        }
    }

    fn act(&mut self, rule: &'a Rule, rules: Rules<'a>) -> Event {
        match &rule.target {
            None | Some(Target::Opaque(_)) => Event::Continue,
            Some(Target::Jump(chain)) => self.call(chain, rules),
            Some(Target::Goto(chain)) => {
                if self.frames.len() > 1 {
                    self.frames.pop();
                } else if let Some(frame) = self.frames.last_mut() {
                    // The built-in chain's policy still applies.
                    frame.next = frame.chain.rules.len();
                }
                self.call(chain, rules)
            }
            Some(Target::Return) => self.leave_chain(),
            Some(Target::Accept) => Event::Pass,
            Some(Target::Drop) => Event::End(Outcome::Dropped),
            Some(Target::Reject(_)) => Event::End(Outcome::Rejected),
            Some(Target::SetMark(mark)) => {
                self.flight.mark = (self.flight.mark & !mark.mask) ^ mark.value;
                Event::Continue
            }
            Some(Target::Masquerade { .. }) => {
                self.flight.masquerade = true;
                Event::Pass
            }
            Some(Target::Dnat(to)) => {
                self.flight.rewritten = Some(*to);
                Event::Pass
            }
        }
    }

    fn call(&mut self, name: &ChainName, rules: Rules<'a>) -> Event {
        let frame = rules.frame(&self.hook.chain().0, name.as_str());
        self.frames.extend(frame.filter(|_| self.frames.len() < DEPTH));
        Event::Continue
    }

    fn end(self, outcome: Outcome) -> End {
        End {
            outcome,
            address: self.flight.destination(),
            port: self.flight.port(),
            masquerade: self.flight.masquerade,
            affinity: self.affinity,
            share: self.share,
            path: self.path,
        }
    }
}
