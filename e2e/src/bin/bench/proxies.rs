//! The programmer beside the genuine kube-proxy, on one node of a cluster with an API server, with the same Services.
//!
//! One after the other takes the node, from nothing. A time is that of the clients: until a packet arrives where it
//! should. CPU is that of the program and of what it starts, memory the most that they had at one time.

mod field;
mod usage;

use std::time::{Duration, Instant};

use anyhow::Result;
use fairlead_e2e::programs::{Make, Variant};
use field::Field;
use usage::Usage;

use crate::report::{Samples, heading, row, text};

const SIZES: [usize; 2] = [1_000, 10_000];
/// Services whose endpoints change at once.
const BURST: usize = 100;

/// A program, and how it is run.
struct Contestant {
    name: &'static str,
    make: Make,
    variant: Variant,
    flags: &'static [&'static str],
    /// Changes that are timed.
    changes: usize,
}

const CONTESTANTS: [Contestant; 7] = [
    Contestant {
        name: "kube-proxy, iptables-nft",
        make: Make::Genuine,
        variant: Variant::Nft,
        flags: &[],
        changes: 12,
    },
    Contestant {
        name: "kube-proxy, iptables-nft, shortest period",
        make: Make::Genuine,
        variant: Variant::Nft,
        flags: &["--iptables-min-sync-period=1ms"],
        changes: 12,
    },
    Contestant {
        name: "kube-proxy, iptables-legacy",
        make: Make::Genuine,
        variant: Variant::Legacy,
        flags: &[],
        changes: 20,
    },
    Contestant {
        name: "kube-proxy, iptables-legacy, shortest period",
        make: Make::Genuine,
        variant: Variant::Legacy,
        flags: &["--iptables-min-sync-period=1ms"],
        changes: 20,
    },
    Contestant {
        name: "kube-proxy, nftables",
        make: Make::Genuine,
        variant: Variant::Nft,
        flags: &["--proxy-mode=nftables"],
        changes: 12,
    },
    Contestant {
        name: "fairlead-programmer, iptables-nft",
        make: Make::Ours,
        variant: Variant::Nft,
        flags: &[],
        changes: 60,
    },
    Contestant {
        name: "fairlead-programmer, iptables-legacy",
        make: Make::Ours,
        variant: Variant::Legacy,
        flags: &[],
        changes: 40,
    },
];

/// What was measured of one contestant.
struct Times {
    start: Duration,
    changes: Samples,
    burst: Duration,
    service: Samples,
    no_service: Samples,
    usage: Usage,
}

/// Lets every contestant work on every number of Services.
pub(crate) fn measure() -> Result<()> {
    for services in SIZES {
        heading(
            &format!("Proxies: {services} Services x 2 endpoints"),
            &[
                "Program",
                "Start",
                "One change p50",
                "p99",
                "100 changes",
                "First packet p50",
                "p99",
                "No Service p50",
                "CPU to start",
                "CPU in all",
                "Peak RSS",
            ],
        );
        let mut field = Field::build(services)?;
        for contestant in &CONTESTANTS {
            let (started, times) = run(&mut field, contestant)?;
            print(contestant.name, started, &times);
        }
    }
    Ok(())
}

fn run(field: &mut Field, contestant: &Contestant) -> Result<(Duration, Times)> {
    let began = Instant::now();
    let watch = field.start(contestant.make, contestant.variant, contestant.flags)?;
    field.await_every_service()?;
    let start = began.elapsed();
    let started = watch.so_far().cpu;
    let mut changes = Samples::default();
    for n in 0..contestant.changes {
        changes.push(field.change_one(n * 61 + 7)?);
    }
    let burst = field.change_many(BURST)?;
    let [service, no_service] = field.first_packets()?;
    let usage = watch.so_far();
    field.end()?;
    Ok((started, Times { start, changes, burst, service, no_service, usage }))
}

fn print(name: &str, started: Duration, times: &Times) {
    let [change_p50, change_p99] = times.changes.cells();
    let [packet_p50, packet_p99] = times.service.cells();
    row(&[
        name.to_owned(),
        text(times.start),
        change_p50,
        change_p99,
        text(times.burst),
        packet_p50,
        packet_p99,
        text(times.no_service.percentile(50)),
        text(started),
        text(times.usage.cpu),
        format!("{} MiB", times.usage.peak_rss >> 20),
    ]);
}
