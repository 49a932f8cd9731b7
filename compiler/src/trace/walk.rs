//! The walk: hooks one after the other, in each the rules of a built-in chain and of the chains that it leads to.

use std::net::IpAddr;

use super::{
    Host, Origin, Outcome, Packet, Step,
    packet::{Answer, Flight},
};
use crate::{
    dump::{Dump, InstalledChain, Policy},
    probability::Share,
    rule::{Rule, Target},
    ruleset::{ChainName, Table},
};

/// Deepest nesting of chains; the kernel refuses loops, a text may have them.
const DEPTH: usize = 64;

/// One way that packets take, to its end.
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) masquerade: bool,
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
    next: usize,
}

/// A packet at a place in the rules.
#[derive(Clone)]
struct Walker<'a> {
    flight: Flight<'a>,
    hook: Hook,
    frames: Vec<Frame<'a>>,
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
pub(super) fn ends(dump: &Dump, packet: &Packet, host: &Host) -> Vec<End> {
    let hook = match packet.origin {
        Origin::Node => Hook::NatOutput,
        Origin::Interface(_) => Hook::NatPrerouting,
    };
    let flight = Flight { packet, host, rewritten: None, masquerade: false, mark: 0, looped: false };
    let mut first = Walker { flight, hook, frames: Vec::new(), share: Share::ALL, path: Vec::new() };
    first.enter(dump);
    let (mut waiting, mut ends) = (vec![first], Vec::new());
    while let Some(walker) = waiting.pop() {
        ends.push(walker.run(dump, &mut waiting));
    }
    ends
}

impl<'a> Walker<'a> {
    /// Starts at the top of the hook's built-in chain.
    fn enter(&mut self, dump: &'a Dump) {
        let (table, name) = self.hook.chain();
        let found = dump.tables.get(&table).and_then(|chains| chains.get_key_value(name));
        self.frames = found.map(|(name, chain)| Frame { name, chain, next: 0 }).into_iter().collect();
    }

    /// Runs to the end; ways that branch off are left in `waiting`.
    fn run(mut self, dump: &'a Dump, waiting: &mut Vec<Self>) -> End {
        loop {
            let event = match self.next_rule() {
                Some(rule) => self.meet(rule, dump, waiting),
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
                    self.enter(dump);
                }
            }
        }
    }

    fn next_rule(&mut self) -> Option<&'a Rule> {
        let frame = self.frames.last_mut()?;
        let rule = frame.chain.rules.get(frame.next)?;
        frame.next += 1;
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

    fn meet(&mut self, rule: &'a Rule, dump: &'a Dump, waiting: &mut Vec<Self>) -> Event {
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
        self.record(rule);
        self.act(rule, dump)
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

    fn act(&mut self, rule: &'a Rule, dump: &'a Dump) -> Event {
        match &rule.target {
            None | Some(Target::Opaque(_)) => Event::Continue,
            Some(Target::Jump(chain)) => self.call(chain, dump),
            Some(Target::Goto(chain)) => {
                if self.frames.len() > 1 {
                    self.frames.pop();
                } else if let Some(frame) = self.frames.last_mut() {
                    // The built-in chain's policy still applies.
                    frame.next = frame.chain.rules.len();
                }
                self.call(chain, dump)
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

    fn call(&mut self, name: &ChainName, dump: &'a Dump) -> Event {
        let (table, _) = self.hook.chain();
        let found = dump.tables.get(&table).and_then(|chains| chains.get_key_value(name));
        if let Some((name, chain)) = found.filter(|_| self.frames.len() < DEPTH) {
            self.frames.push(Frame { name, chain, next: 0 });
        }
        Event::Continue
    }

    fn end(self, outcome: Outcome) -> End {
        End {
            outcome,
            address: self.flight.destination(),
            port: self.flight.port(),
            masquerade: self.flight.masquerade,
            share: self.share,
            path: self.path,
        }
    }
}
