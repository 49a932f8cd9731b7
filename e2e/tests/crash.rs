//! A bed whose process is killed: its programs die with it, its namespaces vanish, and `clean-bed` removes the rest.
//!
//! The test is its own victim: started again with [`HOLD`] set, it makes a bed and waits to be killed.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{Bed, From, Options, PodSpec, Port, Protocol, cases, record, suite, wait};

const HOLD: &str = "FAIRLEAD_TEST_HOLD_A_BED";

fn main() -> ExitCode {
    if std::env::var_os(HOLD).is_some() {
        return match hold() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    suite::run(
        |_| Ok(()),
        cases![
            a_killed_bed_leaves_only_a_folder_and_clean_bed_removes_it,
            a_dropped_bed_leaves_nothing,
            clean_bed_leaves_living_beds_alone,
        ],
    )
}

fn hold() -> Result<()> {
    let mut bed = Bed::start(Options::from_env()?)?;
    bed.add_pod(PodSpec::new("one", "x").port(Port::tcp(80)))?;
    println!("{}", bed.dir().display());
    std::io::stdout().flush()?;
    // Until killed, or until whoever waits for this is gone.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(())
}

/// A second bed in a process of its own.
struct Other {
    process: Child,
    dir: PathBuf,
}

impl Other {
    fn start() -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .env(HOLD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the other bed did not start: {}", process.wait()?);
        Ok(Self { process, dir: PathBuf::from(line.trim()) })
    }

    fn processes(&self) -> Result<Vec<String>> {
        let recorded: Vec<String> =
            fs::read_to_string(self.dir.join("processes"))?.lines().map(str::to_owned).collect();
        ensure!(recorded.len() >= 3, "etcd, API server and controllers are not all recorded: {recorded:?}");
        Ok(recorded)
    }

    /// Inode numbers of its namespaces: they are the same wherever somebody still uses one.
    fn namespaces(&self) -> Result<BTreeSet<PathBuf>> {
        let links = fs::read_dir(self.dir.join("net"))?;
        links.map(|link| Ok(fs::read_link(fs::read_link(link?.path())?)?)).collect()
    }
}

fn await_death(recorded: &[String]) -> Result<()> {
    wait::until_ok("all programs of the bed to be dead", Duration::from_secs(5), || {
        let alive: Vec<&String> = recorded
            .iter()
            .filter(|line| {
                let pid = line.split(' ').next().and_then(|pid| pid.parse().ok());
                pid.and_then(record::identity).as_ref() == Some(line)
            })
            .collect();
        ensure!(alive.is_empty(), "alive: {alive:?}");
        Ok(())
    })
}

fn await_end(namespaces: &BTreeSet<PathBuf>) -> Result<()> {
    wait::until_ok("the namespaces to be gone", Duration::from_secs(5), || {
        let left: Vec<PathBuf> = namespaces.intersection(&namespaces_in_use()).cloned().collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// Every network namespace that some process is in or holds open.
fn namespaces_in_use() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        found.extend(fs::read_link(process.path().join("ns/net")));
        let open = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        found.extend(open.filter_map(|fd| fs::read_link(fd.path()).ok()));
    }
    found
}

fn clean_bed() -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_clean-bed")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn a_killed_bed_leaves_only_a_folder_and_clean_bed_removes_it(bed: &mut Bed) -> Result<()> {
    let mut other = Other::start()?;
    let (recorded, namespaces) = (other.processes()?, other.namespaces()?);
    assert_eq!(namespaces.intersection(&namespaces_in_use()).count(), namespaces.len());
    other.process.kill()?;
    other.process.wait()?;
    await_death(&recorded)?;
    await_end(&namespaces)?;
    assert!(other.dir.exists());
    let said = clean_bed()?;
    assert!(said.contains("1 dead bed"), "{said}");
    assert!(!other.dir.exists());
    assert!(bed.dir().exists(), "clean-bed took a living bed's folder");
    bed.kubernetes().check_ready()
}

fn a_dropped_bed_leaves_nothing(_: &mut Bed) -> Result<()> {
    let before = fs::read_to_string("/proc/self/net/dev")?.lines().count();
    let mut other = Other::start()?;
    let (recorded, namespaces) = (other.processes()?, other.namespaces()?);
    other.process.stdin.take().context("no input")?.write_all(b"\n")?;
    assert!(other.process.wait()?.success());
    await_death(&recorded)?;
    assert!(!other.dir.exists());
    await_end(&namespaces)?;
    assert_eq!(
        fs::read_to_string("/proc/self/net/dev")?.lines().count(),
        before,
        "links of the machine itself"
    );
    Ok(())
}

fn clean_bed_leaves_living_beds_alone(bed: &mut Bed) -> Result<()> {
    bed.add_pod(PodSpec::new("one", "x").port(Port::tcp(80)))?;
    let mut other = Other::start()?;
    clean_bed()?;
    for dir in [bed.dir(), &other.dir] {
        assert!(Path::exists(dir));
    }
    let target = (bed.pod("one")?.addresses.v4, 80).into();
    bed.client(From::Node(2))?.ask(Protocol::Tcp, target)?.answer()?;
    other.process.stdin.take().context("no input")?.write_all(b"\n")?;
    assert!(other.process.wait()?.success());
    Ok(())
}
