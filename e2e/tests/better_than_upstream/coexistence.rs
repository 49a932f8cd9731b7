//! Beside a kube-controller-manager whose endpoint controllers run, before them and after them: as docs/coexistence.md says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use fairlead_e2e::{
    Bed, From,
    bed::SETTLE,
    control_plane::{ENDPOINT_CONTROLLERS, flags},
    pki,
    processes::Process,
    wait,
};
use serde_json::{Value, json};

use crate::fixtures::{
    await_addresses, await_idle, metric, node, pod, service, slices, start_ours, text, versions, writes,
};

/// Longer than either side waits before it looks at what the other has done, or what it did itself.
pub(crate) const ECHO: Duration = Duration::from_millis(2500);

fn start_kcm(bed: &Bed) -> Result<Process> {
    let args = flags(&[
        ("kubeconfig", bed.kubeconfig_of(pki::ADMIN).display().to_string()),
        ("controllers", ENDPOINT_CONTROLLERS.into()),
        ("leader-elect", "false".into()),
        ("secure-port", "0".into()),
        ("kube-api-qps", "1000".into()),
        ("kube-api-burst", "2000".into()),
    ]);
    let program = bed.tools().program("kube-controller-manager");
    bed.start_process(From::ControlPlane, "endpoint-controllers", &program, &args, &[])
}

/// Services of many shapes with Pods in many states, and the addresses that their slices should come to hold.
fn populate(bed: &Bed) -> Result<BTreeMap<&'static str, Vec<&'static str>>> {
    let kubernetes = bed.kubernetes();
    for (name, zone) in [("n1", "z1"), ("n2", "z2")] {
        kubernetes.apply(&node(name, zone))?;
    }
    let dual = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let auto = json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}});
    let manual = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "manual", "labels": {"more": "x"}, "annotations": {"note": "x"}},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "fd00::9"}], "ports": [{"name": "http", "port": 80}]},
                    {"notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}]});
    for object in [
        service("plain", json!({"metadata": {"labels": {"tier": "x"}}})),
        service("dual", dual),
        service("headless", json!({"spec": {"clusterIP": "None"}})),
        service("auto", auto),
        service("near", json!({"spec": {"trafficDistribution": "PreferSameNode"}})),
        service("eager", json!({"spec": {"publishNotReadyAddresses": true}})),
        service("empty", json!({})),
        service("manual", json!({"spec": {"selector": null}})),
        manual,
    ] {
        kubernetes.apply(&object)?;
    }
    let mut pods = Vec::new();
    for (number, app) in (1..).zip(["plain", "dual", "headless", "auto", "near", "eager"]) {
        for i in 1..=4 {
            let (v4, v6) = (format!("10.0.{number}.{i}"), format!("fd00::{number}:{i}"));
            let ready = if i == 4 { "False" } else { "True" };
            let patch = json!({"spec": {"nodeName": format!("n{}", i % 2 + 1)}, "status": {
                "podIPs": [{"ip": v4}, {"ip": v6}], "conditions": [{"type": "Ready", "status": ready}]}});
            pods.push(pod(&format!("{app}-{i}"), app, &v4, patch));
        }
    }
    kubernetes.apply_all(&pods)?;
    Ok(BTreeMap::from([
        ("plain", vec!["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4?"]),
        (
            "dual",
            vec![
                "10.0.2.1",
                "10.0.2.2",
                "10.0.2.3",
                "10.0.2.4?",
                "fd00::2:1",
                "fd00::2:2",
                "fd00::2:3",
                "fd00::2:4?",
            ],
        ),
        ("headless", vec!["10.0.3.1", "10.0.3.2", "10.0.3.3", "10.0.3.4?"]),
        ("auto", vec!["10.0.4.1", "10.0.4.2", "10.0.4.3", "10.0.4.4?"]),
        ("near", vec!["10.0.5.1", "10.0.5.2", "10.0.5.3", "10.0.5.4?"]),
        ("eager", vec!["10.0.6.1", "10.0.6.2", "10.0.6.3", "10.0.6.4"]),
        ("manual", vec!["192.0.2.1", "192.0.2.2?", "fd00::9"]),
    ]))
}

/// Waits until all slices hold what they should, and nothing has been written for longer than an echo takes.
fn come_to_rest(bed: &Bed, expected: &BTreeMap<&str, Vec<&str>>) -> Result<()> {
    for (service, addresses) in expected {
        await_addresses(bed, service, addresses)?;
    }
    let end = Instant::now() + SETTLE;
    loop {
        let before = writes(bed)?;
        wait::watch(ECHO);
        let now = writes(bed)?;
        if now == before {
            break;
        }
        ensure!(Instant::now() < end, "still writing: {} requests in {ECHO:?}", now - before);
    }
    for (service, addresses) in expected {
        await_addresses(bed, service, addresses)?;
    }
    Ok(())
}

pub(crate) fn a_cluster_that_kcm_left_is_taken_over_without_a_write(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    let mut kcm = start_kcm(bed)?;
    let expected = populate(bed)?;
    come_to_rest(bed, &expected)?;
    kcm.kill()?;
    let (before, written) = (versions(bed)?, writes(bed)?);
    start_ours(bed, &[])?;
    let services = bed.kubernetes().list::<Value>("Service", "", "")?.len().try_into()?;
    wait::until_ok("all Services to be looked at", SETTLE, || {
        let syncs = metric(bed, "fairlead_syncs_total", &[("part", "slices")])?;
        ensure!(syncs >= services, "{syncs} of {services}");
        Ok(())
    })?;
    await_idle(bed)?;
    assert_eq!(versions(bed)?, before);
    assert_eq!(writes(bed)?, written, "something was written that changed nothing");
    bed.stop_controller()
}

pub(crate) fn a_cluster_that_we_left_is_taken_over_without_a_write(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    let expected = populate(bed)?;
    come_to_rest(bed, &expected)?;
    bed.stop_controller()?;
    let (before, written) = (versions(bed)?, writes(bed)?);
    let mut kcm = start_kcm(bed)?;
    bed.kubernetes().apply(&service("zz-last", json!({})))?;
    wait::until_ok("a slice for the last Service", SETTLE, || {
        ensure!(!slices(bed, "zz-last")?.is_empty(), "none yet");
        Ok(())
    })?;
    // It looks at everything again a second after it started.
    come_to_rest(bed, &expected)?;
    let mut after = versions(bed)?;
    after.retain(|name, _| !name.contains("zz-last"));
    assert_eq!(after, before);
    assert_eq!(
        writes(bed)?,
        written + 2,
        "more was written than the Endpoints and the slice of the last Service"
    );
    kcm.kill()
}

/// They may double each other's work on the way, but they end at the same objects, and then neither writes.
pub(crate) fn both_at_work_come_to_rest_and_stay_at_rest(bed: &mut Bed) -> Result<()> {
    start_ours(bed, &[])?;
    let mut kcm = start_kcm(bed)?;
    let mut expected = populate(bed)?;
    let kubernetes = bed.kubernetes();
    for round in 0..4 {
        for (app, i) in [("plain", 1), ("dual", 2), ("auto", 3), ("near", 1)] {
            let status = if round % 2 == 0 { "False" } else { "True" };
            let ready = json!({"conditions": [{"type": "Ready", "status": status}]});
            kubernetes.merge_status("Pod", "default", &format!("{app}-{i}"), ready)?;
        }
        let label = json!({"metadata": {"labels": {"round": round.to_string()}}});
        kubernetes.merge("Service", "default", "headless", label)?;
        kubernetes.merge(
            "Endpoints",
            "default",
            "manual",
            json!({"metadata": {"labels": {"round": round.to_string()}}}),
        )?;
        kubernetes.delete("Service", "default", "plain", 0)?;
        kubernetes.apply(&service("plain", json!({})))?;
        kubernetes.delete("Pod", "default", "eager-1", 0)?;
        if round < 3 {
            kubernetes.apply(&pod("eager-1", "eager", "10.0.6.1", json!({})))?;
        }
    }
    expected.insert("eager", vec!["10.0.6.2", "10.0.6.3", "10.0.6.4"]);
    come_to_rest(bed, &expected)?;
    let (before, written) = (versions(bed)?, writes(bed)?);
    for service in bed.kubernetes().list::<Value>("Service", "default", "")? {
        let touch = json!({"metadata": {"annotations": {"service.kubernetes.io/touched": "1"}}});
        bed.kubernetes().merge("Service", "default", &text(&service, "/metadata/name"), touch)?;
    }
    wait::watch(ECHO);
    await_idle(bed)?;
    assert_eq!(versions(bed)?, before);
    assert_eq!(writes(bed)?, written, "a look without a change was a reason to write");
    kcm.kill()?;
    bed.stop_controller()
}

pub(crate) fn preflight_names_the_other_writer(bed: &mut Bed) -> Result<()> {
    drop(bed.stop_controller());
    let mut kcm = start_kcm(bed)?;
    bed.kubernetes().apply(&service("web", json!({})))?;
    bed.kubernetes().apply(&pod("web-1", "web", "10.0.0.1", json!({})))?;
    await_addresses(bed, "web", &["10.0.0.1"])?;
    start_ours(bed, &[])?;
    wait::until_ok("the other writer to be counted", SETTLE, || {
        let others = metric(bed, "fairlead_other_writers", &[])?;
        ensure!(others == 1, "{others}");
        Ok(())
    })?;
    let log = bed.controller()?.process().log();
    let warning = log.lines().rev().find(|line| line.contains("another controller"));
    assert!(warning.is_some_and(|line| line.contains("kube-controller-manager")), "{warning:?}");
    kcm.kill()?;
    bed.stop_controller()
}
