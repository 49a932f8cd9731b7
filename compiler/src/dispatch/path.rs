//! Paths: where in a tree a frontend belongs, as a sequence of four-bit steps.

use std::net::IpAddr;

use fairlead_objects::{Family, Protocol};
use ipnet::IpNet;

use crate::{
    matches::{Match, PortRange},
    rule::Rule,
};

/// Steps that a port takes.
const PORT_STEPS: usize = 4;
/// Octets for the steps of the longest path: an IPv6 address, protocol, port.
const OCTETS: usize = (32 + 1 + PORT_STEPS).div_ceil(2);

/// The steps to a frontend, or a prefix of them: address (if the tree is over addresses), protocol, port.
///
/// Ordered as sequences are. Invariant: behind its steps there are only zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Path {
    /// Two steps each, the first one in the high bits.
    octets: [u8; OCTETS],
    length: u8,
}

impl Path {
    /// The path of everything.
    pub(crate) fn of_root() -> Self {
        Self::default()
    }

    /// The path of a port of an address.
    pub(crate) fn of_address(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        let path = match address {
            IpAddr::V4(address) => Self::of_root().through(&address.octets()),
            IpAddr::V6(address) => Self::of_root().through(&address.octets()),
        };
        path.to_port(protocol, port)
    }

    /// The path of a port of the node.
    pub(crate) fn of_port(protocol: Protocol, port: u16) -> Self {
        Self::of_root().to_port(protocol, port)
    }

    fn to_port(self, protocol: Protocol, port: u16) -> Self {
        let protocol = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        };
        self.extended(protocol).through(&port.to_be_bytes())
    }

    fn through(self, octets: &[u8]) -> Self {
        let steps = octets.iter().flat_map(|octet| [octet >> 4, octet & 15]);
        steps.fold(self, |path, step| path.extended(step.into()))
    }

    pub(crate) fn len(&self) -> usize {
        self.length.into()
    }

    /// The step at a place; 0 behind the end.
    pub(crate) fn step(&self, at: usize) -> usize {
        let octet = self.octets.get(at / 2).copied().unwrap_or_default();
        (if at.is_multiple_of(2) { octet >> 4 } else { octet & 15 }).into()
    }

    pub(crate) fn prefix(&self, length: usize) -> Self {
        (0..length.min(self.len())).fold(Self::of_root(), |path, at| path.extended(self.step(at)))
    }

    pub(crate) fn extended(mut self, step: usize) -> Self {
        let at = self.len();
        if let (Some(octet), Ok(step)) = (self.octets.get_mut(at / 2), u8::try_from(step)) {
            *octet |= if at.is_multiple_of(2) { step << 4 } else { step };
            self.length += 1;
        }
        self
    }

    /// Number of steps that two paths have in common.
    pub(crate) fn common(&self, other: &Self) -> usize {
        let shorter = self.len().min(other.len());
        (0..shorter).find(|at| self.step(*at) != other.step(*at)).unwrap_or(shorter)
    }
}

fn address_steps(family: Family) -> usize {
    match family {
        Family::V4 => 8,
        Family::V6 => 32,
    }
}

/// What the paths of a tree mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Addresses of a family, then ports.
    Addresses(Family),
    /// Ports of the node.
    Ports,
}

impl Space {
    /// Adds to a rule the matches for what is below `path`, given that `known` steps have been matched already.
    pub(crate) fn guard(self, mut rule: Rule, path: &Path, known: usize) -> Rule {
        let addressed = self.address_steps();
        if let Some(net) = self.network(path).filter(|_| known < addressed) {
            rule = rule.when(Match::Destination { net, negated: false });
        }
        if let Some(protocol) = self.protocol(path) {
            rule = rule.when(Match::protocol(protocol));
            if let Some(ports) = self.ports(path) {
                rule = rule.when(Match::DestinationPort { protocol, ports, negated: false });
            }
        }
        rule
    }

    /// Describes what is below `path`: `10.96.18.0/24`, `tcp:30000-30015`, `10.96.18.7/tcp:80-95`.
    pub(crate) fn text(self, path: &Path) -> String {
        let ports = self.protocol(path).map(|protocol| match self.ports(path) {
            Some(ports) => format!("{}:{}-{}", protocol.lower(), ports.first, ports.last),
            None => protocol.lower().to_owned(),
        });
        match (self.network(path), ports) {
            (Some(net), Some(ports)) => format!("{}/{ports}", net.addr()),
            (Some(net), None) => net.to_string(),
            (None, ports) => ports.unwrap_or_default(),
        }
    }

    /// Whether so many steps leave only few addresses: those of one network, as the cluster IPs of a cluster are.
    pub(crate) fn is_narrow(self, known: usize) -> bool {
        let steps = self.address_steps();
        steps > 0 && known >= steps / 2
    }

    fn address_steps(self) -> usize {
        match self {
            Self::Addresses(family) => address_steps(family),
            Self::Ports => 0,
        }
    }

    fn network(self, path: &Path) -> Option<IpNet> {
        let Self::Addresses(family) = self else { return None };
        let address = match family {
            Family::V4 => IpAddr::from(*path.octets.first_chunk::<4>()?),
            Family::V6 => IpAddr::from(*path.octets.first_chunk::<16>()?),
        };
        let length = u8::try_from(path.len().min(self.address_steps()) * 4).ok()?;
        IpNet::new(address, length).ok()
    }

    fn protocol(self, path: &Path) -> Option<Protocol> {
        let at = self.address_steps();
        (path.len() > at).then(|| match path.step(at) {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            _ => Protocol::Sctp,
        })
    }

    /// The ports below `path`; `None` for all of them.
    fn ports(self, path: &Path) -> Option<PortRange> {
        let start = self.address_steps() + 1;
        let known = path.len().checked_sub(start).filter(|known| *known > 0)?;
        // What is not known of the port is zero in the path.
        let first = (start..start + PORT_STEPS).fold(0, |port, at| port << 4 | path.step(at));
        let last = first | ((1 << (4 * PORT_STEPS.saturating_sub(known))) - 1);
        Some(PortRange { first: u16::try_from(first).ok()?, last: u16::try_from(last).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::Target;

    fn guard(space: Space, path: &Path, known: usize) -> String {
        space.guard(Rule::to(Target::Accept), path, known).to_string()
    }

    #[test]
    fn guard_asks_what_is_not_known_yet() {
        let space = Space::Addresses(Family::V4);
        let path = Path::of_address("10.96.18.7".parse().unwrap(), Protocol::Udp, 0x1234);
        assert_eq!(guard(space, &path.prefix(3), 0), "-d 10.96.0.0/12 -j ACCEPT");
        assert_eq!(guard(space, &path.prefix(8), 6), "-d 10.96.18.7/32 -j ACCEPT");
        assert_eq!(guard(space, &path.prefix(9), 6), "-d 10.96.18.7/32 -p udp -j ACCEPT");
        assert_eq!(guard(space, &path.prefix(9), 8), "-p udp -j ACCEPT");
        assert_eq!(guard(space, &path.prefix(11), 9), "-p udp -m udp --dport 4608:4863 -j ACCEPT");
        assert_eq!(
            guard(space, &path, 3),
            format!("-d 10.96.18.7/32 -p udp -m udp --dport {} -j ACCEPT", 0x1234)
        );
    }

    #[test]
    fn text_names_the_whole_of_what_is_below() {
        let path = Path::of_address("fd00:10::7".parse().unwrap(), Protocol::Tcp, 80);
        let space = Space::Addresses(Family::V6);
        assert_eq!(space.text(&path.prefix(7)), "fd00:10::/28");
        assert_eq!(space.text(&path.prefix(33)), "fd00:10::7/tcp");
        assert_eq!(space.text(&path.prefix(36)), "fd00:10::7/tcp:80-95");
        assert_eq!(Space::Ports.text(&Path::of_port(Protocol::Sctp, 30_080).prefix(4)), "sctp:30080-30095");
    }
}
