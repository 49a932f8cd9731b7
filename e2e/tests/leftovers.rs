//! A node that kube-proxy served in mode nftables, taken over by our programmer with the same configuration: that mode's
//! tables go when our rules are there, and no client notices.

use std::{
    net::SocketAddr,
    process::{Command, ExitCode},
};

use anyhow::{Result, ensure};
use fairlead_e2e::{
    Bed, From, Options, Protocol,
    bed::SETTLE,
    cases,
    load::{Load, NODE_PORT, PODS, serve},
    programs::{Make, Variant},
    suite, wait,
};

/// As kube-proxy's flag or configuration names it; ours takes it for what it replaces.
const MODE: &str = "--proxy-mode=nftables";
const TABLES: [&str; 2] = ["table ip kube-proxy", "table ip6 kube-proxy"];

fn main() -> ExitCode {
    let suite = |variant| {
        let options = move || Ok(Options { programmer: Make::Genuine, variant, ..Options::from_env()? });
        suite::run_on(options, Bed::start_programs, cases![tables_of_mode_nftables_go_and_no_client_notices])
    };
    let codes = [suite(Variant::Nft), suite(Variant::Legacy)];
    if codes == [ExitCode::SUCCESS; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn load(bed: &Bed, cluster_ip: SocketAddr) -> Result<Load> {
    let node_port = SocketAddr::new(bed.node(1)?.addresses.v4.into(), NODE_PORT);
    let mut load = Load::new();
    for (name, from, target) in [
        ("Pod", From::Pod("client"), cluster_ip),
        ("node", From::Node(1), cluster_ip),
        ("outside", From::Outside, node_port),
    ] {
        load.add(name, bed.namespace(from)?, target)?;
    }
    Ok(load)
}

fn replace(bed: &mut Bed, make: Make) -> Result<()> {
    bed.stop_programmer(1)?;
    bed.options.programmer = make;
    bed.start_programmer(1, &[MODE])
}

fn tables(bed: &Bed) -> Result<Vec<String>> {
    let listed = bed.node_netns(1)?.output(Command::new("nft").args(["list", "tables"]))?;
    Ok(listed.lines().filter(|table| TABLES.contains(table)).map(str::to_owned).collect())
}

fn table(bed: &Bed) -> Result<String> {
    bed.node_netns(1)?.output(Command::new("nft").args(["list", "table", "ip", "kube-proxy"]))
}

fn tables_of_mode_nftables_go_and_no_client_notices(bed: &mut Bed) -> Result<()> {
    let cluster_ip = serve(bed)?;
    replace(bed, Make::Genuine)?;
    // (The tracer knows rules of iptables only, so nobody is asked through kube-proxy's tables but by the load.)
    let what = "the Service in kube-proxy's tables, and none of its chains of mode iptables";
    wait::until_ok(what, SETTLE, || {
        let (table, chains) = (table(bed)?, bed.rules_about(1, "KUBE-SVC-")?);
        let mut pods = PODS.into_iter().map(|pod| Ok(bed.pod(pod)?.addresses.v4.to_string()));
        let served =
            pods.all(|ip: Result<String>| ip.is_ok_and(|ip| table.contains(&format!(" {ip} . 8080"))));
        ensure!(served && table.contains(&NODE_PORT.to_string()) && chains.is_empty(), "{table} {chains:?}");
        Ok(())
    })?;
    let load = load(bed, cluster_ip)?;
    replace(bed, Make::Ours)?;
    wait::until_ok("our rules, and no tables of kube-proxy", SETTLE, || {
        let (tables, ours) = (tables(bed)?, bed.rules_about(1, "-m bpf")?);
        ensure!(tables.is_empty() && !ours.is_empty(), "{tables:?} {ours:?}");
        Ok(())
    })?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        bed.await_servers(From::Pod("client"), protocol, cluster_ip, &PODS)?;
    }
    let report = load.finish()?;
    println!("{report}");
    report.check()
}
