//! What a program and its children use.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fairlead_e2e::wait;

/// Ticks of `/proc/<pid>/stat` per second; fixed at 100 on Linux.
const TICKS: u64 = 100;
/// Children live for some tens of milliseconds.
const LOOK: Duration = Duration::from_millis(10);

/// Totals of a program and of all children that it has had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// The most that they had at one time, in bytes.
    pub(crate) peak_rss: u64,
}

/// Looks at a program until dropped.
pub(crate) struct Watch {
    pid: u32,
    peak: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn on(pid: u32) -> Self {
        let watch = Self { pid, peak: Arc::default(), end: Arc::default() };
        let (peak, end) = (Arc::clone(&watch.peak), Arc::clone(&watch.end));
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                peak.fetch_max(rss_of_tree(pid), Ordering::Relaxed);
                wait::watch(LOOK);
            }
        });
        watch
    }

    pub(crate) fn so_far(&self) -> Usage {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // The name, in brackets, may hold anything; after it the 12th to 15th field are user and system time, its own and
        // that of children that have ended.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        Usage {
            cpu: Duration::from_millis(ticks * 1000 / TICKS),
            peak_rss: self.peak.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn rss_of_tree(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = rss.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    (kib << 10) + children.into_iter().map(rss_of_tree).sum::<u64>()
}
