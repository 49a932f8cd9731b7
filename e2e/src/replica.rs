//! Replicas of the controller, each on a host of its own, so that one can be cut off and the API server's audit log can
//! tell them apart.
//!
//! Invariant: a replica runs as the chart's ServiceAccount of the controller.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_planner::Limits;

use crate::{Bed, From, netns::Netns, pki, plan, probe, processes::Process, tools, wait};

const READY_DEADLINE: Duration = Duration::from_secs(20);

/// Sizes that replicas run with: small, so that there is much to pack.
pub const LIMITS: Limits = Limits { endpoints_per_slice: 4, mirrored_per_subset: 6 };

/// A host for replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(u8);

/// What is lost on the way between a host and everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// All that the host sends: it still hears, and is not heard.
    Sent,
    /// All.
    Everything,
}

impl Host {
    /// The n-th host, from 0.
    pub const fn nth(number: u8) -> Self {
        Self(number)
    }

    /// Adds so many hosts to a bed that has none beside its cluster.
    pub fn add(bed: &mut Bed, count: u8) -> Result<()> {
        (0..count).try_for_each(|number| bed.add_external(Self(number).name(), &[]))
    }

    /// The address by which the bed knows it.
    fn name(self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.0)
    }

    /// The address that its requests come from.
    pub fn address(self) -> IpAddr {
        plan::external(self.0).v4.into()
    }

    fn netns(self, bed: &Bed) -> Result<&Netns> {
        Ok(bed.client(From::External(self.name()))?.namespace())
    }

    /// Loses packets in silence from now on, as a broken network does.
    pub fn cut(self, bed: &Bed, lost: Lost) -> Result<()> {
        self.iptables(bed, &["-A", "OUTPUT", "-o", "eth0", "-j", "DROP"])?;
        if lost == Lost::Everything {
            self.iptables(bed, &["-A", "INPUT", "-i", "eth0", "-j", "DROP"])?;
        }
        Ok(())
    }

    /// Ends what [`Host::cut`] began.
    pub fn mend(self, bed: &Bed) -> Result<()> {
        self.iptables(bed, &["-F"])
    }

    fn iptables(self, bed: &Bed, args: &[&str]) -> Result<()> {
        self.netns(bed)?.output(Command::new("iptables").arg("-w").args(args)).map(drop)
    }
}

/// A running replica.
#[derive(Debug)]
pub struct Replica {
    /// Where it runs.
    pub host: Host,
    /// The process.
    pub process: Process,
    /// How long the log was that earlier ones on this host have left.
    before: usize,
}

impl Replica {
    /// Starts it, and does not wait for it.
    pub fn launch(bed: &Bed, host: Host, flags: &[&str]) -> Result<Self> {
        let mut args = vec![
            format!("--kubeconfig={}", bed.kubeconfig_of(pki::CONTROLLER).display()),
            format!("--max-endpoints-per-slice={}", LIMITS.endpoints_per_slice),
            format!("--mirroring-max-endpoints-per-subset={}", LIMITS.mirrored_per_subset),
        ];
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let name = format!("replica-{}", host.0);
        let program = tools::own_program("fairlead-controller")?;
        let before = std::fs::metadata(bed.log(&name)).map_or(0, |log| log.len());
        let process = bed.start_process(From::External(host.name()), &name, &program, &args, &[])?;
        Ok(Self { host, process, before: before.try_into()? })
    }

    /// Starts it and waits until it is ready.
    pub fn start(bed: &Bed, host: Host, flags: &[&str]) -> Result<Self> {
        let mut replica = Self::launch(bed, host, flags)?;
        replica.await_page(bed, "/readyz", "")?;
        Ok(replica)
    }

    /// A page of its HTTP server, asked for on its own host.
    pub fn page(&self, bed: &Bed, path: &str) -> Result<(u16, String)> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        probe::http_get(self.host.netns(bed)?, address, path)
    }

    /// Waits until a page is there and says `words`.
    pub fn await_page(&mut self, bed: &Bed, path: &str, words: &str) -> Result<()> {
        let what = format!("{} to answer {path} with {words:?}", self.process.name());
        wait::until_ok(&what, READY_DEADLINE, || {
            let (status, body) = self.page(bed, path)?;
            ensure!(status == 200 && body.contains(words), "{status} {body}");
            Ok(())
        })
        .with_context(|| self.process.log_tail(30))
    }

    /// What this process has printed.
    pub fn log(&self) -> String {
        self.process.log().split_off(self.before)
    }

    /// Whether it says that it leads.
    pub fn leads(&self, bed: &Bed) -> Result<bool> {
        let (_, metrics) = self.page(bed, "/metrics")?;
        let line = metrics.lines().find(|line| line.starts_with("leader_election_master_status"));
        Ok(line.is_some_and(|line| line.ends_with(" 1")))
    }
}
