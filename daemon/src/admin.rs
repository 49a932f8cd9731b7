//! The HTTP server for operators: health, readiness, metrics, and what a daemon adds.
//!
//! Invariants: it answers from memory and never waits for the API server or the kernel; a port that is taken is an error
//! at start, before anything else was done.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use serde::{Serialize, Serializer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, readiness::Readiness};

/// Prometheus' text format, in which names of counters are free.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where to listen: `:8080` (all addresses, both families), `127.0.0.1:8080`, `[::1]:8080`, or nowhere (empty or `0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Do not listen.
    Off,
    /// All addresses of both families, or of IPv4 where there is no IPv6.
    All(u16),
    /// One address.
    One(SocketAddr),
}

/// Text that is no listening address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0:?} is not an address to listen on such as :8080, 127.0.0.1:8080 or [::1]:8080")]
pub struct ParseListenError(String);

impl FromStr for Address {
    type Err = ParseListenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseListenError(text.to_owned());
        match text.strip_prefix(':') {
            _ if text.is_empty() || text == "0" => Ok(Self::Off),
            Some(port) => port.parse().map(Self::All).map_err(|_| error()),
            None => text.parse().map(Self::One).map_err(|_| error()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("0"),
            Self::All(port) => write!(f, ":{port}"),
            Self::One(address) => write!(f, "{address}"),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why an address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({flag}): {reason}; {}", remedy(reason))]
pub struct ListenError {
    address: Address,
    flag: &'static str,
    reason: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program uses it: stop that, or choose another address with this flag"
        }
        io::ErrorKind::PermissionDenied => "choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "this host does not have that address: choose one that it has",
        _ => "choose another address with this flag",
    }
}

/// A server that listens, but does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: Option<TcpListener>,
}

impl Admin {
    /// Listens on `address`; `flag` is named in the error.
    pub async fn bind(address: Address, flag: &'static str) -> Result<Self, ListenError> {
        let listener = match address {
            Address::Off => Ok(None),
            Address::One(address) => TcpListener::bind(address).await.map(Some),
            Address::All(port) => bind_all(port).await.map(Some),
        };
        let listener = listener.map_err(|reason| ListenError { address, flag, reason })?;
        Ok(Self { listener })
    }

    /// The address that it listens on, if it does.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.listener.as_ref()?.local_addr().ok()
    }

    /// Answers until `shutdown`, then finishes the answers that it has begun.
    pub async fn serve(self, routes: Router, shutdown: CancellationToken) -> io::Result<()> {
        let Some(listener) = self.listener else { return Ok(()) };
        axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await
    }
}

async fn bind_all(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((IpAddr::from(Ipv6Addr::UNSPECIFIED), port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        // No IPv6 on this host.
        Err(_) => TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), port)).await,
    }
}

/// `/healthz`, `/livez`: the process answers. `/readyz`: everything that it needs is there; the body says what is missing.
pub fn health_routes(readiness: Readiness) -> Router {
    let ready = move || async move {
        let ok = readiness.is_ready();
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let verdict = if ok { "ready" } else { "not ready" };
        (status, format!("{readiness}{verdict}\n"))
    };
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
}

/// `/metrics`, in Prometheus' text format.
pub fn metrics_routes(metrics: Metrics) -> Router {
    let answer = move || async move {
        match metrics.encode() {
            Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    Router::new().route("/metrics", get(answer))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    const LOOPBACK: Address = Address::One(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn taken_port_is_named_with_its_flag_and_a_remedy() {
        let first = Admin::bind(LOOPBACK, "--http-address").await.unwrap();
        let taken = Address::One(first.local_address().unwrap());
        let error = Admin::bind(taken, "--http-address").await.unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("--http-address"), "{error}");
        assert!(error.contains("another program"), "{error}");
    }

    #[tokio::test]
    async fn readyz_fails_until_every_gate_is_open_and_the_server_ends_on_shutdown() {
        let readiness = Readiness::default();
        let gate = readiness.gate("Pods");
        let admin = Admin::bind(LOOPBACK, "--http-address").await.unwrap();
        let address = admin.local_address().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(admin.serve(health_routes(readiness), shutdown.clone()));
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("waiting for Pods"), "{answer}");
        gate.open();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }

    #[test]
    fn addresses_parse_and_print() {
        for text in [":8080", "127.0.0.1:8080", "[::1]:8080", "0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert!("localhost".parse::<Address>().is_err());
    }
}
