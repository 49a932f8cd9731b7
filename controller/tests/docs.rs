//! The table of flags in docs/configuration.md is what `--help` says. With `UPDATE_DOCS=1` the test writes it anew.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{env, fs, path::Path};

use clap::{Arg, ArgAction, CommandFactory as _};
use fairlead_controller::flags::Flags;

const OPEN: &str = "<!-- flags of fairlead-controller: begin -->\n";
const CLOSE: &str = "<!-- flags of fairlead-controller: end -->\n";

fn row(argument: &Arg) -> Option<String> {
    let name = argument.get_long().filter(|name| !["help", "version"].contains(name))?;
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match argument.get_action() {
        ArgAction::SetTrue => "`false`".to_owned(),
        _ if defaults.is_empty() => String::new(),
        _ => format!("`{}`", defaults.join(",")),
    };
    let environment =
        argument.get_env().map(|name| format!(" (or ${})", name.to_string_lossy())).unwrap_or_default();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    Some(format!("| `--{name}`{environment} | {default} | {help} |\n"))
}

fn table() -> String {
    let mut text = String::new();
    let mut heading = None;
    for argument in Flags::command().get_arguments() {
        let Some(row) = row(argument) else { continue };
        let of_this = argument.get_help_heading().map(str::to_owned);
        if of_this != heading {
            let title = of_this.as_deref().unwrap_or("Other");
            for line in ["\n### ", title, "\n\n| Flag | Default | Meaning |\n|---|---|---|\n"] {
                text.push_str(line);
            }
            heading = of_this;
        }
        text.push_str(&row);
    }
    text.push('\n');
    text
}

#[test]
fn flags_are_documented_as_help_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(OPEN).unwrap();
    let (documented, after) = rest.split_once(CLOSE).unwrap();
    let table = table();
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{OPEN}{table}{CLOSE}{after}")).unwrap();
    } else {
        assert_eq!(
            documented, table,
            "docs/configuration.md is out of date; run this test with UPDATE_DOCS=1"
        );
    }
}
