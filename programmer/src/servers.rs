//! The HTTP servers of the node agent, byte for byte those of kube-proxy where it has them.
//!
//! The health server is asked by load balancers from outside the node, the metrics server from the node itself (or by
//! Prometheus, if told to listen there).
//!
//! Invariant: an answer never waits for a sync; it reads state behind a lock that nobody holds across an await.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use fairlead_daemon::{
    admin::{self, Address, Admin, ListenError},
    metrics::Metrics as Registry,
    readiness::Readiness,
};
use fairlead_objects::{KubeProxyConfiguration, Timestamp};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    health::{Health, Probe},
    metrics::Metrics,
};

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const NO_SNIFF: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");
/// How long to wait before an address that is taken is tried again, as kube-proxy does.
const RETRY: Duration = Duration::from_secs(5);

/// Serves `routes` on `address` until `shutdown`. A taken address is tried again, or is the end if `hard_fail`.
pub async fn serve(
    address: SocketAddr,
    flag: &'static str,
    routes: Router,
    hard_fail: bool,
    shutdown: CancellationToken,
) -> Result<(), ListenError> {
    let server = loop {
        match Admin::bind(Address::One(address), flag).await {
            Ok(server) => break server,
            Err(error) if hard_fail => return Err(error),
            Err(error) => error!("{error}; trying again in {} s", RETRY.as_secs()),
        }
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

/// Routes of the metrics server: `/metrics`, `/configz`, `/proxyMode`, and `/healthz`, which only says that it serves.
pub fn metrics_routes(registry: Registry, effective: &KubeProxyConfiguration) -> Router {
    let configz = serde_json::json!({"kubeproxy.config.k8s.io": effective}).to_string();
    let configz = any(move || std::future::ready(respond(StatusCode::OK, JSON, configz.clone())));
    let constant = |text: &'static str| any(move || std::future::ready(respond(StatusCode::OK, PLAIN, text)));
    admin::metrics_routes(registry)
        .route("/configz", configz)
        .route("/proxyMode", constant("iptables"))
        .route("/healthz", constant("ok"))
        .route("/healthz/ping", constant("ok"))
        .fallback(not_found)
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
        let routes = metrics_routes(Registry::new(), &effective);
        let server = tokio::spawn(serve(address, "--metrics-bind-address", routes, true, shutdown.clone()));
        until_served(address).await;
        assert!(ask(address, "/proxyMode").await.ends_with("\r\n\r\niptables"));
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
}
