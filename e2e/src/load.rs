//! Load: clients that never stop asking while something happens to the cluster.
//!
//! Invariant: whatever a client did not get is in the report; nothing is tried again behind its back. (The kernel's own
//! retransmissions count as the connection's patience, as they do for any program.)

use std::{
    fmt,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::{
    Bed, PodSpec, Port,
    netns::Netns,
    probe::{self, Connection, Outcome},
    servers::Protocol,
    wait,
};

/// Connections that a client keeps open, and UDP sockets that it keeps asking from.
const KEPT: usize = 6;
/// Between two requests of one thread, so that the load leaves the machine to the programs under test.
const PAUSE: Duration = Duration::from_millis(5);

/// The Pods behind the Service of [`serve`].
pub const PODS: [&str; 3] = ["a-1", "a-2", "a-3"];
/// Its node port.
pub const NODE_PORT: u16 = 30080;

/// Makes a Service with Pods on two nodes, TCP and UDP on the same ports, and a Pod `client`. Returns the cluster IP.
pub fn serve(bed: &mut Bed) -> Result<SocketAddr> {
    for (name, node) in PODS.into_iter().zip([1, 2, 1]) {
        bed.add_pod(PodSpec::new(name, "a").on(node).port(Port::tcp(8080)).port(Port::udp(8080)))?;
    }
    bed.add_pod(PodSpec::new("client", "client").on(1))?;
    let ports = json!([
        {"name": "tcp", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT},
        {"name": "udp", "protocol": "UDP", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]);
    bed.kubernetes().apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {"type": "NodePort", "selector": {"app": "a"}, "ports": ports}
    }))?;
    Ok(SocketAddr::new(bed.cluster_ip("a")?, 80))
}

/// What the clients of a load saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Connections opened and answered.
    pub new: usize,
    /// Requests answered over connections and sockets that were there before.
    pub kept: usize,
    /// What went wrong, in words.
    pub complaints: Vec<String>,
}

impl Report {
    /// Fails if anything went wrong, or nothing happened.
    pub fn check(&self) -> Result<()> {
        ensure!(self.complaints.is_empty(), "{self}: {:#?}", self.complaints);
        ensure!(self.new > 0 && self.kept > 0, "{self}: there was no load");
        Ok(())
    }

    fn add(&mut self, other: Self) {
        self.new += other.new;
        self.kept += other.kept;
        self.complaints.extend(other.complaints);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { new, kept, complaints } = self;
        write!(f, "{new} new connections, {kept} requests over old ones, {} complaints", complaints.len())
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<Report>>>,
}

impl Load {
    /// A load without clients.
    pub fn new() -> Self {
        Self { stop: Arc::default(), clients: Vec::new() }
    }

    /// Adds a client that opens TCP connections to `target`, uses some that it keeps open, and some UDP sockets.
    /// Connections and flows that are kept exist when this returns.
    pub fn add(&mut self, name: &str, namespace: &Arc<Netns>, target: SocketAddr) -> Result<()> {
        let connections = (0..KEPT)
            .map(|_| Kept::open(namespace, target).with_context(|| format!("{name} to {target}")))
            .collect::<Result<Vec<_>>>()?;
        self.spawn(format!("{name}, open connection to {target}"), connections);
        let sockets = (0..KEPT)
            .map(|_| Flow::open(namespace, target).with_context(|| format!("{name} to {target}/UDP")))
            .collect::<Result<Vec<_>>>()?;
        self.spawn(format!("{name}, UDP socket to {target}"), sockets);
        let newcomer = Newcomer { namespace: Arc::clone(namespace), target };
        self.spawn(format!("{name}, new connection to {target}"), vec![newcomer]);
        Ok(())
    }

    fn spawn<A: Asker + Send + 'static>(&mut self, name: String, mut askers: Vec<A>) {
        let stop = Arc::clone(&self.stop);
        self.clients.push(thread::spawn(move || {
            let mut report = Report::default();
            while !stop.load(Ordering::Relaxed) {
                for asker in &mut askers {
                    match asker.ask()? {
                        Ok(()) if A::NEW => report.new += 1,
                        Ok(()) => report.kept += 1,
                        Err(complaint) => report.complaints.push(format!("{name}: {complaint}")),
                    }
                    wait::watch(PAUSE);
                }
            }
            Ok(report)
        }));
    }

    /// Ends the load and says what it saw.
    pub fn finish(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = Report::default();
        for client in self.clients.drain(..) {
            report.add(client.join().map_err(|_panic| anyhow!("a client of the load panicked"))??);
        }
        Ok(report)
    }
}

impl Default for Load {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Something that asks again and again.
trait Asker {
    /// Whether each request is a connection of its own.
    const NEW: bool;
    /// One request; in the inner result, what is wrong with what came.
    fn ask(&mut self) -> Result<Result<(), String>>;
}

struct Newcomer {
    namespace: Arc<Netns>,
    target: SocketAddr,
}

impl Asker for Newcomer {
    const NEW: bool = true;

    fn ask(&mut self) -> Result<Result<(), String>> {
        Ok(match probe::Client::new(&self.namespace).ask(Protocol::Tcp, self.target)? {
            Outcome::Answered(_) => Ok(()),
            other => Err(other.to_string()),
        })
    }
}

/// A connection, and the server that it was led to.
struct Kept {
    connection: Connection,
    server: String,
}

impl Kept {
    fn open(namespace: &Netns, target: SocketAddr) -> Result<Self> {
        let opened = probe::Client::new(namespace).connect(target)?;
        let mut connection = opened.map_err(|outcome| anyhow!("{outcome}"))?;
        let server = connection.ask().answer()?.server;
        Ok(Self { connection, server })
    }
}

impl Asker for Kept {
    const NEW: bool = false;

    fn ask(&mut self) -> Result<Result<(), String>> {
        Ok(same(&self.server, self.connection.ask()))
    }
}

/// A UDP socket that stays, and the server that its flow was led to.
struct Flow {
    socket: UdpSocket,
    server: String,
}

impl Flow {
    fn open(namespace: &Netns, target: SocketAddr) -> Result<Self> {
        let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = namespace.run(|| UdpSocket::bind(any))??;
        socket.set_read_timeout(Some(probe::PATIENCE))?;
        socket.connect(target)?;
        let server = probe::ask_over(&socket).answer()?.server;
        Ok(Self { socket, server })
    }
}

impl Asker for Flow {
    const NEW: bool = false;

    fn ask(&mut self) -> Result<Result<(), String>> {
        Ok(same(&self.server, probe::ask_over(&self.socket)))
    }
}

fn same(server: &str, outcome: Outcome) -> Result<(), String> {
    match outcome {
        Outcome::Answered(answer) if answer.server == server => Ok(()),
        other => Err(format!("was led to {server}, now {other}")),
    }
}
