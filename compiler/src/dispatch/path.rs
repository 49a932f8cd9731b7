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

/// The steps to a frontend, or a prefix of them: address (if the tree is over addresses), protocol, port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Path(Vec<u8>);

impl Path {
    /// The path of everything.
    pub(crate) fn of_root() -> Self {
        Self(Vec::new())
    }

    /// The path of a port of an address.
    pub(crate) fn of_address(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        let mut steps = Vec::with_capacity(address_steps(Family::of(address)) + 1 + PORT_STEPS);
        match address {
            IpAddr::V4(address) => push_nibbles(&mut steps, &address.octets()),
            IpAddr::V6(address) => push_nibbles(&mut steps, &address.octets()),
        }
        steps.extend(Self::of_port(protocol, port).0);
        Self(steps)
    }

    /// The path of a port of the node.
    pub(crate) fn of_port(protocol: Protocol, port: u16) -> Self {
        let protocol = match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        };
        let mut steps = vec![protocol];
        push_nibbles(&mut steps, &port.to_be_bytes());
        Self(steps)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn step(&self, at: usize) -> usize {
        self.0.get(at).copied().unwrap_or_default().into()
    }

    pub(crate) fn prefix(&self, length: usize) -> Self {
        Self(self.0.iter().copied().take(length).collect())
    }

    pub(crate) fn extended(&self, step: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(u8::try_from(step).unwrap_or_default());
        Self(steps)
    }

    /// Number of steps that two paths have in common.
    pub(crate) fn common(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count()
    }
}

fn push_nibbles(steps: &mut Vec<u8>, octets: &[u8]) {
    steps.extend(octets.iter().flat_map(|octet| [octet >> 4, octet & 15]));
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
        let steps = self.address_steps();
        let mut octets = [0_u8; 16];
        for (i, step) in path.0.iter().take(steps).enumerate() {
            if let Some(octet) = octets.get_mut(i / 2) {
                *octet |= if i % 2 == 0 { step << 4 } else { *step };
            }
        }
        let [a, b, c, d, ..] = octets;
        let address = match family {
            Family::V4 => IpAddr::from([a, b, c, d]),
            Family::V6 => IpAddr::from(octets),
        };
        let length = u8::try_from(path.len().min(steps) * 4).ok()?;
        IpNet::new(address, length).ok()
    }

    fn protocol(self, path: &Path) -> Option<Protocol> {
        let step = path.0.get(self.address_steps())?;
        Some(match step {
            0 => Protocol::Tcp,
            1 => Protocol::Udp,
            _ => Protocol::Sctp,
        })
    }

    /// The ports below `path`; `None` for all of them.
    fn ports(self, path: &Path) -> Option<PortRange> {
        let steps = path.0.get(self.address_steps() + 1..).filter(|steps| !steps.is_empty())?;
        let open = 4 * PORT_STEPS.saturating_sub(steps.len());
        let high = steps.iter().take(PORT_STEPS).fold(0_u32, |port, step| port << 4 | u32::from(*step));
        let first = high << open;
        let last = first | ((1 << open) - 1);
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
