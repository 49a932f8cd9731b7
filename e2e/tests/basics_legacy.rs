//! The basics on iptables-legacy, in both families.

use std::process::ExitCode;

use fairlead_e2e::programs::Variant;

mod basics;

fn main() -> ExitCode {
    basics::run(Variant::Legacy)
}
