//! Another proxy on this node: kube-proxy that somebody forgot to switch off or that is back, or the process that this one
//! comes after.
//!
//! Two that write the same chains undo each other's work. Whoever runs in a container of its own cannot see the processes of
//! its node, but every kube-proxy says what it is on its metrics address, and so do we. At the start nothing is written until
//! nobody answers (`gone`); from then on `Vigil` looks, and tells.
//!
//! Invariants: it only asks, on loopback or on our own address; whoever is asked cannot keep us waiting; we do not take
//! ourselves for another.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::LazyLock,
    time::Duration,
};

use axum::http::HeaderMap;
use fairlead_daemon::readiness::Gate;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tracing::{info, warn};

mod vigil;

pub(crate) use vigil::{Pace, Vigil};
pub use vigil::{Seen, Signs};

/// Where kube-proxy serves metrics unless it is told otherwise.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// What kube-proxy calls its modes.
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];
/// How long an answer may take: it comes from this host.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often to look whether the other is gone.
const AGAIN: Duration = Duration::from_millis(500);
/// An answer is a word with a few headers; more is not read.
const LONGEST: u64 = 4096;
/// What this process signs its questions with, so that it knows one that comes back to it.
const ASKER: &str = "fairlead-asker";
static SIGNATURE: LazyLock<String> =
    LazyLock::new(|| format!("{:016x}", RandomState::new().hash_one(std::process::id())));

/// Whether a question is our own: our answer would say that there is another proxy.
pub(crate) fn is_our_own(question: &HeaderMap) -> bool {
    question.get(ASKER).is_some_and(|asker| asker.as_bytes() == SIGNATURE.as_bytes())
}

/// Waits until no other proxy answers on this node, and opens `gate` then. `ours` is where we will serve metrics, and do not
/// yet.
pub(crate) async fn gone(ours: Option<SocketAddr>, gate: Gate) {
    gone_from(&places(ours), gate).await;
}

/// Where another proxy may answer.
fn places(ours: Option<SocketAddr>) -> BTreeSet<SocketAddr> {
    ours.map(from_here).into_iter().chain([USUAL]).collect()
}

async fn gone_from(places: &BTreeSet<SocketAddr>, gate: Gate) {
    while let Some((place, mode)) = any(places).await {
        let trouble = format!(
            "kube-proxy or another fairlead-programmer still runs on this node (http://{place}/proxyMode answers {mode}): \
             writing no rule until it is gone; take it off this node, or run this one with --shadow"
        );
        if gate.trouble(trouble.as_str()) {
            warn!("{trouble}");
        }
        sleep(AGAIN).await;
    }
    if gate.is_troubled() {
        info!("the other proxy of this node is gone");
    }
    gate.open();
}

/// The first of these places where a proxy answers, and its mode.
pub(crate) async fn any(places: &BTreeSet<SocketAddr>) -> Option<(SocketAddr, &'static str)> {
    for place in places {
        if let Ok(Ok(Some(mode))) = timeout(PATIENCE, mode_of(*place)).await {
            return Some((*place, mode));
        }
    }
    None
}

/// The mode of the proxy at that address; `None` if it is none.
async fn mode_of(place: SocketAddr) -> io::Result<Option<&'static str>> {
    let mut stream = TcpStream::connect(place).await?;
    let request = format!(
        "GET /proxyMode HTTP/1.1\r\nHost: {place}\r\n{ASKER}: {}\r\nConnection: close\r\n\r\n",
        *SIGNATURE
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(LONGEST).read_to_string(&mut answer).await?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Ok(None) };
    let served = head.split(' ').nth(1) == Some("200");
    Ok(MODES.into_iter().find(|mode| served && body.trim() == *mode))
}

/// An address that stands for all of this host's is asked on loopback.
fn from_here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod testing {
    use axum::{Router, routing::get};
    use tokio::{net::TcpListener, sync::oneshot};

    use super::*;

    /// Answers `/proxyMode` with this text until the sender is dropped.
    pub(super) async fn server(mode: &'static str) -> (SocketAddr, oneshot::Sender<()>) {
        serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), mode)
    }

    pub(super) fn serve(listener: TcpListener, mode: &'static str) -> (SocketAddr, oneshot::Sender<()>) {
        let address = listener.local_addr().unwrap();
        let (end, ended) = oneshot::channel();
        let router = Router::new().route("/proxyMode", get(async move || mode));
        tokio::spawn(async move {
            tokio::select! {
                result = axum::serve(listener, router) => result.unwrap(),
                _ = ended => {}
            }
        });
        (address, end)
    }
}

#[cfg(test)]
mod tests {
    use fairlead_daemon::readiness::Readiness;
    use tokio::net::TcpListener;

    use super::{testing::server, *};

    #[tokio::test]
    async fn a_proxy_is_named_and_waited_for_until_it_is_gone() {
        let (address, end) = server("ipvs").await;
        let readiness = Readiness::default();
        let gate = readiness.gate("other proxies");
        let places = BTreeSet::from([address]);
        let waiting = gone_from(&places, gate.clone());
        let watching = async {
            gate.attempted().await;
            let told = readiness.to_string();
            assert!(
                told.contains("kube-proxy") && told.contains(&format!("{address}/proxyMode answers ipvs")),
                "{told}"
            );
            assert!(!readiness.is_ready());
            drop(end);
        };
        tokio::join!(waiting, watching);
        assert_eq!(readiness.to_string(), "[+]other proxies ok\n");
    }

    #[tokio::test]
    async fn anything_else_is_no_proxy() {
        let (other, _end) = server("hello").await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let places = BTreeSet::from([other, silent.local_addr().unwrap(), nobody]);
        assert_eq!(any(&places).await, None);
    }

    #[test]
    fn an_address_for_all_is_asked_on_loopback() {
        assert_eq!(from_here("0.0.0.0:1".parse().unwrap()).to_string(), "127.0.0.1:1");
        assert_eq!(from_here("[::]:1".parse().unwrap()).to_string(), "[::1]:1");
        assert_eq!(from_here("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
    }
}
