//! What kube-proxy v1.36.3 takes and gives, from records of the genuine program (`fixtures/`): its defaults, the fields of
//! its configuration, its flags, its metrics. Where ours differ on purpose, the difference is named here, and in
//! docs/differences.md.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use fairlead_daemon::metrics::Metrics as Registry;
use fairlead_objects::Family;
use fairlead_programmer::{
    census::Stranded,
    configuration::ConfigurationFile,
    health::Probe,
    metrics::Metrics,
    settings::Settings,
    validation::{self, Host, Source},
};
use serde_json::Value;

const DEFAULTS: &str = include_str!("fixtures/kube-proxy-defaults.yaml");
const FLAGS: &str = include_str!("fixtures/kube-proxy-flags.txt");
const METRICS: &str = include_str!("fixtures/metrics-iptables.txt");
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Defaults that are not kube-proxy's.
const OTHER_DEFAULTS: &[(&str, &str)] = &[
    // Adaptive.
    ("iptables.minSyncPeriod", "0s"),
];

/// A file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("fairlead-vector-{}-{number}.yaml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead-programmer")).args(arguments).output().unwrap()
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The effective configuration that the program prints, and its log.
fn dumped(arguments: &[&str]) -> (Value, String) {
    let output = run(&[arguments, &["--dump-config"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", log(&output));
    (serde_json::from_slice(&output.stdout).unwrap(), log(&output))
}

/// Paths and values of everything that is no block.
fn leaves(value: &Value) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    add_leaves(value, "", &mut leaves);
    leaves
}

fn add_leaves(value: &Value, path: &str, leaves: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                add_leaves(value, &path, leaves);
            }
        }
        Value::Number(number) => drop(leaves.insert(path.to_owned(), number.as_f64().unwrap().to_string())),
        Value::Null => drop(leaves.insert(path.to_owned(), "[]".to_owned())),
        Value::String(text) => drop(leaves.insert(path.to_owned(), text.clone())),
        other => drop(leaves.insert(path.to_owned(), other.to_string())),
    }
}

fn genuine_defaults() -> BTreeMap<String, String> {
    leaves(&serde_saphyr::from_str(DEFAULTS).unwrap())
}

#[test]
fn defaults_are_kube_proxys_but_for_the_named_ones() {
    let mut expected = genuine_defaults();
    for (path, value) in OTHER_DEFAULTS {
        let genuine = expected.insert((*path).to_owned(), (*value).to_owned()).unwrap();
        assert_ne!(genuine, *value, "{path} is not different any more");
    }
    let empty = File::new(HEAD);
    for arguments in [vec!["--config", empty.0.to_str().unwrap()], vec![]] {
        // What is written for other nodes does not name this one.
        let written = File::new("");
        let path = written.0.to_str().unwrap();
        let output = run(&[arguments.as_slice(), &["--write-config-to", path]].concat());
        assert!(output.status.success(), "{}", log(&output));
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(leaves(&serde_json::from_str(&text).unwrap()), expected, "{arguments:?}");
        // And it can be read.
        let (again, log) = dumped(&["--config", path, "--hostname-override=n"]);
        assert_eq!(log, "");
        expected.insert("hostnameOverride".to_owned(), "n".to_owned());
        assert_eq!(leaves(&again), expected);
        expected.insert("hostnameOverride".to_owned(), String::new());
    }
}

/// Every field, and a file in which it has another value than the default.
const FIELDS: &[(&str, &str)] = &[
    ("apiVersion", ""),
    ("kind", ""),
    ("bindAddress", "bindAddress: 192.0.2.1"),
    ("bindAddressHardFail", "bindAddressHardFail: true"),
    ("clientConnection.acceptContentTypes", "clientConnection: {acceptContentTypes: application/json}"),
    ("clientConnection.burst", "clientConnection: {burst: 11}"),
    ("clientConnection.contentType", "clientConnection: {contentType: application/json}"),
    ("clientConnection.kubeconfig", "clientConnection: {kubeconfig: /k}"),
    ("clientConnection.qps", "clientConnection: {qps: 6}"),
    ("clusterCIDR", "clusterCIDR: 10.0.0.0/8"),
    ("configSyncPeriod", "configSyncPeriod: 1m"),
    ("conntrack.maxPerCore", "conntrack: {maxPerCore: 1}"),
    ("conntrack.min", "conntrack: {min: 1}"),
    ("conntrack.tcpBeLiberal", "conntrack: {tcpBeLiberal: true}"),
    ("conntrack.tcpCloseWaitTimeout", "conntrack: {tcpCloseWaitTimeout: 1s}"),
    ("conntrack.tcpEstablishedTimeout", "conntrack: {tcpEstablishedTimeout: 1s}"),
    ("conntrack.udpStreamTimeout", "conntrack: {udpStreamTimeout: 1s}"),
    ("conntrack.udpTimeout", "conntrack: {udpTimeout: 1s}"),
    ("detectLocal.bridgeInterface", "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: b}"),
    (
        "detectLocal.interfaceNamePrefix",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: b}",
    ),
    ("detectLocalMode", "detectLocalMode: NodeCIDR"),
    ("enableProfiling", "enableProfiling: true"),
    ("featureGates.Other", "featureGates: {Other: true}"),
    ("healthzBindAddress", "healthzBindAddress: 127.0.0.1:1"),
    ("hostnameOverride", "hostnameOverride: other"),
    ("iptables.localhostNodePorts", "iptables: {localhostNodePorts: false}"),
    ("iptables.masqueradeAll", "iptables: {masqueradeAll: true}"),
    ("iptables.masqueradeBit", "iptables: {masqueradeBit: 15}"),
    ("iptables.minSyncPeriod", "iptables: {minSyncPeriod: 2s}"),
    ("iptables.syncPeriod", "iptables: {syncPeriod: 31s}"),
    ("ipvs.excludeCIDRs", "ipvs: {excludeCIDRs: [10.0.0.0/8]}"),
    ("ipvs.minSyncPeriod", "ipvs: {minSyncPeriod: 2s}"),
    ("ipvs.scheduler", "ipvs: {scheduler: rr}"),
    ("ipvs.strictARP", "ipvs: {strictARP: true}"),
    ("ipvs.syncPeriod", "ipvs: {syncPeriod: 31s}"),
    ("ipvs.tcpFinTimeout", "ipvs: {tcpFinTimeout: 1s}"),
    ("ipvs.tcpTimeout", "ipvs: {tcpTimeout: 1s}"),
    ("ipvs.udpTimeout", "ipvs: {udpTimeout: 1s}"),
    ("logging.flushFrequency", "logging: {flushFrequency: 1s}"),
    ("logging.format", "logging: {format: json}"),
    ("logging.options.json.infoBufferSize", "logging: {options: {json: {infoBufferSize: 1Ki}}}"),
    ("logging.options.text.infoBufferSize", "logging: {options: {text: {infoBufferSize: 1Ki}}}"),
    ("logging.verbosity", "logging: {verbosity: 1}"),
    ("logging.vmodule", "logging: {vmodule: [{filePattern: x, verbosity: 1}]}"),
    ("metricsBindAddress", "metricsBindAddress: 127.0.0.1:1"),
    ("mode", "mode: nftables"),
    ("nftables.masqueradeAll", "nftables: {masqueradeAll: true}"),
    ("nftables.masqueradeBit", "nftables: {masqueradeBit: 15}"),
    ("nftables.minSyncPeriod", "nftables: {minSyncPeriod: 2s}"),
    ("nftables.syncPeriod", "nftables: {syncPeriod: 31s}"),
    ("nodePortAddresses", "nodePortAddresses: [primary]"),
    ("oomScoreAdj", "oomScoreAdj: -998"),
    ("portRange", "portRange: 1-2"),
    ("showHiddenMetricsForVersion", "showHiddenMetricsForVersion: \"1.35\""),
    ("windowsRunAsService", "windowsRunAsService: true"),
    ("winkernel.enableDSR", "winkernel: {enableDSR: true}"),
    ("winkernel.forwardHealthCheckVip", "winkernel: {forwardHealthCheckVip: true}"),
    ("winkernel.networkName", "winkernel: {networkName: net}"),
    ("winkernel.rootHnsEndpointName", "winkernel: {rootHnsEndpointName: net}"),
    ("winkernel.sourceVip", "winkernel: {sourceVip: 1.2.3.4}"),
];
/// Fields that are not written unless they are set.
const UNWRITTEN: [&str; 3] = ["featureGates.Other", "logging.vmodule", "windowsRunAsService"];

/// What the program works with, and what it says about the file.
fn settings(fields: &str) -> (Settings, Vec<String>) {
    let file = File::new(&format!("{HEAD}{fields}\n"));
    let read = ConfigurationFile::read(&file.0).unwrap();
    let host = Host { name: "node-a", ..Host::default() };
    let settings = validation::settings(&read.configuration, &Source::File("f".into()), host);
    (settings.unwrap(), read.warnings)
}

#[test]
fn every_field_changes_a_setting_or_is_named_in_a_warning() {
    let tried: BTreeSet<_> = FIELDS.iter().map(|(path, _)| (*path).to_owned()).collect();
    let known: BTreeSet<_> =
        genuine_defaults().into_keys().chain(UNWRITTEN.iter().map(|path| (*path).to_owned())).collect();
    assert_eq!(tried, known);
    let (defaults, silence) = settings("");
    assert_eq!(silence, [""; 0]);
    for (path, fields) in FIELDS.iter().filter(|(_, fields)| !fields.is_empty()) {
        let (settings, warnings) = settings(fields);
        let named = warnings.iter().any(|warning| warning.contains(path));
        assert!(settings != defaults || named, "{path} has no effect in silence: {warnings:?}");
        let unknown = warnings.iter().any(|warning| warning.contains("unknown"));
        assert!(!unknown, "{path} is not known: {warnings:?}");
        // The mode is both: what was asked for is remembered, to be told.
        assert!(settings == defaults || !named || *path == "mode", "{path} has an effect: {warnings:?}");
    }
}

/// Every flag, with another value than the default.
const FLAG_VALUES: &[(&str, &str)] = &[
    ("bind-address", "192.0.2.1"),
    ("bind-address-hard-fail", "true"),
    ("boot-id-file", "/x"),
    ("cleanup", "false"),
    ("cluster-cidr", "10.0.0.0/8"),
    ("config", ""),
    ("config-sync-period", "1m"),
    ("conntrack-max-per-core", "1"),
    ("conntrack-min", "1"),
    ("conntrack-tcp-be-liberal", "true"),
    ("conntrack-tcp-timeout-close-wait", "1s"),
    ("conntrack-tcp-timeout-established", "1s"),
    ("conntrack-udp-timeout", "1s"),
    ("conntrack-udp-timeout-stream", "1s"),
    ("detect-local-mode", "NodeCIDR"),
    ("feature-gates", "Other=true"),
    ("healthz-bind-address", "127.0.0.1:1"),
    ("healthz-port", "0"),
    ("help", ""),
    ("hostname-override", "other"),
    ("init-only", "false"),
    ("iptables-localhost-nodeports", "false"),
    ("iptables-masquerade-bit", "15"),
    ("iptables-min-sync-period", "2s"),
    ("iptables-sync-period", "31s"),
    ("ipvs-exclude-cidrs", "10.0.0.0/8"),
    ("ipvs-min-sync-period", "2s"),
    ("ipvs-scheduler", "rr"),
    ("ipvs-strict-arp", "true"),
    ("ipvs-sync-period", "31s"),
    ("ipvs-tcp-timeout", "1s"),
    ("ipvs-tcpfin-timeout", "1s"),
    ("ipvs-udp-timeout", "1s"),
    ("kube-api-burst", "11"),
    ("kube-api-content-type", "application/json"),
    ("kube-api-qps", "6"),
    ("kubeconfig", "/k"),
    ("log-flush-frequency", "1s"),
    ("log-json-info-buffer-size", "1Ki"),
    ("log-json-split-stream", "true"),
    ("log-text-info-buffer-size", "1Ki"),
    ("log-text-split-stream", "true"),
    ("logging-format", "json"),
    ("machine-id-file", "/x"),
    ("masquerade-all", "true"),
    ("master", "http://x"),
    ("metrics-bind-address", "127.0.0.1:1"),
    ("metrics-port", "0"),
    ("nodeport-addresses", "primary"),
    ("oom-score-adj", "-998"),
    ("pod-bridge-interface", "b"),
    ("pod-interface-name-prefix", "b"),
    ("profiling", "true"),
    ("proxy-mode", "nftables"),
    ("show-hidden-metrics-for-version", "1.35"),
    ("v", "1"),
    ("version", "false"),
    ("vmodule", "x=1"),
    ("write-config-to", ""),
];
/// Flags that say what to do, and not how; `master` is where to ask.
const COMMANDS: [&str; 7] =
    ["cleanup", "config", "help", "init-only", "master", "version", "write-config-to"];

/// Names and defaults of the genuine program.
fn genuine_flags() -> BTreeMap<&'static str, &'static str> {
    let lines = FLAGS.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once(':').unwrap()).collect()
}

#[test]
fn every_flag_changes_the_configuration_or_is_named_in_a_warning() {
    let tried: Vec<_> = FLAG_VALUES.iter().map(|(name, _)| *name).collect();
    assert_eq!(tried, genuine_flags().into_keys().collect::<Vec<_>>());
    let (defaults, silence) = dumped(&[]);
    assert_eq!(silence, "");
    for (name, value) in FLAG_VALUES.iter().filter(|(_, value)| !value.is_empty()) {
        let (dump, log) = dumped(&[&format!("--{name}={value}")]);
        let told = log.contains(&format!("--{name}"));
        assert!(
            dump != defaults || told || COMMANDS.contains(name),
            "{name} has no effect in silence: {log}"
        );
    }
}

#[test]
fn command_line_with_every_flag_at_kube_proxys_default_gives_its_defaults() {
    let skipped = ["help", "config", "write-config-to"];
    let given = genuine_flags().into_iter().filter(|(name, _)| !skipped.contains(name));
    // Lists are printed in brackets, and not written so.
    let given: Vec<_> =
        given.map(|(name, value)| format!("--{name}={}", value.trim_matches(['[', ']']))).collect();
    let arguments: Vec<_> = given.iter().map(String::as_str).chain(["--hostname-override=n"]).collect();
    let (dump, log) = dumped(&arguments);
    let mut expected = genuine_defaults();
    expected.insert("hostnameOverride".to_owned(), "n".to_owned());
    // Of mode ipvs, which alone has these as flags, with defaults of their own.
    for (path, value) in [("ipvs.minSyncPeriod", "1s"), ("ipvs.syncPeriod", "30s")] {
        expected.insert(path.to_owned(), value.to_owned());
    }
    assert_eq!(leaves(&dump), expected, "{log}");
    assert!(log.contains("deprecated") && log.contains("--healthz-port, --metrics-port"), "{log}");
}

#[test]
fn flags_that_kube_proxy_does_not_have_and_arguments_are_refused_by_name() {
    for wrong in ["--masquerade-al", "--iptables-version=1", "argument"] {
        let output = run(&[wrong, "--dump-config"]);
        let name = wrong.split('=').next().unwrap();
        assert!(output.status.code() == Some(2) && log(&output).contains(name), "{wrong}: {}", log(&output));
    }
}

#[test]
fn version_is_printed_as_go_programs_are_asked_for_it() {
    for flag in ["--version", "--version=true", "--version=raw", "-V"] {
        let output = run(&[flag]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text, format!("fairlead-programmer {}\n", env!("CARGO_PKG_VERSION")), "{flag}");
    }
}

/// A metric as an exposition describes it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Described {
    kind: String,
    help: String,
    /// Names of labels, and the values of those that are fixed.
    labels: BTreeSet<String>,
    bounds: Vec<String>,
}

fn described(exposition: &str) -> BTreeMap<String, Described> {
    let mut metrics: BTreeMap<String, Described> = BTreeMap::new();
    for line in exposition.lines() {
        if let Some(text) = line.strip_prefix("# HELP ") {
            let (name, help) = text.split_once(' ').unwrap();
            // How stable a metric is, and a full stop, are no part of the sentence.
            let help = help.trim_start_matches("[ALPHA] ").trim_end_matches('.');
            help.clone_into(&mut metrics.entry(name.to_owned()).or_default().help);
        } else if let Some(text) = line.strip_prefix("# TYPE ") {
            let (name, kind) = text.split_once(' ').unwrap();
            kind.clone_into(&mut metrics.entry(name.to_owned()).or_default().kind);
        } else if let Some((series, _)) = line.rsplit_once(' ') {
            add_series(series, &mut metrics);
        }
    }
    metrics
}

fn add_series(series: &str, metrics: &mut BTreeMap<String, Described>) {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let base = ["_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| name.strip_suffix(suffix));
    let base =
        base.into_iter().find(|base| metrics.get(*base).is_some_and(|metric| metric.kind == "histogram"));
    let metric = metrics.get_mut(base.unwrap_or(name)).unwrap();
    let (bounds, labels): (Vec<_>, Vec<_>) = labels
        .trim_end_matches('}')
        .split(',')
        .filter(|label| !label.is_empty())
        .partition(|label| label.starts_with("le="));
    for bound in bounds {
        if !metric.bounds.iter().any(|known| known == bound) {
            metric.bounds.push(bound.to_owned());
        }
    }
    metric.labels.extend(labels.into_iter().map(str::to_owned));
}

/// Everything has happened once.
fn busy_metrics() -> Registry {
    let registry = Registry::new();
    let metrics = registry.register(Metrics::register);
    let second = Duration::from_secs(1);
    for family in Family::ALL {
        for full in [true, false] {
            metrics.observe_sync(family, full, second);
        }
        metrics.observe_success(family, 1.0);
        metrics.observe_queued(family, 1.0);
        metrics.observe_failure(family, "test", true, false);
        metrics.observe_stranded(family, Stranded::default());
        metrics.observe_programming(family, second);
        metrics.observe_reconcile(family, second, 0);
        for table in ["nat", "filter"] {
            metrics.observe_rules(family, table, 1);
            metrics.observe_written(family, table, 1);
        }
    }
    for probe in [Probe::Healthz, Probe::Livez] {
        metrics.observe_probe(probe, true);
    }
    registry
}

#[test]
fn metrics_have_kube_proxys_names_types_help_labels_and_buckets() {
    let ours = described(&busy_metrics().encode().unwrap());
    let genuine = described(METRICS);
    assert!(genuine.len() > 15);
    for (name, metric) in &genuine {
        assert_eq!(Some(metric), ours.get(name), "{name}");
    }
    // Not in the record, because nobody had probed it.
    for name in ["kubeproxy_proxy_healthz_total", "kubeproxy_proxy_livez_total"] {
        assert!(
            ours[name].kind == "counter" && ours[name].labels == ["code=\"200\"".to_owned()].into(),
            "{name}"
        );
    }
}

#[test]
fn metrics_of_the_process_have_the_names_of_every_go_program() {
    let ours = described(&Registry::new().encode().unwrap());
    for name in [
        "cpu_seconds_total",
        "max_fds",
        "network_receive_bytes_total",
        "network_transmit_bytes_total",
        "open_fds",
        "resident_memory_bytes",
        "start_time_seconds",
        "virtual_memory_bytes",
        "virtual_memory_max_bytes",
    ] {
        let name = format!("process_{name}");
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert_eq!(ours.get(&name).map(|metric| metric.kind.as_str()), Some(kind), "{name}");
    }
}
