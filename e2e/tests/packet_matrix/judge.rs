//! Holds what the kernel and the tracer make of every question against what the oracle expects.
//!
//! A question with several possible endings is asked until each of them was seen; how often each comes is another
//! matter ([`shares`]).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use fairlead_compiler::{Fate as Traced, Outcome, Share, Tracer, trace};
use fairlead_e2e::tun::{Complaint, End, Entry, Fate, Kind};
use fairlead_objects::{Family, Protocol};

use crate::{
    node::Node,
    oracle::{Ending, Expectation, Site},
    questions::{Question, node_addresses},
    shapes::TARGET_PORT,
};

/// Packets of a question with several endings that are sent at once.
const AT_ONCE: usize = 8;
/// How often more are sent while an ending is missing: one of four is missing then once in 10²⁰ times.
const ROUNDS: usize = 20;
/// A source that is rewritten is rewritten to what it was once in 64,000 times.
const ATTEMPTS: usize = 4;
/// Connections that may be there when a reply comes; far fewer than the harness forgets them at.
const CONNECTIONS: usize = 4_000;

/// What was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) questions: usize,
    pub(crate) packets: usize,
    pub(crate) replies: usize,
    /// Questions whose packets a Service delivers, refuses, or drops.
    pub(crate) handled: usize,
}

/// A kernel under questions.
pub(crate) struct Judge<'a> {
    node: &'a mut Node,
    pub(crate) tally: Tally,
    connections: usize,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(node: &'a mut Node) -> Self {
        Self { node, tally: Tally::default(), connections: 0 }
    }

    /// Asks everything about one Service, in one family.
    pub(crate) fn ask(&mut self, questions: &[Question]) -> Result<()> {
        let expected: Vec<Expectation> =
            questions.iter().map(|question| self.node.site.expect(question)).collect();
        self.trace(questions, &expected)?;
        let counts: Vec<usize> = expected.iter().map(|one| if one.len() > 1 { AT_ONCE } else { 1 }).collect();
        let all = counts.iter().sum();
        self.make_room(all)?;
        let repeated = questions.iter().zip(&counts);
        let probes: Vec<_> = repeated
            .flat_map(|(question, count)| std::iter::repeat_with(|| question.probe()).take(*count))
            .collect();
        let mut fates = self.node.harness.send_all(&probes)?.into_iter();
        for ((question, expected), count) in questions.iter().zip(&expected).zip(counts) {
            let own: Vec<Fate> = fates.by_ref().take(count).collect();
            self.judge(question, expected, own).with_context(|| self.tell(question, expected))?;
        }
        self.tally.questions += questions.len();
        self.tally.packets += all;
        Ok(())
    }

    fn make_room(&mut self, packets: usize) -> Result<()> {
        self.connections += packets;
        if self.connections > CONNECTIONS {
            self.node.harness.forget_connections()?;
            self.connections = packets;
        }
        Ok(())
    }

    /// The whole combination, for whoever reads about a failure.
    fn tell(&self, question: &Question, expected: &Expectation) -> String {
        let (site, family) = (self.node.site, question.family);
        let traced = trace(self.node.dump(family), &question.packet(), &self.node.host(family));
        let path: Vec<String> = traced
            .path
            .iter()
            .map(|step| format!("    {} {} {}", step.table, step.chain, step.rule))
            .collect();
        format!(
            "{question}\n  at {site:?}\n  expected: {expected:?}\n  tracer: {}\n{}\n",
            Traced::from(&traced),
            path.join("\n")
        )
    }

    /// The tracer has to find in the kernel's rules what the oracle expects, to the exact share.
    pub(crate) fn trace(&mut self, questions: &[Question], expected: &[Expectation]) -> Result<()> {
        let node = &*self.node;
        let tracers = Family::ALL.map(|family| (Tracer::new(node.dump(family)), node.host(family)));
        let [v4, v6] = &tracers;
        let discord = |(question, expected): (&Question, &Expectation)| {
            let (tracer, host) = if question.family == Family::V4 { v4 } else { v6 };
            let found = if question.is_invalid() {
                tracer.fate_of_invalid(&question.packet(), host)
            } else {
                tracer.fate(&question.packet(), host)
            };
            let right = as_traced(question, expected);
            Some((*question, expected.clone(), found.discord(&right)?))
        };
        let Some((question, expected, discord)) = questions.iter().zip(expected).find_map(discord) else {
            return Ok(());
        };
        let fate = self.node.harness.send(&question.probe())?;
        bail!("{}kernel: {fate}\nthe tracer differs in {}", self.tell(&question, &expected), discord.as_str())
    }

    /// The kernel's fates have to be expected, all of them, and nothing else.
    fn judge(&mut self, question: &Question, expected: &Expectation, mut fates: Vec<Fate>) -> Result<()> {
        let mut seen = BTreeSet::new();
        let handled = !expected.contains_key(&Ending::Untouched);
        self.tally.handled += usize::from(handled);
        for round in 0..=ROUNDS {
            for fate in fates {
                let (ending, fate) = self.settle(question, expected, fate)?;
                if seen.insert(ending) && matches!(ending, Ending::Endpoint { .. }) {
                    self.reply(question, &fate)?;
                }
            }
            if expected.keys().eq(&seen) {
                return Ok(());
            }
            ensure!(round < ROUNDS, "only {seen:?} was seen");
            self.tally.packets += AT_ONCE;
            self.connections += AT_ONCE;
            let probes: Vec<_> = std::iter::repeat_with(|| question.probe()).take(AT_ONCE).collect();
            fates = self.node.harness.send_all(&probes)?;
        }
        Ok(())
    }

    /// What a fate means, of the first packet that says enough.
    fn settle(&mut self, question: &Question, expected: &Expectation, fate: Fate) -> Result<(Ending, Fate)> {
        let mut fate = fate;
        for _ in 0..ATTEMPTS {
            let ending =
                ending(&self.node.site, question, &fate).with_context(|| format!("kernel: {fate}"))?;
            if expected.contains_key(&ending) {
                return Ok((ending, fate));
            }
            if !(expected.contains_key(&otherwise(ending)) && is_unclear(question, ending, &fate)) {
                bail!("kernel: {fate}, that is {ending:?}");
            }
            fate = self.node.harness.send(&question.probe())?;
        }
        bail!("kernel: {fate}, again and again")
    }

    /// The client sees the answer come from whom it asked.
    fn reply(&mut self, question: &Question, fate: &Fate) -> Result<()> {
        if let End::Delivered { .. } = fate.end {
            self.tally.replies += 1;
            return refused_by_process(question, fate);
        }
        let reply = self.node.harness.reply(&question.probe(), fate)?;
        self.tally.replies += 1;
        let by = match reply.end {
            End::Left { by, .. } => Some(by),
            End::Delivered { .. } => Some(Entry::Node),
            End::Nowhere | End::Unroutable => None,
        };
        let right = reply.source() == Some(question.destination())
            && reply.destination() == Some(fate.sent_from)
            && by == Some(question.client.entry);
        ensure!(right, "kernel: {fate}; the reply: {reply}");
        Ok(())
    }
}

/// A process of the node that is an endpoint: nobody listens, so the kernel refuses in its place. (Of SCTP it knows
/// nothing, and says nothing.)
fn refused_by_process(question: &Question, fate: &Fate) -> Result<()> {
    let Some(answer) = fate.answer else {
        ensure!(question.protocol == Protocol::Sctp, "kernel: {fate}; the client was not answered");
        return Ok(());
    };
    let right = answer.from == question.destination().ip() && answer.by == question.client.entry;
    ensure!(right, "kernel: {fate}; the client was not answered by whom it asked");
    Ok(())
}

/// As the tracer would say it.
fn as_traced(question: &Question, expected: &Expectation) -> Traced {
    let all = expected.values().sum();
    let mut traced = Traced::default();
    let add = |sum: &mut Share, share: Share| *sum = sum.or(share);
    for (ending, weight) in expected {
        let share = Share::new(*weight, all);
        let outcome = match *ending {
            Ending::Endpoint { address, masqueraded } => {
                traced.masquerade |= masqueraded;
                add(traced.targets.entry((address, masqueraded)).or_insert(Share::NONE), share);
                if let Some(seconds) = question.shape.affinity {
                    add(traced.affinity.entry(seconds).or_insert(Share::NONE), share);
                }
                Outcome::Accepted
            }
            Ending::Refused => Outcome::Rejected,
            Ending::Silence => Outcome::Dropped,
            Ending::Untouched => Outcome::NoMatch,
        };
        add(traced.outcomes.entry(outcome).or_insert(Share::NONE), share);
    }
    traced
}

/// Whether chance alone may have made a source look kept, or rewritten: masquerading as the address that it has, a source
/// may get the port that it had, or avoid one that a connection has already.
pub(crate) fn is_unclear(question: &Question, ending: Ending, fate: &Fate) -> bool {
    match ending {
        Ending::Endpoint { masqueraded: true, .. } => {
            fate.source().is_some_and(|source| source.ip() == fate.sent_from.ip())
        }
        _ => question.client.entry == Entry::Node,
    }
}

/// The same with the other source.
pub(crate) fn otherwise(ending: Ending) -> Ending {
    match ending {
        Ending::Endpoint { address, masqueraded } => Ending::Endpoint { address, masqueraded: !masqueraded },
        other => other,
    }
}

/// What a fate means, if it may mean anything.
pub(crate) fn ending(site: &Site, question: &Question, fate: &Fate) -> Result<Ending> {
    let destination = question.destination();
    match (fate.end, fate.answer) {
        (End::Left { source, .. } | End::Delivered { source, .. }, _)
            if fate.destination() == Some(destination) =>
        {
            ensure!(source == fate.sent_from, "nobody's packet has another source");
            Ok(Ending::Untouched)
        }
        (End::Left { by, source, destination: address }, _) => {
            ensure!(address.port() == TARGET_PORT, "no endpoint listens there");
            let here = address.ip();
            let way = if is_here(here) { Entry::Pods } else { Entry::World };
            ensure!(by == way, "it left by the wrong link");
            let [node, gateway] = node_addresses(question.family);
            let own = if way == Entry::Pods { gateway } else { node };
            let kept = source.ip() == fate.sent_from.ip();
            ensure!(
                source.ip() == own || kept,
                "it has a source that is neither the client's nor the node's"
            );
            let masqueraded = source.ip() == own && fate.is_masqueraded();
            Ok(Ending::Endpoint { address, masqueraded })
        }
        (End::Nowhere, Some(answer)) => {
            ensure!(answer.complaint == Complaint::PortUnreachable, "it was refused otherwise");
            ensure!(answer.by == question.client.entry, "its sender was not told");
            Ok(Ending::Refused)
        }
        (End::Nowhere, None) => Ok(Ending::Silence),
        (End::Delivered { source, destination: address }, _) => {
            ensure!(address.port() == TARGET_PORT, "it was led to the node itself");
            let kept = source.ip() == fate.sent_from.ip();
            ensure!(
                site.is_own(source.ip()) || kept,
                "it has a source that is neither the client's nor the node's"
            );
            Ok(Ending::Endpoint { address, masqueraded: site.is_own(source.ip()) && fate.is_masqueraded() })
        }
        (End::Unroutable, _) => bail!("it had no way to go"),
    }
}

fn is_here(address: std::net::IpAddr) -> bool {
    [5, 6].iter().any(|number| crate::shapes::pod(Family::of(address), 1, *number) == address)
}

/// How often each ending comes of questions that differ in nothing that matters; fails if one comes too often or too
/// seldom for chance.
pub(crate) fn shares(node: &mut Node, questions: &[Question]) -> Result<()> {
    let Some(question) = questions.first() else { return Ok(()) };
    let expected = node.site.expect(question);
    if expected.len() < 2 {
        return Ok(());
    }
    let (packets, all): (u32, u64) = (questions.len().try_into()?, expected.values().sum());
    let mut counts: BTreeMap<Ending, u32> = BTreeMap::new();
    let probes: Vec<_> = questions.iter().map(Question::probe).collect();
    for (question, fate) in questions.iter().zip(node.harness.send_all(&probes)?) {
        let ending =
            ending(&node.site, question, &fate).with_context(|| format!("{question}\nkernel: {fate}"))?;
        *counts.entry(ending).or_default() += 1;
    }
    for (ending, weight) in &expected {
        let share = f64::from(u32::try_from(*weight)?) / f64::from(u32::try_from(all)?);
        let mean = f64::from(packets) * share;
        // Six standard deviations: once in 500 million times by chance.
        let bound = 6.0 * (mean * (1.0 - share)).sqrt() + 1.0;
        let count = counts.get(ending).copied().unwrap_or(0);
        ensure!(
            (f64::from(count) - mean).abs() <= bound,
            "{question}\nexpected: {expected:?}\nkernel, of {packets}: {counts:?}"
        );
    }
    Ok(())
}

/// Whether a question is about a packet that belongs to no connection.
pub(crate) fn astray(question: &Question, kind: Kind) -> Question {
    Question { kind, ..*question }
}
