//! TCP and UDP servers that say who they are and whom they saw.
//!
//! A request is a line (TCP; any number per connection) or a datagram (UDP); the answer is the line
//! `<server name> <port of the server> <address of the client>`.
//!
//! Invariant: the socket belongs to the namespace it was opened in and to one address of it; the work is done by tasks
//! of this process. A dropped server closes its socket and its connections.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net,
    runtime::{Builder, Runtime},
    task::{AbortHandle, JoinSet},
};

use crate::netns::Netns;

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    task: AbortHandle,
}

impl Server {
    /// Starts a server called `name` inside a namespace.
    pub fn start(namespace: &Netns, name: &str, protocol: Protocol, address: SocketAddr) -> Result<Self> {
        let greeting: Arc<str> = format!("{name} {}", address.port()).into();
        let what = || format!("listening on {address}/{protocol} in {}", namespace.name());
        let runtime = runtime()?;
        let _entered = runtime.enter();
        let task = match protocol {
            Protocol::Tcp => {
                let listener = namespace.run(|| TcpListener::bind(address))?.with_context(what)?;
                listener.set_nonblocking(true)?;
                runtime.spawn(accept(net::TcpListener::from_std(listener)?, greeting))
            }
            Protocol::Udp => {
                let socket = namespace.run(|| UdpSocket::bind(address))?.with_context(what)?;
                socket.set_nonblocking(true)?;
                runtime.spawn(answer_datagrams(net::UdpSocket::from_std(socket)?, greeting))
            }
        };
        Ok(Self { task: task.abort_handle() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
    Ok(RUNTIME.get_or_init(|| made))
}

async fn accept(listener: net::TcpListener, greeting: Arc<str>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, client)) = listener.accept().await {
        connections.spawn(answer_lines(stream, client, Arc::clone(&greeting)));
        while connections.try_join_next().is_some() {}
    }
}

async fn answer_lines(stream: net::TcpStream, client: SocketAddr, greeting: Arc<str>) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while lines.next_line().await?.is_some() {
        writer.write_all(format!("{greeting} {client}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn answer_datagrams(socket: net::UdpSocket, greeting: Arc<str>) {
    let mut buffer = [0; 64];
    loop {
        // An error here is about an earlier answer (the client went away), not about this socket.
        if let Ok((_, client)) = socket.recv_from(&mut buffer).await {
            drop(socket.send_to(format!("{greeting} {client}\n").as_bytes(), client).await);
        }
    }
}
