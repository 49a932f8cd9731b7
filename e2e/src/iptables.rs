//! One variant of iptables in a namespace: documents in, rules out.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use fairlead_compiler::{Dump, parse};
use fairlead_objects::Family;

use crate::{netns::Netns, programs::Variant};

/// Tables without rules.
const EMPTY: &str = "*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n";

/// How rules are written and read.
#[derive(Clone, Debug)]
pub struct Iptables {
    /// By which programs.
    pub variant: Variant,
    /// What keeps them from those of others: the file of the machine is for the machine's own rules.
    pub lock: PathBuf,
}

impl Iptables {
    /// The rules of a family.
    pub fn save(&self, netns: &Netns, family: Family) -> Result<Dump> {
        let output = self.run(netns, family, "save", &[], "")?;
        Ok(parse(&String::from_utf8(output.stdout)?)?)
    }

    /// Changes the rules of a family, by a document that leaves alone what it does not name.
    pub fn restore(&self, netns: &Netns, family: Family, document: &str) -> Result<()> {
        self.run(netns, family, "restore", &["--noflush", "-w", "5"], document)
            .with_context(|| document.to_owned())
            .map(drop)
    }

    /// Removes all rules.
    pub fn clear(&self, netns: &Netns) -> Result<()> {
        Family::ALL
            .into_iter()
            .try_for_each(|family| self.run(netns, family, "restore", &["-w", "5"], EMPTY).map(drop))
    }

    fn run(
        &self,
        netns: &Netns,
        family: Family,
        action: &str,
        words: &[&str],
        input: &str,
    ) -> Result<Output> {
        let base = if family == Family::V4 { "iptables" } else { "ip6tables" };
        let program = self.variant.program(&format!("{base}-{action}"));
        let mut command = Command::new(&program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("XTABLES_LOCKFILE", &self.lock);
        let output = netns.run(|| -> std::io::Result<_> {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.as_bytes())?;
            }
            child.wait_with_output()
        })??;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }
}
