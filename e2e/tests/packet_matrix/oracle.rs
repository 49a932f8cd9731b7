//! What has to become of a packet, worked out from the specification alone: nothing here knows chains, rules or the
//! compiler.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use fairlead_e2e::tun::Entry;
use fairlead_objects::Family;
use ipnet::IpNet;

use crate::{
    questions::{Frontend, Question},
    shapes::{Endpoint, Ranges, Shape, ZONE, load_balancer},
};

/// How local Pods are told from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detector {
    /// By the networks of all Pods.
    Networks,
    /// By the link that they are behind.
    Link,
    /// Not at all.
    None,
}

/// What the machine drops by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firewall {
    /// Nothing.
    Open,
    /// What is forwarded or comes in, and nobody accepts.
    Closed,
    /// The same, but a CNI plugin accepts what goes to and comes from Pods.
    PodsOnly,
}

/// The node, and how its proxy is configured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) detector: Detector,
    pub(crate) masquerade_all: bool,
    /// The networks with node ports; empty means all.
    pub(crate) node_ports: &'static [&'static str],
    /// Conntrack is liberal about what belongs to a connection.
    pub(crate) liberal: bool,
    /// The families that the proxy sees to.
    pub(crate) families: &'static [Family],
    /// The load balancer's address is the node's own, too.
    pub(crate) given: bool,
    pub(crate) firewall: Firewall,
}

/// As a cluster has it that says nothing.
pub(crate) const PLAIN: Site = Site {
    detector: Detector::Networks,
    masquerade_all: false,
    node_ports: &[],
    liberal: false,
    families: &Family::ALL,
    given: false,
    firewall: Firewall::Open,
};

/// What a packet can come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    /// An endpoint, with the client's source address or another one.
    Endpoint { address: SocketAddr, masqueraded: bool },
    /// Its sender is told that nobody is there.
    Refused,
    /// Nothing.
    Silence,
    /// It goes on as it is.
    Untouched,
}

/// Everything that it can come to, with weights.
pub(crate) type Expectation = BTreeMap<Ending, u64>;

fn networks(family: Family) -> &'static str {
    if family == Family::V4 { "10.244.0.0/16" } else { "fd00:244::/32" }
}

fn is_in(network: &str, address: IpAddr) -> bool {
    network.parse().is_ok_and(|network: IpNet| network.contains(&address))
}

/// What the traffic policy of a frontend and the rest of the configuration lead to, before the machine's firewall.
enum Decision {
    /// One of these endpoints, all alike; `true` asks for another source address whatever the endpoint.
    Choose(Vec<Endpoint>, bool),
    End(Ending),
}

impl Site {
    /// The node's own addresses.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        address.is_loopback()
            || crate::questions::node_addresses(family).contains(&address)
            || (self.given && address == load_balancer(family))
    }

    /// Whether a packet is a local Pod's; unknown if Pods cannot be told.
    fn is_pod(&self, question: &Question) -> Option<bool> {
        match self.detector {
            Detector::None => None,
            Detector::Networks => Some(is_in(networks(question.family), question.client.source)),
            Detector::Link => Some(question.client.entry == Entry::Pods),
        }
    }

    pub(crate) fn expect(&self, question: &Question) -> Expectation {
        let decision = if self.families.contains(&question.family) {
            self.decide(question)
        } else {
            Decision::End(Ending::Untouched)
        };
        let mut expectation = Expectation::new();
        match decision {
            Decision::End(ending) => {
                expectation.insert(self.after_firewall(question, ending), 1);
            }
            Decision::Choose(endpoints, masquerade) => {
                for endpoint in endpoints {
                    let address = Shape::target(endpoint.address(question.family));
                    let asked = masquerade || address.ip() == question.client.source;
                    let masqueraded = asked && self.passes_postrouting(question, address.ip());
                    let ending = self.after_firewall(question, Ending::Endpoint { address, masqueraded });
                    *expectation.entry(ending).or_default() += 1;
                }
            }
        }
        expectation
    }

    /// Sources are rewritten in POSTROUTING: what comes from elsewhere and is led to the node itself never gets there.
    fn passes_postrouting(&self, question: &Question, to: IpAddr) -> bool {
        question.client.entry == Entry::Node || !self.is_own(to)
    }

    fn decide(&self, question: &Question) -> Decision {
        if question.is_invalid() {
            let forwarded = question.client.entry != Entry::Node && !self.is_own(question.destination().ip());
            let dropped = forwarded && !self.liberal;
            return Decision::End(if dropped { Ending::Silence } else { Ending::Untouched });
        }
        match question.frontend {
            Frontend::ClusterIp => self.decide_internal(question),
            Frontend::External => self.decide_external(question),
            Frontend::LoadBalancer => self.decide_load_balancer(question),
            Frontend::NodePort(address) => self.decide_node_port(question, address),
        }
    }

    fn decide_internal(&self, question: &Question) -> Decision {
        let shape = &question.shape;
        if !has_any(shape) {
            return Decision::End(Ending::Refused);
        }
        let chosen = if shape.internal_local { local(shape) } else { cluster(shape) };
        if chosen.is_empty() {
            return Decision::End(Ending::Silence);
        }
        Decision::Choose(chosen, self.masquerade_all || self.is_pod(question) == Some(false))
    }

    /// External IPs, and what comes past source ranges and `nodePortAddresses`.
    fn decide_external(&self, question: &Question) -> Decision {
        let shape = &question.shape;
        if !has_any(shape) {
            return self.refusal(question, Ending::Refused);
        }
        if !shape.external_local {
            return Decision::Choose(cluster(shape), true);
        }
        if self.is_pod(question) == Some(true) {
            return Decision::Choose(cluster(shape), false);
        }
        if self.is_own(question.client.source) {
            return Decision::Choose(cluster(shape), true);
        }
        match local(shape) {
            none if none.is_empty() => self.refusal(question, Ending::Silence),
            local => Decision::Choose(local, false),
        }
    }

    /// What the node's own processes send to others is not refused; to the node's addresses it is, when it arrives.
    fn refusal(&self, question: &Question, how: Ending) -> Decision {
        let leaves = question.client.entry == Entry::Node && !self.is_own(question.destination().ip());
        Decision::End(if leaves { Ending::Untouched } else { how })
    }

    fn decide_load_balancer(&self, question: &Question) -> Decision {
        let Question { shape, family, client, .. } = question;
        let ranges = shape.ranges.networks(*family);
        let open = ranges.is_empty() || shape.ranges == Ranges::Zero;
        if open || !has_any(shape) {
            return self.decide_external(question);
        }
        let allows = |address: IpAddr| ranges.iter().any(|range| range.contains(&address));
        let [node, _] = crate::questions::node_addresses(*family);
        let by_itself = allows(node) && client.source == load_balancer(*family);
        if allows(client.source) || by_itself {
            self.decide_external(question)
        } else {
            Decision::End(Ending::Silence)
        }
    }

    fn decide_node_port(&self, question: &Question, address: IpAddr) -> Decision {
        if !self.is_own(address) {
            return Decision::End(Ending::Untouched);
        }
        if self.serves_node_ports(address) {
            return self.decide_external(question);
        }
        // Refusals are not restricted to the addresses that serve.
        let shape = &question.shape;
        if !has_any(shape) {
            Decision::End(Ending::Refused)
        } else if shape.external_local && local(shape).is_empty() {
            Decision::End(Ending::Silence)
        } else {
            Decision::End(Ending::Untouched)
        }
    }

    fn serves_node_ports(&self, address: IpAddr) -> bool {
        let family = Family::of(address);
        let of_family = |network: &&&str| {
            network.parse().is_ok_and(|network: IpNet| Family::of(network.addr()) == family)
        };
        let mut networks = self.node_ports.iter().filter(of_family).peekable();
        let everywhere = networks.peek().is_none();
        let there = everywhere || networks.any(|network| is_in(network, address));
        // By IPv6, never at loopback.
        there && !(address.is_loopback() && family == Family::V6)
    }

    /// The machine accepts, whoever asks: what it sends itself, what is marked for another source, and what comes back
    /// to where it came from.
    fn after_firewall(&self, question: &Question, ending: Ending) -> Ending {
        if self.firewall == Firewall::Open || question.client.entry == Entry::Node {
            return ending;
        }
        let to = match ending {
            Ending::Endpoint { masqueraded: true, .. } | Ending::Refused | Ending::Silence => return ending,
            Ending::Endpoint { address, masqueraded: false } => address.ip(),
            Ending::Untouched => question.destination().ip(),
        };
        let pods = |address: IpAddr| is_in(networks(question.family), address);
        let forwarded = !self.is_own(to);
        let accepted =
            forwarded && self.firewall == Firewall::PodsOnly && (pods(to) || pods(question.client.source));
        if accepted { ending } else { Ending::Silence }
    }
}

/// Whether anybody anywhere may answer.
fn has_any(shape: &Shape) -> bool {
    shape.endpoints.iter().any(|endpoint| endpoint.ready || (endpoint.serving && endpoint.terminating))
}

/// Those that may answer wherever they are.
fn cluster(shape: &Shape) -> Vec<Endpoint> {
    let ready = || shape.endpoints.iter().copied().filter(|endpoint| endpoint.ready);
    let by_zone = ready().all(|endpoint| endpoint.zone.is_some());
    let near: Vec<Endpoint> = ready().filter(|endpoint| by_zone && endpoint.zone == Some(ZONE)).collect();
    if !near.is_empty() {
        return near;
    }
    or_terminating(ready().collect(), shape.endpoints)
}

/// Those on this node.
fn local(shape: &Shape) -> Vec<Endpoint> {
    let here: Vec<Endpoint> =
        shape.endpoints.iter().copied().filter(|endpoint| endpoint.is_local()).collect();
    or_terminating(here.iter().copied().filter(|endpoint| endpoint.ready).collect(), &here)
}

/// Nobody is ready: then whoever still serves while it ends.
fn or_terminating(ready: Vec<Endpoint>, all: &[Endpoint]) -> Vec<Endpoint> {
    if ready.is_empty() {
        all.iter().copied().filter(|endpoint| endpoint.serving && endpoint.terminating).collect()
    } else {
        ready
    }
}
