//! The programs under test: Fairlead's two, or the genuine ones that they stand in for.
//!
//! Both halves can be switched on their own, so that a test that fails with ours and passes with the genuine one says
//! where to look, and later tests can compare the two.

use std::{
    fs, net::SocketAddr, os::unix::fs::symlink, path::PathBuf, process::Command, sync::Arc, time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    control_plane::{self, flags},
    netns::Netns,
    pki::{self, Pki},
    plan::{self, Families},
    probe,
    processes::{Process, Start},
    record::Record,
    tools::{self, Tools},
    wait::{self, Look},
};

const READY_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Whose program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Make {
    /// Fairlead's.
    #[default]
    Ours,
    /// Kubernetes' own.
    Genuine,
}

impl Make {
    /// From an environment variable: `genuine`, or `ours`, which is also the default.
    pub fn from_env(variable: &str) -> Result<Self> {
        match std::env::var(variable).as_deref() {
            Ok("genuine") => Ok(Self::Genuine),
            Ok("ours") | Err(_) => Ok(Self::Ours),
            Ok(other) => bail!("{variable}={other}: expected `ours` or `genuine`"),
        }
    }
}

/// Which of the two iptables a node's programs write to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Rules in `nf_tables`, the default of today's distributions.
    #[default]
    Nft,
    /// Rules in `x_tables`.
    Legacy,
}

impl Variant {
    /// From the environment variable `FAIRLEAD_IPTABLES`: `legacy`, or `nft`, which is also the default.
    pub fn from_env() -> Result<Self> {
        match std::env::var("FAIRLEAD_IPTABLES").as_deref() {
            Ok("legacy") => Ok(Self::Legacy),
            Ok("nft") | Err(_) => Ok(Self::Nft),
            Ok(other) => bail!("FAIRLEAD_IPTABLES={other}: expected `nft` or `legacy`"),
        }
    }

    /// The name of one of its programs, such as that of `iptables-save`.
    pub fn program(self, name: &str) -> String {
        match (self, name.split_once('-')) {
            (Self::Nft, _) => name.to_owned(),
            (Self::Legacy, Some((base, action))) => format!("{base}-legacy-{action}"),
            (Self::Legacy, None) => format!("{name}-legacy"),
        }
    }

    /// The `PATH` of a machine that has only this variant.
    fn search_path(self, record: &Record) -> Result<String> {
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(match self.in_front(record.dir().join("iptables-legacy"))? {
            Some(dir) => format!("{}:{path}", dir.display()),
            None => path,
        })
    }

    /// What has to be the first folder in the `PATH` of a machine that has only this variant: `dir`, which is made if it is
    /// not there; none where this machine's own is the variant.
    pub(crate) fn in_front(self, dir: PathBuf) -> Result<Option<PathBuf>> {
        if self == Self::Nft {
            return Ok(None);
        }
        if dir.exists() {
            return Ok(Some(dir));
        }
        fs::create_dir(&dir)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let actions = ["", "-save", "-restore"];
        for name in
            ["iptables", "ip6tables"].iter().flat_map(|base| actions.map(|act| format!("{base}{act}")))
        {
            let wanted = self.program(&name);
            let found = std::env::split_paths(&path).map(|place| place.join(&wanted)).find(|it| it.exists());
            symlink(found.with_context(|| format!("no {wanted} (package iptables)"))?, dir.join(name))?;
        }
        Ok(Some(dir))
    }
}

/// What starting a program needs to know of the bed.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where logs go.
    pub record: &'a Record,
    /// The genuine programs.
    pub tools: &'a Tools,
    /// Kubeconfigs.
    pub pki: &'a Pki,
    /// Families of the cluster.
    pub families: Families,
    /// The nodes' iptables.
    pub variant: Variant,
}

/// The half that writes Endpoints and EndpointSlices.
#[derive(Debug)]
pub struct Controller {
    process: Process,
    make: Make,
}

impl Controller {
    /// Starts it in the control plane's namespace, and waits until it says that it is ready. `extra` flags are for ours.
    pub fn start(place: Place<'_>, namespace: &Netns, make: Make, extra: &[&str]) -> Result<Self> {
        if make == Make::Genuine {
            let process = control_plane::start_controller_manager(
                place.record,
                namespace,
                place.tools,
                place.pki,
                "endpoint-controllers",
                control_plane::ENDPOINT_CONTROLLERS,
            )?;
            return Ok(Self { process, make });
        }
        let identity = if extra.contains(&"--shadow") { pki::CONTROLLER_SHADOW } else { pki::CONTROLLER };
        let mut args = flags(&[("kubeconfig", place.pki.kubeconfig(identity).display().to_string())]);
        args.extend(extra.iter().map(|flag| (*flag).to_owned()));
        let program = tools::own_program("fairlead-controller")?;
        let start = Start { name: "fairlead-controller", program: &program, args: &args, env: &[] };
        let mut process = Process::start(place.record, namespace, &start)?;
        await_page(&mut process, namespace, 8080, "/readyz")?;
        Ok(Self { process, make })
    }

    /// Asks it to end, and expects it to do so soon and without complaint.
    pub fn stop(mut self) -> Result<()> {
        stop(&mut self.process, self.make)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The half that makes a node's kernel send traffic to the endpoints.
#[derive(Debug)]
pub struct Programmer {
    process: Process,
    make: Make,
}

impl Programmer {
    /// Starts it in a node's namespace, and waits until it says that the node is programmed.
    pub fn start(
        place: Place<'_>,
        namespace: &Netns,
        node: &plan::Node,
        make: Make,
        extra: &[&str],
    ) -> Result<Self> {
        let mut process = Self::launch(place, namespace, node, make, extra)?;
        // kube-proxy is healthy before it has programmed anything, and says no more.
        let page = if make == Make::Ours { "/readyz" } else { "/healthz" };
        await_page(&mut process, namespace, 10256, page)?;
        Ok(Self { process, make })
    }

    /// Starts it in a node's namespace, and does not wait for it. The log is that of all programmers of that node.
    pub fn launch(
        place: Place<'_>,
        namespace: &Netns,
        node: &plan::Node,
        make: Make,
        extra: &[&str],
    ) -> Result<Process> {
        let (program, mut args) = programmer(place, make, extra.contains(&"--shadow"))?;
        args.push(format!("--hostname-override={}", node.name));
        args.extend(extra.iter().map(|flag| (*flag).to_owned()));
        let name = format!("programmer-{}", node.name);
        let env = machine(place, &node.name)?;
        Process::start(
            place.record,
            namespace,
            &Start { name: &name, program: &program, args: &args, env: &env },
        )
    }

    /// Runs it with `--cleanup` only, in a node's namespace.
    pub fn clean_up(
        place: Place<'_>,
        namespace: &Arc<Netns>,
        node: &plan::Node,
        make: Make,
    ) -> Result<String> {
        let (program, args) = programmer(place, make, false)?;
        let mut command = Command::new(program);
        command.args(args).arg("--cleanup").envs(machine(place, &node.name)?);
        namespace.output(&mut command)
    }

    /// Asks it to end, and expects it to do so soon and without complaint.
    pub fn stop(mut self) -> Result<()> {
        stop(&mut self.process, self.make)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Each node is a machine of its own: it has its own lock, and one variant of iptables.
fn machine(place: Place<'_>, node: &str) -> Result<[(&'static str, String); 2]> {
    let lock = place.record.dir().join(format!("xtables-{node}.lock"));
    Ok([("XTABLES_LOCKFILE", lock.display().to_string()), ("PATH", place.variant.search_path(place.record)?)])
}

fn programmer(place: Place<'_>, make: Make, shadow: bool) -> Result<(PathBuf, Vec<String>)> {
    let identity = match make {
        Make::Ours if shadow => pki::PROGRAMMER_SHADOW,
        Make::Ours => pki::PROGRAMMER,
        Make::Genuine => pki::PROXY,
    };
    let mut args = flags(&[
        ("kubeconfig", place.pki.kubeconfig(identity).display().to_string()),
        ("cluster-cidr", plan::cluster_networks(place.families).into()),
        // The conntrack limits are those of the whole machine, and not changed from a bed.
        ("conntrack-max-per-core", "0".into()),
        ("conntrack-min", "0".into()),
    ]);
    let program = match make {
        Make::Ours => {
            if place.variant == Variant::Legacy {
                args.extend(flags(&[("iptables-variant", "legacy".into())]));
            }
            tools::own_program("fairlead-programmer")?
        }
        Make::Genuine => {
            args.extend(flags(&[("proxy-mode", "iptables".into())]));
            place.tools.program("kube-proxy")
        }
    };
    Ok((program, args))
}

fn await_page(process: &mut Process, namespace: &Netns, port: u16, path: &str) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let what = format!("{} to answer 200 on {address}{path}", process.name());
    wait::until(&what, READY_DEADLINE, || {
        process.check()?;
        Ok(match probe::http_get(namespace, address, path) {
            Ok((200, _)) => Look::Done(()),
            Ok((status, body)) => Look::NotYet(format!("{status} {}", body.trim())),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
    .with_context(|| process.log_tail(40))
}

/// The genuine programs do not all handle SIGTERM.
fn stop(process: &mut Process, make: Make) -> Result<()> {
    let status = process.stop(STOP_DEADLINE)?;
    ensure!(
        status.success() || make == Make::Genuine,
        "{} ended with {status}\n{}",
        process.name(),
        process.log_tail(30)
    );
    Ok(())
}
