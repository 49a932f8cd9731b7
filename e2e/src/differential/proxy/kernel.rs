//! A node whose kernel has one side's rules: they are read from it, and packets are sent through it.
//!
//! Invariant: what the kernel makes of a packet is something that the tracer finds in the rules that were read, or it is
//! an error.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use fairlead_compiler::{Dump, Fate, Host, Outcome, Tracer, trace};
use fairlead_objects::Family;

use super::{
    agreement::{Agreement, agreement},
    packets::Question,
};
use crate::{
    iptables::Iptables,
    programs::Variant,
    tun::{self, Harness},
};

/// Both families, in the order in which everything about them is kept.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// How often a packet is sent again whose fate says too little. (Once in 64,000 times a source is rewritten to what it
/// was.)
const ATTEMPTS: usize = 4;

/// What belongs to each family.
pub(super) type Both<T> = [T; 2];

/// The element of a family.
pub(super) fn of<T>(both: &Both<T>, family: Family) -> &T {
    let [v4, v6] = both;
    if family == Family::V4 { v4 } else { v6 }
}

/// What one side makes of a question.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reply {
    /// By its rules.
    pub(super) traced: Fate,
    /// What its kernel did.
    pub(super) seen: tun::Fate,
    /// Why these two do not agree, if they do not.
    pub(super) objection: Option<String>,
}

impl Reply {
    /// Whether a Service does something with it.
    pub(super) fn meets_service(&self) -> bool {
        self.traced.outcomes.keys().any(|outcome| *outcome != Outcome::NoMatch)
    }
}

/// A node.
pub(super) struct Kernel {
    /// For messages.
    side: &'static str,
    harness: Harness,
    iptables: Iptables,
    dumps: Both<Dump>,
}

impl Kernel {
    /// A node that this harness holds. `lock` keeps its iptables from those of others.
    pub(super) fn new(side: &'static str, harness: Harness, variant: Variant, lock: PathBuf) -> Self {
        Self { side, harness, iptables: Iptables { variant, lock }, dumps: Both::default() }
    }

    /// The way in and out.
    pub(super) fn harness(&mut self) -> &mut Harness {
        &mut self.harness
    }

    /// The rules that were read last.
    pub(super) fn installed(&self, family: Family) -> &Dump {
        of(&self.dumps, family)
    }

    /// Reads the rules of a family.
    pub(super) fn read(&mut self, family: Family) -> Result<&Dump> {
        let dump = self.iptables.save(self.harness.netns(), family)?;
        let [v4, v6] = &mut self.dumps;
        let place = if family == Family::V4 { v4 } else { v6 };
        *place = dump;
        Ok(place)
    }

    /// Changes the rules of a family, by a document.
    pub(super) fn restore(&self, family: Family, document: &str) -> Result<()> {
        self.iptables.restore(self.harness.netns(), family, document)
    }

    /// Removes all rules, and what goes with them, that an earlier run left.
    pub(super) fn clear(&self) -> Result<()> {
        self.iptables.clear(self.harness.netns())?;
        self.harness.netns().sysctl(&[("ipv4/conf/all/route_localnet", "0")])
    }

    /// Takes these rules for what was read.
    pub(super) fn pretend(&mut self, change: fn(&mut Dump)) {
        self.dumps.iter_mut().for_each(change);
    }

    /// Sends every packet, and holds what became of it against the rules that were read. Fails only if it cannot.
    pub(super) fn ask(&mut self, questions: &[Question], hosts: &Both<Host>) -> Result<Vec<Reply>> {
        let Self { side, harness, dumps, .. } = self;
        harness.forget_connections()?;
        let probes: Vec<_> = questions.iter().flat_map(Question::probes).collect();
        let mut fates = harness.send_all(&probes)?.into_iter();
        let tracers = [Tracer::new(&dumps[0]), Tracer::new(&dumps[1])];
        let mut replies = Vec::with_capacity(questions.len());
        for question in questions {
            let mut own = fates.by_ref().take(question.repeats());
            let seen = own.next().context("no fate")?;
            let again: Vec<tun::Fate> = own.collect();
            let family = question.family();
            let traced = question.trace(of(&tracers, family), of(hosts, family));
            let mut reply = Reply { traced, seen, objection: None };
            let settled = stick(question, &reply.seen, &again)
                .and_then(|()| settle(harness, question, of(hosts, family), &mut reply));
            if let Err(objection) = settled {
                let way = way(of(dumps, family), question, of(hosts, family));
                reply.objection = Some(format!("{side}: {objection:#}\n{way}"));
            }
            replies.push(reply);
        }
        Ok(replies)
    }

    /// The rules that a packet met, for whoever reads about a difference.
    pub(super) fn way(&self, question: &Question, host: &Host) -> String {
        way(self.installed(question.family()), question, host)
    }
}

/// Whether kernel and tracer agree; sends the packet again while that is unclear.
fn settle(harness: &mut Harness, question: &Question, host: &Host, reply: &mut Reply) -> Result<()> {
    for _ in 0..ATTEMPTS {
        match agreement(question, host, &reply.traced, &reply.seen) {
            Agreement::Yes => return Ok(()),
            Agreement::No => break,
            Agreement::Unclear => reply.seen = harness.send(&question.probe())?,
        }
    }
    bail!(
        "the kernel and the tracer disagree on {question}\nkernel: {}\ntracer: {}",
        reply.seen,
        reply.traced
    )
}

/// Where clients are remembered, the next connection of one has to go where the one before went.
fn stick(question: &Question, seen: &tun::Fate, again: &[tun::Fate]) -> Result<()> {
    for next in again {
        let same = next.destination() == seen.destination();
        ensure!(same, "the client of {question} was led elsewhere the second time: {seen}; {next}");
    }
    Ok(())
}

fn way(dump: &Dump, question: &Question, host: &Host) -> String {
    let traced = trace(dump, &question.packet, host);
    let line = |step: &fairlead_compiler::Step| format!("  {} {} {}", step.table, step.chain, step.rule);
    traced.path.iter().map(line).collect::<Vec<_>>().join("\n")
}
