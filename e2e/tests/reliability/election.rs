//! Two replicas: by the API server's word only one of them writes at a time, whatever happens to the leader.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, audit,
    churn::Churn,
    replica::{Host, Lost, Replica},
    wait,
};

use crate::{in_churn, rounds, writes};

pub(crate) const SHORT_LEASE: [&str; 3] = [
    "--leader-elect-lease-duration=4s",
    "--leader-elect-renew-deadline=3s",
    "--leader-elect-retry-period=1s",
];
/// The lease of [`SHORT_LEASE`], and for a look at it.
const TAKEOVER: Duration = Duration::from_secs(5);
/// For what is not the lease's business.
const DEADLINE: Duration = Duration::from_secs(20);

/// Leader and standby.
struct Pair {
    leader: Replica,
    standby: Replica,
    /// How much had been written before.
    from: usize,
}

impl Pair {
    fn start(bed: &Bed) -> Result<Self> {
        let from = writes(bed)?.len();
        // Nobody is left from before whose lease would have to run out.
        bed.kubernetes().delete("Lease", "kube-system", "fairlead-controller", 0)?;
        let leader = Replica::start(bed, Host::nth(0), &SHORT_LEASE)?;
        await_leader(bed, &leader, DEADLINE)?;
        let standby = Replica::start(bed, Host::nth(1), &SHORT_LEASE)?;
        Ok(Self { leader, standby, from })
    }

    fn writes(&self, bed: &Bed) -> Result<Vec<audit::Write>> {
        Ok(writes(bed)?.split_off(self.from))
    }

    /// Waits until the standby leads and writes, and so becomes the leader.
    fn await_takeover(&mut self, bed: &Bed, churn: &Churn, within: Duration) -> Result<()> {
        await_leader(bed, &self.standby, within)?;
        std::mem::swap(&mut self.leader, &mut self.standby);
        let writer = self.leader.host.address();
        let before = self.count(bed, writer)?;
        churn.await_more(20)?;
        wait::until_ok("writes of the new leader", DEADLINE, || {
            ensure!(self.count(bed, writer)? > before, "none");
            Ok(())
        })
    }

    fn count(&self, bed: &Bed, writer: IpAddr) -> Result<usize> {
        Ok(audit::terms(&self.writes(bed)?)
            .0
            .iter()
            .filter(|term| term.holder == writer)
            .map(|term| term.writes)
            .sum())
    }

    /// The terms so far; every write was its holder's.
    fn terms(&self, bed: &Bed) -> Result<Vec<audit::Term>> {
        let (terms, strays) = audit::terms(&self.writes(bed)?);
        let told: Vec<String> = strays.iter().take(5).map(ToString::to_string).collect();
        ensure!(
            strays.is_empty(),
            "{} writes in another's term: {}\nterms: {terms:#?}",
            strays.len(),
            told.join("\n")
        );
        for term in &terms {
            println!(
                "  {} led from {} to {:?}, last renewed {}, {} writes",
                term.holder, term.acquired, term.until, term.renewed, term.writes
            );
        }
        Ok(terms)
    }
}

fn await_leader(bed: &Bed, replica: &Replica, within: Duration) -> Result<()> {
    wait::until_ok("a replica to lead", within, || {
        ensure!(replica.leads(bed)?, "it does not");
        Ok(())
    })
    .with_context(|| replica.process.log_tail(20))
}

pub(crate) fn leaders_are_killed_and_stopped_in_churn(bed: &mut Bed) -> Result<()> {
    let mut pair = Pair::start(bed)?;
    let pair = in_churn(bed, |bed, churn, random| {
        for _ in 0..rounds()? {
            churn.await_more(random.below(100))?;
            pair.leader.process.kill()?;
            pair.await_takeover(bed, churn, TAKEOVER)?;
            pair.standby = Replica::start(bed, pair.standby.host, &SHORT_LEASE)?;
        }
        // Who ends in order gives the lease back, and nobody has to wait for it.
        churn.await_more(random.below(100))?;
        let status = pair.leader.process.stop(DEADLINE)?;
        ensure!(status.success(), "{status}\n{}", pair.leader.process.log_tail(20));
        pair.await_takeover(bed, churn, Duration::from_secs(3))?;
        Ok(pair)
    })?;
    ensure!(pair.terms(bed)?.len() == rounds()? + 2);
    Ok(())
}

pub(crate) fn the_leader_is_cut_off(bed: &mut Bed) -> Result<()> {
    is_cut(bed, Lost::Everything)
}

/// It still hears of all changes, and answers them into the void.
pub(crate) fn the_leader_is_not_heard_any_more(bed: &mut Bed) -> Result<()> {
    is_cut(bed, Lost::Sent)
}

/// As when its machine sleeps or is moved. What it had begun it would end when it goes on, if it did not look at the clock.
pub(crate) fn the_leader_is_frozen(bed: &mut Bed) -> Result<()> {
    let mut pair = Pair::start(bed)?;
    let pair = in_churn(bed, |bed, churn, random| {
        for round in 1..=rounds()? {
            churn.await_more(20 + random.below(80))?;
            pair.leader.process.pause()?;
            let taken = pair.await_takeover(bed, churn, TAKEOVER);
            // By now it is the other one of the two.
            let frozen = if taken.is_ok() { &pair.standby } else { &pair.leader };
            frozen.process.resume()?;
            taken?;
            churn.await_more(50)?;
            ensure!(!pair.standby.leads(bed)?, "it still leads, in round {round}");
        }
        Ok(pair)
    })?;
    ensure!(pair.terms(bed)?.len() == rounds()? + 1);
    Ok(())
}

fn is_cut(bed: &mut Bed, lost: Lost) -> Result<()> {
    let mut pair = Pair::start(bed)?;
    let pair = in_churn(bed, |bed, churn, random| {
        churn.await_more(20 + random.below(80))?;
        let cut = pair.leader.host;
        cut.cut(bed, lost)?;
        let stopped = stops_before_another_leads(bed, &pair);
        let taken = stopped.and_then(|()| pair.await_takeover(bed, churn, TAKEOVER));
        cut.mend(bed)?;
        taken?;
        churn.await_more(50)?;
        // It is a standby as any other now.
        pair.standby.await_page(bed, "/readyz", "[+]lease ok")?;
        ensure!(!pair.standby.leads(bed)?, "it still leads");
        Ok(pair)
    })?;
    ensure!(pair.terms(bed)?.len() == 2);
    Ok(())
}

fn stops_before_another_leads(bed: &Bed, pair: &Pair) -> Result<()> {
    wait::until_ok("the leader to stop", TAKEOVER, || {
        ensure!(!pair.leader.leads(bed)?, "it still leads");
        Ok(())
    })?;
    ensure!(!pair.standby.leads(bed)?, "the standby leads already");
    Ok(())
}
