//! Which flags have no effect: those of kube-proxy that do not apply here, and those that `--config` overrides.
//!
//! Invariant: every flag of kube-proxy is accepted, and none is without effect in silence.

use std::ffi::OsString;

use clap::{ArgMatches, Args, parser::ValueSource};

/// Flags of kube-proxy that do not apply: about other modes, other ways to talk to the API server, its own internals.
#[derive(Args, Clone, Debug)]
pub struct InapplicableFlags {
    #[arg(long, hide = true)]
    boot_id_file: Option<String>,
    #[arg(long, hide = true)]
    config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    ipvs_exclude_cidrs: Option<String>,
    #[arg(long, hide = true)]
    ipvs_scheduler: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ipvs_strict_arp: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcp_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_tcpfin_timeout: Option<String>,
    #[arg(long, hide = true)]
    ipvs_udp_timeout: Option<String>,
    #[arg(long, hide = true)]
    kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    log_flush_frequency: Option<String>,
    #[arg(long, hide = true)]
    log_json_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_json_split_stream: Option<String>,
    #[arg(long, hide = true)]
    log_text_info_buffer_size: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    log_text_split_stream: Option<String>,
    #[arg(long, hide = true)]
    machine_id_file: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profiling: Option<String>,
    #[arg(long, hide = true)]
    show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true)]
    vmodule: Option<String>,
}

/// Their names.
const INAPPLICABLE: &[&str] = &[
    "boot_id_file",
    "config_sync_period",
    "ipvs_exclude_cidrs",
    "ipvs_scheduler",
    "ipvs_strict_arp",
    "ipvs_tcp_timeout",
    "ipvs_tcpfin_timeout",
    "ipvs_udp_timeout",
    "kube_api_content_type",
    "log_flush_frequency",
    "log_json_info_buffer_size",
    "log_json_split_stream",
    "log_text_info_buffer_size",
    "log_text_split_stream",
    "machine_id_file",
    "profiling",
    "show_hidden_metrics_for_version",
    "vmodule",
];

/// Flags that kube-proxy will not have for ever: each says a port, which an address says, too.
const DEPRECATED: &[&str] = &["healthz_port", "metrics_port"];

/// Flags that have an effect together with `--config`. All flags of kube-proxy but these have none then.
const WITH_CONFIG: &[&str] = &[
    "config",
    "hostname_override",
    "master",
    "cleanup",
    "init_only",
    "write_config_to",
    "iptables_variant",
    "dump_config",
    "shadow",
    "shadow_grace",
    "log_level",
    "log_format",
    "logging_format",
    "v",
];

/// Which flags were given, of those that have no effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WithoutEffect {
    /// Because they do not apply here at all.
    pub inapplicable: Vec<String>,
    /// Because `--config` is given.
    pub overridden: Vec<String>,
    /// These have one, but there are others to be used instead.
    pub deprecated: Vec<String>,
}

/// The command line with the names of flags as they are listed: kube-proxy takes `--bind_address` for `--bind-address`.
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let listed = |argument: OsString| {
        let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else { return argument };
        let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
        format!("--{}{value}", name.replace('_', "-")).into()
    };
    given.into_iter().map(listed).collect()
}

/// All flags of `command` by name, and the values that they have.
pub fn all(command: &clap::Command, matches: &ArgMatches) -> Vec<(String, String)> {
    let value = |id: &str| {
        let values: Vec<_> = matches
            .try_get_raw(id)
            .ok()
            .flatten()
            .into_iter()
            .flatten()
            .map(|value| value.to_string_lossy())
            .collect();
        values.join(",")
    };
    let flags =
        command.get_arguments().filter_map(|argument| Some((argument.get_long()?, argument.get_id())));
    let mut all: Vec<_> = flags.map(|(name, id)| (name.to_owned(), value(id.as_str()))).collect();
    all.sort();
    all
}

impl WithoutEffect {
    /// Finds them in what was given.
    pub fn of(matches: &ArgMatches) -> Self {
        let given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let ids: Vec<&str> = matches.ids().map(clap::Id::as_str).filter(given).collect();
        let flag = |id: &&str| format!("--{}", id.replace('_', "-"));
        let of_mode = |id: &str| {
            id.starts_with("ipvs_")
                && matches.get_one::<String>("proxy_mode").is_none_or(|mode| mode != "ipvs")
        };
        let (inapplicable, others): (Vec<_>, Vec<_>) =
            ids.iter().copied().partition(|id| INAPPLICABLE.contains(id) || of_mode(id));
        let mut overridden: Vec<String> = Vec::new();
        if matches.value_source("config").is_some() {
            // Groups of flags have ids, too, in CamelCase.
            let of_kube_proxy =
                |id: &&&str| !WITH_CONFIG.contains(*id) && !id.starts_with(char::is_uppercase);
            overridden = others.iter().filter(of_kube_proxy).map(flag).collect();
        }
        let deprecated = ids.iter().filter(|id| DEPRECATED.contains(*id)).map(flag).collect();
        Self { inapplicable: inapplicable.iter().map(flag).collect(), overridden, deprecated }
    }
}
