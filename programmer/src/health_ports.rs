//! The servers behind `healthCheckNodePort`: load balancers ask them which nodes have endpoints of a Service.
//!
//! One task per family opens and closes listeners as the sync loop publishes what is wanted, after each success: a port
//! must not say "send me traffic" before the rules for it are there.
//!
//! Invariants: a Service listens on all of its addresses or on none; a failure to listen concerns that Service alone and
//! is tried again; answers are byte for byte those of kube-proxy's `ServiceHealthServer`.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fairlead_objects::{ServiceKey, Timestamp};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::{
    census::{HealthPort, HealthPorts},
    events::{Events, Notice, Subject},
    health::{Health, Probe},
};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// How soon a port that is taken is tried again. (It is tried again with every sync, too.)
const RETRY: Duration = Duration::from_secs(5);
const BACKLOG: u32 = 1024;

/// The servers of one family.
#[derive(Debug)]
pub struct HealthPortServers {
    health: Arc<Mutex<Health>>,
    events: Events,
    running: BTreeMap<ServiceKey, Running>,
    /// Failures that were told already.
    told: BTreeMap<ServiceKey, String>,
}

#[derive(Debug)]
struct Running {
    listening: Vec<SocketAddr>,
    endpoints: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl HealthPortServers {
    /// No servers yet. `health` says whether the proxy works at all.
    pub fn new(health: Arc<Mutex<Health>>, events: Events) -> Self {
        Self { health, events, running: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// Serves what is wanted, until nobody publishes that any more or `shutdown`.
    pub async fn follow(mut self, mut wanted: watch::Receiver<HealthPorts>, shutdown: CancellationToken) {
        loop {
            let now = wanted.borrow_and_update().clone();
            let complete = self.reconcile(&now);
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
                () = sleep(RETRY), if !complete => {}
            }
        }
    }

    /// Closes, opens and counts as `wanted` says. False if something could not be opened. Must run within a runtime.
    pub fn reconcile(&mut self, wanted: &HealthPorts) -> bool {
        let listening = |port: u16| -> Vec<SocketAddr> {
            wanted.addresses.iter().map(|address| SocketAddr::new(*address, port)).collect()
        };
        self.running.retain(|key, running| {
            wanted.services.get(key).is_some_and(|port| running.listening == listening(port.port))
        });
        self.told.retain(|key, _| wanted.services.contains_key(key));
        let mut complete = true;
        for (key, HealthPort { port, endpoints }) in &wanted.services {
            if !self.running.contains_key(key) {
                match self.open(key, listening(*port)) {
                    Ok(running) => {
                        info!(service = %key, port, "health check port opened");
                        self.told.remove(key);
                        self.running.insert(key.clone(), running);
                    }
                    Err(error) => {
                        self.tell(key, *port, &error);
                        complete = false;
                    }
                }
            }
            if let Some(running) = self.running.get(key) {
                running.endpoints.store(*endpoints, Ordering::Relaxed);
            }
        }
        complete
    }

    fn open(&self, key: &ServiceKey, listening: Vec<SocketAddr>) -> io::Result<Running> {
        let listeners = listening.iter().map(|address| listen(*address)).collect::<io::Result<Vec<_>>>()?;
        let stop = CancellationToken::new();
        let endpoints = Arc::new(AtomicUsize::new(0));
        let routes = routes(key, &self.health, &endpoints);
        for listener in listeners {
            let server =
                axum::serve(listener, routes.clone()).with_graceful_shutdown(stop.clone().cancelled_owned());
            tokio::spawn(async move { server.await });
        }
        Ok(Running { listening, endpoints, _stop: stop.drop_guard() })
    }

    fn tell(&mut self, key: &ServiceKey, port: u16, error: &io::Error) {
        let note = format!("node failed to start healthcheck \"{key}\" on port {port}: {error}");
        if self.told.get(key) != Some(&note) {
            warn!(service = %key, port, %error, "cannot listen on a health check port; trying again");
            self.events.tell(Notice {
                subject: Subject::Service(key.clone()),
                reason: "FailedToStartServiceHealthcheck",
                action: "Listen",
                note: note.clone(),
            });
            self.told.insert(key.clone(), note);
        }
    }
}

/// Of one family only: the other family has servers of its own.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
            socket
        }
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The same answer whatever is asked.
fn routes(key: &ServiceKey, health: &Arc<Mutex<Health>>, endpoints: &Arc<AtomicUsize>) -> Router {
    let (key, health, endpoints) = (key.clone(), Arc::clone(health), Arc::clone(endpoints));
    Router::new().fallback(move || {
        let healthy = health.lock().answer(Probe::Livez, Timestamp::now()).ok();
        std::future::ready(answer(&key, endpoints.load(Ordering::Relaxed), healthy))
    })
}

fn answer(key: &ServiceKey, endpoints: usize, healthy: bool) -> Response {
    let status = if endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (WEIGHT, HeaderValue::from(endpoints)),
    ];
    (status, headers, body(key, endpoints, healthy)).into_response()
}

fn body(key: &ServiceKey, endpoints: usize, healthy: bool) -> String {
    // As JSON strings: names are plain text, but nothing here depends on that.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let (namespace, name) = (quoted(&key.namespace), quoted(&key.name));
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\t\
         \"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

#[cfg(test)]
mod tests;
