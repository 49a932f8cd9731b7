//! The bed's clients: whatever they send is held against the tracer.
//!
//! Invariant: a request through [`Client::ask`], [`Client::ask_many`] or [`Client::ask_each`] fails when the rules of
//! the nodes, as `iptables-save` prints them and the compiler's tracer reads them, lead elsewhere than the kernel did.
//! What cannot be compared is counted, with its reason, in [`Agreement`](super::Agreement).

use std::net::SocketAddr;

use anyhow::Result;

use super::{Bed, From, tracing::Origin};
use crate::{
    netns::Netns,
    probe::{self, Connection, Outcome, Tally},
    servers::Protocol,
};

/// A client somewhere on the bed.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    bed: &'a Bed,
    origin: Origin,
    probe: probe::Client<'a>,
}

impl Bed {
    /// A client somewhere.
    pub fn client(&self, from: From<'_>) -> Result<Client<'_>> {
        let probe = probe::Client::new(self.netns(from)?);
        Ok(Client { bed: self, origin: self.origin(from)?, probe })
    }
}

impl<'a> Client<'a> {
    /// Where it is.
    pub fn namespace(&self) -> &'a Netns {
        self.probe.namespace()
    }

    /// The same client for waiting: while rules change, nothing can be held against them.
    pub fn unchecked(&self) -> probe::Client<'a> {
        self.probe
    }

    /// One request.
    pub fn ask(&self, protocol: Protocol, target: SocketAddr) -> Result<Outcome> {
        let before = self.bed.saved(target)?;
        let outcome = self.probe.ask(protocol, target)?;
        let asked = [(target, vec![outcome.clone()])];
        self.bed.check_trace(self.origin, self.namespace(), protocol, &before, &asked)?;
        Ok(outcome)
    }

    /// Many requests, one after the other, each from a source port of its own. Ends early when nothing comes back.
    pub fn ask_many(&self, protocol: Protocol, target: SocketAddr, count: usize) -> Result<Tally> {
        let before = self.bed.saved(target)?;
        let tally = self.probe.ask_many(protocol, target, count)?;
        let asked = [(target, tally.outcomes.clone())];
        self.bed.check_trace(self.origin, self.namespace(), protocol, &before, &asked)?;
        Ok(tally)
    }

    /// One request to each of many targets of one family.
    pub fn ask_each(&self, protocol: Protocol, targets: &[SocketAddr]) -> Result<Vec<Outcome>> {
        let Some(first) = targets.first() else { return Ok(Vec::new()) };
        let before = self.bed.saved(*first)?;
        let asked: Vec<(SocketAddr, Vec<Outcome>)> = targets
            .iter()
            .map(|target| Ok((*target, vec![self.probe.ask(protocol, *target)?])))
            .collect::<Result<_>>()?;
        self.bed.check_trace(self.origin, self.namespace(), protocol, &before, &asked)?;
        Ok(asked.into_iter().flat_map(|(_, outcomes)| outcomes).collect())
    }

    /// One datagram from a given source port: two of them belong to one conntrack entry. The second one meets no rule,
    /// so it is not traced.
    pub fn ask_from(&self, port: u16, target: SocketAddr) -> Result<Outcome> {
        self.probe.ask_from(port, target)
    }

    /// Opens a connection that stays open. What happens on it later meets no rule, so it is not traced.
    pub fn connect(&self, target: SocketAddr) -> Result<Connection> {
        self.probe.connect(target)
    }
}
