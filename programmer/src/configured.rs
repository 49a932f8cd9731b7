//! What is configured: flags or a file, checked, and what of them has no effect.
//!
//! Invariant: nothing is without effect in silence.

use std::fs;

use fairlead_daemon::{
    client::ClientFlags,
    logging::{LogFlags, LogFormat},
};
use fairlead_objects::KubeProxyConfiguration;
use tracing::warn;

use crate::{
    agent::AgentError,
    command::Command,
    configuration::{ConfigurationFile, GATES},
    flags::WithoutEffect,
    settings::{LogSettings, Settings},
    validation::{self, Host, Source},
};

/// The settings, and where they come from.
pub(crate) struct Configured {
    pub(crate) settings: Settings,
    /// With every value as it is used.
    pub(crate) effective: KubeProxyConfiguration,
    /// The name that this node was given, if it was.
    host_name: String,
    pub(crate) file: Option<ConfigurationFile>,
}

impl Configured {
    /// Reads and checks everything.
    pub(crate) fn of(command: &Command) -> Result<Self, AgentError> {
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let Command { flags, client, .. } = command;
        let file = flags.config.as_deref().map(ConfigurationFile::read).transpose()?;
        let (configuration, source) = match &file {
            Some(ConfigurationFile { configuration, path, .. }) => {
                let logging = flags.logging(configuration.logging.clone());
                (KubeProxyConfiguration { logging, ..configuration.clone() }, Source::File(path.clone()))
            }
            None => (flags.configuration(client), Source::Flags),
        };
        let host = Host { name: &host_name, override_name: flags.host_name(), variant: flags.variant() };
        let settings = validation::settings(&configuration, &source, host).map_err(|problems| {
            AgentError::Flags(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        let effective = settings.effective(&configuration);
        let host_name = flags.host_name().map(str::to_owned).or(configuration.hostname_override);
        Ok(Self { effective, host_name: host_name.unwrap_or_default(), settings, file })
    }

    /// Says what has no effect.
    pub(crate) fn warn(&self, without_effect: &WithoutEffect) {
        if let Some(ConfigurationFile { path, warnings, .. }) = &self.file {
            for warning in warnings {
                warn!(file = %path.display(), "{warning}");
            }
        }
        without_effect.warn();
        if let (Some(mode), None) = (self.settings.unavailable_mode, &self.file) {
            warn!("--proxy-mode {mode} is not implemented: running iptables");
        }
        let without_file = self.file.is_none();
        let gates = self.effective.feature_gates.iter().flat_map(|gates| gates.keys());
        let gates: Vec<_> =
            gates.filter(|gate| !GATES.contains(&gate.as_str())).map(String::as_str).collect();
        if without_file && !gates.is_empty() {
            warn!(
                "these feature gates of --feature-gates do not apply and have no effect: {}",
                gates.join(", ")
            );
        }
    }

    /// How to log: as flags of our own say, else as kube-proxy would.
    pub(crate) fn log_flags(&self, command: &Command) -> LogFlags {
        let mut flags = command.log.clone();
        let LogSettings { json, verbosity } = self.settings.log;
        if !command.own_log.level {
            flags.log_level = match verbosity {
                0..=3 => flags.log_level,
                4..=5 => "debug".to_owned(),
                _ => "trace".to_owned(),
            };
        }
        if !command.own_log.format && json {
            flags.log_format = LogFormat::Json;
        }
        flags
    }

    /// How to talk to the API server.
    pub(crate) fn connection(&self, flags: ClientFlags) -> ClientFlags {
        let (kube_api_qps, kube_api_burst) = self.settings.api_rate;
        let kubeconfig = self.settings.kubeconfig.clone();
        ClientFlags { kubeconfig, master: flags.master, kube_api_qps, kube_api_burst }
    }

    /// In JSON, which is YAML, too.
    pub(crate) fn dump(&self) -> Result<String, AgentError> {
        serde_json::to_string_pretty(&self.effective).map_err(AgentError::Dump)
    }

    /// As [`Self::dump`], but for any node: without this one's name, unless that was given.
    pub(crate) fn file_text(&self) -> Result<String, AgentError> {
        let hostname_override = Some(self.host_name.clone());
        let configuration = KubeProxyConfiguration { hostname_override, ..self.effective.clone() };
        serde_json::to_string_pretty(&configuration).map_err(AgentError::Dump)
    }
}

impl WithoutEffect {
    fn warn(&self) {
        for (flags, told) in [
            (&self.inapplicable, "these flags do not apply and have no effect"),
            (&self.overridden, "these flags have no effect together with --config"),
            (
                &self.deprecated,
                "these flags are deprecated; use --healthz-bind-address and --metrics-bind-address",
            ),
        ] {
            if !flags.is_empty() {
                warn!("{told}: {}", flags.join(", "));
            }
        }
    }
}
