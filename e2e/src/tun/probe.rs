//! What is sent, and what can come of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use fairlead_objects::Protocol;

/// By which way a packet comes in or goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entry {
    /// The device behind which the node's own Pods are.
    Pods,
    /// The device behind which everything else is: other nodes, their Pods, the outside.
    World,
    /// The node itself: a process of it sends, or receives.
    Node,
}

/// Which packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The first of a connection: TCP SYN, a datagram, SCTP INIT.
    #[default]
    First,
    /// One that belongs to no connection: TCP SYN-ACK, SCTP INIT ACK. Conntrack calls it INVALID. A datagram is as good
    /// as a first one.
    Stray,
    /// A first one with a wrong checksum, which conntrack calls INVALID when it comes in by a device.
    Damaged,
}

/// A packet to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// By which way.
    pub entry: Entry,
    /// From which address.
    pub source: IpAddr,
    /// From which port; one that no probe had before, if none is given.
    pub source_port: Option<u16>,
    /// To where.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Which packet.
    pub kind: Kind,
}

impl Probe {
    /// The first packet of a new connection.
    pub fn new(entry: Entry, source: IpAddr, protocol: Protocol, destination: SocketAddr) -> Self {
        Self { entry, source, source_port: None, destination, protocol, kind: Kind::First }
    }

    /// Another packet than the first of a connection.
    #[must_use]
    pub fn of(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// From a port of choice; conntrack may know the connection already.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self { source_port: Some(port), ..self }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, source, destination, protocol, kind, .. } = self;
        write!(f, "{protocol} {kind:?} {source} -> {destination} by {entry:?}")
    }
}

/// Where a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It left the namespace, with these addresses.
    Left {
        /// By this device.
        by: Entry,
        /// Source, as its receiver sees it.
        source: SocketAddr,
        /// Destination, after translation.
        destination: SocketAddr,
    },
    /// It was let through to the node itself, with these addresses.
    Delivered {
        /// Source, as the node sees it.
        source: SocketAddr,
        /// Destination, after translation.
        destination: SocketAddr,
    },
    /// Nowhere: dropped, or refused if there is an answer.
    Nowhere,
    /// The node's own routes lead nowhere: it was never sent.
    Unroutable,
}

/// What the node said to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What.
    pub complaint: Complaint,
    /// From which address: for a packet that was translated, the address that the sender asked.
    pub from: IpAddr,
    /// By which way.
    pub by: Entry,
}

/// Ways to say no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Complaint {
    /// TCP RST.
    Reset,
    /// ICMP(v6) port unreachable: REJECT, or nobody listens to a UDP port.
    PortUnreachable,
    /// Another ICMP(v6) error: type and code.
    Other(u8, u8),
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    /// From where it was sent.
    pub sent_from: SocketAddr,
    /// Where it ended.
    pub end: End,
    /// What the sender heard from the node.
    pub answer: Option<Answer>,
    pub(super) tag: u32,
}

impl Fate {
    /// Where it was led, if it came anywhere.
    pub fn destination(&self) -> Option<SocketAddr> {
        match self.end {
            End::Left { destination, .. } | End::Delivered { destination, .. } => Some(destination),
            End::Nowhere | End::Unroutable => None,
        }
    }

    /// The source that its receiver saw, if it came anywhere.
    pub fn source(&self) -> Option<SocketAddr> {
        match self.end {
            End::Left { source, .. } | End::Delivered { source, .. } => Some(source),
            End::Nowhere | End::Unroutable => None,
        }
    }

    /// Whether it came somewhere under another source. (One that is masqueraded as the address that it has already
    /// gets another port, as long as chance does not give it the same.)
    pub fn is_masqueraded(&self) -> bool {
        self.source().is_some_and(|source| source != self.sent_from)
    }

    /// Whether rules refused it: it came nowhere, and its sender was told.
    pub fn is_rejected(&self) -> bool {
        self.end == End::Nowhere && self.answer.is_some()
    }

    /// Whether nothing at all came of it.
    pub fn is_dropped(&self) -> bool {
        self.end == End::Nowhere && self.answer.is_none()
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            End::Left { by, source, destination } => write!(f, "left by {by:?}, {source} -> {destination}")?,
            End::Delivered { source, destination } => write!(f, "delivered, {source} -> {destination}")?,
            End::Nowhere => write!(f, "came nowhere")?,
            End::Unroutable => write!(f, "could not be sent")?,
        }
        match self.answer {
            Some(Answer { complaint, from, by }) => write!(f, "; {complaint:?} from {from} by {by:?}"),
            None => Ok(()),
        }
    }
}
