//! Metrics of the process itself, read from /proc on each scrape (the names of Prometheus' client libraries).
//!
//! Invariant: what cannot be read is left out; a scrape never fails for it.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

/// Clock ticks per second in /proc: USER_HZ, 100 on every Linux port that matters to us.
const TICKS: f64 = 100.0;

/// The collector.
#[derive(Debug)]
pub(crate) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let facts = Facts::read();
        let Facts { cpu, start, resident, virtual_size, descriptors, .. } = facts;
        let counter = MetricType::Counter;
        let gauge = MetricType::Gauge;
        for (name, help, kind, value) in [
            ("process_cpu_seconds_total", "Processor time spent, in seconds", counter, cpu),
            ("process_start_time_seconds", "Start of the process, in seconds since 1970", gauge, start),
            ("process_resident_memory_bytes", "Resident memory, in bytes", gauge, resident),
            ("process_virtual_memory_bytes", "Virtual memory, in bytes", gauge, virtual_size),
            (
                "process_virtual_memory_max_bytes",
                "Limit of virtual memory, in bytes",
                gauge,
                facts.most_virtual,
            ),
            ("process_open_fds", "Open file descriptors", gauge, descriptors),
            ("process_max_fds", "Limit of open file descriptors", gauge, facts.most_descriptors),
            (
                "process_network_receive_bytes_total",
                "Bytes received by this network namespace",
                counter,
                facts.received,
            ),
            (
                "process_network_transmit_bytes_total",
                "Bytes sent by this network namespace",
                counter,
                facts.sent,
            ),
        ] {
            if let Some(value) = value {
                let metric = encoder.encode_descriptor(name, help, None, kind)?;
                ConstGauge::new(value).encode(metric)?;
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Facts {
    cpu: Option<f64>,
    start: Option<f64>,
    resident: Option<f64>,
    virtual_size: Option<f64>,
    most_virtual: Option<f64>,
    descriptors: Option<f64>,
    most_descriptors: Option<f64>,
    received: Option<f64>,
    sent: Option<f64>,
}

impl Facts {
    fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The command in parentheses may hold spaces; fields are counted from behind it. The first one there is field 3.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok())
        });
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |key: &str| {
            let kilobytes =
                status.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"))?;
            kilobytes.trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
        };
        Self {
            cpu: field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS),
            start: field(22).zip(boot).map(|(ticks, boot)| boot + ticks / TICKS),
            resident: bytes("VmRSS:"),
            virtual_size: bytes("VmSize:"),
            most_virtual: limit("Max address space"),
            most_descriptors: limit("Max open files"),
            received: octets("InOctets"),
            sent: octets("OutOctets"),
            descriptors: fs::read_dir("/proc/self/fd")
                .ok()
                .and_then(|dir| u32::try_from(dir.count()).ok())
                .map(f64::from),
        }
    }
}

/// The soft limit; as Prometheus' client for Go writes it, no limit is the largest number.
fn limit(name: &str) -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let value = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?;
    if value == "unlimited" { Some(2_f64.powi(64)) } else { value.parse().ok() }
}

/// A counter of the kernel's IP layer (IPv4): two lines, of names and of numbers.
fn octets(name: &str) -> Option<f64> {
    let text = fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let column = names.split_whitespace().position(|other| other == name)?;
    numbers.split_whitespace().nth(column)?.parse().ok()
}
