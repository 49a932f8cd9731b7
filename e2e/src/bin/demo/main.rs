//! `make demo`: a two-node cluster comes up on this machine, Fairlead's two programs run on it, and the examples of
//! `manifests/examples/` are shown from the object to the packet. It ends by itself, cleans up, and its exit code says
//! whether everything was as it should be. With `--keep` it stays until Enter is pressed.

mod paper;
mod scene;
mod steps;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Parser;
use fairlead_e2e::{Bed, Options, PodSpec, plan::Families};
use fairlead_objects::Family;

use scene::{kubectl, programs};

/// Show Fairlead on a two-node cluster in network namespaces of this machine.
#[derive(Parser)]
struct Args {
    /// Leave everything running at the end, and print how to play with it, until Enter is pressed
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !rustix::process::geteuid().is_root() {
        eprintln!("demo: run it as root: it makes network namespaces and rules inside them (sudo make demo)");
        return ExitCode::FAILURE;
    }
    let began = Instant::now();
    match run(&args) {
        Ok(()) => {
            println!("\nAll of it is gone again. Done in {:.0?}.", began.elapsed());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    paper::title("A cluster of two nodes, in network namespaces of this machine");
    let began = Instant::now();
    let options = Options { families: Families::DualStack, readable_storage: true, ..Options::from_env()? };
    let mut bed = Bed::start(options)?;
    let shown = show(&mut bed, began.elapsed(), args);
    if shown.is_err() {
        eprintln!("{}", bed.log_tails());
    }
    shown
}

fn show(bed: &mut Bed, took: Duration, args: &Args) -> Result<()> {
    println!(
        "etcd, kube-apiserver and kube-controller-manager (without its endpoint controllers) are up in {took:.1?}."
    );
    kubectl(bed, &["get", "nodes", "-o", "wide"])?;
    bed.start_programs()?;
    let (controller, programmer) = programs(bed);
    println!("Running: {controller} beside the API server, {programmer} on node1 and on node2.");
    bed.add_pod(PodSpec::new("client", "client"))?;
    for step in steps::ALL {
        step(bed)?;
    }
    println!("\nAll along, {}.", bed.agreement());
    if args.keep {
        keep(bed)?;
    }
    clean_end(bed)
}

/// Until Enter, or until nobody is there to press it.
fn keep(bed: &Bed) -> Result<()> {
    paper::title("Everything stays as it is. In another terminal, as root:");
    let net = bed.dir().join("net");
    let target = bed.cluster_ip("my-service")?;
    println!("NET={}", net.display());
    println!("export KUBECONFIG={}", bed.kubeconfig().display());
    println!("alias kubectl='nsenter --net=$NET/control-plane {}'", bed.tools().program("kubectl").display());
    println!("kubectl get services,endpointslices,pods --all-namespaces -o wide");
    println!(
        "nsenter --net=$NET/pod-default-client \\\n    \
         bash -c 'exec 3<>/dev/tcp/{target}/80; echo who >&3; head -n 1 <&3'"
    );
    println!("nsenter --net=$NET/node1 iptables-save | grep my-service");
    println!("nsenter --net=$NET/node1 conntrack -L");
    println!("tail -f {}/logs/*.log", bed.dir().display());
    println!("\nEnter ends it and cleans up.");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn clean_end(bed: &mut Bed) -> Result<()> {
    paper::title("The end: Services go, and with them Endpoints, slices and rules");
    bed.reset()?;
    for number in 1..=bed.options.nodes {
        bed.stop_programmer(number)?;
        bed.clean_up(number)?;
        for family in [Family::V4, Family::V6] {
            let left = bed.save(number, family)?;
            ensure!(!left.contains("KUBE-SERVICES"), "rules left on node {number}: {left}");
        }
    }
    bed.stop_controller()?;
    let (controller, programmer) = programs(bed);
    println!(
        "{controller} and {programmer} have ended; `{programmer} --cleanup` left no rule on either node."
    );
    Ok(())
}
