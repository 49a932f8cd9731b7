//! How long others are kept from changing rules.
//!
//! Legacy iptables takes a lock file: while somebody holds that, all others wait. nf_tables has a lock inside of the kernel,
//! from the begin to the end of a transaction, which nothing shows from outside: there it is the life of the process that
//! writes, of which the transaction is a part.

use std::{
    fs,
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// What is looked at.
#[derive(Clone, Debug)]
pub(crate) enum Guard {
    /// Whether this file is locked.
    File(PathBuf),
    /// Whether one of the children of this process writes rules.
    Children(u32),
}

/// How long and how often something was held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holds {
    pub(crate) longest: Duration,
    pub(crate) total: Duration,
}

/// Adds up looks.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) holds: Holds,
    since: Option<Instant>,
}

impl Guard {
    /// Time between two looks.
    pub(crate) fn period(&self) -> Duration {
        match self {
            Self::File(_) => Duration::from_millis(1),
            // This is many files.
            Self::Children(_) => Duration::from_millis(4),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        match self {
            Self::File(path) => is_locked(path),
            Self::Children(pid) => children(*pid).into_iter().any(writes_rules),
        }
    }
}

impl Tally {
    pub(crate) fn look(&mut self, held: bool) {
        match (self.since, held) {
            (None, true) => self.since = Some(Instant::now()),
            (Some(since), false) => {
                let time = since.elapsed();
                self.holds.longest = self.holds.longest.max(time);
                self.holds.total += time;
                self.since = None;
            }
            _ => {}
        }
    }
}

/// Lines of `/proc/locks`: number, kind, mode, access, process, device and inode, range. With `->` after the number, somebody
/// waits.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = fs::metadata(path) else { return false };
    let end = format!(":{}", file.st_ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| !line.contains("->") && line.split_whitespace().any(|word| word.ends_with(&end)))
}

/// The processes that any thread of this one has started, as long as they live.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = |list: String| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>();
    lists.flat_map(pids).collect()
}

/// `iptables-restore`, `iptables-nft-restore` or `nft`, cut to fifteen characters.
fn writes_rules(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim_end();
    name == "nft" || name.contains("-re")
}
