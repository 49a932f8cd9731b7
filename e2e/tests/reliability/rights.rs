//! The rights that the chart gives the controller: enough, each of them needed and asked for, and named when it is missing.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed,
    replica::{Host, Replica},
    rights::{ALLOW, Given, named},
    wait,
};

use crate::{WITHOUT_ELECTION, in_churn};

const DEADLINE: Duration = Duration::from_secs(20);
const ACCOUNT: &str = "fairlead-controller";
const ALL_THERE: &str = "[+]rights ok";
/// What a controller is ready without: Events, and what only some clusters ask for.
const DISPENSABLE: [&str; 3] = ["events.events.k8s.io", "/finalizers", "/restricted"];

pub(crate) fn each_missing_right_is_named_and_no_other(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[])?;
    let (_, page) = replica.page(bed, "/readyz")?;
    ensure!(page.contains(ALL_THERE), "{page}");
    replica.process.kill()?;
    let given = Given::to(ACCOUNT)?;
    for right in &given {
        right.without(bed.kubernetes(), || is_named(bed, right))?;
    }
    println!("  {} rights", given.len());
    Ok(())
}

fn is_named(bed: &Bed, right: &Given) -> Result<()> {
    let mut replica = Replica::launch(bed, Host::nth(0), &[])?;
    let words = right.words();
    let expected = BTreeSet::from([words.clone()]);
    let dispensable = DISPENSABLE.iter().any(|part| words.contains(part));
    wait::until_ok("readiness and the log to name it", DEADLINE, || {
        let (status, page) = replica.page(bed, "/readyz")?;
        let log = replica.log();
        let line = page.lines().find(|line| line.contains("rights")).unwrap_or_default();
        ensure!(named(line) == expected, "readiness: {page}");
        ensure!(named(&log).contains(&words), "log: {log}");
        ensure!((status == 200) == dispensable, "{status} {page}");
        Ok(())
    })?;
    replica.process.kill()
}

pub(crate) fn a_right_that_is_taken_away_in_churn_is_named_until_it_is_back(bed: &mut Bed) -> Result<()> {
    let mut replica = Replica::start(bed, Host::nth(0), &[WITHOUT_ELECTION])?;
    let given = Given::to(ACCOUNT)?;
    let wanted = "update endpointslices.discovery.k8s.io";
    let right = given.iter().find(|right| right.words() == wanted).context("no such right in the chart")?;
    in_churn(bed, |bed, churn, _| {
        right
            .without(bed.kubernetes(), || replica.await_page(bed, "/readyz", &format!("{ALLOW}{wanted}")))?;
        churn.await_more(50)
    })?;
    replica.await_page(bed, "/readyz", ALL_THERE)?;
    replica.process.check()
}
