//! The compiler's tracer as a second opinion on every packet that a test sends.
//!
//! A packet is followed from its client over the nodes to its end, by the rules as `iptables-save` prints them. The end
//! must be what the kernel made of it: who answered, on which port, whom they saw, who refused or kept silent; and over
//! many requests the shares. Nothing is left out:
//!
//! * A rule that remembers clients leads a client where it was led before. Who is remembered is read from the kernel
//!   before the first request, and kept up from the tracer's own words after that; at the end, both must be the same.
//! * An open connection, and a flow of datagrams from one port, stay where their first packet was led. A flow may be
//!   led anew when the rules no longer lead it there.
//! * While rules change, each end must be possible by one of the states that there were. If one may have been missed,
//!   refusals and silence are possible too, for a Service comes and goes by such a state; answers are not.
//! * A request that meets no node has an end as well, though no rule has a say in it. It is counted apart.
//!
//! Not looked at are the packets of a connection after those that open it, other than by asking who is at its end; and
//! what other hosts than the bed's own servers do with what reaches them.

mod flows;
mod forecast;
mod generation;
mod history;
mod memory;
mod oracle;
mod route;
mod world;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::Result;
use fairlead_objects::Family;

use super::{Bed, From};
use crate::{
    netns::Netns,
    plan::Addresses,
    pod::Pod,
    probe::{Outcome, Span},
    servers::Protocol,
};

pub(super) use forecast::End;

/// What was compared so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Requests that met rules, on which tracer and kernel agreed.
    pub requests: usize,
    /// Those of them that were made while rules changed.
    pub changing: usize,
    /// Requests beside them that met no node, and ended as the network lets expect.
    pub direct: usize,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the tracer agrees with the kernel on {} requests", self.requests)?;
        if self.changing > 0 {
            write!(f, ", {} of them while rules changed", self.changing)?;
        }
        if self.direct > 0 {
            write!(f, "; {} more met no rules", self.direct)?;
        }
        Ok(())
    }
}

/// What is kept from one comparison to the next.
#[derive(Debug)]
pub(super) struct Tracer {
    /// No client was remembered before this.
    began: Instant,
    generations: Mutex<BTreeMap<u8, generation::Generation>>,
    states: Mutex<BTreeMap<(u8, Family), history::State>>,
    parsed: Mutex<world::Cache>,
    memory: Mutex<memory::Memory>,
    flows: Mutex<oracle::Flows>,
    agreement: Mutex<Agreement>,
}

impl Default for Tracer {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            generations: Mutex::default(),
            states: Mutex::default(),
            parsed: Mutex::default(),
            memory: Mutex::default(),
            flows: Mutex::default(),
            agreement: Mutex::default(),
        }
    }
}

impl Tracer {
    /// The nodes forgot all connections and flows, and may have forgotten clients with the rules about them.
    pub(super) fn forget(&self) {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = memory::Memory::default();
    }
}

/// Where a packet starts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Pod {
        node: u8,
        link: u8,
        addresses: Addresses,
    },
    Node(u8),
    /// It has routes to the nodes, and to Pods through them.
    Neighbour,
    /// It has routes to the nodes and those of [`Bed::route_outside`].
    Outside,
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) origin: Origin,
    pub(super) client: &'a Netns,
    pub(super) protocol: Protocol,
}

/// What was seen of a request.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    Outcome(Outcome),
    /// Its way through the first node, as conntrack has it. `open`: somebody accepted it.
    Flow {
        flow: flows::Flow,
        open: bool,
    },
    /// Somebody accepted it, and no conntrack knows the way.
    Open,
    /// Nobody accepted it, however that was told.
    Closed,
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outcome(outcome) => write!(f, "`{outcome}`"),
            Self::Flow { flow: flows::Flow { answerer, client }, .. } => {
                write!(f, "a connection to {answerer}, seeing {client}")
            }
            Self::Open => f.write_str("a connection"),
            Self::Closed => f.write_str("no connection"),
        }
    }
}

/// What was seen at one target, in order.
pub(super) type Asked = (SocketAddr, Vec<(Sight, Span)>);

impl Bed {
    /// On how many requests the tracer agreed so far. A disagreement fails the request.
    pub fn agreement(&self) -> Agreement {
        *self.tracer.agreement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn origin(&self, from: From<'_>) -> Result<Origin> {
        Ok(match from {
            From::Pod(name) => {
                let Pod { node, addresses, number, .. } = self.pod(name)?;
                Origin::Pod { node: node.number, link: *number, addresses: *addresses }
            }
            From::Node(number) => Origin::Node(number),
            From::Outside => Origin::Outside,
            From::External(_) | From::ControlPlane => Origin::Neighbour,
        })
    }
}
