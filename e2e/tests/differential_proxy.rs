//! The compiler against the genuine kube-proxy, on random Services, slices and settings, by real packets through both
//! kernels and by the tracer: 300 moments, of which 140 are on legacy iptables.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use fairlead_compiler::{Detector, Dump, Match, wellknown};
use fairlead_e2e::{
    Bed, Options, cases,
    differential::proxy::{self, Extent, Fault, Settings},
    plan::Families,
    programs::{Make, Variant},
    suite,
};

fn main() -> ExitCode {
    let options =
        || Ok(Options { families: Families::DualStack, programmer: Make::Genuine, ..Options::from_env()? });
    suite::run_on(
        options,
        |_| Ok(()),
        cases![
            odd_shapes_fare_as_under_kube_proxy,
            odd_shapes_fare_as_under_kube_proxy_on_legacy,
            a_difference_is_found_and_told,
            a_source_that_is_not_rewritten_is_noticed,
            a_wrong_target_is_noticed,
            a_tracer_that_overlooks_a_match_is_noticed,
            packets_fare_as_under_kube_proxy,
            packets_fare_as_under_kube_proxy_on_legacy,
            packets_fare_as_under_kube_proxy_with_masquerade_all_and_few_node_port_addresses,
            packets_fare_as_under_kube_proxy_with_masquerade_all_and_few_node_port_addresses_on_legacy,
            packets_fare_as_under_kube_proxy_with_a_bridge_and_without_bpf,
            packets_fare_as_under_kube_proxy_with_a_bridge_and_without_bpf_on_legacy,
        ],
    )
}

/// As a cluster has it that says nothing.
const PLAIN: Settings = Settings { flags: &[], config: |_| {}, variant: Variant::Nft, fault: Fault::None };

const FEW_ADDRESSES: Settings = Settings {
    flags: &[
        "--masquerade-all",
        "--nodeport-addresses=172.30.0.0/24",
        "--iptables-localhost-nodeports=false",
        "--cluster-cidr=10.244.0.0/16",
    ],
    config: |config| {
        // Pods cannot be told from others by their IPv6 addresses.
        config.detector = Detector::Cidr(ipnet::Ipv4Net::new_assert([10, 244, 0, 0].into(), 16).into());
        config.masquerade_all = true;
        config.node_port_addresses.extend("172.30.0.0/24".parse::<ipnet::IpNet>());
        config.localhost_node_ports = false;
    },
    ..PLAIN
};

const BRIDGE: Settings = Settings {
    flags: &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"],
    config: |config| {
        config.detector = Detector::Bridge("cbr0".into());
        // The fall-back for kernels without xt_bpf.
        config.bpf = false;
    },
    ..PLAIN
};

const fn legacy(settings: Settings) -> Settings {
    Settings { variant: Variant::Legacy, ..settings }
}

fn compare(bed: &mut Bed, settings: Settings, seed: u64, states: usize) -> Result<()> {
    let extent = Extent::from_env(seed, states)?;
    let report = proxy::run(bed, settings, extent)?;
    println!("seed {}: {report:?}", extent.seed);
    Ok(())
}

/// Fails unless a run of one moment tells all of these.
fn check_told(bed: &mut Bed, settings: Settings, parts: &[&str]) -> Result<()> {
    let told = proxy::run(bed, settings, Extent { seed: 1, states: 1 });
    let told = told.map_or_else(|error| format!("{error:#}"), |_| "no difference".to_owned());
    for part in parts {
        ensure!(told.contains(part), "{part:?} is missing in {told:?}");
    }
    Ok(())
}

fn odd_shapes(bed: &mut Bed, settings: Settings) -> Result<()> {
    let report = proxy::run_odd_shapes(bed, settings)?;
    println!("{report:?}");
    Ok(())
}

fn odd_shapes_fare_as_under_kube_proxy(bed: &mut Bed) -> Result<()> {
    odd_shapes(bed, PLAIN)
}

fn odd_shapes_fare_as_under_kube_proxy_on_legacy(bed: &mut Bed) -> Result<()> {
    odd_shapes(bed, legacy(PLAIN))
}

/// What the other cases say is worth no more than this and the next three.
fn a_difference_is_found_and_told(bed: &mut Bed) -> Result<()> {
    let settings = Settings { config: |config| config.masquerade_all = true, ..PLAIN };
    let parts = ["FAIRLEAD_SEED=1", "kube-proxy: accepted", "ours: accepted", "masqueraded", "cluster IP"];
    check_told(bed, settings, &parts)
}

/// The kernel lacks the rule that rewrites sources, of which the tracer knows.
fn a_source_that_is_not_rewritten_is_noticed(bed: &mut Bed) -> Result<()> {
    // The last of four: those that come back to where they came from, those without mark, the mark's removal, and this.
    let fault = Fault::Kernel(&["-w", "-t", "nat", "-D", wellknown::POSTROUTING, "4"]);
    let parts =
        ["our: the kernel and the tracer disagree", "tracer: accepted", "masqueraded", "kernel: left by"];
    check_told(bed, Settings { fault, ..PLAIN }, &parts)
}

/// The kernel leads clients elsewhere than its rules did when they were read.
fn a_wrong_target_is_noticed(bed: &mut Bed) -> Result<()> {
    let fault = Fault::Kernel(&[
        "-w",
        "-t",
        "nat",
        "-I",
        "PREROUTING",
        "-p",
        "tcp",
        "-j",
        "DNAT",
        "--to-destination",
        "10.244.3.99:9",
    ]);
    let parts = ["our: the kernel and the tracer disagree", "-> 10.244.3.99:9"];
    check_told(bed, Settings { fault, ..PLAIN }, &parts)
}

/// The tracer takes every source for one that a rule asks for.
fn a_tracer_that_overlooks_a_match_is_noticed(bed: &mut Bed) -> Result<()> {
    fn overlook(dump: &mut Dump) {
        let chains = dump.tables.values_mut().flat_map(|chains| chains.values_mut());
        for rule in chains.flat_map(|chain| &mut chain.rules) {
            rule.matches.retain(|condition| !matches!(condition, Match::Source { .. }));
        }
    }
    let parts = ["the kernel and the tracer disagree"];
    check_told(bed, Settings { fault: Fault::Tracer(overlook), ..PLAIN }, &parts)
}

fn packets_fare_as_under_kube_proxy(bed: &mut Bed) -> Result<()> {
    compare(bed, PLAIN, 1, 100)
}

fn packets_fare_as_under_kube_proxy_on_legacy(bed: &mut Bed) -> Result<()> {
    compare(bed, legacy(PLAIN), 4, 80)
}

fn packets_fare_as_under_kube_proxy_with_masquerade_all_and_few_node_port_addresses(
    bed: &mut Bed,
) -> Result<()> {
    compare(bed, FEW_ADDRESSES, 2, 30)
}

fn packets_fare_as_under_kube_proxy_with_masquerade_all_and_few_node_port_addresses_on_legacy(
    bed: &mut Bed,
) -> Result<()> {
    compare(bed, legacy(FEW_ADDRESSES), 5, 30)
}

fn packets_fare_as_under_kube_proxy_with_a_bridge_and_without_bpf(bed: &mut Bed) -> Result<()> {
    compare(bed, BRIDGE, 3, 30)
}

fn packets_fare_as_under_kube_proxy_with_a_bridge_and_without_bpf_on_legacy(bed: &mut Bed) -> Result<()> {
    compare(bed, legacy(BRIDGE), 6, 30)
}
