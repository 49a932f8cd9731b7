//! A packet on its way: what rules ask about it, and what they do to it.

use std::net::{IpAddr, SocketAddr};

use super::{Host, Origin, Packet};
use crate::matches::{AddressSide, Affinity, ConnStates, IpProtocol, Match};

/// Whether a rule holds.
pub(super) enum Answer {
    No,
    Yes,
    /// With this probability.
    Maybe(crate::probability::Share),
}

/// A packet and the state that netfilter keeps of it.
#[derive(Clone, Debug)]
pub(super) struct Flight<'a> {
    pub(super) packet: &'a Packet,
    pub(super) host: &'a Host,
    /// Destination once it was rewritten.
    pub(super) rewritten: Option<SocketAddr>,
    pub(super) masquerade: bool,
    pub(super) mark: u32,
    /// It came back to the node over loopback.
    pub(super) looped: bool,
    /// Conntrack calls it INVALID.
    pub(super) invalid: bool,
}

impl Flight<'_> {
    pub(super) fn destination(&self) -> IpAddr {
        self.rewritten.map_or(self.packet.destination, |to| to.ip())
    }

    pub(super) fn port(&self) -> u16 {
        self.rewritten.map_or(self.packet.destination_port, |to| to.port())
    }

    pub(super) fn is_to_host(&self) -> bool {
        self.host.is_local(self.destination())
    }

    /// Whether all matches hold.
    pub(super) fn answer(&self, matches: &[Match]) -> Answer {
        let mut probability = None;
        for condition in matches {
            match condition {
                Match::Random(p) => probability = Some(p.share()),
                other if !self.holds(other) => return Answer::No,
                _ => {}
            }
        }
        probability.map_or(Answer::Yes, Answer::Maybe)
    }

    fn holds(&self, condition: &Match) -> bool {
        let (positive, negated) = match condition {
            Match::Source { net, negated } => (net.contains(&self.packet.source), *negated),
            Match::Destination { net, negated } => (net.contains(&self.destination()), *negated),
            Match::InInterface { name, negated } => {
                (self.in_interface().is_some_and(|interface| name.matches(interface)), *negated)
            }
            // Which interface the routes lead to is not known.
            Match::OutInterface { .. } | Match::Opaque(_) => return false,
            Match::Protocol { protocol: IpProtocol::Transport(protocol), negated } => {
                (*protocol == self.packet.protocol, *negated)
            }
            Match::Protocol { protocol: IpProtocol::Other(name), negated } => (&**name == "all", *negated),
            Match::SourcePort { protocol, ports, negated } => {
                if *protocol != self.packet.protocol {
                    return false;
                }
                (ports.contains(self.packet.source_port), *negated)
            }
            Match::DestinationPort { protocol, ports, negated } => {
                if *protocol != self.packet.protocol {
                    return false;
                }
                (ports.contains(self.port()), *negated)
            }
            Match::ConnState { states, negated } => (states.intersects(self.states()), *negated),
            Match::Mark { mark, negated } => (self.mark & mark.mask == mark.value, *negated),
            Match::Local { side: AddressSide::Source, negated } => {
                (self.host.is_local(self.packet.source), *negated)
            }
            Match::Local { side: AddressSide::Destination, negated } => (self.is_to_host(), *negated),
            Match::Bpf(program) => {
                (program.is_same_address() && self.packet.source == self.destination(), false)
            }
            Match::Affinity { action, .. } => (*action == Affinity::Remember, false),
            Match::Random(_) | Match::Counter(_) => return true,
        };
        positive != negated
    }

    /// A packet of the node itself has none, until it comes back over loopback.
    fn in_interface(&self) -> Option<&str> {
        match &self.packet.origin {
            Origin::Node => self.looped.then_some("lo"),
            Origin::Interface(name) => name.as_deref(),
        }
    }

    fn states(&self) -> ConnStates {
        if self.invalid {
            return ConnStates::INVALID;
        }
        let mut states = ConnStates::NEW;
        if self.rewritten.is_some() {
            states = states.or(ConnStates::DNAT);
        }
        if self.masquerade {
            states = states.or(ConnStates::SNAT);
        }
        states
    }
}
