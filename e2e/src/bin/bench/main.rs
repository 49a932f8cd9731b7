//! Measures what Fairlead costs: planning, compiling, programming the kernel, and the first packet of a flow.
//!
//! Everything runs in namespaces that the program makes for itself, and nothing is asserted: it prints tables, in
//! Markdown, for `docs/performance.md`. Build it with optimisation (`make bench`).

mod compiling;
mod controllers;
mod first_packet;
mod heap;
mod planning;
mod programming;
mod proxies;
mod report;
mod router;
mod workload;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Numbers of Services that are compared.
const SIZES: [usize; 3] = [100, 1_000, 10_000];

/// Measures planning, compiling, programming the kernel, and the first packet of a flow.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// Only the parts whose name contains one of these words: plan, heap, compile, program, first-packet, controllers, proxies.
    parts: Vec<String>,
    /// Cargo passes this to benches; it means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

type Part = (&'static str, fn() -> Result<()>);

const PARTS: [Part; 7] = [
    ("plan", planning::measure),
    ("heap", heap::measure),
    ("compile", compiling::measure),
    ("program", programming::measure),
    ("first-packet", first_packet::measure),
    ("controllers", controllers::measure),
    ("proxies", proxies::measure),
];

fn main() -> ExitCode {
    let args = Args::parse();
    if !rustix::process::geteuid().is_root() {
        eprintln!("bench: root is needed for network namespaces; run it as root");
        return ExitCode::from(2);
    }
    if cfg!(debug_assertions) {
        eprintln!("bench: built without optimisation; the numbers mean nothing (use `make bench`)");
    }
    for (name, measure) in PARTS {
        if !args.parts.is_empty() && !args.parts.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        if let Err(error) = measure() {
            eprintln!("bench: {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
