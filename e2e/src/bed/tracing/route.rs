//! Follows a packet over the bed: from its client through the rules of the first node it meets, from there to the
//! endpoint or to the next node, and so on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use fairlead_compiler::{self as compiler, Affinity, Host, Match, Packet, Target, Trace};

use super::{
    super::Bed,
    Origin,
    flows::Flow,
    forecast::{End, Forecast, Way},
    memory::{Place, Recalled},
    world::{Parsed, World},
};
use crate::{
    netns::Netns,
    network::pod_link,
    plan::{self, Addresses},
    pod::Pod,
    servers::Protocol,
};

/// More nodes than a packet can meet.
const HOPS: usize = 4;

/// What is at an address.
enum Owner<'a> {
    Node(u8),
    Pod(&'a Pod),
    External(IpAddr, &'a [u16]),
    /// A host whose servers are not the bed's.
    Other,
    /// A Pod's address without a Pod, or one that only routes know.
    Gone,
    Nobody,
}

/// What rules about lists of clients find, where they find anything.
pub(super) type Verdicts = BTreeMap<Place, Recalled>;

/// Where a packet begins its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) origin: Origin,
    pub(super) source: IpAddr,
    pub(super) target: SocketAddr,
    pub(super) protocol: Protocol,
}

impl Start {
    fn flight(&self) -> Flight {
        let Self { source, target, protocol, .. } = *self;
        Flight { source, target, protocol, share: 1.0, hops: 0, flow: None, lists: BTreeSet::new() }
    }
}

/// Where a packet meets rules first.
enum Entrance {
    /// A node, by this link or as its own packet.
    Node(u8, Option<String>),
    /// It meets none before its end.
    None(End),
}

/// A packet between two nodes, or between a node and an end.
#[derive(Clone)]
struct Flight {
    source: IpAddr,
    target: SocketAddr,
    protocol: Protocol,
    share: f64,
    hops: usize,
    flow: Option<Flow>,
    lists: BTreeSet<Place>,
}

/// The rules that packets meet.
struct Rules<'a> {
    world: &'a World,
    verdicts: &'a Verdicts,
}

impl Bed {
    /// What the rules make of a request.
    pub(super) fn forecast(&self, start: Start, world: &World, verdicts: &Verdicts) -> Result<Forecast> {
        let flight = start.flight();
        let mut forecast = Forecast::default();
        match self.entrance(start) {
            Entrance::Node(node, link) => {
                let origin =
                    link.map_or(compiler::Origin::Node, |link| compiler::Origin::Interface(Some(link)));
                let rules = Rules { world, verdicts };
                self.through_node(node, origin, &flight, &rules, &mut forecast)?;
            }
            Entrance::None(end) => forecast.add(flight.end(end)),
        }
        Ok(forecast)
    }

    /// The node whose rules decide first, if there is one.
    pub(super) fn first_node(&self, start: Start) -> Option<u8> {
        match self.entrance(start) {
            Entrance::Node(node, _) => Some(node),
            Entrance::None(_) => None,
        }
    }

    fn entrance(&self, start: Start) -> Entrance {
        let Start { origin, target, .. } = start;
        let eth0 = || Some("eth0".to_owned());
        match (origin, self.owner(target.ip())) {
            (Origin::Pod { addresses, .. }, owner)
                if target.ip().is_loopback()
                    || addresses.known(plan::Families::DualStack).contains(&target.ip()) =>
            {
                // It does not leave its Pod.
                Entrance::None(match owner {
                    Owner::Pod(pod) => self.end_in_pod(pod, &start.flight()),
                    _ => End::Refused,
                })
            }
            (Origin::Pod { node, link, .. }, _) => Entrance::Node(node, Some(pod_link(link))),
            (Origin::Node(node), _) => Entrance::Node(node, None),
            (Origin::Neighbour, Owner::Pod(pod)) => Entrance::Node(pod.node.number, eth0()),
            (_, Owner::Node(node)) => Entrance::Node(node, eth0()),
            (Origin::Outside, owner) => match self.outside_routes.get(&target.ip()) {
                Some(node) => Entrance::Node(*node, eth0()),
                None => Entrance::None(self.end_at(&owner, &start.flight())),
            },
            (Origin::Neighbour, owner) => Entrance::None(self.end_at(&owner, &start.flight())),
        }
    }

    /// Follows a packet through a node's rules and to wherever they send it.
    fn through_node(
        &self,
        node: u8,
        origin: compiler::Origin,
        flight: &Flight,
        rules: &Rules<'_>,
        forecast: &mut Forecast,
    ) -> Result<()> {
        ensure!(flight.hops < HOPS, "the tracer sends {} round and round", flight.target);
        let packet = flight.packet(origin);
        let plan = self.node(node)?;
        let own = [plan.addresses, plan.pod(1)];
        let host = Host { addresses: own.iter().flat_map(|a| a.known(plan::Families::DualStack)).collect() };
        let parsed = rules.world.get(&node).with_context(|| format!("no rules of node {node}"))?;
        let verdicts = |list: &Arc<str>| {
            let place = (node, Arc::clone(list), flight.source);
            rules.verdicts.get(&place).copied().unwrap_or(Recalled::No)
        };
        let (dump, maybe) = parsed.recalling(verdicts);
        forecast.loose |= maybe;
        let trace = compiler::trace(&dump, &packet, &host);
        for (outcome, share) in &trace.shares {
            let flight = Flight { share: flight.share * share.as_f64(), ..flight.clone() };
            match outcome {
                compiler::Outcome::Rejected => forecast.add(flight.end(End::Refused)),
                compiler::Outcome::Dropped => forecast.add(flight.end(End::Silence)),
                compiler::Outcome::NoMatch => self.onward(node, flight, rules, forecast)?,
                compiler::Outcome::Accepted => {}
            }
        }
        for way in &trace.targets {
            let mut next = Flight { share: flight.share * way.probability.as_f64(), ..flight.clone() };
            next.target = SocketAddr::new(way.address, way.port);
            if way.masquerade {
                let seen = source_towards(self.node_netns(node)?, way.address)?;
                next.source = seen.with_context(|| format!("node {node} has no route to {}", way.address))?;
            }
            let lists = remembering(parsed, &trace, next.target);
            next.lists.extend(lists.map(|list| (node, list, flight.source)));
            self.onward(node, next, rules, forecast)?;
        }
        Ok(())
    }

    /// Follows a packet from a node to who has its destination.
    fn onward(&self, node: u8, mut flight: Flight, rules: &Rules<'_>, forecast: &mut Forecast) -> Result<()> {
        flight.flow.get_or_insert(Flow { answerer: flight.target, client: flight.source });
        let owner = self.owner(flight.target.ip());
        let next = match &owner {
            Owner::Node(other) if *other != node => Some(*other),
            Owner::Pod(pod) if pod.node.number != node => Some(pod.node.number),
            _ => None,
        };
        if let Some(next) = next {
            flight.hops += 1;
            let arriving = compiler::Origin::Interface(Some("eth0".to_owned()));
            return self.through_node(next, arriving, &flight, rules, forecast);
        }
        if flight.hops >= HOPS {
            bail!("{} is nowhere", flight.target);
        }
        let end = self.end_at(&owner, &flight);
        forecast.add(flight.end(end));
        Ok(())
    }

    fn end_at(&self, owner: &Owner<'_>, flight: &Flight) -> End {
        let (at, client) = (flight.target, flight.source);
        match owner {
            Owner::Pod(pod) => self.end_in_pod(pod, flight),
            Owner::External(address, ports) if ports.contains(&at.port()) => {
                End::Answered { server: address.to_string(), at, client }
            }
            Owner::External(..) => End::Refused,
            Owner::Node(_) | Owner::Other => End::Host { at, client },
            Owner::Gone | Owner::Nobody => End::Lost,
        }
    }

    fn end_in_pod(&self, pod: &Pod, flight: &Flight) -> End {
        let (at, client) = (flight.target, flight.source);
        let known = pod.addresses.known(self.options.families).contains(&at.ip());
        let asked = (at.port(), flight.protocol);
        if known && pod.spec.ports.iter().any(|port| (port.number, port.protocol) == asked) {
            End::Answered { server: pod.spec.reference(), at, client }
        } else {
            End::Refused
        }
    }

    /// Whether somebody who answered is not there any more.
    pub(super) fn is_gone(&self, end: &End) -> bool {
        match end {
            End::Answered { at, .. } => matches!(self.owner(at.ip()), Owner::Gone | Owner::Nobody),
            _ => false,
        }
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
            _ if of_pods || plan::shared_networks().iter().any(|net| net.contains(&address)) => Owner::Gone,
            _ => Owner::Nobody,
        }
    }
}

impl Flight {
    fn end(&self, end: End) -> Way {
        Way { end, flow: self.flow, lists: self.lists.clone(), share: self.share }
    }

    fn packet(&self, origin: compiler::Origin) -> Packet {
        Packet {
            source: self.source,
            source_port: 40_000,
            destination: self.target.ip(),
            destination_port: self.target.port(),
            protocol: match self.protocol {
                Protocol::Tcp => fairlead_objects::Protocol::Tcp,
                Protocol::Udp => fairlead_objects::Protocol::Udp,
            },
            origin,
        }
    }
}

/// The lists that a packet's sender is put on where it is sent to `target`.
fn remembering(parsed: &Parsed, trace: &Trace, target: SocketAddr) -> impl Iterator<Item = Arc<str>> {
    let steps = trace.path.iter().filter(|_| !parsed.recalls.is_empty());
    let rules =
        steps.filter_map(|step| parsed.dump.chain(&step.table, step.chain.as_str())?.rules.get(step.index));
    let there = rules.filter(move |rule| rule.target == Some(Target::Dnat(target)));
    there.flat_map(|rule| &rule.matches).filter_map(|condition| match condition {
        Match::Affinity { list, action: Affinity::Remember } => Some(Arc::clone(list)),
        _ => None,
    })
}

/// The source address that the kernel chooses towards an address, if there is a route. Sends nothing.
pub(super) fn source_towards(namespace: &Netns, address: IpAddr) -> Result<Option<IpAddr>> {
    namespace.run(|| {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        Ok(socket.connect((address, 9)).and_then(|()| socket.local_addr()).ok().map(|local| local.ip()))
    })?
}
