//! UDP clients that keep one socket open, those who answer them, and the flows between them.
//!
//! Client, node and endpoints share one network namespace: packets go through the OUTPUT chain, and conntrack treats
//! them as it treats any other flow. [`Place::pod`] makes a client in a namespace of its own, whose packets are routed.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "helpers of tests are tests, too")]

use std::{
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fairlead_objects::{Family, Protocol, ServiceKey, builders};
use fairlead_programmer::{
    conntrack::{Ends, Flow, FlowTable, Kernel as Flows},
    feed::Change,
};
use serde_json::{Value, json};

use crate::{
    namespace::shell,
    node::{self, PATIENCE},
};

/// Network namespaces so far: no two have the same addresses, because the kernel takes its time to remove one.
static PODS: AtomicUsize = AtomicUsize::new(1);

/// Of the Service, and of a node port elsewhere that happens to be the same.
pub const NODE_PORT: u16 = 30053;

/// Addresses of one family.
#[derive(Debug)]
pub struct Place {
    pub family: Family,
    pods: &'static str,
    /// Of the Service.
    pub cluster: SocketAddr,
    /// Of the Service, at this node.
    pub node_port: SocketAddr,
    /// A host elsewhere, at the number of the node port. Packets to it are lost.
    pub stranger: SocketAddr,
}

impl Place {
    pub fn of(family: Family) -> Self {
        let (pods, cluster, stranger) = match family {
            Family::V4 => ("10.0.0.", "10.96.0.53:53", "203.0.113.9"),
            Family::V6 => ("fd00:10::", "[fd00:96::53]:53", "2001:db8:113::9"),
        };
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), NODE_PORT);
        Self {
            family,
            pods,
            cluster: cluster.parse().unwrap(),
            node_port: at(node::address(family)),
            stranger: at(stranger),
        }
    }

    /// The address of an endpoint: 1, 2 or 3.
    pub fn pod_ip(&self, number: u8) -> String {
        format!("{}{number}", self.pods)
    }

    /// Where an endpoint answers.
    pub fn endpoint(&self, number: u8) -> SocketAddr {
        SocketAddr::new(self.pod_ip(number).parse().unwrap(), 8053)
    }

    pub fn service(&self) -> Change {
        self.service_with(json!({}))
    }

    /// The Service of type NodePort, with `more` merged over its `spec`.
    pub fn service_with(&self, more: Value) -> Change {
        let ip = self.cluster.ip();
        let mut spec = json!({"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [self.family.as_str()],
            "ports": [{"port": 53, "protocol": "UDP", "nodePort": NODE_PORT}]});
        builders::merge(&mut spec, more);
        Change::Service(Arc::new(builders::service("dns", spec)))
    }

    /// Its only slice, with these endpoints.
    pub fn slice(&self, numbers: &[u8]) -> Change {
        self.slice_at(8053, numbers)
    }

    /// As [`Self::slice`], at another port.
    pub fn slice_at(&self, port: u16, numbers: &[u8]) -> Change {
        let addresses: Vec<_> = numbers.iter().map(|number| self.pod_ip(*number)).collect();
        let endpoints: Vec<_> = addresses.iter().map(|ip| (ip.as_str(), "node-a", true)).collect();
        let mut slice = builders::slice("dns-1", "dns", port, &endpoints);
        slice.address_type = serde_json::from_value(self.family.as_str().into()).unwrap();
        for port in &mut slice.ports {
            port.protocol = Some(Protocol::Udp);
        }
        Change::Slice(Arc::new(slice))
    }

    /// A client on the node.
    pub fn client(&self, server: SocketAddr) -> Client {
        Client::new(node::address(self.family).parse().unwrap(), server)
    }

    /// A client in a network namespace of its own that this one routes for.
    pub fn pod(&self, server: SocketAddr) -> Client {
        let number = PODS.fetch_add(1, Ordering::SeqCst);
        let (own, router, prefix, nodad) = match self.family {
            Family::V4 => (format!("10.1.{number}.2"), format!("10.1.{number}.1"), 24, ""),
            Family::V6 => (format!("fd00:11:{number}::2"), format!("fd00:11:{number}::1"), 64, "nodad"),
        };
        let parent = std::process::id();
        let make = move || {
            // `unshare` was marked deprecated in favour of an unsafe twin because of CLONE_FILES, which is not used.
            #[expect(deprecated, reason = "only CLONE_FILES makes it unsafe")]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
            shell(&format!(
                "ip link add eth0 type veth peer name pod{number} netns {parent}; ip link set eth0 up
                 ip addr add {own}/{prefix} dev eth0 {nodad}
                 nsenter --net=/proc/{parent}/ns/net sh -ec \
                   'ip link set pod{number} up; ip addr add {router}/{prefix} dev pod{number} {nodad}'
                 ip route add default via {router}"
            ));
            Client::new(own.parse().unwrap(), server)
        };
        // The namespace lives as long as the socket.
        std::thread::spawn(make).join().unwrap()
    }

    /// The flows from a client, whoever answers it.
    pub fn flows(&self, client: &Client) -> Vec<Flow> {
        let of_client = Flows.list(self.family, &|_| true).unwrap().flows.into_iter();
        // The identity holds the client's port: an attribute of six bytes, number 2.
        let [high, low] = client.0.local_addr().unwrap().port().to_be_bytes();
        let port = [6, 0, 2, 0, high, low];
        of_client
            .filter(|flow| flow.ends.destination == client.server())
            .filter(|flow| flow.identity.windows(port.len()).any(|bytes| bytes == port))
            .collect()
    }

    /// The flow from a client.
    pub fn ends(&self, client: &Client) -> Option<Ends> {
        self.flows(client).first().map(|flow| flow.ends)
    }

    /// Nothing is tracked any more.
    pub fn forget(&self) {
        let flows = Flows.list(self.family, &|_| true).unwrap().flows;
        Flows.delete(self.family, &flows).unwrap();
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.family.fmt(f)
    }
}

/// Addresses of the node, of its endpoints, and a way for cluster IPs and strangers to leave (and be lost).
pub fn prepare_network() {
    shell(
        "ip link set lo up; ip link add out type veth peer name far; ip link set out up; ip link set far up
         ip addr add 192.168.0.2/24 dev out; ip addr add fd00:192::2/64 dev out nodad
         for i in 1 2 3; do ip addr add 10.0.0.$i/32 dev lo; ip addr add fd00:10::$i/128 dev lo nodad; done
         ip route add default dev out; ip -6 route add default dev out
         echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
    );
}

pub fn gone() -> Change {
    Change::ServiceGone(ServiceKey::new("default", "dns"))
}

/// Answers every packet with its own address.
pub fn serve(address: SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(address.to_string().as_bytes(), client));
        }
    });
}

/// Counts packets, and answers none.
#[derive(Clone, Debug)]
pub struct Sink {
    pub port: u16,
    packets: Arc<AtomicUsize>,
}

impl Sink {
    /// At any port.
    pub fn at(ip: IpAddr) -> Self {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        let sink = Self { port: socket.local_addr().unwrap().port(), packets: Arc::default() };
        let packets = Arc::clone(&sink.packets);
        std::thread::spawn(move || {
            while socket.recv(&mut [0; 64]).is_ok() {
                packets.fetch_add(1, Ordering::SeqCst);
            }
        });
        sink
    }

    pub fn count(&self) -> usize {
        self.packets.load(Ordering::SeqCst)
    }
}

/// A client that never closes its socket.
#[derive(Debug)]
pub struct Client(UdpSocket);

impl Client {
    fn new(own: IpAddr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self(socket)
    }

    pub fn own_ip(&self) -> IpAddr {
        self.0.local_addr().unwrap().ip()
    }

    pub fn server(&self) -> SocketAddr {
        self.0.peer_addr().unwrap()
    }

    /// Sends a packet, whatever becomes of it.
    pub fn send(&self) {
        drop(self.0.send(b"?"));
    }

    /// Who answers the next packet; `None` if nobody does at once, or the packet is refused.
    pub fn ask(&self) -> Option<SocketAddr> {
        let mut buffer = [0; 64];
        // Answers to earlier packets.
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut buffer).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
        self.0.send(b"?").ok()?;
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).parse().unwrap())
    }

    /// Who answers first, however slow this machine is.
    pub fn ask_patiently(&self) -> SocketAddr {
        let start = Instant::now();
        loop {
            if let Some(answer) = self.ask() {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "nobody answers");
        }
    }

    /// Asks until `answer` is the answer, without ever closing the socket. Returns after how long.
    pub fn ask_until(&self, answer: Option<SocketAddr>) -> Duration {
        let start = Instant::now();
        loop {
            let found = self.ask();
            if found == answer {
                return start.elapsed();
            }
            assert!(start.elapsed() < PATIENCE, "still {found:?}, not {answer:?}");
        }
    }
}
