//! What a rule asks of a packet.
//!
//! Invariant: equal matches are what the kernel stores equally. What the kernel prints differently from how it was written
//! (marks, probabilities, host prefixes, defaults of `recent`) has one representation here.

use std::{fmt, sync::Arc};

use fairlead_objects::Protocol;
use ipnet::IpNet;

use crate::{hairpin::Bytecode, probability::Probability, rule::Mark};

/// One match. The order of the variants is the order in a [`Rule`](crate::Rule): cheap and selective first, side effects
/// last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// `-s`
    Source {
        /// Network of the source.
        net: IpNet,
        /// Outside of it.
        negated: bool,
    },
    /// `-d`
    Destination {
        /// Network of the destination.
        net: IpNet,
        /// Outside of it.
        negated: bool,
    },
    /// `-i`
    InInterface {
        /// Name or prefix.
        name: InterfaceName,
        /// Any other.
        negated: bool,
    },
    /// `-o`
    OutInterface {
        /// Name or prefix.
        name: InterfaceName,
        /// Any other.
        negated: bool,
    },
    /// `-p`
    Protocol {
        /// The protocol.
        protocol: IpProtocol,
        /// Any other.
        negated: bool,
    },
    /// `-m tcp --sport`
    SourcePort {
        /// Protocol whose ports are meant; a [`Match::Protocol`] stands beside it.
        protocol: Protocol,
        /// The ports.
        ports: PortRange,
        /// Any other.
        negated: bool,
    },
    /// `-m tcp --dport`
    DestinationPort {
        /// Protocol whose ports are meant; a [`Match::Protocol`] stands beside it.
        protocol: Protocol,
        /// The ports.
        ports: PortRange,
        /// Any other.
        negated: bool,
    },
    /// `-m conntrack --ctstate`
    ConnState {
        /// Any of these.
        states: ConnStates,
        /// None of them.
        negated: bool,
    },
    /// `-m mark`
    Mark {
        /// Value and the bits that are compared.
        mark: Mark,
        /// Differs.
        negated: bool,
    },
    /// `-m addrtype --src-type LOCAL` or `--dst-type LOCAL`
    Local {
        /// Which address.
        side: AddressSide,
        /// It is not the node's own.
        negated: bool,
    },
    /// `-m statistic --mode random`
    Random(Probability),
    /// `-m bpf`
    Bpf(Bytecode),
    /// A match that we never write.
    Opaque(Opaque),
    /// `-m recent`
    Affinity {
        /// Name of the list.
        list: Arc<str>,
        /// What is done with it.
        action: Affinity,
    },
    /// `-m nfacct`: counts, always true.
    Counter(Arc<str>),
}

impl Match {
    /// Position in a rule.
    pub(crate) fn rank(&self) -> u8 {
        match self {
            Self::Source { .. } => 0,
            Self::Destination { .. } => 1,
            Self::InInterface { .. } => 2,
            Self::OutInterface { .. } => 3,
            Self::Protocol { .. } => 4,
            Self::SourcePort { .. } => 5,
            Self::DestinationPort { .. } => 6,
            Self::ConnState { .. } => 7,
            Self::Mark { .. } => 8,
            Self::Local { .. } => 9,
            Self::Random(_) => 10,
            Self::Bpf(_) => 11,
            Self::Opaque(_) => 12,
            Self::Affinity { .. } => 13,
            Self::Counter(_) => 14,
        }
    }

    /// Whether it is written before any `-m`.
    pub(crate) fn is_header(&self) -> bool {
        self.rank() <= 4
    }

    /// Whether it is a zero network.
    pub(crate) fn is_always_true(&self) -> bool {
        matches!(self, Self::Source { net, negated: false } | Self::Destination { net, negated: false } if net.prefix_len() == 0)
    }

    /// `-p` of one of the protocols of Services.
    pub(crate) fn protocol(protocol: Protocol) -> Self {
        Self::Protocol { protocol: IpProtocol::Transport(protocol), negated: false }
    }

    /// `--dport` of one port.
    pub(crate) fn port(protocol: Protocol, port: u16) -> Self {
        Self::DestinationPort { protocol, ports: PortRange { first: port, last: port }, negated: false }
    }

    /// `-d` of one address.
    pub(crate) fn destination(address: std::net::IpAddr) -> Self {
        Self::Destination { net: address.into(), negated: false }
    }
}

/// A protocol in the IP header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IpProtocol {
    /// One that Services use.
    Transport(Protocol),
    /// Any other, as printed.
    Other(Arc<str>),
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transport(protocol) => protocol.lower(),
            Self::Other(name) => name,
        })
    }
}

/// Ports `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl PortRange {
    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// Name of a network interface; a trailing `+` makes it a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceName(Arc<str>);

impl InterfaceName {
    /// The interface of exactly this name, or, with a trailing `+`, those with this prefix.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Whether an interface called `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('+') {
            Some(prefix) => name.starts_with(prefix),
            None => name == &*self.0,
        }
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSide {
    /// Source.
    Source,
    /// Destination.
    Destination,
}

/// What a `recent` match does with its list, which is keyed by source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Affinity {
    /// Remembers the source; always true.
    Remember,
    /// True if the source was remembered within so many seconds; older entries are dropped.
    Recall {
        /// Timeout in seconds.
        seconds: u32,
    },
}

/// A set of connection states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnStates(u8);

impl ConnStates {
    /// Not a valid connection.
    pub const INVALID: Self = Self(1);
    /// First packet.
    pub const NEW: Self = Self(2);
    /// Belongs to a connection expected by another.
    pub const RELATED: Self = Self(4);
    /// Seen in both directions.
    pub const ESTABLISHED: Self = Self(8);
    /// Not tracked.
    pub const UNTRACKED: Self = Self(16);
    /// Its source was rewritten.
    pub const SNAT: Self = Self(32);
    /// Its destination was rewritten.
    pub const DNAT: Self = Self(64);

    /// In the order in which the kernel's tool prints them.
    const NAMES: [(Self, &'static str); 7] = [
        (Self::INVALID, "INVALID"),
        (Self::NEW, "NEW"),
        (Self::RELATED, "RELATED"),
        (Self::ESTABLISHED, "ESTABLISHED"),
        (Self::UNTRACKED, "UNTRACKED"),
        (Self::SNAT, "SNAT"),
        (Self::DNAT, "DNAT"),
    ];

    /// Either set.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the sets have a state in common.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Reads `NEW,ESTABLISHED`.
    pub fn of_text(text: &str) -> Option<Self> {
        text.split(',').try_fold(Self::default(), |states, word| {
            let (state, _) = Self::NAMES.iter().find(|(_, name)| *name == word)?;
            Some(states.or(*state))
        })
    }
}

impl fmt::Display for ConnStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(state, _)| self.intersects(*state)).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

/// Words of a rule that we do not understand, kept as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Opaque(pub Box<[Arc<str>]>);
