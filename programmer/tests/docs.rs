//! What the documentation lists is what there is: the table of flags in docs/configuration.md is what `--help` says (with
//! `UPDATE_DOCS=1` the test writes it anew), and docs/metrics.md names every metric.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use clap::CommandFactory as _;
use fairlead_daemon::metrics::Metrics as Registry;
use fairlead_programmer::{command::Command, metrics::Metrics, netfilter};

#[path = "../../controller/tests/flag_table/mod.rs"]
mod flag_table;

#[test]
fn flags_are_documented_as_help_says() {
    flag_table::check("fairlead-programmer", &Command::command());
}

#[test]
fn metrics_are_documented_by_name_and_type() {
    let registry = Registry::new();
    registry.register(Metrics::register);
    registry.register(|registry| netfilter::metrics::register(registry, &[]));
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")).unwrap();
    let (_, page) = page.split_once("## Programmer\n").unwrap();
    let exposition = registry.encode().unwrap();
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for line in types.filter(|line| !line.starts_with("process_")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(
            page.contains(&format!("| `{name}` | {kind} |")),
            "{name} ({kind}) is not in docs/metrics.md"
        );
    }
}
