//! The node agent: everything put together.
//!
//! Invariants: whatever is missing on this host is told, in one line, before the API server is asked and before
//! anything is written; the rules stay in place when the process ends, for whatever reason.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::Router;
use fairlead_daemon::{
    admin::ListenError,
    client::{ClientError, ClientFlags, Clients},
    failure,
    logging::LogFlags,
    metrics::Metrics as Registry,
    readiness::{Gate, Readiness},
    shutdown,
    watch::{Event, watch as watch_all},
};
use fairlead_objects::{EndpointSlice, Family, KubeProxyConfiguration, NodeObject, ServiceObject, labels};
use futures::{Stream, StreamExt};
use kube::{Api, Client};
use kube_runtime::watcher;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    census::HealthPorts,
    cleanup,
    configuration::{ConfigurationError, ConfigurationFile},
    configured::Configured,
    conntrack,
    events::{self, Events, Notice},
    feed::{Change, Receivers, Services, Slices},
    flags::{Flags, InapplicableFlags, WithoutEffect},
    health::Health,
    health_ports::HealthPortServers,
    interfaces,
    lane::{Lane, Wiring},
    leftovers, limits,
    metrics::Metrics,
    netfilter::{Features, Netfilter, Tool, ToolError, Variant, detect},
    node_watch::{Audience, NoPodNetworks, NodeWatch},
    own_node::{Kernel, basis},
    sentinel::Sentinel,
    servers,
    settings::Settings,
    sysctl,
};

/// Changes that may wait for a sync loop before a watch has to wait; the loop takes them in at any time.
const WAITING_CHANGES: usize = 4096;
/// What we call ourselves when we talk to the API server.
const USER_AGENT: &str = concat!("fairlead-programmer/", env!("CARGO_PKG_VERSION"));

/// Watches Services and EndpointSlices, and makes this node's packet filter forward Service traffic to endpoints.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "fairlead-programmer", version)]
pub struct Command {
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    inapplicable: InapplicableFlags,
    /// Filled in by [`Command::parse`].
    #[arg(skip)]
    pub(crate) without_effect: WithoutEffect,
    #[command(flatten)]
    client: ClientFlags,
    #[command(flatten)]
    log: LogFlags,
}

impl Command {
    /// Reads the command line; ends the process with a message if it cannot be read.
    pub fn parse() -> Self {
        let matches = <Self as clap::CommandFactory>::command().get_matches();
        match <Self as clap::FromArgMatches>::from_arg_matches(&matches) {
            Ok(command) => Self { without_effect: WithoutEffect::of(&matches), ..command },
            Err(error) => error.exit(),
        }
    }
}

/// Why the node agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Flags that cannot be used, one per line.
    #[error("{0}")]
    Flags(String),
    /// The configuration file cannot be used.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// The configuration file says something else now. Whoever supervises us starts us again, as with kube-proxy.
    #[error("the configuration {} changed: ending, to be started again with it", .0.display())]
    ConfigurationChanged(PathBuf),
    /// The packet filter cannot be used.
    #[error("cannot use the packet filter")]
    Netfilter(#[source] ToolError),
    /// There is no client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Signals cannot be listened to.
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    /// An address is taken, and `--bind-address-hard-fail` is set.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The Node lacks what rules need.
    #[error(transparent)]
    Node(#[from] NoPodNetworks),
    /// The configuration could not be printed.
    #[error("cannot print the configuration")]
    Dump(#[source] serde_json::Error),
    /// The configuration could not be written.
    #[error("cannot write the configuration to {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Rules could not be removed; the log says which.
    #[error("{0} problems while removing rules")]
    Cleanup(usize),
    /// A task ended with a panic.
    #[error("a task ended unexpectedly")]
    Task(#[from] JoinError),
}

impl AgentError {
    /// Exit code: 2 for bad input, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Flags(_) | Self::Configuration(_)) { 2 } else { 1 }
    }

    /// The error and its causes in one line (one line for each flag that is wrong).
    pub fn sentence(&self) -> String {
        match self {
            Self::Flags(lines) => lines.clone(),
            other => failure::chain(other),
        }
    }
}

/// Does what the command line says.
pub async fn run(command: Command) -> Result<(), AgentError> {
    command.log.start().map_err(|error| AgentError::Flags(failure::chain(&error)))?;
    let configured = Configured::of(&command)?;
    let Command { flags, client, .. } = command;
    if flags.dump_config {
        println!("{}", configured.dump()?);
        return Ok(());
    }
    if let Some(path) = flags.write_config_to {
        let text = configured.dump()?;
        return fs::write(&path, text).map_err(|source| AgentError::Write { path, source });
    }
    if flags.cleanup {
        return clean_up(&configured.settings).await;
    }
    if flags.init_only {
        limits::apply(&configured.settings.conntrack);
        if configured.settings.localhost_node_ports {
            enable_route_localnet();
        }
        return Ok(());
    }
    Box::pin(serve(configured, client)).await
}

/// Removes our rules from both families and both variants, as far as they are there.
async fn clean_up(settings: &Settings) -> Result<(), AgentError> {
    let variants =
        settings.variant.map_or_else(|| vec![Variant::Nft, Variant::Legacy], |variant| vec![variant]);
    // Says what is missing, if nothing at all can be done.
    detect(Family::V4, settings.variant).await.map_err(AgentError::Netfilter)?;
    let mut problems = 0;
    for family in Family::ALL.into_iter().filter(|family| *family == Family::V4 || sysctl::ipv6_is_enabled())
    {
        for variant in &variants {
            let Ok(tool) = Tool::find(family, *variant).await else { continue };
            if !tool.save_all().await.is_ok_and(|save| cleanup::concerns(&save)) {
                continue;
            }
            for problem in cleanup::clean(&tool).await {
                error!(%family, %variant, "{}", failure::chain(&problem));
                problems += 1;
            }
            info!(%family, %variant, "rules removed");
        }
        problems += usize::from(!remove_leftovers(family));
    }
    if problems == 0 { Ok(()) } else { Err(AgentError::Cleanup(problems)) }
}

/// Removes what kube-proxy's mode nftables wrote. False if that failed.
fn remove_leftovers(family: Family) -> bool {
    match leftovers::remove_nftables(family) {
        Ok(true) => info!(%family, "removed table kube-proxy of nftables, left by kube-proxy in that mode"),
        Ok(false) => {}
        Err(error) => {
            warn!(%family, %error, "cannot remove table kube-proxy of nftables: remove it with `nft delete table`");
            return false;
        }
    }
    true
}

/// One family that can be programmed.
struct Plane {
    family: Family,
    tool: Tool,
    kernel: Kernel,
}

async fn serve(configured: Configured, client: ClientFlags) -> Result<(), AgentError> {
    let client = configured.connection(client);
    let Configured { settings, effective, file } = configured;
    let shutdown = shutdown::on_signal().map_err(AgentError::Signals)?;
    let tools = tools(&settings).await?;
    let clients = client.clients(USER_AGENT).await?;
    info!(node = settings.node_name, server = clients.server(), "starting");
    limits::apply(&settings.conntrack);
    limits::set_oom_score(settings.oom_score_adj);
    let mut planes = Vec::new();
    for (family, tool) in tools {
        planes.push(plane(family, tool, &settings).await);
    }
    let agent = Agent {
        effective,
        file,
        registry: Registry::new(),
        readiness: Readiness::default(),
        health: Arc::new(Mutex::new(Health::new(settings.sync_period))),
        tasks: JoinSet::new(),
        shutdown,
        settings,
    };
    agent.run(planes, &clients).await
}

/// The families that can be programmed: IPv4 must be, IPv6 is where it works. Changes nothing.
async fn tools(settings: &Settings) -> Result<Vec<(Family, Tool)>, AgentError> {
    let mut tools = vec![(Family::V4, tool(Family::V4, settings).await.map_err(AgentError::Netfilter)?)];
    if sysctl::ipv6_is_enabled() {
        match tool(Family::V6, settings).await {
            Ok(tool) => tools.push((Family::V6, tool)),
            Err(error) => info!("IPv6 cannot be programmed: {}", failure::chain(&error)),
        }
    }
    Ok(tools)
}

async fn tool(family: Family, settings: &Settings) -> Result<Tool, ToolError> {
    let tool = detect(family, settings.variant).await?;
    // Fails if the kernel does not have this family or variant.
    tool.save("nat").await?;
    Ok(tool)
}

/// Finds out what the kernel can do, and prepares it.
async fn plane(family: Family, tool: Tool, settings: &Settings) -> Plane {
    let features = Features::probe(&tool).await;
    let kernel = Kernel { features, liberal_tcp: sysctl::conntrack_is_liberal(), route_localnet: true };
    let kernel = Kernel { route_localnet: route_localnet(family, settings, kernel), ..kernel };
    let Features { bpf, random_fully } = features;
    info!(%family, variant = %tool.variant(), bpf, random_fully, "packet filter");
    Plane { family, tool, kernel }
}

/// Switches `route_localnet` on if node ports on localhost need it; false if they have to do without.
fn route_localnet(family: Family, settings: &Settings, kernel: Kernel) -> bool {
    if !basis(family, settings, kernel, None).config.localhost_node_ports_active(family) {
        return false;
    }
    enable_route_localnet()
}

fn enable_route_localnet() -> bool {
    match sysctl::enable_route_localnet() {
        Ok(changed) => {
            if changed {
                info!("switched on net.ipv4.conf.all.route_localnet, for node ports on 127.0.0.1");
            }
            true
        }
        Err(error) => {
            warn!(
                "cannot set net.ipv4.conf.all.route_localnet=1 ({error}): node ports do not work on 127.0.0.1; set it \
                 yourself, make /proc/sys writable, or use --iptables-localhost-nodeports=false"
            );
            false
        }
    }
}

struct Agent {
    settings: Settings,
    effective: KubeProxyConfiguration,
    file: Option<ConfigurationFile>,
    registry: Registry,
    readiness: Readiness,
    health: Arc<Mutex<Health>>,
    tasks: JoinSet<Result<(), AgentError>>,
    shutdown: CancellationToken,
}

impl Agent {
    async fn run(mut self, planes: Vec<Plane>, clients: &Clients) -> Result<(), AgentError> {
        let metrics = self.registry.register(Metrics::register);
        self.start_servers(&metrics);
        self.start_file_watch();
        let services = self.readiness.gate("Services");
        let slices = self.readiness.gate("EndpointSlices");
        // Rules do not wait for the Node for ever, so readiness does not either.
        let node = Readiness::default().gate("Node");
        let events = self.start_events(clients.write.clone());
        let (receivers, senders) = self.start_lanes(planes, &metrics, &events);
        self.start_node_watch(senders, clients.read.clone(), node);
        self.start_removal_of_leftovers(&receivers);
        self.start_feeds(&receivers, &clients.read, services, slices);
        self.wait().await
    }

    /// Waits for shutdown, or for the first task that ends before.
    async fn wait(mut self) -> Result<(), AgentError> {
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                ended = self.tasks.join_next() => match ended {
                    Some(result) => result??,
                    None => break,
                },
            }
        }
        info!("ending; the rules stay in place");
        self.tasks.shutdown().await;
        Ok(())
    }

    fn start_servers(&mut self, metrics: &Metrics) {
        if let Some(address) = self.settings.health_address {
            let routes = servers::health_routes(&self.health, metrics, self.readiness.clone());
            self.start_server(address, "--healthz-bind-address", routes);
        }
        let routes = servers::metrics_routes(self.registry.clone(), &self.effective);
        self.start_server(self.settings.metrics_address, "--metrics-bind-address", routes);
    }

    fn start_file_watch(&mut self) {
        let Some(file) = self.file.take() else { return };
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            match shutdown.run_until_cancelled(file.changed()).await {
                Some(()) => Err(AgentError::ConfigurationChanged(file.path)),
                None => Ok(()),
            }
        });
    }

    fn start_server(&mut self, address: SocketAddr, flag: &'static str, routes: Router) {
        let (hard_fail, shutdown) = (self.settings.hard_fail, self.shutdown.clone());
        self.tasks
            .spawn(async move { Ok(servers::serve(address, flag, routes, hard_fail, shutdown).await?) });
    }

    fn start_events(&mut self, client: Client) -> Events {
        let (events, notices) = Events::new();
        let delivery = events::deliver(notices, client, self.settings.node_name.clone());
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            shutdown.run_until_cancelled(delivery).await;
            Ok(())
        });
        events.tell(Notice::started());
        events
    }

    fn start_health_ports(&mut self, events: &Events) -> watch::Sender<HealthPorts> {
        let (sender, wanted) = watch::channel(HealthPorts::default());
        let servers = HealthPortServers::new(Arc::clone(&self.health), events.clone());
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            servers.follow(wanted, shutdown).await;
            Ok(())
        });
        sender
    }

    fn start_lanes(
        &mut self,
        planes: Vec<Plane>,
        metrics: &Metrics,
        events: &Events,
    ) -> (Receivers, Audience) {
        let (mut receivers, mut senders) = (Vec::new(), Vec::new());
        for Plane { family, tool, kernel } in planes {
            let sentinel = Sentinel::new(family, tool.variant()).unwrap_or_else(|error| {
                warn!(%family, %error, "cannot watch for changes by other programs: a flush is found within the sync period");
                Sentinel::Off
            });
            let (changes, waiting) = mpsc::channel(WAITING_CHANGES);
            let (sender, basis) = watch::channel(None);
            let lane = Lane::new(Wiring {
                family,
                netfilter: Arc::new(tool),
                flows: Arc::new(conntrack::Kernel),
                changes: waiting,
                basis,
                addresses: interfaces::addresses,
                sync_period: self.settings.sync_period,
                min_sync_period: self.settings.min_sync_period,
                sentinel,
                events: events.clone(),
                gate: self.readiness.gate(format!("{family} rules")),
                health: Arc::clone(&self.health),
                health_ports: self.start_health_ports(events),
                metrics: metrics.clone(),
            });
            let shutdown = self.shutdown.clone();
            self.tasks.spawn(async move { Ok(lane.run(shutdown).await?) });
            receivers.push((family, changes));
            senders.push((family, kernel, sender));
        }
        (Receivers(receivers), senders)
    }

    fn start_node_watch(&mut self, receivers: Audience, client: Client, gate: Gate) {
        let name = self.settings.node_name.clone();
        let watch =
            NodeWatch { settings: self.settings.clone(), receivers, health: Arc::clone(&self.health) };
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let events = watch_all(Api::<NodeObject>::all(client), config, gate);
        self.tasks.spawn(async move { Ok(watch.follow(events).await?) });
    }

    /// When our rules are there: until then, the other mode's rules are better than none.
    fn start_removal_of_leftovers(&mut self, receivers: &Receivers) {
        let families: Vec<Family> = receivers.0.iter().map(|(family, _)| *family).collect();
        let (readiness, shutdown) = (self.readiness.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            if shutdown.run_until_cancelled(readiness.wait()).await.is_some() {
                for family in families {
                    remove_leftovers(family);
                }
                shutdown.cancelled().await;
            }
            Ok(())
        });
    }

    fn start_feeds(&mut self, receivers: &Receivers, client: &Client, services: Gate, slices: Gate) {
        let config = watcher::Config::default()
            .labels(&format!("!{}", labels::SERVICE_PROXY_NAME))
            .fields("spec.clusterIP!=None");
        let events = watch_all(Api::<ServiceObject>::all(client.clone()), config, services);
        let mut known = Services::default();
        self.start_feed(events, move |event| known.changes(event), receivers.clone());
        let config = watcher::Config::default().labels(&format!("!{}", labels::HEADLESS));
        let events = watch_all(Api::<EndpointSlice>::all(client.clone()), config, slices);
        let mut known = Slices::default();
        self.start_feed(events, move |event| known.changes(event), receivers.clone());
    }

    fn start_feed<K: Send + 'static>(
        &mut self,
        events: impl Stream<Item = Event<K>> + Send + 'static,
        mut changes: impl FnMut(Event<K>) -> Vec<Change> + Send + 'static,
        to: Receivers,
    ) {
        self.tasks.spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                for change in changes(event) {
                    to.send(change).await;
                }
            }
            Ok(())
        });
    }
}
