//! Whom a Service remembers, worked out from the specification alone: each port of a Service has, for each of its
//! endpoints, a list of the clients that were led there, by whichever frontend; of the endpoints that may be chosen, the
//! first by its text whose list has the client gets it, until nothing came from it for as long as the timeout says.
//!
//! Invariant: what the time between two packets leaves open is left open, so a machine that stalls makes nothing wrong.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use fairlead_objects::Protocol;

use crate::{
    oracle::{Ending, Expectation},
    questions::Question,
};

/// More than the kernel's clock is coarse.
const BLUR: Duration = Duration::from_millis(100);

/// Between which moments packets were sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// The clients of one endpoint of a Service port.
type List = BTreeMap<IpAddr, Span>;

/// Everybody who is remembered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    lists: BTreeMap<(u8, Protocol, SocketAddr), List>,
    /// Questions that could have several endings, and had to have a certain one.
    pub(crate) recalled: usize,
}

impl Memory {
    /// What is left of an expectation for a client that may be remembered.
    pub(crate) fn narrow(&mut self, question: &Question, expected: Expectation, asked: Span) -> Expectation {
        let Some(seconds) = question.shape.affinity else { return expected };
        let timeout = Duration::from_secs(seconds.into());
        let mut endings: Vec<(Ending, u64)> = expected.iter().map(|(end, weight)| (*end, *weight)).collect();
        endings.sort_by_key(|(ending, _)| text(*ending));
        let mut possible = Expectation::new();
        for (ending, weight) in endings {
            let Some(then) = self.last(question, ending) else { continue };
            let (least, most) = (asked.began.saturating_duration_since(then.ended), asked.ended - then.began);
            if least > timeout + BLUR {
                continue;
            }
            possible.insert(ending, weight);
            if most < timeout {
                self.recalled += usize::from(expected.len() > 1 && possible.len() == 1);
                return possible;
            }
        }
        expected
    }

    /// A client was led somewhere.
    pub(crate) fn note(&mut self, question: &Question, ending: Ending, asked: Span) {
        if let Ending::Endpoint { address, .. } = ending {
            let list = (question.shape.number, question.protocol, address);
            self.lists.entry(list).or_default().insert(question.client.source, asked);
        }
    }

    /// An endpoint is gone, and so is what it remembered.
    pub(crate) fn forget(&mut self, endpoint: IpAddr) {
        self.lists.retain(|(_, _, address), _| address.ip() != endpoint);
    }

    fn last(&self, question: &Question, ending: Ending) -> Option<Span> {
        let Ending::Endpoint { address, .. } = ending else { return None };
        let list = self.lists.get(&(question.shape.number, question.protocol, address))?;
        list.get(&question.client.source).copied()
    }
}

/// By which endpoints are ordered.
fn text(ending: Ending) -> String {
    match ending {
        Ending::Endpoint { address, .. } => address.to_string(),
        _ => String::new(),
    }
}
