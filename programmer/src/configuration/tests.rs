//! Files as people and kubeadm write them.

use super::*;
use crate::validation::{self, Host, Source};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn parsed(fields: &str) -> ConfigurationFile {
    ConfigurationFile::parse(Path::new("p.yaml"), format!("{HEAD}{fields}")).unwrap()
}

fn refused(text: &str) -> String {
    ConfigurationFile::parse(Path::new("p.yaml"), text.to_owned()).unwrap_err().to_string()
}

/// What `kube-proxy --write-config-to` writes for an empty configuration of mode iptables.
const DEFAULTS: &str = include_str!("../../tests/fixtures/kube-proxy-defaults.yaml");

#[test]
fn effective_configuration_of_nothing_is_kube_proxys_but_for_the_adaptive_minimum() {
    let configuration = KubeProxyConfiguration::default();
    let host = Host { name: "node-a", ..Host::default() };
    let settings = validation::settings(&configuration, &Source::File("x".into()), host).unwrap();
    let effective = serde_json::to_value(settings.effective(&configuration)).unwrap();
    let mut expected: Value = serde_saphyr::from_str(DEFAULTS).unwrap();
    expected["iptables"]["minSyncPeriod"] = "0s".into();
    // The one is what was configured, the other what is in force.
    expected["hostnameOverride"] = "node-a".into();
    expected["clientConnection"]["qps"] = 5.0.into();
    assert_eq!(effective, expected);
}

#[test]
fn kube_proxys_defaults_are_read_without_any_warning() {
    let file = ConfigurationFile::parse(Path::new("p.yaml"), DEFAULTS.to_owned()).unwrap();
    assert_eq!(file.warnings, Vec::<String>::new());
    assert_eq!(file.configuration.iptables.min_sync_period.as_deref(), Some("1s"));
}

#[test]
fn configuration_of_kubeadm_is_read_without_any_warning() {
    let file = parsed(
        "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclientConnection:\n  acceptContentTypes: \"\"\n  burst: 0\n  \
         contentType: \"\"\n  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n  qps: 0\nclusterCIDR: 10.244.0.0/16\n\
         configSyncPeriod: 0s\nconntrack:\n  maxPerCore: null\n  min: null\n  tcpBeLiberal: false\n  \
         tcpCloseWaitTimeout: null\n  tcpEstablishedTimeout: null\n  udpStreamTimeout: 0s\n  udpTimeout: 0s\n\
         detectLocal:\n  bridgeInterface: \"\"\n  interfaceNamePrefix: \"\"\ndetectLocalMode: \"\"\n\
         enableProfiling: false\nhealthzBindAddress: \"\"\nhostnameOverride: \"\"\niptables:\n  \
         localhostNodePorts: null\n  masqueradeAll: false\n  masqueradeBit: null\n  minSyncPeriod: 0s\n  \
         syncPeriod: 0s\nipvs:\n  excludeCIDRs: null\n  minSyncPeriod: 0s\n  scheduler: \"\"\n  strictARP: false\n  \
         syncPeriod: 0s\n  tcpFinTimeout: 0s\n  tcpTimeout: 0s\n  udpTimeout: 0s\nlogging:\n  flushFrequency: 0\n  \
         options:\n    json:\n      infoBufferSize: \"0\"\n    text:\n      infoBufferSize: \"0\"\n  verbosity: 0\n\
         metricsBindAddress: \"\"\nmode: \"\"\nnftables:\n  masqueradeAll: false\n  masqueradeBit: null\n  \
         minSyncPeriod: 0s\n  syncPeriod: 0s\nnodePortAddresses: null\noomScoreAdj: null\nportRange: \"\"\n\
         showHiddenMetricsForVersion: \"\"\nwinkernel:\n  enableDSR: false\n  forwardHealthCheckVIP: false\n  \
         networkName: \"\"\n  rootHnsEndpointName: \"\"\n  sourceVip: \"\"\n",
    );
    // kubeadm's own spelling of this one field is not the one of the API.
    let warnings: Vec<_> =
        file.warnings.iter().filter(|warning| !warning.contains("forwardHealthCheckVIP")).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(file.configuration.cluster_cidr.as_deref(), Some("10.244.0.0/16"));
    let kubeconfig = file.configuration.client_connection.kubeconfig.as_deref();
    assert_eq!(kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf"));
}

#[test]
fn unknown_and_repeated_fields_are_warned_about_and_the_rest_is_used() {
    let file = parsed("iptables: {masqueradeBits: 3, masqueradeAll: true}\nclusterCIRD: 10.0.0.0/8\n");
    assert_eq!(
        file.warnings,
        [
            "using lenient decoding: unknown field clusterCIRD (did you mean clusterCIDR?)",
            "using lenient decoding: unknown field iptables.masqueradeBits (did you mean iptables.masqueradeBit?)"
        ]
    );
    assert_eq!(file.configuration.iptables.masquerade_all, Some(true));
    let file = parsed("clusterCIDR: 10.0.0.0/8\nclusterCIDR: 11.0.0.0/8\n");
    assert!(
        file.warnings[0].contains("lenient") && file.warnings[0].contains("clusterCIDR"),
        "{:?}",
        file.warnings
    );
    assert_eq!(file.configuration.cluster_cidr.as_deref(), Some("11.0.0.0/8"));
}

#[test]
fn field_in_the_wrong_place_is_told_its_place() {
    let file = parsed("scheduler: rr\nminSyncPeriods: 1s\nzzz: 1\n");
    let told = file.warnings.join("\n");
    for meant in ["scheduler (did you mean ipvs.scheduler?)", "minSyncPeriod?)", "unknown field zzz"] {
        assert!(told.contains(meant), "{meant}: {told}");
    }
    assert!(!told.contains("zzz (did"), "{told}");
}

#[test]
fn what_does_not_apply_is_warned_about_by_name() {
    let file = parsed(
        "mode: ipvs\nipvs: {scheduler: rr, syncPeriod: 10s}\nwinkernel: {enableDSR: true}\nconfigSyncPeriod: 1m\n",
    );
    assert_eq!(
        file.warnings,
        [
            "these fields do not apply and have no effect: configSyncPeriod, ipvs.scheduler, winkernel.enableDSR",
            "mode ipvs is not implemented: running iptables"
        ]
    );
}

#[test]
fn other_files_and_wrong_types_are_refused_with_the_reason() {
    let text = refused("apiVersion: v1\nkind: ConfigMap\n");
    assert_eq!(text, "p.yaml: apiVersion is \"v1\"; expected kubeproxy.config.k8s.io/v1alpha1");
    let text = refused(&format!("{HEAD}conntrack: {{min: many}}\n"));
    assert!(text.contains("p.yaml: conntrack.min: invalid type: string \"many\""), "{text}");
    assert!(refused("{").contains("p.yaml"));
    let missing = ConfigurationFile::read(Path::new("/nonexistent")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent"));
}

#[tokio::test(start_paused = true)]
async fn change_of_the_files_content_is_noticed_and_a_new_date_is_not() {
    let path = std::env::temp_dir().join(format!("fairlead-config-{}.yaml", std::process::id()));
    fs::write(&path, HEAD).unwrap();
    let file = ConfigurationFile::read(&path).unwrap();
    let change = tokio::spawn(async move { file.changed().await });
    fs::write(&path, HEAD).unwrap();
    tokio::time::sleep(POLL * 3).await;
    assert!(!change.is_finished());
    fs::write(&path, format!("{HEAD}mode: iptables\n")).unwrap();
    change.await.unwrap();
    fs::remove_file(path).unwrap();
}
