//! Network namespaces, and doing things inside them.
//!
//! Invariants: a namespace has no name on the machine; it lives as long as a file descriptor of this process, a socket
//! or a process holds it, so a crash cannot leave one behind. Only threads made for the purpose ever enter one: the
//! caller's thread stays where it is.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::record::Record;

/// A network namespace of a bed.
#[derive(Debug)]
pub struct Netns {
    name: String,
    link: PathBuf,
    fd: OwnedFd,
}

impl Netns {
    /// Makes an empty namespace with its loopback up, reachable as `<record>/net/<name>`.
    pub fn create(record: &Record, name: &str) -> Result<Self> {
        let fd = on_own_thread(|| -> Result<OwnedFd> {
            // `unshare` was marked deprecated in favour of an unsafe twin because of CLONE_FILES, which is not used.
            #[expect(deprecated, reason = "only CLONE_FILES makes it unsafe")]
            rustix::thread::unshare(UnshareFlags::NEWNET)
                .context("making a network namespace (root is needed)")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        })
        .with_context(|| format!("namespace {name}"))?;
        let link = record.link(name);
        let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
        std::os::unix::fs::symlink(format!("/proc/{}/fd/{number}", std::process::id()), &link)
            .with_context(|| format!("linking {}", link.display()))?;
        let namespace = Self { name: name.to_owned(), link, fd };
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Its name within the bed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that `ip ... netns PATH` and `nsenter --net=PATH` understand, as long as this process lives.
    pub fn path(&self) -> &Path {
        &self.link
    }

    /// Runs `job` on a new thread inside the namespace. Sockets opened there stay in it wherever they are used later,
    /// and threads and processes started there start in it.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            Ok(job())
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn enter(&self) -> Result<()> {
        enter(self.fd.as_fd()).with_context(|| format!("entering the namespace {}", self.name))
    }

    /// Runs a program inside the namespace and waits for it; fails, with what it printed, when it fails.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        let output = self.run(|| command.stdin(Stdio::null()).output())?;
        let output = output.with_context(|| format!("starting {}", command.get_program().display()))?;
        said(command, &output, &self.name)
    }

    /// Runs the lines of an `ip -batch` file inside the namespace.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.run(|| -> std::io::Result<Output> {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(batch.as_bytes())?;
            }
            child.wait_with_output()
        })?;
        said(&command, &output.context("starting ip (package iproute2)")?, &self.name)
            .with_context(|| format!("with the lines:\n{batch}"))?;
        Ok(())
    }

    /// Sets network sysctls of the namespace, given as paths below `/proc/sys/net`. One that this kernel lacks has
    /// nothing to switch off and is left out.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                let path = Path::new("/proc/sys/net").join(key);
                match fs::write(&path, value) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    other => other.with_context(|| format!("writing {value} to {}", path.display()))?,
                }
            }
            Ok(())
        })?
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The record's folder goes as a whole in the end; a Pod's link has to go with the Pod.
        drop(fs::remove_file(&self.link));
    }
}

/// Moves the calling thread into a network namespace.
pub(crate) fn enter(fd: BorrowedFd<'_>) -> Result<()> {
    move_into_link_name_space(fd, Some(LinkNameSpaceType::Network)).context("setns")
}

fn on_own_thread<T: Send>(job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(job).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn said(command: &Command, output: &Output, place: &str) -> Result<String> {
    if !output.status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!(
            "`{} {}` in {place}: {}\n{}{}",
            command.get_program().to_string_lossy(),
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
