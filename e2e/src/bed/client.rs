//! The bed's clients: whatever they send is held against the tracer.
//!
//! Invariant: a request fails when the rules of the nodes, as `iptables-save` prints them and the compiler's tracer reads
//! them, lead elsewhere than the kernel did; also while rules change (see [`Agreement`](super::Agreement)).

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use fairlead_objects::Family;

use super::{
    Bed, From,
    tracing::{Asked, Asker, End, Origin, Sight},
};
use crate::{
    netns::Netns,
    probe::{self, Outcome, Span, Tally},
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
        let probe = probe::Client::new(self.namespace(from)?);
        Ok(Client { bed: self, origin: self.origin(from)?, probe })
    }
}

impl<'a> Client<'a> {
    /// Where it is.
    pub fn namespace(&self) -> &'a Netns {
        self.probe.namespace()
    }

    /// One request.
    pub fn ask(&self, protocol: Protocol, target: SocketAddr) -> Result<Outcome> {
        let mut outcomes = self.ask_each(protocol, &[target])?;
        outcomes.pop().context("no outcome")
    }

    /// Many requests, one after the other, each from a source port of its own. Ends early when nothing comes back.
    pub fn ask_many(&self, protocol: Protocol, target: SocketAddr, count: usize) -> Result<Tally> {
        let job = || self.probe.ask_many(protocol, target, count);
        let (tally, history) = self.bed.observe(Family::of(target.ip()), job)?;
        let tally = tally?;
        self.bed.check_trace(&self.asker(protocol), &history, &[(target, sights(&tally).collect())])?;
        Ok(tally)
    }

    /// One request to each of many targets of one family.
    pub fn ask_each(&self, protocol: Protocol, targets: &[SocketAddr]) -> Result<Vec<Outcome>> {
        let Some(first) = targets.first() else { return Ok(Vec::new()) };
        let job = || self.probe.ask_each(protocol, targets);
        let (tally, history) = self.bed.observe(Family::of(first.ip()), job)?;
        let tally = tally?;
        let asked: Vec<Asked> =
            targets.iter().zip(sights(&tally)).map(|(target, sight)| (*target, vec![sight])).collect();
        self.bed.check_trace(&self.asker(protocol), &history, &asked)?;
        Ok(tally.outcomes)
    }

    /// One datagram from a given source port. All from one port to one target are one flow, which stays where it was led;
    /// unless the rules at the time of a datagram do not lead there any more, then it may be led anew. (A test that takes
    /// an endpoint away and gives it back has to ask in between.)
    pub fn ask_from(&self, port: u16, target: SocketAddr) -> Result<Outcome> {
        let job = || Span::of(|| self.probe.ask_from(port, target));
        let ((outcome, span), history) = self.bed.observe(Family::of(target.ip()), job)?;
        let outcome = outcome?;
        self.bed.check_flow(&self.asker(Protocol::Udp), &history, (port, target), (&outcome, span))?;
        Ok(outcome)
    }

    /// Opens a connection that stays open; or says what came instead.
    pub fn connect(&self, target: SocketAddr) -> Result<std::result::Result<Connection<'a>, Outcome>> {
        let asker = self.asker(Protocol::Tcp);
        let job = || Span::of(|| self.probe.connect(target));
        let ((opened, span), history) = self.bed.observe(Family::of(target.ip()), job)?;
        let opened = opened?;
        let sight = match &opened {
            Err(outcome) => Sight::Outcome(outcome.clone()),
            Ok(connection) => match self.bed.flows(&asker, target)?.get(&connection.local()?) {
                Some(flow) => Sight::Flow { flow: *flow, open: true },
                None => Sight::Open,
            },
        };
        let ends = self.bed.check_trace(&asker, &history, &[(target, vec![(sight, span)])])?;
        Ok(opened.map(|inner| Connection { bed: self.bed, inner, ends }))
    }

    /// Does something that opens connections from here to a target by means of its own, and compares their ways with
    /// the rules.
    pub fn connecting<T: Send>(
        &self,
        target: SocketAddr,
        job: impl FnOnce() -> Result<T> + Send,
    ) -> Result<Result<T>> {
        let asker = self.asker(Protocol::Tcp);
        let before = self.bed.flows(&asker, target)?;
        let ((result, span), history) = self.bed.observe(Family::of(target.ip()), || Span::of(job))?;
        let after = self.bed.flows(&asker, target)?;
        let new = after.iter().filter(|(source, _)| !before.contains_key(source));
        let mut seen: Vec<(Sight, Span)> =
            new.map(|(_, flow)| (Sight::Flow { flow: *flow, open: result.is_ok() }, span)).collect();
        if seen.is_empty() {
            ensure!(result.is_err(), "no connection to {target} was made");
            seen.push((Sight::Closed, span));
        }
        self.bed.check_trace(&asker, &history, &[(target, seen)])?;
        Ok(result)
    }

    fn asker(&self, protocol: Protocol) -> Asker<'a> {
        Asker { origin: self.origin, client: self.probe.namespace(), protocol }
    }
}

fn sights(tally: &Tally) -> impl Iterator<Item = (Sight, Span)> {
    tally.outcomes.iter().cloned().map(Sight::Outcome).zip(tally.spans.iter().copied())
}

/// An open connection, and who is at its other end by the rules that it was opened under.
#[derive(Debug)]
pub struct Connection<'a> {
    bed: &'a Bed,
    inner: probe::Connection,
    ends: Vec<End>,
}

impl Connection<'_> {
    /// Asks the server at the other end who it is. It has to be the one that it was at first.
    pub fn ask(&mut self) -> Result<Outcome> {
        let outcome = self.inner.ask();
        self.bed.check_open(&mut self.ends, &outcome)?;
        Ok(outcome)
    }
}
