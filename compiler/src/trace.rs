//! Walks the first packet of a connection through the rules of a dump.
//!
//! ```text
//!  arriving: nat PREROUTING ─> local? ─ yes ─> filter INPUT
//!                                └──── no ──> filter FORWARD ─> nat POSTROUTING
//!  sent by the node: nat OUTPUT ─> filter OUTPUT ─> nat POSTROUTING ─> local? ─ yes ─> filter INPUT
//! ```
//!
//! A random match splits the walk in two; probabilities are exact. Affinity lists are empty; who would be in one afterwards,
//! and for how long, is told. A match that we do not
//! understand never holds, and a target that we do not understand does nothing: a trace tells what the typed rules do.
//! `raw`, `mangle` and the node's routes and policies beyond "local or not" are not looked at.
//!
//! Invariant: the shares of all ways that packets take add up to one.

mod fate;
mod index;
mod packet;
mod recall;
mod walk;

pub use fate::{Discord, Fate};
use index::Index;
pub(crate) use index::asked_for;
use recall::Recalls;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use fairlead_objects::Protocol;

use crate::{
    dump::Dump,
    facts::NodeFacts,
    probability::Share,
    ruleset::{ChainName, Table},
};

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Source port; rules of ours do not ask for it.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A network interface, by name if that is known. An unknown name matches no `-i`.
    Interface(Option<String>),
    /// A process of the node.
    Node,
}

/// The node that the packet meets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its addresses; loopback need not be given.
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// Whether `address` is the node's own.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }
}

impl From<&NodeFacts> for Host {
    fn from(facts: &NodeFacts) -> Self {
        let mut addresses: Vec<_> = facts.own_addresses().collect();
        addresses.push(facts.node_ip);
        Self { addresses }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Delivered to an endpoint.
    Accepted,
    /// Not the destination of any Service: passes as it is.
    NoMatch,
    /// Refused with an answer.
    Rejected,
    /// Dropped without a word.
    Dropped,
}

impl Outcome {
    /// As printed: `accepted`, `no match`, `rejected`, `dropped`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::NoMatch => "no match",
            Self::Rejected => "rejected",
            Self::Dropped => "dropped",
        }
    }
}

/// An endpoint that the packet may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// How often.
    pub probability: Share,
    /// Whether the source is rewritten on the way there.
    pub masquerade: bool,
}

/// A rule that held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Table.
    pub table: Table,
    /// Chain.
    pub chain: ChainName,
    /// Position in the chain, from 0.
    pub index: usize,
    /// Text of the rule.
    pub rule: String,
}

/// What the rules do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The best that can happen.
    pub outcome: Outcome,
    /// Share of each outcome that can happen.
    pub shares: BTreeMap<Outcome, Share>,
    /// Endpoints that it can reach, in the order in which they are met.
    pub targets: Vec<Destination>,
    /// Whether the source is rewritten, on any way.
    pub masquerade: bool,
    /// Share of the connections after which the client is led to the same endpoint again, by the seconds within which it has
    /// to come back.
    pub affinity: BTreeMap<u32, Share>,
    /// The rules that held, on any way, in the order in which they were met.
    pub path: Vec<Step>,
}

/// Traces the first packet of a connection through the rules.
pub fn trace(dump: &Dump, packet: &Packet, host: &Host) -> Trace {
    let mut result = Trace {
        outcome: Outcome::Dropped,
        shares: BTreeMap::new(),
        targets: Vec::new(),
        masquerade: false,
        affinity: BTreeMap::new(),
        path: Vec::new(),
    };
    let mut seen = HashSet::new();
    let (index, recalls) = (&Index::default(), &Recalls::of(dump));
    let rules = walk::Rules { dump, index, recalls, told: true, invalid: false };
    for end in walk::ends(rules, packet, host) {
        result.add(end, &mut seen);
    }
    result.outcome = result.shares.keys().next().copied().unwrap_or(Outcome::NoMatch);
    result
}

/// Tells the fates of many packets under the same rules, without the ways there.
#[derive(Clone, Debug)]
pub struct Tracer<'a> {
    dump: &'a Dump,
    index: Index<'a>,
    recalls: Recalls<'a>,
}

impl<'a> Tracer<'a> {
    /// Under these rules.
    pub fn new(dump: &'a Dump) -> Self {
        Self { dump, index: Index::of(dump), recalls: Recalls::of(dump) }
    }

    /// What becomes of the first packet of a connection: what [`trace`] says, at a fraction of the cost.
    pub fn fate(&self, packet: &Packet, host: &Host) -> Fate {
        self.walk(packet, host, false)
    }

    /// What becomes of a packet that conntrack calls INVALID, because it is damaged or fits no connection: it meets no
    /// rule of `nat`.
    pub fn fate_of_invalid(&self, packet: &Packet, host: &Host) -> Fate {
        self.walk(packet, host, true)
    }

    fn walk(&self, packet: &Packet, host: &Host, invalid: bool) -> Fate {
        let mut fate = Fate::default();
        let Self { dump, index, recalls } = self;
        let rules = walk::Rules { dump, index, recalls, told: false, invalid };
        for end in walk::ends(rules, packet, host) {
            fate.add(&end);
        }
        fate
    }
}

impl Trace {
    /// `seen`: the steps that are in the path already.
    fn add(&mut self, end: walk::End, seen: &mut HashSet<Step>) {
        let walk::End { outcome, address, port, masquerade, affinity, share, path } = end;
        let sum = self.shares.entry(outcome).or_insert(Share::NONE);
        *sum = sum.or(share);
        self.masquerade |= masquerade;
        for step in path {
            if seen.insert(step.clone()) {
                self.path.push(step);
            }
        }
        if outcome != Outcome::Accepted {
            return;
        }
        add_affinity(&mut self.affinity, affinity, share);
        let same = |target: &&mut Destination| {
            target.address == address && target.port == port && target.masquerade == masquerade
        };
        match self.targets.iter_mut().find(same) {
            Some(target) => target.probability = target.probability.or(share),
            None => self.targets.push(Destination { address, port, probability: share, masquerade }),
        }
    }
}

fn add_affinity(shares: &mut BTreeMap<u32, Share>, affinity: Option<u32>, share: Share) {
    if let Some(seconds) = affinity {
        let sum = shares.entry(seconds).or_insert(Share::NONE);
        *sum = sum.or(share);
    }
}
