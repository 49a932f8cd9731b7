//! A client, a router that holds the rules, and a server, each in a namespace of its own.
//!
//! ```text
//!   client 192.0.2.2 ---- 192.0.2.1 router 10.244.1.1 ---- server 10.244.1.2, .3, .4
//! ```

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fairlead_compiler::{Delta, render};
use fairlead_e2e::{netns::Netns, record::Record};

/// A variant of the iptables programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// nf_tables behind iptables' face.
    Nft,
    /// The old tables, copied as a whole at each change.
    Legacy,
}

impl Variant {
    pub(crate) const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// Services per `iptables-restore` when everything is loaded.
const BATCH: usize = 500;

/// The three hosts.
pub(crate) struct Router {
    pub(crate) client: Netns,
    pub(crate) middle: Netns,
    pub(crate) server: Netns,
    variant: Variant,
    record: Record,
}

impl Router {
    pub(crate) fn build(variant: Variant) -> Result<Self> {
        let record = Record::open()?;
        let client = Netns::create(&record, "client")?;
        let router = Netns::create(&record, "router")?;
        let server = Netns::create(&record, "server")?;
        router.ip(&format!(
            "link add to-client type veth peer name eth0 netns {}\n\
             link add to-server type veth peer name eth0 netns {}\n\
             addr add 192.0.2.1/24 dev to-client\naddr add 10.244.1.1/24 dev to-server\n\
             link set to-client up\nlink set to-server up\n",
            client.path().display(),
            server.path().display()
        ))?;
        router.sysctl(&[("ipv4/ip_forward", "1")])?;
        client.ip("addr add 192.0.2.2/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.1\n")?;
        server.ip(
            "addr add 10.244.1.2/24 dev eth0\naddr add 10.244.1.3/24 dev eth0\naddr add 10.244.1.4/24 dev eth0\n\
             link set eth0 up\nroute add default via 10.244.1.1\n",
        )?;
        Ok(Self { client, middle: router, server, variant, record })
    }

    /// Loads everything of a delta, in batches, as the programmer does.
    pub(crate) fn load(&self, delta: Delta) -> Result<Duration> {
        let documents: Vec<String> = match self.variant {
            Variant::Nft => delta.batches(BATCH).iter().map(render).collect(),
            Variant::Legacy => vec![render(&delta)],
        };
        let began = Instant::now();
        documents.iter().try_for_each(|document| self.restore(document))?;
        Ok(began.elapsed())
    }

    /// Runs `iptables-restore` in the router.
    pub(crate) fn restore(&self, document: &str) -> Result<()> {
        let mut command = Command::new(format!("iptables-{}-restore", self.variant.name()));
        command
            .args(["--noflush", "--counters", "-w", "5"])
            .env("XTABLES_LOCKFILE", self.record.dir().join("xtables.lock"))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let output = self.middle.run(|| -> std::io::Result<_> {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(document.as_bytes())?;
            }
            child.wait_with_output()
        })?;
        let output = output.context("starting iptables-restore")?;
        if !output.status.success() {
            bail!("iptables-restore: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
