//! Long-running programs inside namespaces.
//!
//! Invariants: a program dies with this process, however this process ends (the kernel sends it SIGKILL), and with the
//! [`Process`] that stands for it. All of them are started by one thread that lives as long as this process, because
//! "parent" means the starting thread to the kernel.

use std::{
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    netns::{self, Netns},
    record::Record,
    wait::{self, Look},
};

/// Variables that would send requests out of a bed.
pub(crate) const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// A program running inside a namespace, its output going to a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// How to start a [`Process`].
#[derive(Debug)]
pub struct Start<'a> {
    /// Its name: of the log file and in messages.
    pub name: &'a str,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [String],
    /// Environment variables beside those of this process.
    pub env: &'a [(&'a str, String)],
}

impl Process {
    /// Starts a program. A second one of the same name appends to the same log.
    pub fn start(record: &Record, namespace: &Netns, start: &Start<'_>) -> Result<Self> {
        let log = record.log(start.name);
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(start.program)
            .args(start.args)
            .envs(start.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        for proxy in PROXIES {
            command.env_remove(proxy);
        }
        let child = spawn(command, namespace).with_context(|| format!("starting {}", start.name))?;
        record.note_process(child.id())?;
        Ok(Self { name: start.name.to_owned(), child, log })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first process that it has started: process 1 of a process namespace, if it made one.
    pub fn first_child(&self) -> Result<u32> {
        let id = self.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let first = children.split(' ').next().and_then(|child| child.parse().ok());
        first.with_context(|| format!("{} has no child", self.name))
    }

    /// Fails, with the end of its log, when it is no longer running.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, self.log_tail(30));
        }
        Ok(())
    }

    /// Whether it has ended, however.
    pub fn exited(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.exit(deadline)
    }

    /// Kills it (SIGKILL), as a crash or the kernel's out-of-memory killer would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it in its tracks (SIGSTOP): it keeps its memory and its connections and does nothing, as on a frozen machine.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Process::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Waits for it to end by itself.
    pub fn exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let child = &mut self.child;
        wait::until(&what, deadline, || {
            Ok(child.try_wait()?.map_or_else(|| Look::NotYet("still running".to_owned()), Look::Done))
        })
        .with_context(|| self.log_tail(30))
    }

    /// The last `lines` lines it printed.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// All it printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("process id")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it is gone, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last `lines` lines of a file, headed by its name.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("--- last lines of {name} ({} in all)\n{}", all.len(), last.join("\n"))
}

struct Order {
    command: Command,
    namespace: OwnedFd,
    answer: mpsc::SyncSender<Result<Child>>,
}

fn spawn(command: Command, namespace: &Netns) -> Result<Child> {
    static STARTER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for Order { mut command, namespace, answer } in orders {
                let child = netns::enter(namespace.as_fd())
                    .and_then(|()| command.spawn().context("setpriv (package util-linux)"));
                drop(answer.send(child));
            }
        });
        sender
    });
    let (answer, child) = mpsc::sync_channel(1);
    let namespace = namespace.fd().try_clone_to_owned()?;
    starter.send(Order { command, namespace, answer }).ok().context("the starting thread is gone")?;
    child.recv().context("the starting thread is gone")?
}
