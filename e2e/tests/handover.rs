//! A node's programs replaced by others while clients keep asking: kube-proxy by ours, ours by itself after an end and after a
//! crash, ours by kube-proxy. Nobody may notice.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Result, ensure};
use fairlead_e2e::{
    Bed, From, Options,
    bed::SETTLE,
    cases,
    load::{Load, NODE_PORT, PODS, serve},
    programs::{Make, Variant},
    suite, wait,
};

/// A rule that only our programmer writes, and one that only kube-proxy does.
const OURS: &str = "-m bpf";
const GENUINE: &str = "-j KUBE-SEP-";

fn main() -> ExitCode {
    let suite = |variant| {
        let options = move || Ok(Options { programmer: Make::Genuine, variant, ..Options::from_env()? });
        suite::run_on(
            options,
            Bed::start_programs,
            cases![no_client_notices_who_programs_its_node, no_client_notices_a_crash_of_the_programmer],
        )
    };
    let codes = [suite(Variant::Nft), suite(Variant::Legacy)];
    if codes == [ExitCode::SUCCESS; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Clients of every kind, on a Service in every way.
fn up(bed: &mut Bed) -> Result<Load> {
    let cluster_ip = serve(bed)?;
    let node_port = SocketAddr::new(bed.node(1)?.addresses.v4.into(), NODE_PORT);
    let mut load = Load::new();
    for (name, from, target) in [
        ("Pod", From::Pod("client"), cluster_ip),
        ("its own client", From::Pod("a-1"), cluster_ip),
        ("node", From::Node(1), cluster_ip),
        ("outside", From::Outside, node_port),
    ] {
        for protocol in [fairlead_e2e::Protocol::Tcp, fairlead_e2e::Protocol::Udp] {
            bed.await_servers(from, protocol, target, &PODS)?;
        }
        load.add(name, bed.namespace(from)?, target)?;
    }
    Ok(load)
}

/// Waits until the first node's rules are those of one make, and of it alone.
fn await_rules(bed: &Bed, make: Make) -> Result<()> {
    let (here, gone) = if make == Make::Ours { (OURS, GENUINE) } else { (GENUINE, OURS) };
    wait::until_ok(&format!("the rules of {make:?}"), SETTLE, || {
        let (here, gone) = (bed.rules_about(1, here)?, bed.rules_about(1, gone)?);
        ensure!(!here.is_empty() && gone.is_empty(), "{here:?} {gone:?}");
        Ok(())
    })
}

fn replace(bed: &mut Bed, make: Make) -> Result<()> {
    bed.stop_programmer(1)?;
    start(bed, make)
}

fn start(bed: &mut Bed, make: Make) -> Result<()> {
    bed.options.programmer = make;
    bed.start_programmer(1, &[])?;
    await_rules(bed, make)
}

fn no_client_notices_who_programs_its_node(bed: &mut Bed) -> Result<()> {
    let load = up(bed)?;
    for make in [Make::Ours, Make::Genuine, Make::Ours, Make::Ours, Make::Genuine] {
        replace(bed, make)?;
        // What is programmed by then is what the programmer of the moment makes of it.
        bed.await_servers(
            From::Pod("client"),
            fairlead_e2e::Protocol::Tcp,
            SocketAddr::new(bed.cluster_ip("a")?, 80),
            &PODS,
        )?;
    }
    let report = load.finish()?;
    println!("{report}");
    report.check()
}

fn no_client_notices_a_crash_of_the_programmer(bed: &mut Bed) -> Result<()> {
    replace(bed, Make::Ours)?;
    let load = up(bed)?;
    for _ in 0..3 {
        bed.programmer(1)?.process().kill()?;
        start(bed, Make::Ours)?;
    }
    replace(bed, Make::Genuine)?;
    let report = load.finish()?;
    println!("{report}");
    report.check()
}
