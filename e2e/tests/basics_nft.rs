//! The basics on iptables-nft, in both families.

use std::process::ExitCode;

use fairlead_e2e::programs::Variant;

mod basics;

fn main() -> ExitCode {
    basics::run(Variant::Nft)
}
