//! The compiler against the genuine kube-proxy, on random Services, slices and settings.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use fairlead_compiler::Detector;
use fairlead_e2e::{
    Bed, Options, cases,
    differential::proxy::{self, Extent, Fault, Settings},
    plan::Families,
    programs::{Make, Variant},
    suite,
};

const PLAIN: Settings =
    Settings { flags: &[], config: |_| {}, variant: Variant::Nft, fault: Fault::None };

fn main() -> ExitCode {
    let options =
        || Ok(Options { families: Families::DualStack, programmer: Make::Genuine, ..Options::from_env()? });
    suite::run_on(
        options,
        |_| Ok(()),
        cases![
            odd_shapes_fare_as_under_kube_proxy,
            a_difference_is_found_and_told,
            packets_fare_as_under_kube_proxy,
            packets_fare_as_under_kube_proxy_with_masquerade_all_and_few_node_port_addresses,
            packets_fare_as_under_kube_proxy_with_a_bridge_and_without_bpf,
        ],
    )
}

fn compare(bed: &mut Bed, settings: Settings, seed: u64, states: usize) -> Result<()> {
    let extent = Extent::from_env(seed, states)?;
    let report = proxy::run(bed, settings, extent)?;
    println!("seed {}: {report:?}", extent.seed);
    Ok(())
}

fn odd_shapes_fare_as_under_kube_proxy(bed: &mut Bed) -> Result<()> {
    let report = proxy::run_odd_shapes(bed, PLAIN)?;
    println!("{report:?}");
    Ok(())
}

/// What the other cases say is worth no more than this.
fn a_difference_is_found_and_told(bed: &mut Bed) -> Result<()> {
    let settings = Settings { config: |config| config.masquerade_all = true, ..PLAIN };
    let told = proxy::run(bed, settings, Extent { seed: 1, states: 1 })
        .map_or_else(|e| format!("{e:#}"), |_| String::new());
    let parts = ["FAIRLEAD_SEED=1", "kube-proxy: accepted", "ours: accepted", "masqueraded", "cluster IP"];
    for part in parts {
        ensure!(told.contains(part), "{part:?} is missing in {told:?}");
    }
    Ok(())
}

fn packets_fare_as_under_kube_proxy(bed: &mut Bed) -> Result<()> {
    compare(bed, PLAIN, 1, 60)
}

fn packets_fare_as_under_kube_proxy_with_masquerade_all_and_few_node_port_addresses(
    bed: &mut Bed,
) -> Result<()> {
    let settings = Settings {
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
    compare(bed, settings, 2, 25)
}

fn packets_fare_as_under_kube_proxy_with_a_bridge_and_without_bpf(bed: &mut Bed) -> Result<()> {
    let settings = Settings {
        flags: &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"],
        config: |config| {
            config.detector = Detector::Bridge("cbr0".into());
            // The fall-back for kernels without xt_bpf.
            config.bpf = false;
        },
        ..PLAIN
    };
    compare(bed, settings, 3, 25)
}
