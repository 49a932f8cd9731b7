//! What a program and its children use.

use std::{
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fairlead_e2e::wait;

use super::holds::{Guard, Holds, Tally, children};

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
    /// How long others had to wait with rules of theirs.
    pub(crate) holds: Holds,
}

/// Looks at a program until dropped.
pub(crate) struct Watch {
    pid: u32,
    peak: Arc<AtomicU64>,
    tally: Arc<Mutex<Tally>>,
    end: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn on(pid: u32, guard: Guard) -> Self {
        let watch = Self { pid, peak: Arc::default(), tally: Arc::default(), end: Arc::default() };
        let peak = Arc::clone(&watch.peak);
        watch.repeat(LOOK, move || _ = peak.fetch_max(rss_of_tree(pid), Ordering::Relaxed));
        let tally = Arc::clone(&watch.tally);
        watch.repeat(guard.period(), move || lock(&tally).look(guard.is_held()));
        watch
    }

    fn repeat(&self, period: Duration, mut look: impl FnMut() + Send + 'static) {
        let end = Arc::clone(&self.end);
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                look();
                wait::watch(period);
            }
        });
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
            holds: lock(&self.tally).holds,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// What is counted stays right if another thread panicked.
fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rss_of_tree(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = rss.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default();
    let program = |pid| fs::read_link(format!("/proc/{pid}/exe")).ok();
    // Until a child has become another program, it lives in its parent's memory.
    let children = children(pid).into_iter().filter(|child| program(*child) != program(pid));
    (kib << 10) + children.map(rss_of_tree).sum::<u64>()
}
