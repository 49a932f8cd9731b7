//! An API server, and one of the two controllers.

use std::{fs, sync::Arc};

use anyhow::Result;
use fairlead_e2e::{
    control_plane::{BASE_CONTROLLERS, ControlPlane, ENDPOINT_CONTROLLERS},
    netns::Netns,
    network::Network,
    pki,
    plan::Families,
    processes::{Process, Start},
    record::Record,
    tools::{self, Tools},
};

/// Whose controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Genuine,
    Ours,
}

impl Make {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Genuine => "kube-controller-manager",
            Self::Ours => "fairlead-controller",
        }
    }
}

/// A control plane without nodes.
pub(crate) struct Cluster {
    controller: Option<Process>,
    control_plane: ControlPlane,
    network: Network,
    tools: Tools,
    record: Record,
}

impl Cluster {
    pub(crate) fn start() -> Result<Self> {
        let tools = Tools::find()?;
        let record = Record::open()?;
        let network = Network::build(&record, &[])?;
        let control_plane =
            ControlPlane::start(&record, &network.control_plane, &tools, Families::V4, BASE_CONTROLLERS)?;
        Ok(Self { controller: None, control_plane, network, tools, record })
    }

    pub(crate) fn namespace(&self) -> Arc<Netns> {
        Arc::clone(&self.network.control_plane)
    }

    pub(crate) fn kubeconfig(&self) -> Result<String> {
        Ok(fs::read_to_string(self.control_plane.pki.kubeconfig(pki::ADMIN))?)
    }

    /// Starts a controller whose own request limits are lifted; returns its process id.
    pub(crate) fn start_controller(&mut self, make: Make) -> Result<u32> {
        let identity = if make == Make::Ours { pki::CONTROLLER } else { pki::ADMIN };
        let kubeconfig = format!("--kubeconfig={}", self.control_plane.pki.kubeconfig(identity).display());
        let mut args = vec![kubeconfig, "--leader-elect=false".to_owned()];
        let program = match make {
            Make::Ours => tools::own_program("fairlead-controller")?,
            Make::Genuine => {
                args.push(format!("--controllers={ENDPOINT_CONTROLLERS}"));
                args.extend(
                    ["--secure-port=0", "--kube-api-qps=10000", "--kube-api-burst=10000"].map(String::from),
                );
                self.tools.program("kube-controller-manager")
            }
        };
        let start = Start { name: "measured-controller", program: &program, args: &args, env: &[] };
        let process = Process::start(&self.record, &self.network.control_plane, &start)?;
        let id = process.id();
        self.controller = Some(process);
        Ok(id)
    }
}
