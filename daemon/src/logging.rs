//! Logs: levels and format by flag or environment, to standard error.
//!
//! Colours are for terminals, and for those who have not asked for none (<https://no-color.org>).
//!
//! Invariant: only [`LogFlags::start`] touches the process-wide subscriber, once.

use std::{ffi::OsString, io::IsTerminal as _};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tracing_subscriber::{EnvFilter, filter::ParseError};

/// What is not logged of libraries when the filter is one plain level: their errors about requests that are retried are
/// repeated by us in plain words, once per change instead of once per attempt.
const QUIET: [&str; 2] = ["kube_runtime=off", "kube_client=off"];

/// Flags of logging.
#[derive(Args, Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "Logging")]
pub struct LogFlags {
    /// What to log: error, warn, info, debug or trace; or a list such as info,fairlead_controller=debug
    #[arg(long, env = "FAIRLEAD_LOG", value_name = "FILTER", default_value = "info")]
    pub log_level: String,

    /// How to write it: text for people, json (one object per line) for machines
    #[arg(long, env = "FAIRLEAD_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per line and event.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "--log-level (or FAIRLEAD_LOG) {filter:?} is not a log filter; expected e.g. info, or warn,fairlead_controller=debug"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// There is a subscriber already.
    #[error("logging was started twice")]
    Started,
}

impl LogFlags {
    /// Installs the process-wide subscriber.
    pub fn start(&self) -> Result<(), LogError> {
        let filter = self.filter()?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => {
                let coloured = colours(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR"));
                builder.with_target(false).with_ansi(coloured).try_init()
            }
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        }
        .map_err(|_| LogError::Started)
    }

    /// The filter that the flags ask for.
    pub fn filter(&self) -> Result<EnvFilter, LogError> {
        let error = |source| LogError::Filter { filter: self.log_level.clone(), source };
        let mut filter = EnvFilter::builder().parse(&self.log_level).map_err(error)?;
        let plain =
            ["error", "warn", "info", "debug"].contains(&self.log_level.to_ascii_lowercase().as_str());
        if plain {
            for directive in QUIET {
                filter = filter.add_directive(directive.parse().map_err(error)?);
            }
        }
        Ok(filter)
    }
}

/// Whether to write colours: to a terminal, unless `NO_COLOR` is set to anything but an empty text.
fn colours(is_terminal: bool, no_color: Option<OsString>) -> bool {
    is_terminal && no_color.is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_unless_they_are_declined() {
        assert!(colours(true, None) && colours(true, Some(OsString::new())));
        assert!(!colours(true, Some("1".into())));
        assert!(!colours(false, None) && !colours(false, Some("1".into())));
    }

    fn flags(filter: &str) -> LogFlags {
        LogFlags { log_level: filter.to_owned(), log_format: LogFormat::Text }
    }

    #[test]
    fn plain_level_keeps_libraries_quiet_and_a_list_is_taken_as_written() {
        assert!(flags("info").filter().unwrap().to_string().contains("kube_runtime=off"));
        assert!(!flags("info,kube=debug").filter().unwrap().to_string().contains("kube_runtime"));
    }

    #[test]
    fn bad_filter_is_refused_by_name() {
        let error = flags("fairlead=loud").filter().unwrap_err().to_string();
        assert!(error.contains("--log-level") && error.contains("fairlead=loud"), "{error}");
    }
}
