//! UDP clients that keep one socket open, against a real kernel, real rules and the whole sync loop.
//!
//! Client, node and endpoints share one network namespace: packets go through the OUTPUT chain, and conntrack treats
//! them as it treats any other flow.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_objects::{Family, Protocol, ServiceKey, builders};
use fairlead_programmer::{
    conntrack::{Ends, FlowTable, Kernel as Flows},
    feed::Change,
    netfilter::Variant,
};
use serde_json::json;

mod namespace;
mod node;

use namespace::{in_namespace, shell};
use node::Node;

const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER_IP: &str = "10.96.0.53:53";
const NODE_PORT: &str = "192.168.0.2:30053";

/// Addresses of the node, of its endpoints, and a way for cluster IPs and strangers to leave (and be lost).
fn prepare_network() {
    shell(
        "ip link set lo up; ip link add out type veth peer name far; ip link set out up; ip link set far up; ip addr add 192.168.0.2/24 dev out; \
         for i in 1 2 3; do ip addr add 10.0.0.$i/32 dev lo; done; ip route add default dev out",
    );
}

fn service() -> Change {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.53", "clusterIPs": ["10.96.0.53"],
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30053}]});
    Change::Service(Arc::new(builders::service("dns", spec)))
}

fn gone() -> Change {
    Change::ServiceGone(ServiceKey::new("default", "dns"))
}

fn slice(addresses: &[&str]) -> Change {
    let endpoints: Vec<_> = addresses.iter().map(|ip| (*ip, "node-a", true)).collect();
    let mut slice = builders::slice("dns-1", "dns", 8053, &endpoints);
    for port in &mut slice.ports {
        port.protocol = Some(Protocol::Udp);
    }
    Change::Slice(Arc::new(slice))
}

/// Answers every packet with its own address.
fn serve(address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let socket = UdpSocket::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(address.to_string().as_bytes(), client));
        }
    });
}

/// A client that never closes its socket.
struct Client(UdpSocket);

impl Client {
    fn of(server: &str) -> Self {
        let socket = UdpSocket::bind("192.168.0.2:0").unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self(socket)
    }

    /// Who answers the next packet; `None` if nobody does at once, or the packet is refused.
    fn ask(&self) -> Option<String> {
        let mut buffer = [0; 64];
        // Answers to earlier packets.
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut buffer).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
        self.0.send(b"?").ok()?;
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Who answers first, however slow this machine is.
    fn ask_patiently(&self) -> String {
        let start = Instant::now();
        loop {
            if let Some(answer) = self.ask() {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "nobody answers");
        }
    }

    /// Asks until `answer` is the answer, without ever closing the socket. Returns after how long.
    fn ask_until(&self, answer: Option<&str>) -> Duration {
        let start = Instant::now();
        loop {
            let found = self.ask();
            if found.as_deref() == answer {
                return start.elapsed();
            }
            assert!(start.elapsed() < PATIENCE, "still {found:?}, not {answer:?}");
        }
    }
}

/// Whether a flow with these ends is tracked.
fn is_tracked(destination: &str, answerer: &str) -> bool {
    let ends = Ends { destination: destination.parse().unwrap(), answerer: answerer.parse().unwrap() };
    !Flows.list(Family::V4, &|found| *found == ends).unwrap().flows.is_empty()
}

const ONE: &str = "10.0.0.1:8053";
const TWO: &str = "10.0.0.2:8053";
const VARIANTS: [Variant; 2] = [Variant::Nft, Variant::Legacy];

#[test]
fn open_socket_follows_endpoints_and_strangers_are_left_alone() {
    in_namespace("open_socket_follows_endpoints_and_strangers_are_left_alone", async || {
        prepare_network();
        serve(ONE);
        serve(TWO);
        serve("10.0.0.3:30053");
        for variant in VARIANTS {
            let node = Node::start(variant, [service(), slice(&["10.0.0.1"])]).await;
            let clients = [Client::of(CLUSTER_IP), Client::of(NODE_PORT)];
            // A flow to the number of our node port on another host, and one to a program at an address of an endpoint.
            let stranger = Client::of("203.0.113.9:30053");
            assert_eq!(stranger.ask(), None);
            let neighbour = Client::of(ONE);
            neighbour.ask_until(Some(ONE));
            for client in &clients {
                client.ask_until(Some(ONE));
            }
            node.tell(slice(&["10.0.0.2"])).await;
            for client in &clients {
                let took = client.ask_until(Some(TWO));
                assert!(took < Duration::from_secs(2), "{variant}: {took:?}");
            }
            assert!(is_tracked("203.0.113.9:30053", "203.0.113.9:30053"), "{variant}");
            assert!(is_tracked(ONE, ONE), "{variant}");
            node.remove(variant).await;
        }
    });
}

/// kubernetes #139628.
#[test]
fn open_socket_is_refused_at_once_when_the_last_endpoint_goes() {
    in_namespace("open_socket_is_refused_at_once_when_the_last_endpoint_goes", async || {
        prepare_network();
        serve(ONE);
        let node = Node::start(Variant::Nft, [service(), slice(&["10.0.0.1"])]).await;
        let client = Client::of(CLUSTER_IP);
        client.ask_until(Some(ONE));
        node.tell(slice(&[])).await;
        client.ask_until(None);
        assert!(!is_tracked(CLUSTER_IP, ONE));
        node.tell(slice(&["10.0.0.1"])).await;
        client.ask_until(Some(ONE));
        node.stop().await;
    });
}

/// kubernetes #141371, and what comes after it.
#[test]
fn open_socket_survives_deletion_and_new_creation_of_its_service() {
    in_namespace("open_socket_survives_deletion_and_new_creation_of_its_service", async || {
        prepare_network();
        serve(ONE);
        serve(TWO);
        for variant in VARIANTS {
            let node = Node::start(variant, [service(), slice(&["10.0.0.1"])]).await;
            let clients = [Client::of(CLUSTER_IP), Client::of(NODE_PORT)];
            for client in &clients {
                client.ask_until(Some(ONE));
            }
            node.tell(gone()).await;
            for client in &clients {
                client.ask_until(None);
            }
            // Meanwhile packets leave untranslated, which leaves entries that must not last.
            node.tell(slice(&["10.0.0.2"])).await;
            node.tell(service()).await;
            for client in &clients {
                client.ask_until(Some(TWO));
            }
            node.remove(variant).await;
        }
    });
}

/// kubernetes #122740: flows that agree with the rules survive; #126130: those that do not are found without an event.
#[test]
fn restart_keeps_flows_that_agree_and_deletes_those_that_do_not() {
    in_namespace("restart_keeps_flows_that_agree_and_deletes_those_that_do_not", async || {
        prepare_network();
        serve(ONE);
        serve(TWO);
        let node = Node::start(Variant::Nft, [service(), slice(&["10.0.0.1"])]).await;
        let client = Client::of(CLUSTER_IP);
        client.ask_until(Some(ONE));
        node.stop().await;
        assert_eq!(client.ask_patiently(), ONE, "rules outlive the process");

        let both = slice(&["10.0.0.1", "10.0.0.2"]);
        let node = Node::start(Variant::Nft, [service(), both]).await;
        for _ in 0..200 {
            assert_eq!(client.ask_patiently(), ONE, "the flow agrees and must stay where it is");
        }
        node.stop().await;

        // The endpoint goes while nobody watches.
        let node = Node::start(Variant::Nft, [service(), slice(&["10.0.0.2"])]).await;
        client.ask_until(Some(TWO));
        node.stop().await;
    });
}

#[test]
fn only_udp_flows_are_listed_and_one_is_deleted_by_its_identity() {
    in_namespace("only_udp_flows_are_listed_and_one_is_deleted_by_its_identity", async || {
        prepare_network();
        serve(ONE);
        // Tracking starts with the first rule that needs it.
        let node = Node::start(Variant::Nft, [service(), slice(&["10.0.0.1"])]).await;
        let listener = std::net::TcpListener::bind("10.0.0.2:80").unwrap();
        let _stream = std::net::TcpStream::connect("10.0.0.2:80").unwrap();
        let clients = [Client::of(ONE), Client::of(ONE)];
        for client in &clients {
            client.ask_until(Some(ONE));
        }
        let flows = Flows.list(Family::V4, &|_| true).unwrap().flows;
        assert_eq!(flows.len(), 2, "{flows:?}");
        assert!(Flows.delete(Family::V4, &flows[0]).unwrap());
        assert!(!Flows.delete(Family::V4, &flows[0]).unwrap(), "it is gone");
        assert_eq!(Flows.list(Family::V4, &|_| true).unwrap().flows, flows[1..]);
        drop(listener);
        node.stop().await;
    });
}
