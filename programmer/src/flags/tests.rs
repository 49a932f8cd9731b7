//! Flags, down to the settings that they lead to.

use clap::{CommandFactory, FromArgMatches, Parser};

use super::*;
use crate::{
    settings::{NodePortAddresses, Settings},
    validation::{self, Host, Source},
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    _inapplicable: InapplicableFlags,
}

fn parsed(arguments: &[&str]) -> (Flags, WithoutEffect) {
    let matches = Command::command().get_matches_from(["fairlead-programmer"].iter().chain(arguments));
    let command = Command::from_arg_matches(&matches).unwrap();
    (command.flags, WithoutEffect::of(&matches))
}

fn settings(arguments: &[&str]) -> Result<Settings, Vec<String>> {
    let (flags, _) = parsed(arguments);
    let host = Host { name: " Node-A\n", override_name: flags.host_name(), variant: flags.variant() };
    validation::settings(&flags.configuration(), &Source::Flags, host)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn flags_have_the_same_defaults_as_a_file() {
    let host = Host { name: "node-a", ..Host::default() };
    let file = Source::File("x".into());
    let of_file = validation::settings(&KubeProxyConfiguration::default(), &file, host).unwrap();
    assert_eq!(settings(&[]).unwrap(), of_file);
}

#[test]
fn every_problem_is_reported_at_once_by_its_flag() {
    let problems = settings(&[
        "--bind-address=x",
        "--healthz-bind-address=1.2.3.4:0",
        "--metrics-bind-address=",
        "--iptables-masquerade-bit=32",
        "--cluster-cidr=10.0.0.0/8,11.0.0.0/8",
        "--nodeport-addresses=primary,10.0.0.0/8",
        "--iptables-min-sync-period=1m",
        "--proxy-mode=userspace",
        "--conntrack-udp-timeout=soon",
        "--oom-score-adj=-1001",
    ])
    .unwrap_err();
    assert_eq!(problems.len(), 10, "{problems:#?}");
    assert!(
        problems.contains(
            &"--iptables-min-sync-period \"1m\": expected at most the sync period (30s)".to_owned()
        ),
        "{problems:#?}"
    );
}

#[test]
fn booleans_are_written_as_go_does() {
    let settings = settings(&["--masquerade-all", "--iptables-localhost-nodeports=false"]).unwrap();
    assert!(settings.masquerade_all && !settings.localhost_node_ports);
}

#[test]
fn empty_address_disables_the_health_server() {
    assert_eq!(settings(&["--healthz-bind-address="]).unwrap().health_address, None);
}

#[test]
fn primary_and_networks_are_told_apart() {
    assert_eq!(
        settings(&["--nodeport-addresses=primary"]).unwrap().node_port_addresses,
        NodePortAddresses::Primary
    );
    let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    assert_eq!(
        settings(&["--nodeport-addresses=10.0.0.0/8, fd00::/8"]).unwrap().node_port_addresses,
        NodePortAddresses::Networks(networks)
    );
}

#[test]
fn flags_without_effect_are_named() {
    let (_, without) = parsed(&["--ipvs-scheduler=rr", "-v=4", "--masquerade-all"]);
    assert_eq!(without.inapplicable, ["--ipvs-scheduler", "--v"]);
    assert!(without.overridden.is_empty());
    let (_, without) = parsed(&["--config=x", "--hostname-override=n", "--masquerade-all", "--cleanup"]);
    assert_eq!(without.overridden, ["--masquerade-all"]);
}
