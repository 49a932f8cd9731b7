//! Shadow mode: beside the proxy that programs this node, compare what it has programmed with what we would, and change
//! nothing.
//!
//! ```text
//!  Services, slices, Node ──> Lane ─> ProxyState ─> Rulebook ─┐
//!                              │                              ├─> compare ─> Ledger ─> log, metrics, /debug/divergence
//!  sentinel: something stirs ──┴─> iptables-save ─> Dump ─────┘
//! ```
//!
//! `fairlead-compiler` compares, by what becomes of packets. This reads the kernel's rules when they or what they are made
//! from have changed, and gives the other proxy time: what differs counts when it has stood for a while.
//!
//! Invariant: nothing in here writes: no rule, no setting of the kernel, no flow, no object of the API server. It listens
//! on ports of its own only.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Json, routing::get};
use fairlead_daemon::{
    admin,
    client::{ClientFlags, Clients},
    failure,
    metrics::Metrics as Registry,
    readiness::Readiness,
    shutdown,
};
use fairlead_objects::Family;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    agent::{Agent, AgentError, USER_AGENT, WAITING_CHANGES},
    configured::Configured,
    feed::Receivers,
    health::Health,
    interfaces,
    netfilter::{Features, Tool, ToolError, detect},
    own_node::Kernel,
    sentinel::Sentinel,
    servers::{self, About, Server},
    settings::Settings,
    sysctl,
};

mod lane;
mod ledger;
mod look;
mod metrics;
mod report;

use lane::{Lane, Wiring};
use ledger::Ledger;
use metrics::Metrics;
use report::Report;

/// Ports of the proxy in charge: its health and its metrics.
const TAKEN: [u16; 2] = [10256, 10249];
/// How far ours are from those.
const BESIDE: u16 = 100;

/// Runs as a shadow until shutdown.
pub(crate) async fn serve(
    configured: Configured,
    client: ClientFlags,
    grace: Duration,
) -> Result<(), AgentError> {
    let client = configured.connection(client);
    let Configured { settings, effective, file, .. } = configured;
    let shutdown = shutdown::on_signal().map_err(AgentError::Signals)?;
    let tools = tools(&settings).await?;
    let clients = client.clients(USER_AGENT).await?;
    info!(node = settings.node_name, server = clients.server(), "starting");
    info!("shadow mode: comparing with what another proxy programs, and changing nothing");
    let agent = Agent {
        about: About { effective, flags: Vec::new() },
        file,
        registry: Registry::new(),
        readiness: Readiness::default(),
        health: Arc::new(Mutex::new(Health::new(settings.sync_period))),
        tasks: JoinSet::new(),
        shutdown,
        settings,
    };
    agent.run_as_shadow(tools, grace, &clients).await
}

/// The families that can be read: IPv4 must be, IPv6 is where it works. Changes nothing, and makes no table.
async fn tools(settings: &Settings) -> Result<Vec<(Family, Tool)>, AgentError> {
    let mut tools = vec![(Family::V4, tool(Family::V4, settings).await.map_err(AgentError::Netfilter)?)];
    if sysctl::ipv6_is_enabled() {
        match tool(Family::V6, settings).await {
            Ok(tool) => tools.push((Family::V6, tool)),
            Err(error) => info!("IPv6 cannot be read: {}", failure::chain(&error)),
        }
    }
    Ok(tools)
}

async fn tool(family: Family, settings: &Settings) -> Result<Tool, ToolError> {
    let tool = detect(family, settings.variant).await?;
    tool.save_all().await?;
    Ok(tool)
}

impl Agent {
    async fn run_as_shadow(
        mut self,
        tools: Vec<(Family, Tool)>,
        grace: Duration,
        clients: &Clients,
    ) -> Result<(), AgentError> {
        let metrics = self.registry.register(Metrics::register);
        let ledgers: Vec<_> =
            tools.iter().map(|(family, _)| Arc::new(Mutex::new(Ledger::new(*family, grace)))).collect();
        self.start_pages(&ledgers);
        self.start_file_watch();
        let services = self.readiness.gate("Services");
        let slices = self.readiness.gate("EndpointSlices");
        // The comparison does not wait for the Node for ever, so readiness does not either.
        let node = Readiness::default().gate("Node");
        let (mut receivers, mut senders) = (Vec::new(), Vec::new());
        for ((family, tool), ledger) in tools.into_iter().zip(ledgers) {
            let (changes, waiting) = mpsc::channel(WAITING_CHANGES);
            let (sender, basis) = watch::channel(None);
            let lane = Lane::new(Wiring {
                family,
                sentinel: sentinel(family, &tool),
                rules: Arc::new(tool),
                changes: waiting,
                basis,
                addresses: interfaces::addresses,
                gate: self.readiness.gate(format!("{family} comparison")),
                ledger,
                metrics: metrics.clone(),
            });
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move { Ok(lane.run(shutdown).await?) });
            receivers.push((family, changes));
            senders.push((family, kernel(), sender));
        }
        self.start_node_watch(senders, clients.read.clone(), node);
        self.start_feeds(&Receivers(receivers), &clients.read, services, slices);
        self.wait().await
    }

    /// Health on one address; metrics, and what diverges, on the other.
    fn start_pages(&mut self, ledgers: &[Arc<Mutex<Ledger>>]) {
        let ledgers = ledgers.to_vec();
        let report = move || {
            let report = Report::of(ledgers.iter().map(|ledger| ledger.lock()));
            std::future::ready(Json(report))
        };
        let health = admin::health_routes(self.readiness.clone());
        let metrics = admin::metrics_routes(self.registry.clone()).route("/debug/divergence", get(report));
        let Settings { health_address, metrics_address, hard_fail, .. } = self.settings;
        for (address, server, routes) in
            [(health_address, Server::Health, health), (metrics_address, Server::Metrics, metrics)]
        {
            let Some(asked) = address else { continue };
            let (address, shutdown) = (beside(asked), self.shutdown.clone());
            if address != asked {
                info!(%address, "{} {asked} is the other proxy's: serving beside it", server.flag());
            }
            self.tasks.spawn(async move {
                Ok(servers::serve(address, server.flag(), routes, hard_fail, shutdown).await?)
            });
        }
    }
}

/// An address that the proxy in charge does not have.
fn beside(address: SocketAddr) -> SocketAddr {
    let taken = TAKEN.contains(&address.port());
    SocketAddr::new(address.ip(), address.port() + if taken { BESIDE } else { 0 })
}

fn sentinel(family: Family, tool: &Tool) -> Sentinel {
    use crate::netfilter::Netfilter as _;
    Sentinel::new(family, tool.variant()).unwrap_or_else(|error| {
        warn!(%family, %error, "cannot watch for changes of the rules: they are read twice a minute");
        Sentinel::Off
    })
}

/// A kernel that has everything: which of its features rules use makes no difference to packets, and trying them would write.
fn kernel() -> Kernel {
    Kernel { features: Features::ALL, liberal_tcp: sysctl::conntrack_is_liberal(), route_localnet: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_proxy_in_charge_are_left_to_it() {
        for (asked, served) in [
            ("0.0.0.0:10256", "0.0.0.0:10356"),
            ("[::1]:10249", "[::1]:10349"),
            ("127.0.0.1:9100", "127.0.0.1:9100"),
        ] {
            assert_eq!(beside(asked.parse().unwrap()), served.parse().unwrap());
        }
    }
}
