//! What a process used, and what was written to the API server meanwhile.

use std::{fs, time::Duration};

/// Ticks of `/proc/<pid>/stat` per second; fixed at 100 on Linux.
const TICKS: u64 = 100;

/// Requests that wrote Endpoints or EndpointSlices, as the API server counted them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
}

impl Written {
    #[allow(clippy::cast_precision_loss, reason = "for one decimal")]
    pub(crate) fn megabytes(self) -> f64 {
        self.bytes as f64 / 1e6
    }
}

/// Totals of a process and of what was written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// In bytes, since the process started.
    pub(crate) peak_rss: u64,
    pub(crate) written: Written,
}

impl Usage {
    /// Before a process started.
    pub(crate) fn idle(written: Written) -> Self {
        Self { written, ..Self::default() }
    }

    /// Of a running process. What cannot be read counts as nothing.
    pub(crate) fn of(pid: u32, written: Written) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold anything; user and system time are the 12th and 13th field after it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 =
            peak.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default();
        Self { cpu: Duration::from_millis(ticks * 1000 / TICKS), peak_rss: kib << 10, written }
    }

    /// What came since; the peak stays that of the whole life.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            peak_rss: self.peak_rss,
            written: Written {
                requests: self.written.requests.saturating_sub(before.written.requests),
                bytes: self.written.bytes.saturating_sub(before.written.bytes),
            },
        }
    }
}
