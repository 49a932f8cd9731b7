//! `make e2e`: brings up a cluster of real kubelets with Fairlead on it, shows the examples in real Pods, and lets
//! Kubernetes' own end-to-end tests judge. Its exit code says whether everything was as it should be.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fairlead_e2e::cluster::{
    Cluster, Kind, Options, cases,
    install::Install,
    judge::{self, Judged, Specs},
    operations,
    running::AnyCluster,
    takeover,
};
use fairlead_e2e::{plan::Families, programs::Make};

/// A cluster of real kubelets in network namespaces of this machine, and what is run on it.
#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
struct Args {
    /// Number of nodes; those of lists about zones need 6
    #[arg(long, default_value_t = 2)]
    nodes: u8,

    /// IPv6 as the second family
    #[arg(long)]
    dual_stack: bool,

    /// Specs that are run: lists of e2e/cluster/specs, one after the other
    #[arg(long, value_delimiter = ',', default_value = "conformance")]
    specs: Vec<String>,

    /// Specs that are run instead: those whose names match this regular expression
    #[arg(long)]
    focus: Option<String>,

    /// Specs that `--focus` leaves out
    #[arg(long, default_value = "", requires = "focus")]
    skip: String,

    /// Specs that are run at once
    #[arg(long, default_value_t = 6)]
    procs: u8,

    /// Only those examples whose names contain this (all when empty)
    #[arg(long, num_args = 0..=1, default_missing_value = "", conflicts_with = "focus")]
    examples: Option<String>,

    /// Only those cases about operating a cluster whose names contain this (all when empty)
    #[arg(long, num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["focus", "examples"])]
    operations: Option<String>,

    /// Leave out the operations, which are the longest part
    #[arg(long)]
    quick: bool,

    /// On kind, with the chart, and nothing but examples and specs
    #[arg(long, conflicts_with_all = ["nodes", "dual_stack", "operations", "keep"])]
    kind: bool,

    /// On kind as it is without the chart: carry out docs/migration.md, there and back, under load
    #[arg(long, requires = "kind", conflicts_with_all = ["examples", "focus", "up"])]
    takeover: bool,

    /// Leave everything running at the end, and print how to play with it, until Enter is pressed
    #[arg(long)]
    keep: bool,

    /// Only bring it up
    #[arg(long)]
    up: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.kind {
        return run_on_kind(args);
    }
    let families = if args.dual_stack { Families::DualStack } else { Families::V4 };
    let mut cluster = Cluster::start(Options { families, ..Options::from_env(args.nodes)? })?;
    let judged = if args.up { Ok(()) } else { judge(&mut cluster, args) };
    if judged.is_err() {
        eprintln!("{}", cluster.log_tails(8));
    }
    if args.keep {
        keep(&cluster)?;
    }
    cluster.say("taking it down");
    judged
}

fn run_on_kind(args: &Args) -> Result<()> {
    if args.takeover {
        return takeover::run(&mut Kind::start(Make::Genuine)?);
    }
    let mut kind = Kind::start(Make::Ours)?;
    if args.up {
        return Ok(());
    }
    if args.focus.is_none() {
        let filter = args.examples.as_deref().unwrap_or_default();
        cases::run::<AnyCluster>(&mut kind, "examples", cases::EXAMPLES, filter)?;
    }
    if args.examples.is_some() { Ok(()) } else { run_specs(&mut kind, args) }
}

fn judge(cluster: &mut Cluster, args: &Args) -> Result<()> {
    if let Some(filter) = &args.examples {
        return cases::run::<AnyCluster>(cluster, "examples", cases::EXAMPLES, filter);
    }
    if let Some(filter) = &args.operations {
        return cases::run(cluster, "operations", operations::ALL, filter);
    }
    if args.focus.is_some() {
        return run_specs(cluster, args);
    }
    cases::run::<AnyCluster>(cluster, "examples", cases::EXAMPLES, "")?;
    run_specs(cluster, args)?;
    // They are about the chart.
    if cluster.options.install == Install::Chart && !args.quick {
        cases::run(cluster, "operations", operations::ALL, "")?;
    }
    Ok(())
}

fn run_specs(cluster: &mut impl Judged, args: &Args) -> Result<()> {
    let runs = match &args.focus {
        Some(focus) => vec![Specs::matching(focus, &args.skip)],
        None => args.specs.iter().map(|name| Specs::listed(name)).collect::<Result<_>>()?,
    };
    let folder = if args.kind { reports()?.join("kind") } else { reports()? };
    let mut failures = Vec::new();
    for specs in runs {
        cluster.say(&format!("Kubernetes' end-to-end tests: {}", specs.name));
        let report = judge::run(cluster, &specs, args.procs, &folder)?;
        print!("{}", report.table());
        println!(
            "ginkgo's log and report are beside {}",
            folder.join(&specs.name).with_extension("txt").display()
        );
        failures.extend(report.check().err().map(|error| error.to_string()));
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Beside the programs that cargo builds.
fn reports() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    Ok(here.parent().and_then(|folder| folder.parent()).context("no folder")?.join("e2e-reports"))
}

/// Until Enter, or until nobody is there to press it.
fn keep(cluster: &Cluster) -> Result<()> {
    let dir = cluster.record().dir().display();
    println!("\nEverything stays as it is. In another terminal, as root:");
    println!("export KUBECONFIG={dir}/pki/admin.kubeconfig");
    println!(
        "alias kubectl='nsenter --net={dir}/net/control-plane {}'",
        cluster.tools().program("kubectl").display()
    );
    println!("nsenter --net={dir}/net/node1 iptables-save");
    println!("tail -f {dir}/logs/*.log");
    println!("\nEnter ends it and cleans up.");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
