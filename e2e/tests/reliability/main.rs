//! The controller under what goes wrong in real clusters: after each, all objects equal the plan of the final state.
//!
//! Every case runs against churn, and with exactly the rights that the chart gives it. What the churn does and
//! when things break follows from a seed (`FAIRLEAD_SEED`), which is printed with a failure. `FAIRLEAD_ROUNDS` makes more of
//! what is repeated.

mod crashes;
mod election;
mod outages;
mod rights;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use fairlead_e2e::{
    Bed, Options, audit, cases,
    churn::Churn,
    differential::controller::random::Random,
    expected,
    plan::Families,
    replica::{Host, LIMITS},
    suite,
};

use crate::{
    crashes::{it_is_killed_at_random_points_of_churn, others_edit_its_objects_at_full_speed},
    election::{
        leaders_are_killed_and_stopped_in_churn, the_leader_is_cut_off, the_leader_is_frozen,
        the_leader_is_not_heard_any_more,
    },
    outages::{
        etcd_is_paused_while_it_leads, etcd_is_paused_while_it_writes, its_watches_expire,
        the_api_server_is_killed_and_comes_back,
    },
    rights::{
        a_right_that_is_taken_away_in_churn_is_named_until_it_is_back,
        each_missing_right_is_named_and_no_other,
    },
};

/// How long the objects may take to equal the plan after everything works again. Failed writes are tried again after
/// seconds.
const REPAIRED: Duration = Duration::from_secs(40);
const WITHOUT_ELECTION: &str = "--leader-elect=false";

fn main() -> ExitCode {
    suite::run_on(
        || Ok(Options { nodes: 0, families: Families::DualStack, audited: true, ..Options::from_env()? }),
        |bed| Host::add(bed, 2),
        cases![
            it_is_killed_at_random_points_of_churn,
            the_api_server_is_killed_and_comes_back,
            etcd_is_paused_while_it_writes,
            etcd_is_paused_while_it_leads,
            its_watches_expire,
            others_edit_its_objects_at_full_speed,
            leaders_are_killed_and_stopped_in_churn,
            the_leader_is_cut_off,
            the_leader_is_not_heard_any_more,
            the_leader_is_frozen,
            each_missing_right_is_named_and_no_other,
            a_right_that_is_taken_away_in_churn_is_named_until_it_is_back,
        ],
    )
}

/// Runs a case in churn, with random numbers that follow from the seed; the objects equal the plan in the end. What `case`
/// returns lives until then.
fn in_churn<T>(bed: &mut Bed, case: impl FnOnce(&mut Bed, &Churn, &mut Random) -> Result<T>) -> Result<T> {
    let seed = seed()?;
    let again = || format!("run it again with FAIRLEAD_SEED={seed}");
    let mut random = Random::new(seed);
    let churn = Churn::start(bed.kubernetes(), seed).with_context(again)?;
    let running = case(bed, &churn, &mut random).with_context(again)?;
    let changes = churn.stop().with_context(again)?;
    expected::await_plan(bed.kubernetes(), LIMITS, REPAIRED).with_context(again)?;
    println!("  {changes} changes; answers to our writes so far: {:?}", audit::answers(&writes(bed)?));
    Ok(running)
}

fn seed() -> Result<u64> {
    number("FAIRLEAD_SEED")
}

/// How many times as much is to be tried as in CI.
fn rounds() -> Result<usize> {
    Ok(number("FAIRLEAD_ROUNDS")?.try_into()?)
}

fn number(variable: &str) -> Result<u64> {
    std::env::var(variable).map_or(Ok(1), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

/// Everything that the controllers of this bed wrote, by the API server's word.
fn writes(bed: &Bed) -> Result<Vec<audit::Write>> {
    audit::writes_of(&bed.control_plane().audit_log()?, "fairlead-controller")
}
