//! Notices that another program changed the packet filter, without reading it back all the time.
//!
//! * nft: the kernel multicasts every change of nf_tables, with the names of table and chain and the process that made it.
//!   Nothing is read back unless chains that concern us were touched by somebody else; then only those.
//! * legacy: the kernel tells nothing, but how many rules a table has, and how large it is, is one cheap call, made four
//!   times a second. An edit that keeps both is found by reading everything back twice a minute.
//!
//! A [`Suspicion`] is no proof: whoever gets one compares what is installed with what should be.
//!
//! Invariants: our own writing is never a suspicion, and what others do while we write always is; what cannot be told
//! apart is suspected.

use std::{collections::BTreeSet, io};

use fairlead_compiler::ChainRef;
use fairlead_objects::Family;

use crate::netfilter::Variant;

pub mod legacy;
pub mod nft;

/// What may not be as it should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing.
    #[default]
    Nothing,
    /// These chains.
    Chains(BTreeSet<ChainRef>),
    /// Anything.
    Everything,
}

impl Suspicion {
    /// Above so many chains, reading everything costs less than reading each.
    const MOST_CHAINS: usize = 16;

    /// Adds another suspicion.
    pub fn add(&mut self, other: Self) {
        *self = match (std::mem::take(self), other) {
            (Self::Nothing, other) => other,
            (this, Self::Nothing) => this,
            (Self::Chains(mut chains), Self::Chains(more)) => {
                chains.extend(more);
                if chains.len() > Self::MOST_CHAINS { Self::Everything } else { Self::Chains(chains) }
            }
            (Self::Everything, _) | (_, Self::Everything) => Self::Everything,
        };
    }

    /// Whether there is none.
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

/// Whether a chain is one that we write, or jump from.
pub type Concern<'a> = &'a dyn Fn(&ChainRef) -> bool;

/// Watches over the rules of one family.
#[derive(Debug)]
pub enum Sentinel {
    /// By the kernel's messages.
    Nft(Box<nft::Listener>),
    /// By the kernel's counts.
    Legacy(legacy::Poll),
    /// Not at all: only the canary is left.
    Off,
}

impl Sentinel {
    /// Watches the network namespace we run in. Must run within a runtime.
    pub fn new(family: Family, variant: Variant) -> io::Result<Self> {
        match variant {
            Variant::Nft => nft::Listener::new(family).map(Box::new).map(Self::Nft),
            Variant::Legacy => legacy::Poll::new(family).map(Self::Legacy),
        }
    }

    /// Waits until there is something to [`take`](Self::take). While we write ourselves (not `idle`), it takes notes and
    /// never returns. Safe to drop at any time.
    pub async fn stirred(&mut self, idle: bool) {
        match self {
            Self::Nft(listener) => listener.stirred(idle).await,
            Self::Legacy(poll) if idle => poll.stirred().await,
            Self::Legacy(_) | Self::Off => std::future::pending().await,
        }
    }

    /// We start to write. `afresh`: after reading everything, so that what is known so far does not matter.
    pub fn begin(&mut self, afresh: bool) {
        match self {
            Self::Nft(listener) => listener.begin(afresh),
            Self::Legacy(poll) => poll.begin(afresh),
            Self::Off => {}
        }
    }

    /// We wrote, in so many processes, or failed to (`None`). `entries` counts what the tables filter and nat should hold
    /// of ours.
    pub fn end(&mut self, writers: Option<usize>, concern: Concern<'_>, entries: &dyn Fn() -> [usize; 2]) {
        match self {
            // After a failure everything is compared anyway.
            Self::Nft(listener) => listener.end(writers.unwrap_or(usize::MAX), concern),
            Self::Legacy(poll) => poll.end(writers.map(|writers| (writers, entries()))),
            Self::Off => {}
        }
    }

    /// What others may have changed since the last call, of what concerns us.
    pub fn take(&mut self, concern: Concern<'_>) -> Suspicion {
        match self {
            Self::Nft(listener) => listener.take(concern),
            Self::Legacy(poll) => poll.take(),
            Self::Off => Suspicion::Nothing,
        }
    }
}
