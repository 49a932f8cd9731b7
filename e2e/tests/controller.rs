//! The controller as a program: restarts, crashes, a standby that takes over.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, PodSpec, Port, Protocol, bed::SETTLE, cases, pki, processes::Process, programs::Make, suite,
    tools, wait,
};
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];

/// A dead leader is replaced within seconds.
const SHORT_LEASE: [&str; 3] = [
    "--leader-elect-lease-duration=5s",
    "--leader-elect-renew-deadline=3s",
    "--leader-elect-retry-period=1s",
];

fn main() -> ExitCode {
    suite::run(
        |bed| bed.start_programmer(1, &[]),
        cases![
            what_changed_while_it_was_down_is_caught_up,
            what_was_deleted_while_it_was_down_is_cleaned_up,
            a_restart_without_changes_writes_nothing,
            foreign_slices_are_never_touched,
            a_standby_takes_over_when_the_leader_is_killed,
        ],
    )
}

fn up(bed: &mut Bed) -> Result<SocketAddr> {
    drop(bed.stop_controller());
    bed.start_controller(&SHORT_LEASE)?;
    bed.apply_example("my-service.yaml")?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    bed.await_endpoints("my-service", &BOTH)?;
    Ok(target)
}

fn what_changed_while_it_was_down_is_caught_up(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.stop_controller()?;
    bed.delete_pod("my-app-1")?;
    bed.add_pod(PodSpec::new("my-app-3", "my-app").on(2).port(Port::tcp(8080)))?;
    bed.start_controller(&SHORT_LEASE)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["my-app-2", "my-app-3"])?;
    bed.stop_controller()
}

/// The API server deletes a Service's Endpoints with it, so the slices and the other Service show that the controller
/// is at work again.
fn what_was_deleted_while_it_was_down_is_cleaned_up(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    bed.apply_example("nodeport.yaml")?;
    let other = SocketAddr::new(bed.cluster_ip("my-service-nodeport")?, 80);
    bed.await_servers(From::Node(1), Protocol::Tcp, other, &BOTH)?;
    bed.controller()?.process().kill()?;
    drop(bed.stop_controller());
    bed.kubernetes().delete("Service", "default", "my-service", 0)?;
    bed.delete_pod("my-app-1")?;
    bed.start_controller(&SHORT_LEASE)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, other, &["my-app-2"])?;
    wait::until_ok("Endpoints and slices of my-service to go", SETTLE, || {
        let (endpoints, slices) = (bed.names("Endpoints")?, bed.names("EndpointSlice")?);
        ensure!(endpoints == ["my-service-nodeport"] && slices.len() == 1, "{endpoints:?} {slices:?}");
        Ok(())
    })?;
    bed.stop_controller()
}

fn versions(bed: &Bed) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for kind in ["Endpoints", "EndpointSlice"] {
        for object in bed.kubernetes().list::<Value>(kind, "default", "")? {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            found.push((format!("{kind} {}", text("name")), text("resourceVersion")));
        }
    }
    found.sort();
    Ok(found)
}

/// The proof that all Services were looked at again: one that was made while the controller was down is done.
fn a_restart_without_changes_writes_nothing(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let before = versions(bed)?;
    bed.stop_controller()?;
    bed.kubernetes()
        .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "zz-last"},
        "spec": {"selector": {"app": "my-app"}, "ports": [{"port": 80, "targetPort": 8080}]}}))?;
    bed.start_controller(&SHORT_LEASE)?;
    let last = SocketAddr::new(bed.cluster_ip("zz-last")?, 80);
    bed.await_servers(From::Node(1), Protocol::Tcp, last, &BOTH)?;
    let after: Vec<_> = versions(bed)?.into_iter().filter(|(name, _)| !name.contains("zz-last")).collect();
    assert_eq!(after, before);
    bed.stop_controller()
}

/// A slice of somebody else for our Service: traffic follows it, and the controller leaves it alone.
fn foreign_slices_are_never_touched(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    bed.add_pod(PodSpec::new("guest", "guest").on(2).port(Port::tcp(8080)))?;
    let foreign = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "foreign", "labels": {
            "kubernetes.io/service-name": "my-service", "endpointslice.kubernetes.io/managed-by": "somebody-else"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [bed.pod("guest")?.addresses.v4], "conditions": {"ready": true}}]});
    let version = bed.kubernetes().apply(&foreign)?["metadata"]["resourceVersion"].clone();
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["my-app-1", "my-app-2", "guest"])?;
    bed.set_ready("my-app-1", false)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["my-app-2", "guest"])?;
    let now: Value = bed.kubernetes().get("EndpointSlice", "default", "foreign")?.context("it is gone")?;
    assert_eq!(now["metadata"]["resourceVersion"], version);
    bed.stop_controller()
}

fn a_standby_takes_over_when_the_leader_is_killed(bed: &mut Bed) -> Result<()> {
    if bed.options.controller == Make::Genuine {
        println!("(only ours is run with leader election here)");
        return Ok(());
    }
    drop(bed.stop_controller());
    bed.kubernetes().apply(&fairlead_e2e::kubernetes::namespace("kube-system"))?;
    bed.apply_example("my-service.yaml")?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    let mut leader = replica(bed, "leader", 8081)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    let mut standby = replica(bed, "standby", 8082)?;
    await_ready(bed, 8082, &mut standby)?;

    // While the leader lives, it writes and the standby does not: a change arrives once.
    let first = holder(bed)?;
    bed.set_ready("my-app-1", false)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["my-app-2"])?;
    assert_eq!(holder(bed)?, first);

    leader.kill()?;
    bed.set_ready("my-app-1", true)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    assert_ne!(holder(bed)?, first, "the lease still names the dead leader");
    ensure!(standby.stop(Duration::from_secs(10))?.success(), "{}", standby.log_tail(20));

    // A leader that ends cleanly gives the lease back: the next one need not wait for it to run out.
    let mut next = replica(bed, "next", 8083)?;
    bed.set_ready("my-app-2", false)?;
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &["my-app-1"])?;
    ensure!(next.stop(Duration::from_secs(10))?.success(), "{}", next.log_tail(20));
    Ok(())
}

fn replica(bed: &Bed, name: &str, port: u16) -> Result<Process> {
    let mut args = vec![
        format!("--kubeconfig={}", bed.kubeconfig_of(pki::CONTROLLER).display()),
        format!("--http-address=127.0.0.1:{port}"),
    ];
    args.extend(SHORT_LEASE.map(str::to_owned));
    bed.start_process(From::ControlPlane, name, &tools::own_program("fairlead-controller")?, &args, &[])
}

fn await_ready(bed: &Bed, port: u16, process: &mut Process) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let namespace = bed.client(From::ControlPlane)?.namespace();
    wait::until_ok("the standby to be ready", SETTLE, || {
        process.check()?;
        let (status, body) = fairlead_e2e::probe::http_get(namespace, address, "/readyz")?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    })
}

fn holder(bed: &Bed) -> Result<String> {
    let lease: Value =
        bed.kubernetes().get("Lease", "kube-system", "fairlead-controller")?.context("no Lease")?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}
