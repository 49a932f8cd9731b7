//! One of the two clusters: a control plane that holds objects and nothing that runs, and the endpoint controllers of
//! one make.
//!
//! Invariants: both sides differ in the endpoint controllers only; each is alone in a network namespace without a way
//! out.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::shadow::Shadow;
use crate::{
    control_plane::{ControlPlane, ENDPOINT_CONTROLLERS, flags},
    kubernetes::Kubernetes,
    netns::Netns,
    pki, plan,
    plan::Families,
    probe,
    processes::{Process, Start},
    programs::Make,
    record::Record,
    tools::{self, Tools},
    wait,
};

/// `--max-endpoints-per-slice` of both sides: small, so that there is much to pack.
pub const ENDPOINTS_PER_SLICE: usize = 4;
/// `--mirroring-max-endpoints-per-subset` of both sides.
pub const MIRRORED_PER_SUBSET: usize = 6;

/// How much of each log is told.
const LOG_LINES: usize = 12;

/// Where Fairlead's controller shows its pages.
const OURS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

const READY_DEADLINE: Duration = Duration::from_secs(30);

/// A running cluster.
#[derive(Debug)]
pub struct Side {
    name: &'static str,
    // Dropped in this order: clients before what they talk to, the record last.
    programs: Vec<Process>,
    control_plane: ControlPlane,
    netns: Arc<Netns>,
    record: Record,
}

/// All objects of some kinds, as the API server gives them.
pub type Objects = Vec<Value>;

impl Side {
    /// Starts it.
    pub fn start(name: &'static str, make: Make) -> Result<Self> {
        let tools = Tools::find()?;
        let record = Record::open()?;
        let netns = Arc::new(Netns::create(&record, "control-plane")?);
        let addresses = plan::control_plane();
        netns.ip(&format!(
            "addr add {}/24 dev lo\naddr add {}/64 dev lo nodad\n",
            addresses.v4, addresses.v6
        ))?;
        let control_plane =
            ControlPlane::start(&record, &netns, &tools, Families::DualStack, "namespace-controller")
                .with_context(|| format!("starting the control plane of {name}"))?;
        let mut side = Self { name, programs: Vec::new(), control_plane, netns: Arc::clone(&netns), record };
        let mut controllers = "garbage-collector-controller".to_owned();
        if make == Make::Genuine {
            controllers = format!("{controllers},{ENDPOINT_CONTROLLERS}");
        } else {
            let args = side.our_flags(pki::CONTROLLER);
            side.start_ours(&netns, "fairlead-controller", &args)?;
        }
        side.start_genuine(&netns, &tools, &controllers)?;
        Ok(side)
    }

    fn start_genuine(&mut self, netns: &Netns, tools: &Tools, controllers: &str) -> Result<()> {
        let kubeconfig = self.control_plane.pki.kubeconfig(pki::ADMIN).display().to_string();
        let mut args = flags(&[
            ("kubeconfig", kubeconfig),
            ("controllers", controllers.into()),
            ("leader-elect", "false".into()),
            ("secure-port", "0".into()),
            // Its usual limit of 20 requests a second would be most of the time that the test takes.
            ("kube-api-qps", "1000".into()),
            ("kube-api-burst", "2000".into()),
        ]);
        args.extend(sizes());
        let program = tools.program("kube-controller-manager");
        let start = Start { name: "controllers", program: &program, args: &args, env: &[] };
        self.programs.push(Process::start(&self.record, netns, &start)?);
        Ok(())
    }

    fn our_flags(&self, identity: pki::Identity) -> Vec<String> {
        let kubeconfig = self.control_plane.pki.kubeconfig(identity).display().to_string();
        let mut args = flags(&[
            ("kubeconfig", kubeconfig),
            ("leader-elect", "false".into()),
            ("http-address", OURS.to_string()),
        ]);
        args.extend(sizes());
        args
    }

    fn start_ours(&mut self, netns: &Netns, name: &str, args: &[String]) -> Result<()> {
        let program = tools::own_program("fairlead-controller")?;
        let start = Start { name, program: &program, args, env: &[] };
        let mut process = Process::start(&self.record, netns, &start)?;
        wait::until_ok("fairlead-controller to be ready", READY_DEADLINE, || {
            let (status, body) = probe::http_get(netns, OURS, "/readyz")?;
            ensure!(status == 200, "{status} {body}");
            Ok(())
        })
        .with_context(|| process.log_tail(40))?;
        process.check()?;
        self.programs.push(process);
        Ok(())
    }

    /// Starts a shadow of Fairlead beside its controllers.
    pub fn start_shadow(&mut self) -> Result<Shadow> {
        let netns = Arc::clone(&self.netns);
        let mut args = self.our_flags(pki::CONTROLLER_SHADOW);
        args.extend(["--shadow".to_owned(), "--shadow-quiet-period=200ms".to_owned()]);
        self.start_ours(&netns, "shadow", &args)?;
        Ok(Shadow::new(netns, OURS))
    }

    /// What messages call it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Client of its API server.
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.control_plane.kubernetes
    }

    /// All objects below an API path such as `/api/v1/pods`.
    pub fn all<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> Result<Vec<T>> {
        self.list(http::Request::get(path))
    }

    /// As [`Side::all`], their metadata only.
    pub fn all_metadata<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> Result<Vec<T>> {
        let kind = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        self.list(http::Request::get(path).header(http::header::ACCEPT, kind))
    }

    fn list<T: DeserializeOwned + Send + 'static>(&self, request: http::request::Builder) -> Result<Vec<T>> {
        #[derive(Deserialize)]
        struct List<T> {
            items: Vec<T>,
        }
        let request = request.body(Vec::new())?;
        let path = request.uri().to_string();
        let list: List<T> = self
            .kubernetes()
            .run(move |client| async move { Ok(client.request(request).await?) })
            .with_context(|| format!("listing {path} of {}", self.name))?;
        Ok(list.items)
    }

    /// Fails when one of its programs ended, or when ours complained about itself.
    pub fn check(&mut self) -> Result<()> {
        self.control_plane.check()?;
        for program in &mut self.programs {
            program.check()?;
            let log = program.log();
            let complaint =
                log.lines().find(|line| line.contains("breaks an invariant") || line.contains("panicked"));
            if let Some(line) = complaint {
                anyhow::bail!("{} of {}: {line}", program.name(), self.name);
            }
        }
        Ok(())
    }

    /// All that its kube-controller-manager printed.
    pub fn log(&self) -> String {
        self.programs.iter().filter(|program| program.name() == "controllers").map(Process::log).collect()
    }

    /// The last lines that its controllers printed about any of these.
    pub fn log_about(&self, words: &[String]) -> String {
        let about = |line: &&str| words.iter().any(|word| line.contains(word.as_str()));
        let mut text = String::new();
        for program in &self.programs {
            let log = program.log();
            let mut lines: Vec<&str> = log.lines().rev().filter(about).take(LOG_LINES).collect();
            lines.push("");
            lines.reverse();
            let _infallible = write!(text, "\n--- {} of {}{}", program.name(), self.name, lines.join("\n"));
        }
        text
    }
}

fn sizes() -> Vec<String> {
    flags(&[
        ("max-endpoints-per-slice", ENDPOINTS_PER_SLICE.to_string()),
        ("mirroring-max-endpoints-per-subset", MIRRORED_PER_SUBSET.to_string()),
    ])
}
