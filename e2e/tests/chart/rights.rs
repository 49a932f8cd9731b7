//! The rights that the chart gives: enough, and each of them needed. (Those of the controller: suite `reliability`.)

use std::{collections::BTreeSet, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From,
    chart::{self, Helm, NAMESPACE},
    examples, probe,
    programs::Make,
    rights::{Given, named},
    service_accounts, tools, wait,
};

use crate::starts::HEALTH;

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn each_missing_right_of_the_programmer_is_named_and_no_other(bed: &mut Bed) -> Result<()> {
    bed.start_programmer(1, &[])?;
    let (_, page) = probe::http_get(bed.node_netns(1)?, HEALTH, "/readyz")?;
    ensure!(page.contains("[+]rights ok"), "{page}");
    bed.stop_programmer(1)?;
    let given = Given::to("fairlead-programmer")?;
    for right in &given {
        right.without(bed.kubernetes(), || is_named(bed, right))?;
    }
    println!("  {} rights", given.len());
    Ok(())
}

fn is_named(bed: &Bed, right: &Given) -> Result<()> {
    let words = right.words();
    let expected = BTreeSet::from([words.clone()]);
    let before = std::fs::read_to_string(bed.log("programmer-node1")).unwrap_or_default().len();
    let mut process = bed.launch_programmer(1, Make::Ours, &[])?;
    let outcome = wait::until_ok("readiness and the log to name it", DEADLINE, || {
        let (status, page) = probe::http_get(bed.node_netns(1)?, HEALTH, "/readyz")?;
        let line = page.lines().find(|line| line.contains("rights")).unwrap_or_default();
        ensure!(named(line) == expected, "readiness: {page}");
        let log = process.log();
        ensure!(named(&log[before..]).contains(&words), "log: {log}");
        // Events are a courtesy.
        ensure!((status == 200) == words.contains("events"), "{status} {page}");
        Ok(())
    });
    process.kill()?;
    outcome
}

pub(crate) fn each_right_of_the_test_pod_is_needed(bed: &mut Bed) -> Result<()> {
    let folder = chart::folder();
    let folder = folder.to_str().context("a path that is no text")?;
    let text = Helm::find()?.run(&[
        "template",
        "fairlead",
        folder,
        "--namespace",
        NAMESPACE,
        "--set",
        "profile=shadow",
    ])?;
    let mut objects = examples::parse(&text)?;
    let account = "fairlead-test";
    objects.retain(|object| object["metadata"]["name"] == account);
    let pod = objects.iter().find(|object| object["kind"] == "Pod").context("no Pod")?;
    let args: Vec<&str> = pod["spec"]["containers"][0]["args"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|arg| arg.as_str())
        .collect();
    let rights: Vec<_> = objects.iter().filter(|object| object["kind"] != "Pod").cloned().collect();
    for object in &rights {
        bed.kubernetes().apply(object)?;
    }
    let pki = &bed.control_plane().pki;
    let kubeconfig = service_accounts::add_token(bed.kubernetes(), pki, account, account)?;
    let ask = || {
        let mut command = Command::new(tools::own_program("fairlead")?);
        command.args(&args).env("KUBECONFIG", &kubeconfig);
        bed.namespace(From::ControlPlane)?.output(&mut command)
    };
    let told = ask()?;
    ensure!(told.contains("kubernetes"), "{told}");
    for right in Given::by(account, &rights)? {
        let refusal =
            right.without(bed.kubernetes(), || ask().err().context("nothing is missed"))?.to_string();
        ensure!(refusal.contains("forbidden"), "without the right to {}: {refusal}", right.words());
    }
    for object in &rights {
        let text = |pointer: &str| object.pointer(pointer).and_then(|text| text.as_str()).unwrap_or_default();
        bed.kubernetes().delete(text("/kind"), text("/metadata/namespace"), text("/metadata/name"), 0)?;
    }
    Ok(())
}
