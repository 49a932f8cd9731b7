//! Configurations of files, down to settings.

use serde_json::{Value, json};

use super::*;

#[allow(clippy::unwrap_in_result, reason = "a test's file has the right types")]
fn read(file: Value) -> Result<Settings, Vec<String>> {
    let configuration: KubeProxyConfiguration = serde_json::from_value(file).unwrap();
    let host = Host { name: " Node-A\n", ..Host::default() };
    settings(&configuration, &Source::File("/etc/proxy.yaml".into()), host)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn defaults_are_those_of_kube_proxy_except_for_the_adaptive_minimum() {
    let settings = read(json!({})).unwrap();
    assert_eq!(settings.node_name, "node-a");
    assert_eq!(settings.health_address, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(settings.metrics_address, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!((settings.sync_period, settings.min_sync_period), (Duration::from_secs(30), Duration::ZERO));
    assert_eq!((settings.masquerade_bit, settings.masquerade_all), (14, false));
    assert!(settings.localhost_node_ports);
    assert_eq!(settings.detect_local, DetectLocal::ClusterCidr(Vec::new()));
    assert_eq!(settings.node_port_addresses, NodePortAddresses::Networks(Vec::new()));
    assert_eq!(settings.conntrack.tcp_established, Some(Duration::from_hours(24)));
    assert_eq!((settings.conntrack.udp, settings.conntrack.max_per_core), (None, 32_768));
    assert_eq!(settings.oom_score_adj, -999);
}

#[test]
fn problems_name_file_and_field() {
    let problems =
        read(json!({"iptables": {"masqueradeBit": 40, "syncPeriod": "x"}, "conntrack": {"min": -1}}));
    assert_eq!(
        problems.unwrap_err(),
        [
            "/etc/proxy.yaml: iptables.syncPeriod \"x\": expected a duration such as 30s, 1m30s or 500ms",
            "/etc/proxy.yaml: iptables.masqueradeBit \"40\": expected a number from 0 to 31",
            "/etc/proxy.yaml: conntrack.min \"-1\": expected a number from 0",
        ]
    );
}

#[test]
fn flag_wins_over_the_hosts_name_in_the_file() {
    let configuration = KubeProxyConfiguration {
        hostname_override: Some("file".to_owned()),
        ..KubeProxyConfiguration::default()
    };
    let source = Source::File("x".into());
    let name = |override_name| {
        let host = Host { name: "host", override_name, variant: None };
        settings(&configuration, &source, host).unwrap().node_name
    };
    assert_eq!(name(None), "file");
    assert_eq!(name(Some("Flag ")), "flag");
}

#[test]
fn interface_modes_need_their_interface() {
    for mode in ["BridgeInterface", "InterfaceNamePrefix"] {
        assert_eq!(read(json!({"detectLocalMode": mode})).unwrap_err().len(), 1);
    }
    let file = json!({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}});
    assert_eq!(read(file).unwrap().detect_local, DetectLocal::Bridge("cni0".to_owned()));
}

#[test]
fn address_alone_gets_the_usual_port_and_ipv6_moves_the_defaults() {
    let settings = read(json!({"metricsBindAddress": "0.0.0.0"})).unwrap();
    assert_eq!(settings.metrics_address, Some("0.0.0.0:10249".parse().unwrap()));
    let settings = read(json!({"bindAddress": "fd00::1", "healthzBindAddress": ""})).unwrap();
    assert_eq!(settings.health_address, Some("[::]:10256".parse().unwrap()));
    assert_eq!(settings.metrics_address, Some("[::1]:10249".parse().unwrap()));
}

#[test]
fn logs_and_the_pace_of_requests_are_checked_and_0_is_the_default_in_a_file() {
    let settings = read(json!({"clientConnection": {"qps": 0, "burst": 0}})).unwrap();
    assert_eq!((settings.api_rate, settings.log), ((5.0, 10), LogSettings::default()));
    let file =
        json!({"clientConnection": {"qps": 7.5, "burst": 3}, "logging": {"format": "json", "verbosity": 4}});
    let settings = read(file).unwrap();
    assert_eq!((settings.api_rate, settings.log), ((7.5, 3), LogSettings { json: true, verbosity: 4 }));
    let problems =
        read(json!({"clientConnection": {"burst": -1}, "logging": {"format": "xml", "verbosity": -1}}));
    let problems = problems.unwrap_err();
    for field in ["clientConnection.burst \"-1\"", "logging.format \"xml\"", "logging.verbosity \"-1\""] {
        assert!(problems.iter().any(|problem| problem.contains(field)), "{field}: {problems:?}");
    }
}

#[test]
fn settings_of_the_chosen_mode_are_taken_over() {
    let file = json!({"mode": "nftables", "iptables": {"masqueradeAll": false, "masqueradeBit": 3},
        "nftables": {"masqueradeAll": true, "masqueradeBit": 5, "minSyncPeriod": "2s"}});
    let settings = read(file).unwrap();
    assert_eq!((settings.masquerade_all, settings.masquerade_bit), (true, 5));
    assert_eq!(settings.min_sync_period, Duration::from_secs(2));
    assert_eq!(settings.unavailable_mode, Some("nftables"));
}
