//! A node whose kernel has one side's rules: they are read from it, and packets are sent through it.
//!
//! Invariant: what the kernel makes of a packet is something that the tracer finds in the rules that were read, or it is
//! an error.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use fairlead_compiler::{Dump, Fate, Host, Tracer, parse, trace};
use fairlead_objects::Family;

use super::{
    agreement::{Agreement, agreement},
    packets::Question,
};
use crate::{
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
}

/// A node.
pub(super) struct Kernel {
    /// For messages.
    side: &'static str,
    harness: Harness,
    variant: Variant,
    lock: PathBuf,
    dumps: Both<Dump>,
}

impl Kernel {
    /// A node that this harness holds. `lock` keeps its iptables from those of others.
    pub(super) fn new(side: &'static str, harness: Harness, variant: Variant, lock: PathBuf) -> Self {
        Self { side, harness, variant, lock, dumps: Both::default() }
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
        let output = self.run(family, "save", &[], "")?;
        let dump = parse(&String::from_utf8(output.stdout)?)?;
        let [v4, v6] = &mut self.dumps;
        let place = if family == Family::V4 { v4 } else { v6 };
        *place = dump;
        Ok(place)
    }

    /// Changes the rules of a family, by a document.
    pub(super) fn restore(&self, family: Family, document: &str) -> Result<()> {
        self.run(family, "restore", &["--noflush", "-w", "5"], document)
            .with_context(|| document.to_owned())
            .map(drop)
    }

    /// Takes these rules for what was read.
    pub(super) fn pretend(&mut self, change: fn(&mut Dump)) {
        self.dumps.iter_mut().for_each(change);
    }

    fn run(&self, family: Family, action: &str, words: &[&str], input: &str) -> Result<Output> {
        let base = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let program = self.variant.program(&format!("{base}-{action}"));
        let mut command = Command::new(&program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("XTABLES_LOCKFILE", &self.lock);
        let output = self.harness.netns().run(|| -> std::io::Result<_> {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        })??;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    /// Sends every packet, and holds what became of it against the rules that were read.
    pub(super) fn ask(&mut self, questions: &[Question], hosts: &Both<Host>) -> Result<Vec<Reply>> {
        self.harness.forget_connections()?;
        let probes: Vec<_> = questions.iter().map(Question::probe).collect();
        let seen = self.harness.send_all(&probes)?;
        let dumps = self.dumps.clone();
        let tracers = [Tracer::new(&dumps[0]), Tracer::new(&dumps[1])];
        let mut replies = Vec::with_capacity(questions.len());
        for (question, seen) in questions.iter().zip(seen) {
            let (tracer, host) = (of(&tracers, question.family()), of(hosts, question.family()));
            let traced = question.trace(tracer, host);
            let seen = self.settle(question, host, &traced, seen).with_context(|| self.about(question, host))?;
            replies.push(Reply { traced, seen });
        }
        Ok(replies)
    }

    /// What the kernel did, as far as it agrees; sends the packet again while that is unclear.
    fn settle(
        &mut self,
        question: &Question,
        host: &Host,
        traced: &Fate,
        mut seen: tun::Fate,
    ) -> Result<tun::Fate> {
        for _ in 0..ATTEMPTS {
            match agreement(question, host, traced, &seen) {
                Agreement::Yes => return self.stick(question, seen),
                Agreement::No => bail!("the kernel: {seen}\ntraced: {traced}"),
                Agreement::Unclear => seen = self.harness.send(&question.probe())?,
            }
        }
        bail!("the kernel, again and again: {seen}\ntraced: {traced}")
    }

    /// Where clients are remembered, the next connection of this one has to go where this one went.
    fn stick(&mut self, question: &Question, seen: tun::Fate) -> Result<tun::Fate> {
        if question.sticks && seen.destination() != Some(question.destination()) {
            let next = self.harness.send(&question.probe())?;
            let same = next.destination() == seen.destination();
            ensure!(same, "the client was led elsewhere the second time: {seen}; {next}");
        }
        Ok(seen)
    }

    fn about(&self, question: &Question, host: &Host) -> String {
        let (side, dump) = (self.side, self.installed(question.family()));
        let steps = if question.is_first() { self.way(question, host) } else { String::new() };
        let rules: usize = dump.tables.values().flat_map(|chains| chains.values()).map(|c| c.rules.len()).sum();
        format!("{side}'s kernel and the tracer disagree on {question} ({rules} rules)\n{steps}")
    }

    /// The rules that a packet met, for whoever reads about a difference.
    pub(super) fn way(&self, question: &Question, host: &Host) -> String {
        let traced = trace(self.installed(question.family()), &question.packet, host);
        let line = |step: &fairlead_compiler::Step| format!("  {} {} {}", step.table, step.chain, step.rule);
        traced.path.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
