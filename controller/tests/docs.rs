//! The table of flags in docs/configuration.md is what `--help` says. With `UPDATE_DOCS=1` the test writes it anew.

use clap::CommandFactory as _;
use fairlead_controller::flags::Flags;

mod flag_table;

#[test]
fn flags_are_documented_as_help_says() {
    flag_table::check("fairlead-controller", &Flags::command());
}
