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

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

/// Numbers of Services that are compared.
const SIZES: [usize; 3] = [100, 1_000, 10_000];

/// Measures planning, compiling, programming the kernel, and the first packet of a flow.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// Only the parts whose name contains one of these words: plan, heap, compile, program, first-packet, controllers, proxies,
    /// chart.
    parts: Vec<String>,
    /// Numbers of Services that proxies are compared with.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 30_000])]
    services: Vec<usize>,
    /// Only the proxies whose name contains this, such as `fairlead`, `legacy`, `nftables` or `shortest`; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Also the proxies that take many minutes at the number of Services.
    #[arg(long)]
    patient: bool,
    /// Once the Services are there, wait for Enter before proxies are compared: so many take long to make, and only then the
    /// machine has to be quiet.
    #[arg(long)]
    pause: bool,
    /// File that gets the proxies' numbers, one JSON object a line, after what it holds already.
    #[arg(long, default_value = "target/bench/proxies.jsonl")]
    results: PathBuf,
    /// File that the chart of those numbers is drawn to; where a proxy was measured twice, the later numbers count.
    #[arg(long, default_value = "target/bench/proxies.svg")]
    chart: PathBuf,
    /// Cargo passes this to benches; it means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

type Part = (&'static str, fn(&Args) -> Result<()>);

const PARTS: [Part; 8] = [
    ("plan", |_| planning::measure()),
    ("heap", |_| heap::measure()),
    ("compile", |_| compiling::measure()),
    ("program", |_| programming::measure()),
    ("first-packet", |_| first_packet::measure()),
    ("controllers", |_| controllers::measure()),
    ("proxies", proxies::measure),
    ("chart", proxies::draw),
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
        if let Err(error) = measure(&args) {
            eprintln!("bench: {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
