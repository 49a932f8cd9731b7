//! Groups: how a policy chain with many endpoints chooses one without a rule for each.
//!
//! kube-proxy's chain for n endpoints has n rules, of which a packet meets half, and each change rewrites them all. Here the
//! endpoints are dealt to about √n groups by a hash of their address. The policy chain chooses a group, in proportion to
//! its size, and the group's chain an endpoint. A packet meets some √n rules, and a change rewrites two chains.
//!
//! Invariants: every endpoint is in one group; which one depends on its address and on the number of groups alone, and
//! that number on the order of magnitude of the number of endpoints; together all endpoints are equally likely.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use fairlead_objects::Protocol;

use crate::{
    matches::{Match, PortRange},
    probability::Probability,
    rule::Rule,
};

/// Most endpoints that stand in a policy chain itself.
pub(crate) const UNGROUPED_MAX: usize = 64;
/// Two hexadecimal digits in the names of their chains.
const GROUPS_MAX: usize = 256;
/// The golden ratio's fraction of 2³²: neighbouring addresses come far apart.
const SPREAD: u32 = 2_654_435_769;

/// Deals endpoints to groups, by number; none is empty. In a group they keep their order.
pub(crate) fn deal<T>(endpoints: &[T], address: impl Fn(&T) -> SocketAddr) -> BTreeMap<u8, Vec<&T>> {
    let bits = (endpoints.len().max(1).ilog2().div_ceil(2)).min(GROUPS_MAX.ilog2());
    let mut groups: BTreeMap<u8, Vec<&T>> = BTreeMap::new();
    for endpoint in endpoints {
        let high = u64::from(spread(address(endpoint))) << bits >> u32::BITS;
        groups.entry(u8::try_from(high).unwrap_or_default()).or_default().push(endpoint);
    }
    groups
}

fn spread(address: SocketAddr) -> u32 {
    let folded = match address.ip() {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => {
            let [a, b, c, d] = [96, 64, 32, 0].map(|shift| (ip.to_bits() >> shift) & u128::from(u32::MAX));
            u32::try_from(a ^ b ^ c ^ d).unwrap_or_default()
        }
    };
    (folded ^ u32::from(address.port())).wrapping_mul(SPREAD)
}

/// What decides between endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draw {
    /// The kernel draws, for each connection.
    Random,
    /// The client has drawn its source port, here from this range. What lies outside counts as its end.
    SourcePort(Protocol, PortRange),
}

impl Draw {
    /// From the ports that Linux gives to clients. Others may take them from elsewhere, and are spread less evenly.
    pub(crate) fn by_source_port(protocol: Protocol) -> Self {
        Self::SourcePort(protocol, PortRange { first: 32_768, last: 60_999 })
    }

    /// Draws the part `before..before + own` of `total`: a match for it if those before did not hold, and what is left to
    /// draw from within.
    fn part(self, before: usize, own: usize, total: usize) -> (Match, Self) {
        let narrow = |weight: usize| u32::try_from(weight).unwrap_or(u32::MAX);
        match self {
            Self::Random => {
                (Match::Random(Probability::of(narrow(own), narrow(total.saturating_sub(before)))), self)
            }
            Self::SourcePort(protocol, PortRange { first, last }) => {
                let width = usize::from(last.saturating_sub(first)) + 1;
                let edge = |weight: usize| {
                    let ports = weight.saturating_mul(width) / total.max(1);
                    first.saturating_add(u16::try_from(ports).unwrap_or(u16::MAX))
                };
                let part =
                    PortRange { first: edge(before).min(last), last: edge(before + own).saturating_sub(1) };
                let up_to = PortRange { first: 0, last: part.last };
                let condition = Match::SourcePort { protocol, ports: up_to, negated: false };
                (condition, Self::SourcePort(protocol, part))
            }
        }
    }
}

/// One rule per item, so that each is chosen in proportion to its weight: its weight of the total, then of the rest, the last
/// always. The rules have no target yet. With each, how to go on choosing behind it.
pub(crate) fn weighted<T>(
    items: &[T],
    draw: Draw,
    weight: impl Fn(&T) -> usize,
) -> impl Iterator<Item = (Rule, Draw, &T)> {
    let total: usize = items.iter().map(&weight).sum();
    let mut before = 0;
    items.iter().map(move |item| {
        let own = weight(item);
        let (condition, within) = draw.part(before, own, total);
        before += own;
        let rule = Rule::default();
        (if before < total { rule.when(condition) } else { rule }, within, item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_about_as_many_as_large_and_none_is_much_larger() {
        for (count, v6) in [(65_u16, false), (1_000, false), (5_000, false), (5_000, true)] {
            let v4 = |n: u16| IpAddr::from((0x0af4_0000 + u32::from(n / 250 * 256 + n % 250)).to_be_bytes());
            let ip = |n| if v6 { [0xfd00, 0, 0, 0, 0, 0, n / 250, n % 250].into() } else { v4(n) };
            let addresses: Vec<_> = (0..count).map(|n| SocketAddr::new(ip(n), 8080)).collect();
            let groups = deal(&addresses, |address| *address);
            let largest = groups.values().map(Vec::len).max().unwrap();
            assert_eq!(groups.values().map(Vec::len).sum::<usize>(), addresses.len());
            assert!(
                groups.len() + largest < 6 * usize::from(count).isqrt(),
                "{count}: {} x {largest}",
                groups.len()
            );
        }
    }
}
