//! Tables of flags in docs/configuration.md, made from what `--help` says.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking")]

use std::{env, fs, path::Path};

use clap::{Arg, ArgAction, Command};

fn row(argument: &Arg) -> Option<String> {
    let name = argument.get_long().filter(|name| !["help", "version"].contains(name))?;
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match argument.get_action() {
        ArgAction::SetTrue => "`false`".to_owned(),
        _ if defaults.concat().is_empty() => String::new(),
        _ => format!("`{}`", defaults.join(",")),
    };
    let environment =
        argument.get_env().map(|name| format!(" (or ${})", name.to_string_lossy())).unwrap_or_default();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('|', "\\|");
    Some(format!("| `--{name}`{environment} | {default} | {help} |\n"))
}

fn table(command: &Command) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        let Some(row) = row(argument) else { continue };
        let title = argument.get_help_heading().unwrap_or("Other");
        match sections.iter_mut().find(|(known, _)| *known == title) {
            Some((_, rows)) => rows.push_str(&row),
            None => sections.push((title, row)),
        }
    }
    let head = "| Flag | Default | Meaning |\n|---|---|---|";
    let texts = sections.iter().map(|(title, rows)| format!("\n### {title}\n\n{head}\n{rows}"));
    texts.chain(["\n".to_owned()]).collect()
}

/// Compares the table of `program` with its flags. With `UPDATE_DOCS=1` it is written anew.
pub fn check(program: &str, command: &Command) {
    let (open, close) =
        (format!("<!-- flags of {program}: begin -->\n"), format!("<!-- flags of {program}: end -->\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(&open).unwrap();
    let (documented, after) = rest.split_once(&close).unwrap();
    let table = table(command);
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{open}{table}{close}{after}")).unwrap();
    } else {
        assert_eq!(
            documented, table,
            "docs/configuration.md is out of date; run this test with UPDATE_DOCS=1"
        );
    }
}
