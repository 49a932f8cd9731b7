//! The machine that kind finds Docker on: namespaces of this one, with a dockerd of their own.
//!
//! Invariant: dropping it removes the cluster and all of the machine; only Docker's images stay, outside the clone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};

use super::{NAME, READY};
use crate::{
    cluster::{
        cgroups,
        node::UNSHARE,
        parts::{self, Parts},
    },
    netns::Netns,
    processes::{self, Process, Start},
    record::Record,
    wait,
};

/// Settings of the whole machine that kubelet changes in a node of kind, where nothing can be in front of them.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// A machine with a dockerd.
#[derive(Debug)]
pub(super) struct Machine {
    process: Process,
    folder: PathBuf,
    pub(super) host: Arc<Netns>,
    pub(super) parts: Parts,
    pub(super) record: Record,
}

impl Machine {
    /// Starts it, and waits until Docker answers.
    pub(super) fn start() -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        let parts = Parts::find()?;
        let record = Record::open()?;
        let host = Arc::new(Netns::create(&record, "docker")?);
        let (process, folder) = start(&record, &parts, &host)?;
        let mut machine = Self { process, folder, host, parts, record };
        let answered = wait::until("dockerd to answer", READY, || {
            machine.check()?;
            Ok(match machine.run("docker", &["version"]) {
                Ok(_) => wait::Look::Done(()),
                Err(error) => wait::Look::NotYet(format!("{error:#}")),
            })
        });
        answered.with_context(|| machine.log_tails())?;
        Ok(machine)
    }

    /// Fails when it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        self.process.check()
    }

    /// Runs a program on it.
    pub(super) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let (kind, built) = self.parts.kind()?;
        let docker = built.join("docker/usr");
        let path =
            [docker.join("bin"), kind.with_file_name(""), std::env::var("PATH").unwrap_or_default().into()];
        let path = path.map(|folder| folder.display().to_string()).join(":");
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.process.first_child()?.to_string(),
                "--mount",
                "--pid",
                "--uts",
                "--ipc",
                "--",
                program,
            ])
            .args(args)
            .env("PATH", path)
            .env("DOCKER_HOST", "unix:///run/docker.sock")
            .env("HOME", "/run");
        for proxy in processes::PROXIES {
            command.env_remove(proxy);
        }
        self.host.output(&mut command)
    }

    /// The ends of its logs.
    pub(super) fn log_tails(&self) -> String {
        let docker = processes::tail(&self.folder.join("dockerd.log"), 20);
        format!("{}\n{docker}", self.process.log_tail(10))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What is left of it would be started again with dockerd.
        drop(self.run("kind", &["delete", "cluster", "--name", NAME]));
    }
}

fn start(record: &Record, parts: &Parts, host: &Netns) -> Result<(Process, PathBuf)> {
    let built = parts.kind()?.1;
    let cgroups = cgroups::make(record, &["daemons".to_owned(), "containers".to_owned()])?;
    SETTINGS.iter().try_for_each(|setting| record.note_setting(&Path::new("/proc/sys").join(setting)))?;
    // On a disk: overlays of overlays, or of what is in memory, have their limits.
    let folder = parts.scratch().join(&cgroups);
    record.note_folder(&folder)?;
    fs::create_dir_all(&folder)?;
    let path = |path: &Path| path.display().to_string();
    let mut args: Vec<String> = UNSHARE.split(' ').map(str::to_owned).collect();
    args.extend([
        path(&parts::script("kind/machine.sh")),
        path(&folder),
        cgroups,
        path(&built.join("docker-data")),
        path(&built.join("docker")),
        path(parts.node()),
    ]);
    let unshare = PathBuf::from("unshare");
    let start = Start { name: "docker", program: &unshare, args: &args, env: &[] };
    Ok((Process::start(record, host, &start)?, folder))
}
