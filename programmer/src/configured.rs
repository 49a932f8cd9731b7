//! What is configured: flags or a file, checked, and what of them has no effect.
//!
//! Invariant: nothing is without effect in silence.

use std::fs;

use fairlead_daemon::client::ClientFlags;
use fairlead_objects::KubeProxyConfiguration;
use tracing::warn;

use crate::{
    agent::{AgentError, Command},
    configuration::ConfigurationFile,
    flags::WithoutEffect,
    settings::Settings,
    validation::{self, Host, Source},
};

/// The settings, and where they come from.
pub(crate) struct Configured {
    pub(crate) settings: Settings,
    /// With every value as it is used.
    pub(crate) effective: KubeProxyConfiguration,
    pub(crate) file: Option<ConfigurationFile>,
}

impl Configured {
    /// Reads and checks everything, and warns about what has no effect.
    pub(crate) fn of(command: &Command) -> Result<Self, AgentError> {
        let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let Command { flags, without_effect, .. } = command;
        let file = flags.config.as_deref().map(ConfigurationFile::read).transpose()?;
        let (configuration, source) = match &file {
            Some(file) => (file.configuration.clone(), Source::File(file.path.clone())),
            None => (flags.configuration(), Source::Flags),
        };
        let host = Host { name: &host_name, override_name: flags.host_name(), variant: flags.variant() };
        let settings = validation::settings(&configuration, &source, host).map_err(|problems| {
            AgentError::Flags(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        })?;
        if let Some(ConfigurationFile { path, warnings, .. }) = &file {
            for warning in warnings {
                warn!(file = %path.display(), "{warning}");
            }
        }
        without_effect.warn();
        if let (Some(mode), None) = (settings.unavailable_mode, &file) {
            warn!("--proxy-mode {mode} is not implemented: running iptables");
        }
        Ok(Self { effective: settings.effective(&configuration), settings, file })
    }

    /// With a configuration file, it says how to talk to the API server.
    pub(crate) fn connection(&self, flags: ClientFlags) -> ClientFlags {
        if self.file.is_none() {
            return flags;
        }
        let (qps, burst) = self.settings.api_rate;
        ClientFlags {
            kubeconfig: self.settings.kubeconfig.clone(),
            master: flags.master,
            kube_api_qps: qps.unwrap_or(flags.kube_api_qps),
            kube_api_burst: burst.unwrap_or(flags.kube_api_burst),
        }
    }

    /// In JSON, which is YAML, too.
    pub(crate) fn dump(&self) -> Result<String, AgentError> {
        serde_json::to_string_pretty(&self.effective).map_err(AgentError::Dump)
    }
}

impl WithoutEffect {
    fn warn(&self) {
        if !self.inapplicable.is_empty() {
            warn!("these flags do not apply and have no effect: {}", self.inapplicable.join(", "));
        }
        if !self.overridden.is_empty() {
            warn!("these flags have no effect together with --config: {}", self.overridden.join(", "));
        }
    }
}
