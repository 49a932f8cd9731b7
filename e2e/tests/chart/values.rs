//! Values: right ones render, wrong ones are refused with their name.

use std::fs;

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed,
    chart::{self, Helm, PROFILES},
    examples,
};
use serde_json::Value;

/// Settings, and what the refusal names.
const WRONG: &[(&str, &str)] = &[
    ("profile=both", "'/profile': value must be one of 'replace', 'beside', 'shadow'"),
    ("apiServer.host=", "apiServer.host is empty"),
    ("apiServer.host=https://10.0.0.1", "/apiServer/host"),
    ("apiServer.host=10.0.0.1:6443", "/apiServer/host"),
    ("apiServer.port=0", "/apiServer/port"),
    ("apiserver.host=10.0.0.1", "additional properties 'apiserver' not allowed"),
    ("image.tag=1 2", "/image/tag"),
    ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
    ("log.level=loud", "/log/level"),
    ("controller.replicas=0", "/controller/replicas"),
    ("controller.replica=3", "'/controller': additional properties 'replica' not allowed"),
    ("controller.controllers={endpoint}", "/controller/controllers/0"),
    ("controller.maxEndpointsPerSlice=1001", "/controller/maxEndpointsPerSlice"),
    ("controller.leaderElection.leaseDuration=1500ms", "/controller/leaderElection/leaseDuration"),
    (
        "controller.leaderElection.renewDeadline=15s",
        "controller.leaderElection.renewDeadline is 15s: expected less",
    ),
    ("controller.leaderElection.retryPeriod=1m", "/controller/leaderElection/retryPeriod"),
    ("controller.controllers={-endpoints-controller}", "'/controller/controllers'"),
    ("controller.resources.limits.memory=lots", "/controller/resources/limits/memory"),
    ("controller.enabled=false,programmer.enabled=false", "controller.enabled and programmer.enabled"),
    ("programmer.config.clusterCidr=10.0.0.0/8", "'/programmer/config': additional properties 'clusterCidr'"),
    ("programmer.config.clusterCIDR=10.0.0.0", "/programmer/config/clusterCIDR"),
    (
        "programmer.config.clusterCIDR=10.0.0.0/33",
        "programmer.config.clusterCIDR is 10.0.0.0/33: expected a network",
    ),
    (
        r"programmer.config.clusterCIDR=10.0.0.0/8\,11.0.0.0/8",
        "programmer.config.clusterCIDR is 10.0.0.0/8,11.0.0.0/8",
    ),
    (
        "programmer.config.nodePortAddresses={10.0.0.256/32}",
        "programmer.config.nodePortAddresses names 10.0.0.256/32",
    ),
    (
        "programmer.config.nodePortAddresses={10.0.0.0/8,primary}",
        "programmer.config.nodePortAddresses names primary",
    ),
    (
        "programmer.config.bindAddress=10.0.0.256",
        "programmer.config.bindAddress is 10.0.0.256: expected an IP address",
    ),
    (
        "programmer.config.mode=userspace",
        "'/programmer/config/mode': value must be one of '', 'iptables', 'ipvs', 'nftables'",
    ),
    ("programmer.config.nftables.masqueradeBit=32", "/programmer/config/nftables/masqueradeBit"),
    // It has no effect.
    ("programmer.config.ipvs.strictARP=true", "'/programmer/config/ipvs': additional properties 'strictARP'"),
    ("programmer.config.iptables.masqueradeBit=32", "/programmer/config/iptables/masqueradeBit"),
    ("programmer.config.conntrack.udpTimeout=30", "/programmer/config/conntrack/udpTimeout"),
    (
        "programmer.config.detectLocalMode=BridgeInterface",
        "programmer.config.detectLocal.bridgeInterface is empty",
    ),
    ("programmer.config.healthzBindAddress=:1", "additional properties 'healthzBindAddress'"),
    ("programmer.healthPort=10249", "programmer.healthPort and programmer.metricsPort are both 10249"),
    ("programmer.maxUnavailable=0", "/programmer/maxUnavailable"),
    ("programmer.extraArgs={verbose}", "/programmer/extraArgs/0"),
    (
        "programmer.tolerations[0].operater=Exists",
        "'/programmer/tolerations/0': additional properties 'operater'",
    ),
    ("beside.nodeLabel=a/b/c", "/beside/nodeLabel"),
    ("shadow.quietPeriod=soon", "/shadow/quietPeriod"),
];

fn template(helm: &Helm, more: &[&str]) -> Result<String> {
    let folder = chart::folder();
    let folder = folder.to_str().context("a path that is no text")?;
    helm.run(&[&["template", "fairlead", folder, "--set", "apiServer.host=10.0.0.1"], more].concat())
}

pub(crate) fn the_chart_is_well_formed(_: &mut Bed) -> Result<()> {
    let helm = Helm::find()?;
    let folder = chart::folder();
    let folder = folder.to_str().context("a path that is no text")?;
    for profile in PROFILES {
        let settings = format!("profile={profile},apiServer.host=10.0.0.1");
        helm.run(&["lint", "--strict", folder, "--set", &settings])?;
    }
    Ok(())
}

pub(crate) fn wrong_values_are_refused_by_name(_: &mut Bed) -> Result<()> {
    let helm = Helm::find()?;
    template(&helm, &[])?;
    let refused = |args: &[&str], named: &str| {
        let refusal = template(&helm, args).err().map(|error| error.to_string());
        assert!(
            refusal.as_deref().is_some_and(|text| text.contains(named)),
            "{args:?}, {named}: {refusal:?}"
        );
    };
    for (settings, named) in WRONG {
        refused(&["--set", settings], named);
    }
    refused(&["--kube-version=1.20.15"], "1.20.15");
    Ok(())
}

/// As in the ConfigMap of a kube-proxy in one of these modes.
pub(crate) fn a_network_of_each_family_and_settings_of_other_modes_are_taken(_: &mut Bed) -> Result<()> {
    let helm = Helm::find()?;
    for (settings, rendered) in [
        (r"clusterCIDR=fd00:10::/56\,10.244.0.0/16", r"clusterCIDR: fd00:10::/56,10.244.0.0/16"),
        ("nodePortAddresses={primary}", "nodePortAddresses:\n    - primary"),
        ("mode=nftables", "mode: nftables"),
        ("nftables.masqueradeAll=true", "masqueradeAll: true"),
        ("nftables.minSyncPeriod=1s", "minSyncPeriod: 1s"),
        ("mode=ipvs", "mode: ipvs"),
        ("ipvs.syncPeriod=30s", "syncPeriod: 30s"),
    ] {
        let text = template(&helm, &["--set", &format!("programmer.config.{settings}")])?;
        ensure!(text.contains(rendered), "{settings}: {text}");
    }
    Ok(())
}

pub(crate) fn every_value_is_documented_and_in_the_schema(_: &mut Bed) -> Result<()> {
    let read = |name: &str| fs::read_to_string(chart::folder().join(name));
    let values = examples::parse(&read("values.yaml")?)?.pop().context("no values")?;
    let schema: Value = serde_json::from_str(&read("values.schema.json")?)?;
    let mut strict = Vec::new();
    every_object_is_strict(&schema, "", &mut strict);
    ensure!(strict.is_empty(), "these take any property: {strict:?}");
    same_keys(&values, &schema, "")?;
    // A value without a comment has no row.
    let readme = read("README.md")?;
    let mut undocumented = Vec::new();
    leaves(&values, "", &mut undocumented);
    undocumented.retain(|path| !rows_above(path).any(|row| readme.contains(&format!("| `{row}` |"))));
    ensure!(undocumented.is_empty(), "not documented: {undocumented:?}");
    Ok(())
}

/// What takes any property, but for maps of texts, and for what is Kubernetes' own.
fn every_object_is_strict(schema: &Value, path: &str, open: &mut Vec<String>) {
    let kubernetes = schema["description"]
        .as_str()
        .is_some_and(|text| text.contains("Kubernetes") || text.contains("Helm"));
    if schema["type"] == "object" && !kubernetes && !path.contains("/affinity/") {
        let rest = &schema["additionalProperties"];
        if rest != &Value::Bool(false) && rest["type"] != "string" {
            open.push(path.to_owned());
        }
    }
    for part in ["properties", "$defs"] {
        for (name, below) in schema[part].as_object().into_iter().flatten() {
            every_object_is_strict(below, &format!("{path}/{name}"), open);
        }
    }
    if schema["items"].is_object() {
        every_object_is_strict(&schema["items"], &format!("{path}/items"), open);
    }
}

/// Groups of values have the keys of the schema and no others. What is empty by default may hold more.
fn same_keys(values: &Value, schema: &Value, path: &str) -> Result<()> {
    let (Some(values), Some(known)) = (values.as_object(), schema["properties"].as_object()) else {
        return Ok(());
    };
    if values.is_empty() {
        return Ok(());
    }
    let without_global = |key: &&String| *key != "global";
    let (mut left, mut right): (Vec<_>, Vec<_>) =
        (values.keys().collect(), known.keys().filter(without_global).collect());
    left.sort_unstable();
    right.sort_unstable();
    ensure!(left == right, "values and schema differ at {path:?}: {left:?} and {right:?}");
    values.iter().try_for_each(|(key, value)| same_keys(value, &known[key], &format!("{path}.{key}")))
}

fn leaves(value: &Value, path: &str, into: &mut Vec<String>) {
    match value.as_object() {
        Some(map) if !map.is_empty() => {
            for (key, below) in map {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(below, &format!("{path}{dot}{key}"), into);
            }
        }
        _ => into.push(path.to_owned()),
    }
}

/// The path, and those of the groups that it is in.
fn rows_above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(at, _)| &path[..at]).chain([path])
}
