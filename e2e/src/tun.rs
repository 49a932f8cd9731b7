//! Raw packets into a node's namespace, and what leaves it: two TUN devices that this process holds are the only ways
//! in and out, so that a packet costs microseconds and everything about its fate is known.
//!
//! ```text
//!      test process                     namespace of a node
//!   Entry::Pods  ──write──> [cbr0 ]──┐                     routes: the node's Pod network
//!                <──read───          ├── netfilter, routes
//!   Entry::World ──write──> [world]──┘   │                 routes: everything else
//!                <──read───              │
//!   Entry::Node  ──raw socket, sends─────┘
//!                <──raw sockets, what netfilter lets through to the node itself
//! ```
//!
//! A packet carries a tag that no translation touches, so it is known again whatever rules made of it. When it is
//! sent, the kernel handles it at once; that nothing came of it is decided by a second packet, a sentinel, that went in
//! after it by the same way and came out.
//!
//! Invariants: a fate is complete when it is told; nothing waits for time to pass; every packet that leaves has right
//! checksums, or it is an error.

mod crc32c;
mod device;
mod harness;
mod node;
mod packet;
mod probe;
mod sight;
mod watch;

use std::{io, net::IpAddr};

pub use harness::{Harness, Setup};
pub use probe::{Answer, Complaint, End, Entry, Fate, Kind, Probe};

/// Why a probe could not be made, or its fate not be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace did not do what it was told.
    #[error("setting up the namespace")]
    Namespace(#[source] anyhow::Error),
    /// No TUN device.
    #[error("making the TUN device {name}")]
    Device {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No socket on the node.
    #[error("opening a raw socket ({what})")]
    Socket {
        /// For what.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel did not take a packet.
    #[error("sending {packet}")]
    Send {
        /// The packet.
        packet: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading what came out failed.
    #[error("reading what left the namespace")]
    Receive(#[source] io::Error),
    /// Source and destination are not of one family.
    #[error("no packet goes from {0} to {1}")]
    Families(IpAddr, IpAddr),
    /// A packet did not fit the builder's limits.
    #[error("building a packet")]
    Build(#[from] etherparse::err::packet::BuildWriteError),
    /// What went in after the probes never came out, so nothing can be said about them.
    #[error(
        "the sentinel by {0:?} did not come out: is the namespace's way back for ICMP errors, or its loopback, blocked?"
    )]
    Lost(Entry),
    /// A packet left with a checksum that no receiver would accept.
    #[error("a packet left with a wrong checksum: {0}")]
    Checksum(String),
    /// One packet went two ways.
    #[error("{packet} was seen twice: {first}, and {second}")]
    Twice {
        /// The packet.
        packet: String,
        /// Where first.
        first: String,
        /// Where then.
        second: String,
    },
    /// Asked for the reply to a packet that did not leave.
    #[error("nobody can reply to a packet that did not leave the namespace: {0}")]
    NoReply(String),
}
