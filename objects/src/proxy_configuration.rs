//! The configuration file of kube-proxy: `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, every field.
//!
//! Values are kept as they are written (durations and addresses as text), so that whoever applies them can say what is
//! wrong with which field. `null` and absent are the same thing.
//!
//! Invariant: [`KubeProxyConfiguration::with_defaults`] gives what kube-proxy would use, except that the shortest time
//! between two syncs stays 0, which means adaptive here.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "KubeProxyConfiguration";

/// Nested blocks may be `null`.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

macro_rules! block {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs, reason = "the names are kube-proxy's, and documented there")]
        pub struct $name { $($(#[$field_meta])* pub $field: $kind,)* }
    };
}

block! {
    /// The whole file.
    KubeProxyConfiguration {
        api_version: Option<String>,
        bind_address: Option<String>,
        bind_address_hard_fail: Option<bool>,
        #[serde(deserialize_with = "or_default")]
        client_connection: ClientConnection,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: Option<String>,
        config_sync_period: Option<String>,
        #[serde(deserialize_with = "or_default")]
        conntrack: Conntrack,
        #[serde(deserialize_with = "or_default")]
        detect_local: DetectLocal,
        detect_local_mode: Option<String>,
        enable_profiling: Option<bool>,
        #[serde(skip_serializing_if = "Option::is_none")]
        feature_gates: Option<BTreeMap<String, bool>>,
        healthz_bind_address: Option<String>,
        hostname_override: Option<String>,
        #[serde(deserialize_with = "or_default")]
        iptables: Iptables,
        #[serde(deserialize_with = "or_default")]
        ipvs: Ipvs,
        kind: Option<String>,
        #[serde(deserialize_with = "or_default")]
        logging: Logging,
        metrics_bind_address: Option<String>,
        mode: Option<String>,
        #[serde(deserialize_with = "or_default")]
        nftables: Nftables,
        node_port_addresses: Option<Vec<String>>,
        oom_score_adj: Option<i64>,
        port_range: Option<String>,
        show_hidden_metrics_for_version: Option<String>,
        #[serde(deserialize_with = "or_default")]
        winkernel: Winkernel,
        #[serde(skip_serializing_if = "Option::is_none")]
        windows_run_as_service: Option<bool>,
    }
}

block! {
    /// How the API server is talked to.
    ClientConnection {
        accept_content_types: Option<String>,
        burst: Option<i64>,
        content_type: Option<String>,
        kubeconfig: Option<String>,
        qps: Option<f64>,
    }
}

block! {
    /// Settings of the kernel's connection tracking.
    Conntrack {
        max_per_core: Option<i64>,
        min: Option<i64>,
        tcp_be_liberal: Option<bool>,
        tcp_close_wait_timeout: Option<String>,
        tcp_established_timeout: Option<String>,
        udp_stream_timeout: Option<String>,
        udp_timeout: Option<String>,
    }
}

block! {
    /// How traffic of local Pods is recognised, in the modes that need a name.
    DetectLocal {
        bridge_interface: Option<String>,
        interface_name_prefix: Option<String>,
    }
}

block! {
    /// Settings of mode iptables.
    Iptables {
        localhost_node_ports: Option<bool>,
        masquerade_all: Option<bool>,
        masquerade_bit: Option<i64>,
        min_sync_period: Option<String>,
        sync_period: Option<String>,
    }
}

block! {
    /// Settings of mode ipvs.
    Ipvs {
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Option<Vec<String>>,
        min_sync_period: Option<String>,
        scheduler: Option<String>,
        #[serde(rename = "strictARP")]
        strict_arp: Option<bool>,
        sync_period: Option<String>,
        tcp_fin_timeout: Option<String>,
        tcp_timeout: Option<String>,
        udp_timeout: Option<String>,
    }
}

block! {
    /// Settings of mode nftables.
    Nftables {
        masquerade_all: Option<bool>,
        masquerade_bit: Option<i64>,
        min_sync_period: Option<String>,
        sync_period: Option<String>,
    }
}

block! {
    /// Settings of logs.
    Logging {
        flush_frequency: Option<Value>,
        format: Option<String>,
        options: Option<Value>,
        verbosity: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        vmodule: Option<Value>,
    }
}

block! {
    /// Settings of nodes that run Windows.
    Winkernel {
        #[serde(rename = "enableDSR")]
        enable_dsr: Option<bool>,
        forward_health_check_vip: Option<bool>,
        network_name: Option<String>,
        root_hns_endpoint_name: Option<String>,
        source_vip: Option<String>,
    }
}

/// Empty text and zero durations count as absent, as in kube-proxy.
fn text(field: &mut Option<String>, default: &str) {
    if field.as_deref().is_none_or(|text| text.is_empty() || (is_duration(default) && is_zero(text))) {
        *field = Some(default.to_owned());
    }
}

fn is_duration(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit()) && text.ends_with('s')
}

fn is_zero(text: &str) -> bool {
    matches!(text, "0" | "0s")
}

impl KubeProxyConfiguration {
    /// With kube-proxy's default in every field that is absent.
    #[must_use]
    pub fn with_defaults(mut self) -> Self {
        text(&mut self.api_version, API_VERSION);
        text(&mut self.kind, KIND);
        text(&mut self.bind_address, "0.0.0.0");
        text(&mut self.cluster_cidr, "");
        text(&mut self.config_sync_period, "15m0s");
        text(&mut self.detect_local_mode, "ClusterCIDR");
        let v6 = self.bind_address.as_deref().is_some_and(|address| address.contains(':'));
        let (anywhere, here) = if v6 { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
        text(&mut self.healthz_bind_address, &format!("{anywhere}:10256"));
        text(&mut self.metrics_bind_address, &format!("{here}:10249"));
        text(&mut self.hostname_override, "");
        text(&mut self.mode, "iptables");
        text(&mut self.port_range, "");
        text(&mut self.show_hidden_metrics_for_version, "");
        self.bind_address_hard_fail.get_or_insert(false);
        self.enable_profiling.get_or_insert(false);
        self.oom_score_adj.get_or_insert(-999);
        self.client_connection.set_defaults();
        self.conntrack.set_defaults();
        text(&mut self.detect_local.bridge_interface, "");
        text(&mut self.detect_local.interface_name_prefix, "");
        self.iptables.set_defaults();
        self.set_defaults_of_other_modes();
        self.logging.set_defaults();
        self
    }

    fn set_defaults_of_other_modes(&mut self) {
        let Ipvs { min_sync_period, scheduler, strict_arp, sync_period, .. } = &mut self.ipvs;
        text(scheduler, "");
        strict_arp.get_or_insert(false);
        for field in [min_sync_period, sync_period] {
            text(field, "0s");
        }
        for field in [&mut self.ipvs.tcp_fin_timeout, &mut self.ipvs.tcp_timeout, &mut self.ipvs.udp_timeout]
        {
            text(field, "0s");
        }
        self.nftables.masquerade_all.get_or_insert(false);
        self.nftables.masquerade_bit.get_or_insert(14);
        text(&mut self.nftables.min_sync_period, "0s");
        text(&mut self.nftables.sync_period, "0s");
        let windows = &mut self.winkernel;
        windows.enable_dsr.get_or_insert(false);
        windows.forward_health_check_vip.get_or_insert(false);
        for field in [&mut windows.network_name, &mut windows.root_hns_endpoint_name, &mut windows.source_vip]
        {
            text(field, "");
        }
    }

    /// Paths of the fields of `file` that do not exist, such as `iptables.masquerade`.
    pub fn unknown_fields(file: &Value) -> Vec<String> {
        let every_field = Self {
            feature_gates: Some(BTreeMap::new()),
            windows_run_as_service: Some(false),
            logging: Logging { vmodule: Some(Value::Null), ..Logging::default() },
            ..Self::default()
        };
        let mut unknown = Vec::new();
        if let Ok(known) = serde_json::to_value(every_field) {
            add_unknown(file, &known, "", &mut unknown);
        }
        unknown
    }
}

fn add_unknown(file: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    let (Value::Object(file), Value::Object(known)) = (file, known) else { return };
    for (name, value) in file {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match known.get(name) {
            None => unknown.push(path),
            // Names in here are free.
            Some(_) if path == "featureGates" => {}
            Some(known) => add_unknown(value, known, &path, unknown),
        }
    }
}

impl ClientConnection {
    fn set_defaults(&mut self) {
        text(&mut self.accept_content_types, "");
        text(&mut self.content_type, "application/vnd.kubernetes.protobuf");
        text(&mut self.kubeconfig, "");
        if self.qps.is_none_or(|qps| qps == 0.0) {
            self.qps = Some(5.0);
        }
        if self.burst.is_none_or(|burst| burst == 0) {
            self.burst = Some(10);
        }
    }
}

impl Conntrack {
    /// An explicit 0 stays: it leaves the kernel's setting alone.
    fn set_defaults(&mut self) {
        self.max_per_core.get_or_insert(32 * 1024);
        self.min.get_or_insert(128 * 1024);
        self.tcp_be_liberal.get_or_insert(false);
        self.tcp_established_timeout.get_or_insert_with(|| "24h0m0s".to_owned());
        self.tcp_close_wait_timeout.get_or_insert_with(|| "1h0m0s".to_owned());
        self.udp_timeout.get_or_insert_with(|| "0s".to_owned());
        self.udp_stream_timeout.get_or_insert_with(|| "0s".to_owned());
    }
}

impl Iptables {
    fn set_defaults(&mut self) {
        self.localhost_node_ports.get_or_insert(true);
        self.masquerade_all.get_or_insert(false);
        self.masquerade_bit.get_or_insert(14);
        text(&mut self.min_sync_period, "0s");
        text(&mut self.sync_period, "30s");
    }
}

impl Logging {
    fn set_defaults(&mut self) {
        text(&mut self.format, "text");
        self.flush_frequency.get_or_insert_with(|| Value::from("5s"));
        self.verbosity.get_or_insert(0);
        self.options.get_or_insert_with(
            || serde_json::json!({"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}}),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_and_absent_give_the_same_configuration() {
        let null = json!({"conntrack": {"maxPerCore": null}, "iptables": null, "nodePortAddresses": null, "mode": ""});
        let read: KubeProxyConfiguration = serde_json::from_value(null).unwrap();
        assert_eq!(read.with_defaults(), KubeProxyConfiguration::default().with_defaults());
    }

    #[test]
    fn unknown_fields_are_found_at_every_depth() {
        let file = json!({"mode": "iptables", "iptables": {"masquerade": true, "masqueradeBit": 1}, "foo": {"a": 1},
            "featureGates": {"Any": true}, "windowsRunAsService": true, "logging": {"vmodule": []}});
        assert_eq!(KubeProxyConfiguration::unknown_fields(&file), ["foo", "iptables.masquerade"]);
    }

    #[test]
    fn ipv6_bind_address_moves_the_servers() {
        let config = KubeProxyConfiguration {
            bind_address: Some("::".to_owned()),
            ..KubeProxyConfiguration::default()
        };
        let config = config.with_defaults();
        assert_eq!(config.healthz_bind_address.as_deref(), Some("[::]:10256"));
        assert_eq!(config.metrics_bind_address.as_deref(), Some("[::1]:10249"));
    }
}
