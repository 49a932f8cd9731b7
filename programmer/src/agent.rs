//! The node agent: everything put together.
//!
//! Invariants: whatever is missing on this host is told, in one line, before the API server is asked and before
//! anything is written; the rules stay in place when the process ends, for whatever reason.

mod error;

use std::{fs, net::SocketAddr, sync::Arc};

use axum::Router;
use fairlead_daemon::{
    client::{ClientFlags, Clients},
    failure,
    metrics::Metrics as Registry,
    readiness::{Gate, Readiness},
    rights::{Review, Right, ask},
    shutdown,
    throttle::Throttle,
    watch::{Event, watch as watch_all},
};
use fairlead_objects::{EndpointSlice, Family, NodeObject, ServiceObject, labels};
use futures::{Stream, StreamExt};
use kube::{Api, Client};
use kube_runtime::watcher;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::error::AgentError;
use crate::{
    census::HealthPorts,
    cleanup,
    command::Command,
    configuration::ConfigurationFile,
    configured::Configured,
    conntrack,
    events::{self, Events, Notice, Recorder},
    feed::{Change, Receivers, Services, Slices},
    health::Health,
    health_ports::HealthPortServers,
    interfaces,
    lane::{Lane, Wiring},
    leftovers, limits,
    metrics::Metrics,
    netfilter::{self, Features, Netfilter, Tool, ToolError, Variant, counters, detect},
    node_watch::{Audience, NodeWatch},
    own_node::{Kernel, basis},
    rival::{self, Pace, Seen, Signs, Vigil},
    sanity,
    sentinel::Sentinel,
    servers::{self, About, Server},
    settings::Settings,
    shadow, sysctl,
};

/// Changes that may wait for a sync loop before a watch has to wait; the loop takes them in at any time.
pub(crate) const WAITING_CHANGES: usize = 4096;
/// What we call ourselves when we talk to the API server.
pub(crate) const USER_AGENT: &str = concat!("fairlead-programmer/", env!("CARGO_PKG_VERSION"));

/// Does what the command line says.
pub async fn run(command: Command) -> Result<(), AgentError> {
    if let Some(version) = command.version() {
        println!("{version}");
        return Ok(());
    }
    let configured = Configured::of(&command)?;
    let log = configured.log_flags(&command);
    log.start().map_err(|error| AgentError::Flags(failure::chain(&error)))?;
    configured.warn(&command.without_effect);
    let Command { flags, client, given, .. } = command;
    if flags.dump_config {
        println!("{}", configured.dump()?);
        return Ok(());
    }
    if let Some(path) = flags.write_config_to {
        let text = configured.file_text()?;
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
    match flags.shadow_grace() {
        Some(grace) => Box::pin(shadow::serve(configured, client, grace)).await,
        None => Box::pin(serve(configured, client, given)).await,
    }
}

/// Removes our rules from both families and both variants, and what other modes of kube-proxy left, as far as it is there.
async fn clean_up(settings: &Settings) -> Result<(), AgentError> {
    let variants =
        settings.variant.map_or_else(|| vec![Variant::Nft, Variant::Legacy], |variant| vec![variant]);
    // Says what is missing, if nothing at all can be done.
    detect(Family::V4, settings.variant).await.map_err(AgentError::Netfilter)?;
    let mut problems = leftovers::remove_ipvs_servers();
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
        problems += usize::from(!leftovers::remove_nftables(family));
    }
    problems += leftovers::remove_ipvs_sets();
    if let Err(error) = counters::remove() {
        warn!(%error, "cannot remove the counters of nfacct");
        problems += 1;
    }
    if problems == 0 { Ok(()) } else { Err(AgentError::Cleanup(problems)) }
}

/// One family that can be programmed.
struct Plane {
    family: Family,
    tool: Tool,
    kernel: Kernel,
}

async fn serve(
    configured: Configured,
    client: ClientFlags,
    flags: Vec<(String, String)>,
) -> Result<(), AgentError> {
    let client = configured.connection(client);
    let Configured { settings, effective, file, .. } = configured;
    let shutdown = shutdown::on_signal().map_err(AgentError::Signals)?;
    let tools = tools(&settings).await?;
    let families: Vec<_> = tools.iter().map(|(family, _)| *family).collect();
    for advice in sanity::check(&settings, &families).map_err(AgentError::Flags)? {
        warn!("{advice}");
    }
    let clients = client.clients(USER_AGENT).await?;
    info!(node = settings.node_name, server = clients.server(), "starting");
    limits::apply(&settings.conntrack);
    limits::set_oom_score(settings.oom_score_adj);
    let mut planes = Vec::new();
    for (family, tool) in tools {
        planes.push(plane(family, tool, &settings).await);
    }
    let agent = Agent {
        about: About { effective, flags },
        file,
        registry: Registry::new(),
        readiness: Readiness::default(),
        health: Arc::new(Mutex::new(Health::new(settings.sync_period))),
        tasks: JoinSet::new(),
        shutdown,
        settings,
    };
    agent.run(planes, &clients, client.throttle()).await
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
    info!(%family, variant = %tool.variant(), %features, "packet filter");
    for feature in features.missing() {
        warn!(%family, "the kernel or the iptables programs lack {}: {}", feature.as_str(), feature.substitute());
    }
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

/// Settings, and what all parts share.
pub(crate) struct Agent {
    pub(crate) settings: Settings,
    pub(crate) about: About,
    pub(crate) file: Option<ConfigurationFile>,
    pub(crate) registry: Registry,
    pub(crate) readiness: Readiness,
    pub(crate) health: Arc<Mutex<Health>>,
    pub(crate) tasks: JoinSet<Result<(), AgentError>>,
    pub(crate) shutdown: CancellationToken,
}

impl Agent {
    async fn run(
        mut self,
        planes: Vec<Plane>,
        clients: &Clients,
        throttle: Throttle,
    ) -> Result<(), AgentError> {
        let metrics = self.registry.register(Metrics::register);
        let features: Vec<_> = planes.iter().map(|plane| (plane.family, plane.kernel.features)).collect();
        self.registry.register(|registry| netfilter::metrics::register(registry, &features));
        let recorder = Recorder::new(clients.write.clone(), &self.settings.node_name, throttle);
        self.start_health_server(&metrics, &recorder);
        let Some(others) = self.await_other_proxies().await else { return self.wait().await };
        self.start_metrics_server(&recorder);
        self.start_file_watch();
        self.start_review(clients.write.clone());
        let services = self.readiness.gate("Services");
        let slices = self.readiness.gate("EndpointSlices");
        // Rules do not wait for the Node for ever, so readiness does not either.
        let node = Readiness::default().gate("Node");
        let events = self.start_events(recorder);
        let tools: Vec<_> = planes.iter().map(|plane| (plane.family, plane.tool.clone())).collect();
        let (signs, seen) = Signs::new();
        self.start_vigil(seen, others, &events, &metrics);
        let (receivers, senders) = self.start_lanes(planes, &metrics, &events, &signs);
        self.start_node_watch(senders, clients.read.clone(), node);
        self.start_removal_of_leftovers(tools);
        self.start_feeds(&receivers, &clients.read, services, slices);
        self.wait().await
    }

    /// Waits for shutdown, or for the first task that ends before.
    pub(crate) async fn wait(mut self) -> Result<(), AgentError> {
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

    /// Waits until nobody else writes rules on this node; `None` on shutdown.
    async fn await_other_proxies(&self) -> Option<Gate> {
        let gate = self.readiness.gate("other proxies");
        let gone = rival::gone(self.settings.metrics_address, gate.clone());
        self.shutdown.run_until_cancelled(gone).await.map(|()| gate)
    }

    /// Tells of those that come later.
    fn start_vigil(&mut self, seen: watch::Receiver<Seen>, gate: Gate, events: &Events, metrics: &Metrics) {
        let ours = self.settings.metrics_address;
        let vigil = Vigil::new(ours, Pace::USUAL, gate, events.clone(), metrics.clone());
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            shutdown.run_until_cancelled(vigil.keep(seen)).await;
            Ok(())
        });
    }

    /// Asks the API server whether we may do what we will have to do.
    fn start_review(&mut self, client: Client) {
        let gate = self.readiness.gate("rights");
        let needed = [("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")];
        let needed = needed.into_iter().flat_map(Right::to_watch).chain(Right::to_tell()).collect();
        let (mut review, shutdown) = (Review::default(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let asking = ask(client, needed, move |answer| {
                review.take(answer);
                review.show(&gate, []);
            });
            shutdown.run_until_cancelled(asking).await;
            Ok(())
        });
    }

    fn start_health_server(&mut self, metrics: &Metrics, recorder: &Recorder) {
        if let Some(address) = self.settings.health_address {
            let routes = servers::health_routes(&self.health, metrics, self.readiness.clone());
            self.start_server(address, Server::Health, routes, recorder.clone());
        }
    }

    fn start_metrics_server(&mut self, recorder: &Recorder) {
        if let Some(address) = self.settings.metrics_address {
            let routes = servers::metrics_routes(self.registry.clone(), &self.about);
            self.start_server(address, Server::Metrics, routes, recorder.clone());
        }
    }

    pub(crate) fn start_file_watch(&mut self) {
        let Some(file) = self.file.take() else { return };
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            match shutdown.run_until_cancelled(file.changed()).await {
                Some(()) => Err(AgentError::ConfigurationChanged(file.path)),
                None => Ok(()),
            }
        });
    }

    fn start_server(&mut self, address: SocketAddr, server: Server, routes: Router, recorder: Recorder) {
        let (hard_fail, shutdown) = (self.settings.hard_fail, self.shutdown.clone());
        self.tasks.spawn(async move {
            let end = servers::serve(address, server.flag(), routes, hard_fail, shutdown).await;
            if let Err(error) = &end {
                // It is the last thing that this process says.
                recorder.publish(Notice::not_listening(server.reason(), error)).await;
            }
            Ok(end?)
        });
    }

    fn start_events(&mut self, recorder: Recorder) -> Events {
        let (events, notices) = Events::new();
        let delivery = events::deliver(notices, recorder);
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
        signs: &Signs,
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
                signs: signs.clone(),
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

    pub(crate) fn start_node_watch(&mut self, receivers: Audience, client: Client, gate: Gate) {
        let name = self.settings.node_name.clone();
        let watch =
            NodeWatch { settings: self.settings.clone(), receivers, health: Arc::clone(&self.health) };
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let events = watch_all(Api::<NodeObject>::all(client), config, gate);
        self.tasks.spawn(async move { Ok(watch.follow(events).await?) });
    }

    /// When our rules are there: until then, the other mode's rules are better than none. As kube-proxy, we leave mode ipvs
    /// alone unless the configuration asks for it.
    fn start_removal_of_leftovers(&mut self, tools: Vec<(Family, Tool)>) {
        let of_ipvs = self.settings.unavailable_mode == Some("ipvs");
        let (readiness, shutdown) = (self.readiness.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            if shutdown.run_until_cancelled(readiness.wait()).await.is_some() {
                for (family, _) in &tools {
                    leftovers::remove_nftables(*family);
                }
                if of_ipvs {
                    leftovers::remove_ipvs(&tools).await;
                }
                shutdown.cancelled().await;
            }
            Ok(())
        });
    }

    pub(crate) fn start_feeds(
        &mut self,
        receivers: &Receivers,
        client: &Client,
        services: Gate,
        slices: Gate,
    ) {
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
