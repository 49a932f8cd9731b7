//! Flags, down to the settings that they lead to.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::*;
use crate::{
    settings::{NodePortAddresses, Settings},
    validation::{self, Host, Source},
};

#[derive(Parser)]
#[command(args_override_self = true)]
struct Command {
    #[command(flatten)]
    client: ClientFlags,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    _inapplicable: InapplicableFlags,
}

fn parsed(arguments: &[&str]) -> (Flags, ClientFlags, WithoutEffect) {
    let matches = Command::command().get_matches_from(["fairlead-programmer"].iter().chain(arguments));
    let command = Command::from_arg_matches(&matches).unwrap();
    (command.flags, command.client, WithoutEffect::of(&matches))
}

fn settings(arguments: &[&str]) -> Result<Settings, Vec<String>> {
    let (flags, client, _) = parsed(arguments);
    let host = Host { name: " Node-A\n", override_name: flags.host_name(), variant: flags.variant() };
    validation::settings(&flags.configuration(&client), &Source::Flags, host)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn flags_have_the_same_defaults_as_a_file() {
    let host = Host { name: "node-a", ..Host::default() };
    let file = Source::File("x".into());
    let of_file = validation::settings(&KubeProxyConfiguration::default(), &file, host).unwrap();
    // The program's own defaults for these two are kube-proxy's.
    assert_eq!(settings(&["--kube-api-qps=5", "--kube-api-burst=10"]).unwrap(), of_file);
}

#[test]
fn every_problem_is_reported_at_once_by_its_flag() {
    let problems = settings(&[
        "--bind-address=x",
        "--healthz-bind-address=1.2.3.4:0",
        "--metrics-bind-address=here",
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
fn empty_address_or_port_0_disables_a_server() {
    for flags in
        [["--healthz-bind-address=", "--metrics-bind-address="], ["--healthz-port=0", "--metrics-port=0"]]
    {
        let settings = settings(&flags).unwrap();
        assert_eq!((settings.health_address, settings.metrics_address), (None, None));
    }
}

#[test]
fn deprecated_port_goes_to_an_address_without_one() {
    let address = |flags: &[&str]| settings(flags).unwrap().health_address.unwrap().to_string();
    assert_eq!(address(&["--healthz-port=7", "--healthz-bind-address=1.2.3.4"]), "1.2.3.4:7");
    assert_eq!(address(&["--healthz-port=7", "--healthz-bind-address=fd00::1"]), "[fd00::1]:7");
    assert_eq!(address(&["--healthz-port=7", "--healthz-bind-address=1.2.3.4:8"]), "1.2.3.4:8");
    assert_eq!(address(&["--healthz-port=7"]), "0.0.0.0:10256");
    let (_, _, without) = parsed(&["--healthz-port=7"]);
    assert_eq!(without.deprecated, ["--healthz-port"]);
}

#[test]
fn names_values_and_repetitions_are_read_as_go_does() {
    let given = ["x", "--bind_address=a_b", "-v", "--oom_score_adj", "3_4"].map(OsString::from);
    assert_eq!(arguments(given), ["x", "--bind-address=a_b", "-v", "--oom-score-adj", "3_4"]);
    let flags = [
        "--masquerade-all=T",
        "--iptables-localhost-nodeports=0",
        "--nodeport-addresses=10.0.0.0/8",
        "--nodeport-addresses=fd00::/8",
        "--oom-score-adj=1",
        "--oom-score-adj=2",
    ];
    let settings = settings(&flags).unwrap();
    assert!(settings.masquerade_all && !settings.localhost_node_ports);
    assert!(
        matches!(settings.node_port_addresses, NodePortAddresses::Networks(networks) if networks.len() == 2)
    );
    assert_eq!(settings.oom_score_adj, 2);
}

#[test]
fn sync_periods_of_mode_ipvs_have_their_own_flags() {
    let flags = ["--proxy-mode=ipvs", "--ipvs-sync-period=20s", "--ipvs-min-sync-period=3s"];
    let settings = settings(&flags).unwrap();
    assert_eq!((settings.sync_period.as_secs(), settings.min_sync_period.as_secs()), (20, 3));
    assert!(parsed(&flags).2.inapplicable.is_empty());
    assert_eq!(parsed(&flags[1..2]).2.inapplicable, ["--ipvs-sync-period"]);
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
    let (_, _, without) = parsed(&["--ipvs-scheduler=rr", "-v=4", "--vmodule=x=1", "--masquerade-all"]);
    assert_eq!(without.inapplicable, ["--ipvs-scheduler", "--vmodule"]);
    assert!(without.overridden.is_empty());
    let (_, _, without) = parsed(&["--config=x", "--hostname-override=n", "--masquerade-all", "--cleanup"]);
    assert_eq!(without.overridden, ["--masquerade-all"]);
}
