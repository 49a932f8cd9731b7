//! The HTTP servers of the node agent, byte for byte those of kube-proxy where it has them.
//!
//! The health server is asked by load balancers from outside the node, the metrics server from the node itself (or by
//! Prometheus, if told to listen there).
//!
//! Invariant: an answer never waits for a sync; it reads state behind a lock that nobody holds across an await.

mod pages;
mod ping;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::RawQuery,
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use fairlead_daemon::{
    admin::{Address, Admin, ListenError},
    metrics::Metrics as Registry,
    readiness::Readiness,
};
use fairlead_objects::{KubeProxyConfiguration, Timestamp};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{
    pages::{Flagz, Statusz},
    ping::Ping,
};
use crate::{
    health::{Health, Probe},
    metrics::Metrics,
    rival,
};

/// Prometheus' text format, as newer versions of its client library call it.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const NO_SNIFF: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
/// How soon an address that is taken is tried again: whoever asks for health there does not know that its holder changes.
const RETRY: Duration = Duration::from_millis(250);
/// Of so many failures one is told: every 5 s, as kube-proxy tells its own.
const TOLD: usize = 20;

/// What the metrics server tells about this process besides its metrics.
#[derive(Clone, Debug)]
pub struct About {
    /// The configuration in force.
    pub effective: KubeProxyConfiguration,
    /// Every flag and its value.
    pub flags: Vec<(String, String)>,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Asked by load balancers.
    Health,
    /// Asked by those who watch.
    Metrics,
}

impl Server {
    /// The flag that says where it listens.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Health => "--healthz-bind-address",
            Self::Metrics => "--metrics-bind-address",
        }
    }

    /// kube-proxy's word for not being able to.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Health => "FailedToStartProxierHealthcheck",
            Self::Metrics => "FailedToStartMetricServer",
        }
    }
}

/// Serves `routes` on `address` until `shutdown`. A taken address is tried again, or is the end if `hard_fail`.
pub async fn serve(
    address: SocketAddr,
    flag: &'static str,
    routes: Router,
    hard_fail: bool,
    shutdown: CancellationToken,
) -> Result<(), ListenError> {
    let mut failures = 0_usize;
    let server = loop {
        match Admin::bind(Address::One(address), flag).await {
            Ok(server) => break server,
            Err(error) if hard_fail => return Err(error),
            Err(error) if failures.is_multiple_of(TOLD) => error!("{error}; trying until it is free"),
            Err(_) => {}
        }
        failures = failures.wrapping_add(1);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    };
    info!(%address, flag, "serving");
    if let Err(error) = server.serve(routes, shutdown).await {
        error!(%address, flag, %error, "the server ended");
    }
    Ok(())
}

/// Routes of the health server: `/healthz`, `/livez`, and `/readyz`, which kube-proxy lacks.
pub fn health_routes(health: &Arc<Mutex<Health>>, metrics: &Metrics, readiness: Readiness) -> Router {
    let answer = |probe: Probe| {
        let (health, metrics) = (Arc::clone(health), metrics.clone());
        any(move || std::future::ready(probed(probe, &health, &metrics)))
    };
    let readyz = any(move || {
        let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        std::future::ready(respond(status, PLAIN, readiness.to_string()))
    });
    Router::new()
        .route("/healthz", answer(Probe::Healthz))
        .route("/livez", answer(Probe::Livez))
        .route("/readyz", readyz)
        .fallback(not_found)
}

fn probed(probe: Probe, health: &Mutex<Health>, metrics: &Metrics) -> Response {
    let answer = health.lock().answer(probe, Timestamp::now());
    metrics.observe_probe(probe, answer.ok());
    let status = if answer.ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&answer) {
        Ok(body) => respond(status, JSON, body),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, error.to_string()),
    }
}

/// Routes of the metrics server: `/metrics` and what kube-proxy serves beside it. Any method does, as there.
pub fn metrics_routes(registry: Registry, about: &About) -> Router {
    let started = Timestamp::now();
    let configz = serde_json::json!({"kubeproxy.config.k8s.io": about.effective}).to_string();
    let configz = any(move || std::future::ready(respond(StatusCode::OK, JSON, configz.clone())));
    let ping = Ping::default();
    let (checked, slis) = (ping.clone(), ping);
    let healthz =
        move |RawQuery(query): RawQuery| std::future::ready(checked.answer(&query.unwrap_or_default()));
    let second = started.as_second();
    let routes = Router::new()
        .route("/metrics", any(move || std::future::ready(exposition(&registry, second))))
        .route("/metrics/slis", any(move |method: Method| std::future::ready(slis.slis(&method, second))))
        .route("/configz", configz)
        .route("/proxyMode", any(|headers: HeaderMap| std::future::ready(mode(&headers))))
        .route("/healthz", any(healthz))
        .route("/healthz/ping", any(|| std::future::ready(([(header::CONTENT_TYPE, PLAIN)], "ok"))))
        .fallback(not_found);
    with_pages(routes, about, started)
}

/// To whoever looks for a proxy here. We do: and are not what we look for.
fn mode(question: &HeaderMap) -> Response {
    if rival::is_our_own(question) {
        return respond(StatusCode::NOT_FOUND, PLAIN, "");
    }
    respond(StatusCode::OK, PLAIN, "iptables")
}

/// With `/flagz` and `/statusz`, unless their feature gates are off.
fn with_pages(mut routes: Router, about: &About, started: Timestamp) -> Router {
    let gates = about.effective.feature_gates.clone().unwrap_or_default();
    let on = |gate: &str| gates.get(gate).copied().unwrap_or(true);
    let mut paths = vec!["/configz", "/healthz", "/metrics", "/proxyMode"];
    if on("ComponentFlagz") {
        let flagz = Flagz(about.flags.clone().into());
        let answer = move |headers: HeaderMap| std::future::ready(flagz.answer(&headers));
        routes = routes.route("/flagz", any(answer));
        paths.insert(1, "/flagz");
    }
    if on("ComponentStatusz") {
        let statusz = Statusz { started, paths: paths.into() };
        let answer = move |headers: HeaderMap| std::future::ready(statusz.answer(&headers));
        routes = routes.route("/statusz", any(answer));
    }
    routes
}

fn exposition(registry: &Registry, started: i64) -> Response {
    match registry.encode() {
        Ok(text) => {
            let headers = [(header::CONTENT_TYPE, TEXT_FORMAT.to_owned()), start_header(started)];
            (headers, text).into_response()
        }
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, error.to_string()),
    }
}

/// By which a scraper can tell that counters began anew.
fn start_header(started: i64) -> (HeaderName, String) {
    (HeaderName::from_static("process-start-time-unix"), started.to_string())
}

async fn not_found() -> Response {
    respond(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n")
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<String>) -> Response {
    (status, [(header::CONTENT_TYPE, kind), NO_SNIFF], body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// A free address on loopback.
    async fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    async fn until_served(address: SocketAddr) {
        let served = async {
            while TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), served).await.unwrap();
    }

    #[tokio::test]
    async fn answers_have_upstreams_status_and_headers() {
        let registry = Registry::new();
        let metrics = registry.register(Metrics::register);
        let health = Arc::new(Mutex::new(Health::new(Duration::from_secs(30))));
        let readiness = Readiness::default();
        let gate = readiness.gate("rules");
        let shutdown = CancellationToken::new();
        let address = free().await;
        let routes = health_routes(&health, &metrics, readiness);
        let server = tokio::spawn(serve(address, "--healthz-bind-address", routes, true, shutdown.clone()));
        until_served(address).await;

        let answer = ask(address, "/healthz").await.to_lowercase();
        assert!(answer.starts_with("http/1.1 503 service unavailable\r\n"), "{answer}");
        for header in ["content-type: application/json\r\n", "x-content-type-options: nosniff\r\n"] {
            assert!(answer.contains(header), "{answer}");
        }
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(ask(address, "/").await.ends_with("\r\n\r\n404 page not found\n"));
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        gate.open();
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let exposition = registry.encode().unwrap();
        assert!(exposition.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1\n"), "{exposition}");
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn metrics_server_names_the_mode() {
        let shutdown = CancellationToken::new();
        let address = free().await;
        let effective = KubeProxyConfiguration::default().with_defaults();
        let routes = metrics_routes(Registry::new(), &About { effective, flags: Vec::new() });
        let server = tokio::spawn(serve(address, "--metrics-bind-address", routes, true, shutdown.clone()));
        until_served(address).await;
        assert!(ask(address, "/proxyMode").await.ends_with("\r\n\r\niptables"));
        assert_eq!(rival::any(&[address].into()).await, None, "we are not our own rival");
        assert!(ask(address, "/healthz").await.ends_with("\r\n\r\nok"));
        let configz = ask(address, "/configz").await;
        assert!(configz.contains("\r\n\r\n{\"kubeproxy.config.k8s.io\":{\"apiVersion\":"), "{configz}");
        assert!(ask(address, "/metrics").await.contains("process_resident_memory_bytes"));
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn taken_address_ends_the_server_only_when_asked_to() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let start = |hard_fail, shutdown| {
            serve(address, "--healthz-bind-address", Router::new(), hard_fail, shutdown)
        };
        let error = start(true, CancellationToken::new()).await.unwrap_err().to_string();
        assert!(error.contains("--healthz-bind-address"), "{error}");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(start(false, shutdown.clone()));
        tokio::task::yield_now().await;
        assert!(!server.is_finished());
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    /// On paused time, so what passes is what the server waits, however busy the machine is.
    #[tokio::test(start_paused = true)]
    async fn address_whose_holder_leaves_is_served_within_a_second() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (taken.local_addr().unwrap(), CancellationToken::new());
        let server =
            tokio::spawn(serve(address, "--healthz-bind-address", Router::new(), false, shutdown.clone()));
        tokio::time::sleep(Duration::from_secs(61)).await;
        drop(taken);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(ask(address, "/").await.starts_with("HTTP/1.1 404"));
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }
}
