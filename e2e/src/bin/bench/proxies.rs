//! The programmer beside the genuine kube-proxy, on one node of a cluster with an API server, with the same Services.
//!
//! One after the other takes the node, from nothing. A time is that of the clients: until a packet arrives where it
//! should. CPU is that of the program and of what it starts, memory the most that they had at one time.

mod chart;
mod contestants;
mod field;
mod holds;
mod results;
mod usage;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use contestants::{CONTESTANTS, Contestant};
use field::Field;
use results::Outcome;

use crate::{
    Args,
    report::{Samples, heading, row, text},
};

/// Services whose endpoints change at once.
const BURST: usize = 100;

const COLUMNS: [&str; 16] = [
    "Program",
    "Start",
    "One change p50",
    "p99",
    "100 changes",
    "First packet p50",
    "p99",
    "No Service p50",
    "p99",
    "Next packet p50",
    "CPU to start",
    "CPU a change",
    "CPU of the 100",
    "Peak RSS",
    "Longest hold",
    "Held in the 100",
];

/// Lets every contestant work on every number of Services.
pub(crate) fn measure(args: &Args) -> Result<()> {
    for &services in &args.services {
        let chosen: Vec<_> = CONTESTANTS
            .iter()
            .filter(|it| it.is_named(&args.only) && (args.patient || services <= it.most_services))
            .collect();
        if chosen.is_empty() {
            continue;
        }
        let mut field = Field::build(services)?;
        if args.pause {
            eprintln!("{services} Services are there. Enter goes on.");
            std::io::stdin().read_line(&mut String::new())?;
        }
        heading(&format!("Proxies: {services} Services x 2 endpoints"), &COLUMNS);
        for contestant in chosen {
            let outcome = run(&mut field, contestant)?;
            print(&outcome);
            results::append(&args.results, &outcome)?;
        }
    }
    Ok(())
}

/// Draws the results that there are.
pub(crate) fn draw(args: &Args) -> Result<()> {
    let outcomes = results::read(&args.results)?;
    ensure!(!outcomes.is_empty(), "{} holds no results of proxies", args.results.display());
    chart::draw(&args.chart, &outcomes)
}

fn run(field: &mut Field, contestant: &Contestant) -> Result<Outcome> {
    let began = Instant::now();
    let watch = field.start(contestant)?;
    field.await_every_service()?;
    let start = began.elapsed();
    let started = watch.so_far();
    let mut changes = Samples::default();
    for n in 0..contestant.changes {
        changes.push(field.change_one(n * 61 + 7)?);
    }
    let settled = watch.so_far();
    let burst = field.change_many(BURST)?;
    let ended = watch.so_far();
    // Packets take microseconds: nobody looks at the program meanwhile.
    drop(watch);
    let packets = field.packets()?;
    field.end()?;
    let [one_change_p50, one_change_p99] = changes.percentiles();
    let [service_p50, service_p99] = packets.service.percentiles();
    let [no_service_p50, no_service_p99] = packets.no_service.percentiles();
    let [next_p50, next_p99] = packets.next.percentiles();
    Ok(Outcome {
        program: contestant.name.to_owned(),
        services: field.services(),
        start,
        one_change_p50,
        one_change_p99,
        burst,
        service_p50,
        service_p99,
        no_service_p50,
        no_service_p99,
        next_p50,
        next_p99,
        cpu_to_start: started.cpu,
        cpu_a_change: settled.cpu.saturating_sub(started.cpu) / u32::try_from(contestant.changes)?,
        cpu_of_burst: ended.cpu.saturating_sub(settled.cpu),
        peak_rss: ended.peak_rss,
        longest_hold: ended.holds.longest,
        held_in_burst: ended.holds.total.saturating_sub(settled.holds.total),
    })
}

fn print(outcome: &Outcome) {
    let Outcome { program, peak_rss, .. } = outcome;
    let times = |times: &[Duration]| times.iter().map(|time| text(*time)).collect::<Vec<_>>();
    let mut cells = vec![program.clone()];
    cells.extend(times(&[
        outcome.start,
        outcome.one_change_p50,
        outcome.one_change_p99,
        outcome.burst,
        outcome.service_p50,
        outcome.service_p99,
        outcome.no_service_p50,
        outcome.no_service_p99,
        outcome.next_p50,
        outcome.cpu_to_start,
        outcome.cpu_a_change,
        outcome.cpu_of_burst,
    ]));
    cells.push(format!("{} MiB", peak_rss >> 20));
    cells.extend(times(&[outcome.longest_hold, outcome.held_in_burst]));
    row(&cells);
}
