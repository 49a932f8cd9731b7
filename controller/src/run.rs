//! The whole daemon, wired together.
//!
//! Invariants: everything that can be wrong with this machine (flags, port, credentials) is found before anything else
//! starts. What is wrong with the cluster is retried for ever. When a task that must not end does end, the process ends.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Json, routing::get};
use fairlead_daemon::{
    admin::{self, Admin},
    client::Clients,
    metrics::Metrics as Exposition,
    readiness::Readiness,
    rights::ask,
    shutdown,
};
use futures::StreamExt;
use kube_runtime::{Config, Controller, controller::Error as ControllerError};
use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    events::{Events, Publisher},
    execute::Writer,
    flags::{Flags, Settings},
    index::{Index, Kind},
    leadership::{
        Leadership,
        lease::{Change, Lease, Remote},
    },
    metrics::Metrics,
    preflight,
    primary::Primary,
    queue::{Outlet, Queue},
    reconcile::{Context, after_failure, reconcile},
    rights::{self, Rights},
    shadow::Shadow,
    watches::{self, Watches},
};

/// What we call ourselves in requests.
const AGENT: &str = concat!("fairlead-controller/", env!("CARGO_PKG_VERSION"));
/// How long writes that have begun may take when the process ends.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// How long everything else may take then.
const FAREWELL: Duration = Duration::from_secs(5);

/// Runs until a signal; the exit code says whether that went well.
pub async fn run(flags: Flags, settings: Settings) -> anyhow::Result<ExitCode> {
    let shutdown = shutdown::on_signal().context("cannot listen for signals")?;
    let admin = Admin::bind(flags.http_address, "--http-address").await?;
    let clients = flags.client.clients(AGENT).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), server = clients.server(), "starting");
    let daemon = Daemon::new(&flags, settings, clients)?;
    daemon.run(admin, shutdown).await
}

struct Daemon {
    settings: Settings,
    clients: Clients,
    lease: Option<(Lease, Remote)>,
    exposition: Exposition,
    readiness: Readiness,
    context: Arc<Context>,
    outlet: Outlet,
    publisher: Publisher,
    identity: String,
    rights: Arc<Rights>,
}

impl Daemon {
    fn new(flags: &Flags, settings: Settings, clients: Clients) -> anyhow::Result<Self> {
        let identity = identity();
        let lease = settings.lease.map(|times| {
            let lease = Lease {
                namespace: flags.election.leader_elect_resource_namespace.clone(),
                name: flags.election.leader_elect_resource_name.clone(),
                identity: identity.clone(),
                times,
            };
            clients.impatient(times.request()).map(|client| {
                let remote =
                    Remote { api: kube::Api::namespaced(client, &lease.namespace), name: lease.name.clone() };
                (lease, remote)
            })
        });
        let exposition = Exposition::new();
        let readiness = Readiness::default();
        let metrics = Arc::new(Metrics::new(&exposition));
        let nodes_watched = watches::needed(settings.parts).contains(&Kind::Nodes);
        let index = Arc::new(Mutex::new(Index::new(nodes_watched)));
        let (queue, outlet) = Queue::new(settings.parts, settings.periods);
        let queue = Arc::new(queue);
        metrics.observe(&exposition, Arc::clone(&index), Arc::clone(&queue), readiness.clone());
        let (events, publisher) = Events::new(Arc::clone(&metrics));
        let rights = Arc::new(Rights::new(readiness.gate("rights")));
        let write = match settings.lease {
            Some(times) => clients.prompt(times.write())?,
            None => clients.write.clone(),
        };
        let leadership = Arc::<Leadership>::default();
        let writer = Writer::new(
            write,
            Arc::clone(&leadership),
            flags.client.throttle(),
            Arc::clone(&index),
            Arc::clone(&metrics),
            Arc::clone(&rights),
        );
        let context = Context {
            index,
            queue,
            leadership,
            writer,
            events,
            metrics,
            limits: settings.limits,
            parts: settings.parts,
            shadow: settings.shadow.map(|quiet| Arc::new(Shadow::new(quiet, &exposition))),
            triggers: Default::default(),
        };
        let context = Arc::new(context);
        let lease = lease.transpose()?;
        Ok(Self {
            settings,
            clients,
            lease,
            exposition,
            readiness,
            context,
            outlet,
            publisher,
            identity,
            rights,
        })
    }

    async fn run(self, admin: Admin, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
        let review = self.review();
        let Self {
            settings,
            clients,
            lease,
            exposition,
            readiness,
            context,
            outlet,
            publisher,
            identity,
            rights: _,
        } = self;
        // The HTTP server goes last: it tells how the end is getting on.
        let http_end = CancellationToken::new();
        let mut routes = admin::health_routes(readiness.clone()).merge(admin::metrics_routes(exposition));
        if let Some(shadow) = context.shadow.clone() {
            routes = routes.route("/debug/divergence", get(async move || Json(shadow.report())));
        }
        let http = tokio::spawn(admin.serve(routes, http_end.clone()));
        let watches = Watches {
            client: clients.read.clone(),
            index: Arc::clone(&context.index),
            queue: Arc::clone(&context.queue),
        };
        let kinds = watches::needed(settings.parts);
        let watching = {
            let readiness = readiness.clone();
            tokio::spawn(async move { watches.run(kinds, &readiness).await })
        };
        let publishing = tokio::spawn(publisher.run(clients.write.clone(), identity));
        let lease_end = CancellationToken::new();
        let leading = if context.shadow.is_some() {
            tracing::info!("shadow mode: comparing with what others write, and writing nothing");
            tokio::spawn(lease_end.clone().cancelled_owned())
        } else {
            lead(lease, &readiness, &context, lease_end.clone())
        };
        let preflight = tokio::spawn(look_around(clients.read.clone(), Arc::clone(&context)));
        let stop = CancellationToken::new();
        let working = tokio::spawn(work(Arc::clone(&context), outlet, settings.concurrency, stop.clone()));

        let mut essential =
            [("watches", watching), ("leader election", leading), ("reconciliation", working)];
        let failed = first_to_end(&mut essential, &shutdown).await;
        let [(_, watching), (_, leading), (_, working)] = essential;

        stop.cancel();
        watching.abort();
        preflight.abort();
        review.abort();
        if !context.queue.is_open() {
            // kube-runtime's Controller does not end before its Store is ready.
            working.abort();
        } else if tokio::time::timeout(LAST_WRITES, working).await.is_err() {
            tracing::warn!("giving up on writes that have not ended");
        }
        lease_end.cancel();
        let farewell = async {
            drop(leading.await);
            publishing.abort();
            http_end.cancel();
            drop(http.await);
        };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::warn!("giving up on the lease and open connections");
        }
        match failed {
            None => {
                tracing::info!("stopped");
                Ok(ExitCode::SUCCESS)
            }
            Some(task) => {
                anyhow::bail!("{task} ended unexpectedly; this is a defect, please report it with the log")
            }
        }
    }

    /// Asks whether we may do what we will have to do.
    fn review(&self) -> JoinHandle<()> {
        let lease = self.lease.as_ref().map(|(lease, _)| (&*lease.namespace, &*lease.name));
        let needed = rights::needed(self.settings.parts, self.context.shadow.is_none(), lease);
        let rights = Arc::clone(&self.rights);
        tokio::spawn(ask(self.clients.write.clone(), needed, move |answer| rights.answered(answer)))
    }
}

/// Waits for the shutdown; returns the name of a task that ended before.
async fn first_to_end<'a>(
    tasks: &mut [(&'a str, JoinHandle<()>)],
    shutdown: &CancellationToken,
) -> Option<&'a str> {
    let ends = tasks.iter_mut().map(|(name, task)| {
        Box::pin(async move {
            drop(task.await);
            *name
        })
    });
    let first = futures::future::select_all(ends);
    shutdown.run_until_cancelled(first).await.map(|(name, _, _)| name)
}

/// Looks for others that write the same objects, unless that is how it should be.
async fn look_around(client: kube::Client, context: Arc<Context>) {
    if context.shadow.is_none() {
        preflight::run(client, Arc::clone(&context.metrics)).await;
    }
}

/// Takes part in the election, or leads at once without one.
fn lead(
    lease: Option<(Lease, Remote)>,
    readiness: &Readiness,
    context: &Arc<Context>,
    end: CancellationToken,
) -> JoinHandle<()> {
    let context = Arc::clone(context);
    // Without election this process leads all the same; the metric then has no lease to name.
    let name = lease.as_ref().map(|(lease, _)| lease.name.clone()).unwrap_or_default();
    if !name.is_empty() {
        context.metrics.led(&name, false);
    }
    let report = move |change| match change {
        Change::Held(until) => context.leadership.hold(until),
        Change::Won => won(&context, &name),
        Change::Lost => lost(&context, &name),
    };
    match lease {
        Some((lease, remote)) => {
            let gate = readiness.gate("lease");
            tracing::info!(%lease, identity = lease.identity, "taking part in leader election");
            tokio::spawn(lease.keep(remote, gate, end, report))
        }
        None => tokio::spawn(async move {
            report(Change::Won);
            end.cancelled().await;
            report(Change::Lost);
        }),
    }
}

fn won(context: &Context, lease: &str) {
    if context.leadership.win() {
        context.metrics.led(lease, true);
        let keys = context.index.lock().keys();
        tracing::info!(services = keys.len(), "leading");
        context.queue.mark_all(keys, Instant::now());
    }
}

fn lost(context: &Context, lease: &str) {
    if context.leadership.lose() {
        context.metrics.led(lease, false);
        context.index.lock().forget_plans();
        tracing::info!("not leading any more");
    }
}

/// Runs kube-runtime's Controller until `stop`, and then until the reconciles that have begun are over.
async fn work(context: Arc<Context>, outlet: Outlet, concurrency: u16, stop: CancellationToken) {
    let Outlet { store, triggers } = outlet;
    // Everything comes in by way of the queue; there is no stream of primaries.
    Controller::<Primary>::for_stream(futures::stream::pending(), store)
        .reconcile_on(triggers)
        .with_config(Config::default().concurrency(concurrency))
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, after_failure, context)
        .for_each(|result| async {
            match result {
                // Failures were logged by part, with how often they have occurred.
                Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
                // A key that was retired while a trigger for it was under way.
                Err(ControllerError::ObjectNotFound(key)) => tracing::trace!(%key, "nothing left to do"),
                Err(error) => tracing::error!("reconciliation: {error}"),
            }
        })
        .await;
}

/// Who we are among replicas: the host's (in a Pod: the Pod's) name, and something that a restart changes.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "unknown" } else { host };
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    format!("{host}_{:x}_{:x}", std::process::id(), nanoseconds)
}
