//! The compiler's tracer as a second opinion on every packet that a test sends.
//!
//! A packet is followed from its client through the rules of the first node it meets, on from there to the endpoint or
//! to the next node, and so on. The ends are compared with what the kernel did: who answered, in which shares, whom
//! they saw, and who refused or kept silent.
//!
//! What the tracer does not know is not guessed. Behind a rule that remembers clients (`recent`), only the set of ends
//! is compared, not their shares: a client is led where it was led before. Rules that change while a client asks, and
//! packets that meet no node, are not compared. [`Agreement`] counts all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use fairlead_compiler::{self as compiler, Dump, Host, Packet};
use fairlead_objects::Family;

use super::{Bed, From};
use crate::{
    fairness,
    netns::Netns,
    network::pod_link,
    plan::{self, Addresses},
    pod::Pod,
    probe::Outcome,
    servers::Protocol,
};

/// More nodes than a packet can meet.
const HOPS: usize = 4;

/// Below so many expected hits, shares say nothing.
const ENOUGH: f64 = 5.0;

/// What was compared so far.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    /// Requests on which tracer and kernel agreed.
    pub requests: usize,
    /// Requests that could not be compared, by reason.
    pub left_out: BTreeMap<&'static str, usize>,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the tracer agrees with the kernel on {} requests", self.requests)?;
        self.left_out.iter().try_for_each(|(reason, count)| write!(f, "; {count} not compared: {reason}"))
    }
}

/// The rules last read of each node, as text and parsed.
type Dumps = BTreeMap<(u8, Family), (String, Arc<Dump>)>;

/// What is kept from one comparison to the next.
#[derive(Debug, Default)]
pub(super) struct Tracer {
    dumps: Mutex<Dumps>,
    agreement: Mutex<Agreement>,
}

/// Where a packet starts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    Pod {
        node: u8,
        link: u8,
        addresses: Addresses,
    },
    Node(u8),
    /// It has routes to the nodes, and to Pods through them.
    Neighbour,
    /// It has routes to the nodes and those of [`Bed::route_outside`].
    Outside,
}

/// The texts of all nodes' rules of one family, by node.
pub(super) type Saved = BTreeMap<u8, String>;

/// What is at an address.
enum Owner<'a> {
    Node(u8),
    Pod(&'a Pod),
    External(IpAddr, &'a [u16]),
    /// A host whose servers are not the bed's.
    Other,
    /// A Pod's address without a Pod, or one that only routes know.
    Unclear,
    Nobody,
}

/// How a request may end.
#[derive(Clone, Debug, PartialEq)]
enum End {
    Answered {
        server: String,
        port: u16,
        client: IpAddr,
    },
    /// It reaches a host whose servers are not the bed's: it may answer or refuse.
    Host {
        client: IpAddr,
    },
    Refused,
    Silence,
    Unclear,
}

impl End {
    fn is(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::Unclear, _)
            | (Self::Refused | Self::Host { .. }, Outcome::Refused)
            | (Self::Silence, Outcome::TimedOut) => true,
            // A packet that its own node drops is an error to its sender.
            (Self::Silence, Outcome::Failed(why)) => why.contains("not permitted"),
            (Self::Host { client }, Outcome::Answered(answer)) => answer.client.ip() == *client,
            (Self::Answered { server, port, client }, Outcome::Answered(answer)) => {
                (&answer.server, answer.port, answer.client.ip()) == (server, *port, *client)
            }
            _ => false,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { server, port, client } => write!(f, "{server} port {port}, seeing {client}"),
            Self::Host { client } => write!(f, "a host that is no Pod, seeing {client}"),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("silence"),
            Self::Unclear => f.write_str("unclear"),
        }
    }
}

/// All that may become of a request.
#[derive(Debug, Default)]
struct Forecast {
    ends: Vec<(End, f64)>,
    /// The nodes that it may meet.
    met: BTreeSet<u8>,
    /// A rule on the way remembers clients.
    sticky: bool,
}

impl Forecast {
    fn add(&mut self, end: End, share: f64) {
        match self.ends.iter_mut().find(|(known, _)| *known == end) {
            Some((_, sum)) => *sum += share,
            None => self.ends.push((end, share)),
        }
    }

    /// Fails when the outcomes are not those of this forecast.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    fn check(&self, outcomes: &[Outcome]) -> Result<()> {
        let mut counts = vec![0_u64; self.ends.len()];
        for outcome in outcomes {
            let found = self.ends.iter().position(|(end, _)| end.is(outcome));
            let count = found.and_then(|place| counts.get_mut(place));
            *count.with_context(|| format!("`{outcome}` was not to be expected"))? += 1;
        }
        if self.sticky {
            return Ok(());
        }
        let total = outcomes.len() as f64;
        for ((end, share), count) in self.ends.iter().zip(&counts) {
            let rare = (total * (-share).ln_1p()).exp() < fairness::LIMIT;
            ensure!(*count > 0 || !rare, "`{end}` never came in {total} requests");
        }
        let pairs: Vec<(u64, f64)> = counts.iter().copied().zip(self.ends.iter().map(|(_, s)| *s)).collect();
        if pairs.iter().all(|(_, share)| share * total >= ENOUGH) {
            let p = fairness::p_value_of(&pairs);
            ensure!(p >= fairness::LIMIT, "other shares (p = {p:.1e}): {counts:?}");
        }
        Ok(())
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends: Vec<String> = self.ends.iter().map(|(end, share)| format!("{share:.3} x {end}")).collect();
        f.write_str(&ends.join("; "))
    }
}

/// A packet between two nodes, or between a node and an end.
#[derive(Clone, Copy)]
struct Flight {
    source: IpAddr,
    target: SocketAddr,
    protocol: Protocol,
    share: f64,
    hops: usize,
}

impl Bed {
    /// On how many requests the tracer agreed so far. A disagreement fails the request.
    pub fn agreement(&self) -> Agreement {
        self.tracer.agreement.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn origin(&self, from: From<'_>) -> Result<Origin> {
        Ok(match from {
            From::Pod(name) => {
                let Pod { node, addresses, number, .. } = self.pod(name)?;
                Origin::Pod { node: node.number, link: *number, addresses: *addresses }
            }
            From::Node(number) => Origin::Node(number),
            From::Outside => Origin::Outside,
            From::External(_) | From::ControlPlane => Origin::Neighbour,
        })
    }

    /// The rules of all nodes, of a target's family.
    pub(super) fn saved(&self, target: SocketAddr) -> Result<Saved> {
        let nodes = self.plan.iter().map(|node| node.number);
        nodes.map(|node| Ok((node, self.save(node, Family::of(target.ip()))?))).collect()
    }

    /// Fails when the tracer does not find what a client found. `before` are the rules from before it asked.
    pub(super) fn check_trace(
        &self,
        origin: Origin,
        client: &Netns,
        protocol: Protocol,
        before: &Saved,
        asked: &[(SocketAddr, Vec<Outcome>)],
    ) -> Result<()> {
        let Some((first, _)) = asked.first() else { return Ok(()) };
        let after = self.saved(*first)?;
        for (target, outcomes) in asked {
            let forecast = match self.forecast(origin, client, protocol, *target, before)? {
                Ok(forecast) if forecast.met.iter().any(|node| before.get(node) != after.get(node)) => {
                    Err("rules changed meanwhile")
                }
                forecast => forecast,
            };
            let mut agreement = self.tracer.agreement.lock().unwrap_or_else(PoisonError::into_inner);
            match forecast {
                Err(reason) => *agreement.left_out.entry(reason).or_default() += outcomes.len(),
                Ok(forecast) if forecast.ends.iter().any(|(end, _)| *end == End::Unclear) => {
                    *agreement.left_out.entry("an address that nobody has any more").or_default() +=
                        outcomes.len();
                }
                Ok(forecast) => {
                    forecast.check(outcomes).with_context(|| {
                        format!(
                            "the tracer disagrees with the kernel on {target}/{protocol}; traced: {forecast}"
                        )
                    })?;
                    agreement.requests += outcomes.len();
                }
            }
        }
        Ok(())
    }

    /// What the rules make of requests, or why that cannot be said.
    fn forecast(
        &self,
        origin: Origin,
        client: &Netns,
        protocol: Protocol,
        target: SocketAddr,
        saved: &Saved,
    ) -> Result<std::result::Result<Forecast, &'static str>> {
        let Some(source) = source_towards(client, target.ip())? else { return Ok(Err("no route")) };
        let flight = Flight { source, target, protocol, share: 1.0, hops: 0 };
        let mut forecast = Forecast::default();
        let owner = self.owner(target.ip());
        let (node, link) = match (origin, owner) {
            (Origin::Pod { addresses, .. }, _)
                if target.ip().is_loopback()
                    || addresses.known(plan::Families::DualStack).contains(&target.ip()) =>
            {
                return Ok(Err("it does not leave its Pod"));
            }
            (Origin::Pod { node, link, .. }, _) => (node, Some(pod_link(link))),
            (Origin::Node(node), _) => (node, None),
            (Origin::Neighbour, Owner::Pod(pod)) => (pod.node.number, Some("eth0".to_owned())),
            (_, Owner::Node(node)) => (node, Some("eth0".to_owned())),
            (Origin::Outside, _) => match self.outside_routes.get(&target.ip()) {
                Some(node) => (*node, Some("eth0".to_owned())),
                None => return Ok(Err("it meets no node")),
            },
            (Origin::Neighbour, _) => return Ok(Err("it meets no node")),
        };
        let origin = link.map_or(compiler::Origin::Node, |link| compiler::Origin::Interface(Some(link)));
        self.through_node(node, origin, flight, saved, &mut forecast)?;
        Ok(Ok(forecast))
    }

    /// Follows a packet through a node's rules and to wherever they send it.
    fn through_node(
        &self,
        node: u8,
        origin: compiler::Origin,
        flight: Flight,
        saved: &Saved,
        forecast: &mut Forecast,
    ) -> Result<()> {
        ensure!(flight.hops < HOPS, "the tracer sends {} round and round", flight.target);
        let Flight { source, target, protocol, .. } = flight;
        forecast.met.insert(node);
        let packet = Packet {
            source,
            source_port: 40_000,
            destination: target.ip(),
            destination_port: target.port(),
            protocol: match protocol {
                Protocol::Tcp => fairlead_objects::Protocol::Tcp,
                Protocol::Udp => fairlead_objects::Protocol::Udp,
            },
            origin,
        };
        let plan = self.node(node)?;
        let own = [plan.addresses, plan.pod(1)];
        let host = Host { addresses: own.iter().flat_map(|a| a.known(plan::Families::DualStack)).collect() };
        let dump = self.dump(node, Family::of(target.ip()), saved)?;
        let trace = compiler::trace(&dump, &packet, &host);
        forecast.sticky |= trace.path.iter().any(|step| step.rule.contains("-m recent"));
        for (outcome, share) in &trace.shares {
            let share = flight.share * value(*share);
            match outcome {
                compiler::Outcome::Rejected => forecast.add(End::Refused, share),
                compiler::Outcome::Dropped => forecast.add(End::Silence, share),
                compiler::Outcome::NoMatch => {
                    self.onward(node, Flight { share, ..flight }, saved, forecast)?;
                }
                compiler::Outcome::Accepted => {}
            }
        }
        for way in &trace.targets {
            let mut source = source;
            if way.masquerade {
                let seen = source_towards(self.node_netns(node)?, way.address)?;
                source = seen.with_context(|| format!("node {node} has no route to {}", way.address))?;
            }
            let target = SocketAddr::new(way.address, way.port);
            let share = flight.share * value(way.probability);
            self.onward(node, Flight { source, target, share, ..flight }, saved, forecast)?;
        }
        Ok(())
    }

    /// Follows a packet from a node to who has its destination.
    fn onward(&self, node: u8, flight: Flight, saved: &Saved, forecast: &mut Forecast) -> Result<()> {
        let Flight { source: client, target, protocol, share, hops } = flight;
        let host = End::Host { client };
        let end = match self.owner(target.ip()) {
            Owner::Node(other) if other != node => return self.next_node(other, flight, saved, forecast),
            Owner::Pod(pod) if pod.node.number != node => {
                return self.next_node(pod.node.number, flight, saved, forecast);
            }
            _ if hops >= HOPS => bail!("{target} is nowhere"),
            Owner::Pod(pod) => {
                let known = pod.addresses.known(self.options.families).contains(&target.ip());
                let asked = (target.port(), protocol);
                if known && pod.spec.ports.iter().any(|port| (port.number, port.protocol) == asked) {
                    End::Answered { server: pod.spec.reference(), port: target.port(), client }
                } else {
                    End::Refused
                }
            }
            Owner::External(address, ports) if ports.contains(&target.port()) => {
                End::Answered { server: address.to_string(), port: target.port(), client }
            }
            Owner::External(..) => End::Refused,
            Owner::Node(_) | Owner::Other => host,
            Owner::Unclear => End::Unclear,
            Owner::Nobody => End::Silence,
        };
        forecast.add(end, share);
        Ok(())
    }

    fn next_node(&self, node: u8, flight: Flight, saved: &Saved, forecast: &mut Forecast) -> Result<()> {
        let arriving = compiler::Origin::Interface(Some("eth0".to_owned()));
        self.through_node(node, arriving, Flight { hops: flight.hops + 1, ..flight }, saved, forecast)
    }

    fn owner(&self, address: IpAddr) -> Owner<'_> {
        let has = |addresses: Addresses| addresses.known(plan::Families::DualStack).contains(&address);
        if let Some(pod) = self.pods.values().find(|pod| has(pod.addresses)) {
            return Owner::Pod(pod);
        }
        if let Some(node) = self.plan.iter().find(|node| has(node.addresses) || has(node.pod(1))) {
            return Owner::Node(node.number);
        }
        if let Some(external) = self.externals.iter().find(|external| external.address == address) {
            return Owner::External(external.address.into(), &external.ports);
        }
        let pods = plan::cluster_networks(plan::Families::DualStack).split(',');
        let of_pods =
            pods.filter_map(|net| net.parse::<ipnet::IpNet>().ok()).any(|net| net.contains(&address));
        match address {
            _ if address.is_loopback() => Owner::Other,
            _ if has(plan::control_plane()) || has(plan::outside()) => Owner::Other,
            _ if of_pods || plan::shared_networks().iter().any(|net| net.contains(&address)) => {
                Owner::Unclear
            }
            _ => Owner::Nobody,
        }
    }

    /// A node's rules, parsed; parsed anew only when they changed.
    fn dump(&self, node: u8, family: Family, saved: &Saved) -> Result<Arc<Dump>> {
        let text = saved.get(&node).with_context(|| format!("no rules of node {node}"))?;
        let mut dumps = self.tracer.dumps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, dump)) = dumps.get(&(node, family))
            && known == text
        {
            return Ok(Arc::clone(dump));
        }
        let dump = compiler::parse(text).with_context(|| format!("the rules of node {node}"))?;
        let dump = Arc::new(dump);
        dumps.insert((node, family), (text.clone(), Arc::clone(&dump)));
        Ok(dump)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of a request need not be exact")]
fn value(share: compiler::Share) -> f64 {
    share.numerator as f64 / share.denominator as f64
}

/// The source address that the kernel chooses towards an address, if there is a route. Sends nothing.
fn source_towards(namespace: &Netns, address: IpAddr) -> Result<Option<IpAddr>> {
    namespace.run(|| {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        Ok(socket.connect((address, 9)).and_then(|()| socket.local_addr()).ok().map(|local| local.ip()))
    })?
}
