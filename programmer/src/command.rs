//! The program's command line: everything that it may say.
//!
//! Invariant: it behaves as kube-proxy's does, down to how flags are repeated and versions are asked for.

use std::env;

use clap::{CommandFactory, FromArgMatches, Parser, parser::ValueSource};
use fairlead_daemon::{client::ClientFlags, logging::LogFlags};

use crate::flags::{self, Flags, InapplicableFlags, WithoutEffect};

/// Watches Services and EndpointSlices, and makes this node's packet filter forward Service traffic to endpoints.
#[derive(Parser, Clone, Debug)]
#[command(name = "fairlead-programmer")]
// As kube-proxy's flags behave.
#[command(args_override_self = true, disable_version_flag = true)]
#[command(mut_arg("kube_api_qps", |flag| flag.default_value("5")))]
#[command(mut_arg("kube_api_burst", |flag| flag.default_value("10")))]
pub struct Command {
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    inapplicable: InapplicableFlags,
    /// Filled in by [`Command::parse`].
    #[arg(skip)]
    pub(crate) without_effect: WithoutEffect,
    #[command(flatten)]
    pub(crate) client: ClientFlags,
    #[command(flatten)]
    pub(crate) log: LogFlags,
    /// Which of those two were given, by flag or environment. Filled in by [`Command::parse`].
    #[arg(skip)]
    pub(crate) own_log: OwnLog,
    /// Every flag and its value. Filled in by [`Command::parse`].
    #[arg(skip)]
    pub(crate) given: Vec<(String, String)>,
    /// Print the version, then exit.
    #[arg(short = 'V', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    version: Option<String>,
}

/// Which of our own flags about logs were given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnLog {
    pub(crate) level: bool,
    pub(crate) format: bool,
}

impl Command {
    /// Reads the command line; ends the process with a message if it cannot be read.
    pub fn parse() -> Self {
        let matches = Self::command().get_matches_from(flags::arguments(env::args_os()));
        let command = match Self::from_arg_matches(&matches) {
            Ok(command) => command,
            Err(error) => error.exit(),
        };
        let given = |id| !matches!(matches.value_source(id), None | Some(ValueSource::DefaultValue));
        Self {
            without_effect: WithoutEffect::of(&matches),
            own_log: OwnLog { level: given("log_level"), format: given("log_format") },
            given: flags::all(&Self::command(), &matches),
            ..command
        }
    }

    /// The version, if that is all that is asked for. `--version=raw` is the same here.
    pub(crate) fn version(&self) -> Option<&'static str> {
        let asked = self.version.as_deref().is_some_and(|version| version != "false");
        asked.then_some(concat!("fairlead-programmer ", env!("CARGO_PKG_VERSION")))
    }
}
