//! What a bed leaves in the file system while it lives, and how the leftovers of a dead bed are removed.
//!
//! `/run/fairlead/<pid>-<n>/` belongs to the n-th bed of the process `<pid>`: `owner` and `processes` name processes as
//! `pid start-time`, `net/` holds a link per network namespace, `logs/` a file per program, `leftovers` names folders and
//! cgroups elsewhere that belong to the bed and settings that it changes, the rest is keys and data.
//!
//! Invariants: a process is only ever killed when both its pid and its start time are the recorded ones, so a recycled
//! pid is safe. Namespaces need no cleaning: they are held by file descriptors of the owner and by the processes in
//! them, and go with these. `net/` only makes them reachable by path.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Where the records of all beds of this machine are.
pub const ROOT: &str = "/run/fairlead";

/// How long the processes of a cgroup may take to be gone once they are killed.
const DYING: Duration = Duration::from_secs(30);

/// The folder of one living bed. Dropping it removes the folder, and what is noted as left elsewhere.
#[derive(Debug)]
pub struct Record {
    dir: PathBuf,
}

impl Record {
    /// Opens a record for a new bed of this process, and sweeps what dead beds left.
    pub fn open() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep(Path::new(ROOT))?;
        let pid = std::process::id();
        let id = format!("{pid}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        // A record without its owner would be taken for a dead one: it gets its name when it is complete.
        let unfinished = Path::new(ROOT).join(format!(".{id}"));
        let dir = Path::new(ROOT).join(&id);
        fs::create_dir_all(unfinished.join("net"))
            .and_then(|()| fs::create_dir_all(unfinished.join("logs")))
            .with_context(|| format!("making the folder {}", unfinished.display()))?;
        fs::write(unfinished.join("owner"), identity(pid).unwrap_or_default())?;
        fs::write(unfinished.join("processes"), "")?;
        fs::rename(&unfinished, &dir).with_context(|| format!("making the folder {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a namespace is reachable by path.
    pub fn link(&self, namespace: &str) -> PathBuf {
        self.dir.join("net").join(namespace)
    }

    /// Where a program's output goes.
    pub fn log(&self, program: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{program}.log"))
    }

    /// Notes a process that belongs to the bed.
    pub fn note_process(&self, pid: u32) -> Result<()> {
        let mut file = fs::OpenOptions::new().append(true).open(self.dir.join("processes"))?;
        if let Some(identity) = identity(pid) {
            writeln!(file, "{identity}")?;
        }
        Ok(())
    }

    /// Notes a folder elsewhere that is to go with the bed, before it is made.
    pub fn note_folder(&self, path: &Path) -> Result<()> {
        self.note_leftover("folder", path)
    }

    /// Notes a cgroup that is to go with the bed, and those below it, before it is made.
    pub fn note_cgroup(&self, path: &Path) -> Result<()> {
        self.note_leftover("cgroup", path)
    }

    /// Notes what a setting of the whole machine is now, to be set again when the bed goes.
    pub fn note_setting(&self, path: &Path) -> Result<()> {
        let value = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("leftovers"))?;
        Ok(writeln!(file, "setting {} {}", path.display(), value.trim())?)
    }

    fn note_leftover(&self, kind: &str, path: &Path) -> Result<()> {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("leftovers"))?;
        Ok(writeln!(file, "{kind} {}", path.display())?)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Err(error) = remove_leftovers(&self.dir) {
            // With its folder gone nobody would know of them.
            return eprintln!("cannot remove all of {}: {error:#}", self.dir.display());
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// What [`sweep`] found and removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Records of beds whose owner is dead.
    pub beds: usize,
    /// Processes of these beds that were still alive.
    pub processes: usize,
    /// Beds that are in use and were left alone.
    pub in_use: usize,
}

/// Removes what beds with a dead owner left behind: their recorded processes that are still the same, and their folder.
pub fn sweep(root: &Path) -> Result<Swept> {
    let mut swept = Swept::default();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(swept),
        Err(error) => return Err(error).with_context(|| format!("reading {}", root.display())),
    };
    for entry in entries {
        let dir = entry?.path();
        if owner_lives(&dir) {
            swept.in_use += 1;
            continue;
        }
        for line in fs::read_to_string(dir.join("processes")).unwrap_or_default().lines() {
            swept.processes += usize::from(kill_recorded(line));
        }
        remove_leftovers(&dir)?;
        swept.beds += 1;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(swept)
}

/// `.<pid>-<n>` has no owner file yet: then the pid in the name decides.
fn owner_lives(dir: &Path) -> bool {
    if let Ok(owner) = fs::read_to_string(dir.join("owner")) {
        return lives(owner.trim());
    }
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let pid = name.strip_prefix('.').and_then(|name| name.split('-').next()).and_then(|pid| pid.parse().ok());
    pid.is_some_and(|pid| identity(pid).is_some())
}

/// Removes what is noted as left elsewhere, cgroups first: nothing writes into the folders any more when they are empty.
fn remove_leftovers(dir: &Path) -> Result<()> {
    let noted = fs::read_to_string(dir.join("leftovers")).unwrap_or_default();
    let of = |kind: &'static str| noted.lines().filter_map(move |line| line.strip_prefix(kind));
    for path in of("cgroup ").map(Path::new) {
        wait::until_ok("the processes of a cgroup to be gone", DYING, || remove_cgroup(path))?;
    }
    for setting in of("setting ") {
        if let Some((path, value)) = setting.split_once(' ') {
            fs::write(path, value).with_context(|| format!("setting {path} to {value} again"))?;
        }
    }
    for path in of("folder ") {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A cgroup's files cannot be removed, only its folder, when no cgroup is below it and no process in it.
fn remove_cgroup(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("removing the cgroup {}", path.display()))
}

fn kill_recorded(line: &str) -> bool {
    let pid = line.split(' ').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    lives(line) && pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
}

fn lives(recorded: &str) -> bool {
    let pid = recorded.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.and_then(identity).is_some_and(|now| now == recorded)
}

/// `pid start-time` of a process that is there and no zombie; the start time is in clock ticks since boot, field 22 of
/// `/proc/<pid>/stat`.
pub fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (state != "Z" && state != "X").then(|| format!("{pid} {started}"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("fairlead-record-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn bed(root: &Path, name: &str, owner: &str, processes: &str) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir_all(dir.join("net")).unwrap();
        fs::write(dir.join("owner"), owner).unwrap();
        fs::write(dir.join("processes"), processes).unwrap();
        dir
    }

    #[test]
    fn sweep_leaves_a_bed_alone_when_its_owner_lives() {
        let root = scratch("alive");
        let dir = bed(&root, "1-0", &identity(std::process::id()).unwrap(), "");
        assert_eq!(sweep(&root).unwrap(), Swept { in_use: 1, ..Swept::default() });
        assert!(dir.exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn sweep_kills_only_the_very_process_that_was_recorded() {
        let root = scratch("dead");
        let mut ours = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let mut other = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let recorded = format!("{}\n{} 1\n", identity(ours.id()).unwrap(), other.id());
        let dir = bed(&root, "2-0", "1 999999999999", &recorded);
        assert_eq!(sweep(&root).unwrap(), Swept { beds: 1, processes: 1, in_use: 0 });
        assert!(!dir.exists());
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "a process with another start time was killed");
        other.kill().unwrap();
        other.wait().unwrap();
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn sweep_removes_what_is_noted_as_left_elsewhere() {
        let root = scratch("leftovers");
        let elsewhere = scratch("elsewhere");
        let (cgroup, folder) = (elsewhere.join("cgroup"), elsewhere.join("folder"));
        fs::create_dir_all(cgroup.join("pods/pod")).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("data"), "").unwrap();
        let dir = bed(&root, "3-0", "1 999999999999", "");
        let setting = elsewhere.join("setting");
        fs::write(&setting, "changed").unwrap();
        let noted = [
            format!("cgroup {}", cgroup.display()),
            format!("folder {}", folder.display()),
            format!("cgroup {}/never-made", cgroup.display()),
            format!("setting {} 1 2", setting.display()),
        ]
        .join("\n");
        fs::write(dir.join("leftovers"), noted).unwrap();
        assert_eq!(sweep(&root).unwrap(), Swept { beds: 1, ..Swept::default() });
        assert!(!cgroup.exists() && !folder.exists() && !dir.exists());
        assert_eq!(fs::read_to_string(setting).unwrap(), "1 2");
        fs::remove_dir_all(root).unwrap();
        fs::remove_dir_all(elsewhere).unwrap();
    }
}
