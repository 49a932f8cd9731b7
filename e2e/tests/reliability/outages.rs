//! Outages of what the controller depends on: the API server, etcd, its watches.

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_e2e::{
    Bed, From,
    replica::{Host, Lost, Replica},
    wait,
};

use crate::{WITHOUT_ELECTION, election::SHORT_LEASE, in_churn};

const DEADLINE: Duration = Duration::from_secs(20);

/// At first its connections break; the second time, as when a machine loses power, nothing tells it that they did.
pub(crate) fn the_api_server_is_killed_and_comes_back(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[WITHOUT_ELECTION])?;
    in_churn(bed, |bed, churn, random| {
        churn.await_more(20 + random.below(80))?;
        bed.kill_api_server()?;
        bed.restart_api_server(&[])?;
        churn.await_more(20 + random.below(80))?;
        await_untroubled(bed, &replica)?;
        // A machine that lost power does not repeat its farewell for a minute.
        bed.client(From::ControlPlane)?.namespace().sysctl(&[("ipv4/tcp_orphan_retries", "1")])?;
        replica.host.cut(bed, Lost::Everything)?;
        let restarted = bed.kill_api_server().and_then(|()| bed.restart_api_server(&[]));
        replica.host.mend(bed)?;
        restarted?;
        churn.await_more(50)
    })?;
    replica.process.check()?;
    await_untroubled(bed, &replica)
}

/// Nobody knows whether the writes that are under way then will arrive.
pub(crate) fn etcd_is_paused_while_it_writes(bed: &mut Bed) -> Result<()> {
    // Changes gather, so that what is written for the last ones meets the pause.
    let flags = [
        WITHOUT_ELECTION,
        "--endpointslice-updates-batch-period=300ms",
        "--endpoint-updates-batch-period=300ms",
    ];
    let mut replica = Replica::start(bed, Host::nth(0), &flags)?;
    in_churn(bed, |bed, churn, random| {
        churn.await_more(50 + random.below(50))?;
        bed.control_plane().etcd().pause()?;
        let unanswered = await_words(&replica, "no answer within");
        bed.control_plane().etcd().resume()?;
        unanswered?;
        churn.await_more(50)
    })?;
    replica.process.check()?;
    await_untroubled(bed, &replica)
}

pub(crate) fn etcd_is_paused_while_it_leads(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &SHORT_LEASE)?;
    in_churn(bed, |bed, churn, random| {
        await_leading(bed, &replica, true)?;
        churn.await_more(50 + random.below(50))?;
        bed.control_plane().etcd().pause()?;
        let lost = await_leading(bed, &replica, false);
        bed.control_plane().etcd().resume()?;
        lost?;
        await_leading(bed, &replica, true)?;
        churn.await_more(50)
    })?;
    replica.process.check()
}

/// While it is frozen, etcd forgets the versions that its watches had come to, and so does the API server.
pub(crate) fn its_watches_expire(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[WITHOUT_ELECTION])?;
    in_churn(bed, |bed, churn, random| {
        churn.await_more(20 + random.below(80))?;
        replica.process.pause()?;
        churn.await_more(100)?;
        bed.control_plane().compact()?;
        bed.restart_api_server(&[])?;
        replica.process.resume()?;
        await_words(&replica, "gone: ")?;
        churn.await_more(20)
    })?;
    replica.process.check()?;
    await_untroubled(bed, &replica)
}

/// Waits until it has all its watches, and nothing to complain about.
fn await_untroubled(bed: &Bed, replica: &Replica) -> Result<()> {
    wait::until_ok("readiness without trouble", DEADLINE, || {
        let (status, page) = replica.page(bed, "/readyz")?;
        ensure!(status == 200 && !page.contains(" now: "), "{status} {page}");
        Ok(())
    })
}

fn await_leading(bed: &Bed, replica: &Replica, leading: bool) -> Result<()> {
    wait::until_ok(&format!("the replica to say that it leads: {leading}"), DEADLINE, || {
        ensure!(replica.leads(bed)? == leading, "it does not");
        Ok(())
    })
}

fn await_words(replica: &Replica, words: &str) -> Result<()> {
    let told = || replica.log().contains(words);
    wait::until_true(&format!("the log to say {words:?}"), DEADLINE, told, || replica.process.log_tail(20))
}
