//! The conntrack reconciler: deletes the UDP flows that contradict what is programmed, and nothing else.
//!
//! Rules decide about the first packet of a flow; conntrack sends all others the same way for as long as they keep
//! coming. A TCP client notices that its peer is gone and connects anew; a UDP client may go on for ever. So after each
//! change of a UDP Service, flows that the rules of now would send elsewhere are deleted, and their next packet meets the
//! rules. That goes on beside the next change: whoever waits for new rules does not wait for this.
//!
//! Unlike kube-proxy's reconciler (1.32 to 1.36), this also acts when only a Service changed, when the last endpoint went
//! (kubernetes #139628) and when the Service went (kubernetes #141371), it keeps what is to be done until it succeeded
//! (kubernetes #112604), and a node port means flows to this node only.
//!
//! Invariants: a flow to an endpoint that may still serve it is never deleted, not at a restart either (kubernetes
//! #122740); TCP and SCTP are never touched; deletion names one entry, by its identity, never a pattern.

use std::{io, net::SocketAddr};

use fairlead_objects::Family;

pub mod demand;
pub mod kernel;

pub use demand::{Demand, Frontend, Verdicts};
pub use kernel::Kernel;

/// How often a list is asked for that changed while it was read; then what was read must do.
const ATTEMPTS: usize = 5;

/// The ends of a flow that rules decide about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Where the client sent it.
    pub destination: SocketAddr,
    /// Who answers: the endpoint, or the destination itself if it was not translated.
    pub answerer: SocketAddr,
}

impl Ends {
    /// Whether the destination was translated.
    pub fn is_translated(&self) -> bool {
        self.destination != self.answerer
    }
}

/// One flow, as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What rules decided.
    pub ends: Ends,
    /// By what the kernel finds it: attributes as they were listed.
    pub identity: Vec<u8>,
}

/// The flows that a list showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Those that were asked for.
    pub flows: Vec<Flow>,
    /// Whether some may be missing.
    pub partial: bool,
}

/// The kernel's table of flows. Calls block for as long as the kernel takes.
pub trait FlowTable: Send + Sync + 'static {
    /// The UDP flows of `family` that `wanted` accepts.
    fn list(&self, family: Family, wanted: &dyn Fn(&Ends) -> bool) -> io::Result<Listing>;

    /// Deletes flows, and says how many of them were still there.
    fn delete(&self, family: Family, flows: &[Flow]) -> io::Result<u64>;
}

/// Deletes the flows of `family` that contradict the rules. Returns how many.
pub fn reconcile(
    table: &impl FlowTable,
    family: Family,
    contradicts: &dyn Fn(&Ends) -> bool,
) -> io::Result<u64> {
    let mut deleted = 0;
    for attempt in 1..=ATTEMPTS {
        let Listing { flows, partial } = table.list(family, contradicts)?;
        deleted += table.delete(family, &flows)?;
        if !partial {
            break;
        }
        if attempt == ATTEMPTS {
            return Err(io::Error::other("the list of flows changed whenever it was read"));
        }
    }
    Ok(deleted)
}

#[cfg(test)]
pub(crate) mod model;
