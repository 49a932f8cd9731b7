//! Subsets of Endpoints: their canonical form, and how they are cut down to size.
//!
//! Invariants of the canonical form (upstream's RepackSubsets): the grouping is the minimal one; an address is not both
//! ready and not ready for a port; the order of everything depends on the contents only.

use std::collections::{BTreeMap, HashMap};

use fairlead_objects::{EndpointAddress, EndpointPort, EndpointSubset};

use crate::digest::Digest;

/// Brings subsets into canonical form. As upstream has it, a port with an `appProtocol` is another one in each place
/// where it is listed, however equal they look.
pub fn repack(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut packer = Packer::default();
    for (place, subset) in subsets.iter().enumerate() {
        for (addresses, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
            for address in addresses {
                let address = packer.address(address);
                if subset.ports.is_empty() {
                    packer.add(None, address, ready);
                }
                for (number, port) in subset.ports.iter().enumerate() {
                    let place = port.app_protocol.is_some().then_some((place, number));
                    packer.add_at(Some((port.clone(), place)), address, ready);
                }
            }
        }
    }
    packer.finish()
}

/// Collects which addresses serve which port, and groups ports that are served by the same addresses.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    addresses: Vec<EndpointAddress>,
    by_identity: HashMap<(String, String), usize>,
    /// Address (by position) and whether it is ready, per port; `None` is "no port".
    ports: BTreeMap<Option<PlacedPort>, BTreeMap<usize, bool>>,
}

/// A port, and where it is listed (subset and position) if that makes it another one than an equal port elsewhere.
type PlacedPort = (EndpointPort, Option<(usize, usize)>);

impl Packer {
    /// The position of an address. The first record of the same address and uid stands for all of them.
    pub(crate) fn address(&mut self, address: &EndpointAddress) -> usize {
        let identity = (address.ip.clone(), uid(address).unwrap_or_default().to_owned());
        *self.by_identity.entry(identity).or_insert_with(|| {
            self.addresses.push(address.clone());
            self.addresses.len() - 1
        })
    }

    /// Says that an address serves a port. If it is said to be ready and not ready, it is not ready.
    pub(crate) fn add(&mut self, port: Option<&EndpointPort>, address: usize, ready: bool) {
        self.add_at(port.map(|port| (port.clone(), None)), address, ready);
    }

    fn add_at(&mut self, port: Option<PlacedPort>, address: usize, ready: bool) {
        let members = self.ports.entry(port).or_default();
        members.entry(address).and_modify(|known| *known &= ready).or_insert(ready);
    }

    pub(crate) fn finish(self) -> Vec<EndpointSubset> {
        let Self { addresses, ports, .. } = self;
        let mut groups: BTreeMap<BTreeMap<usize, bool>, Vec<EndpointPort>> = BTreeMap::new();
        for (port, members) in ports {
            // A port without a number is no port, but its addresses are still listed.
            let port = port.map(|(port, _)| port).filter(|port| port.port > 0);
            groups.entry(members).or_default().extend(port);
        }
        let mut subsets: Vec<(Digest, EndpointSubset)> = groups
            .into_iter()
            .map(|(members, ports)| {
                let subset = subset(&addresses, &members, ports);
                (Digest::of_subset(&subset), subset)
            })
            .collect();
        subsets.sort_by_key(|(digest, _)| *digest);
        subsets.into_iter().map(|(_, subset)| subset).collect()
    }
}

fn subset(
    addresses: &[EndpointAddress],
    members: &BTreeMap<usize, bool>,
    mut ports: Vec<EndpointPort>,
) -> EndpointSubset {
    let of = |wanted: bool| {
        let members = members.iter().filter(|(_, ready)| **ready == wanted);
        let mut of: Vec<EndpointAddress> = members.filter_map(|(i, _)| addresses.get(*i).cloned()).collect();
        of.sort_by(|a, b| (&a.ip, uid(a)).cmp(&(&b.ip, uid(b))));
        of
    };
    ports.sort_by_cached_key(Digest::of_port);
    // Upstream lists it twice, and the API server refuses the slice that is mirrored from that.
    ports.dedup();
    EndpointSubset { addresses: of(true), not_ready_addresses: of(false), ports }
}

fn uid(address: &EndpointAddress) -> Option<&str> {
    address.target_ref.as_deref().map(|reference| reference.uid.as_str())
}

/// How many addresses subsets hold: ready ones and others. An address in two subsets counts twice.
pub(crate) fn count(subsets: &[EndpointSubset]) -> (usize, usize) {
    subsets.iter().fold((0, 0), |(ready, not_ready), subset| {
        (ready + subset.addresses.len(), not_ready + subset.not_ready_addresses.len())
    })
}

/// Cuts subsets down to `capacity` addresses, ready ones first, every subset in proportion. Returns how many addresses
/// were dropped. As shares are rounded up, the last of many subsets may get none: those are dropped, because the API server
/// takes no subset without addresses (upstream sends them, and its Endpoints stay as they are).
pub(crate) fn truncate(subsets: &mut Vec<EndpointSubset>, capacity: usize) -> usize {
    let (ready, not_ready) = count(subsets);
    if ready + not_ready <= capacity {
        return 0;
    }
    if ready > capacity {
        for subset in &mut *subsets {
            subset.not_ready_addresses.clear();
        }
        share(subsets, |subset| &mut subset.addresses, ready, capacity);
    } else {
        share(subsets, |subset| &mut subset.not_ready_addresses, not_ready, capacity - ready);
    }
    subsets.retain(|subset| !subset.addresses.is_empty() || !subset.not_ready_addresses.is_empty());
    let (kept_ready, kept_not_ready) = count(subsets);
    ready + not_ready - kept_ready - kept_not_ready
}

/// Gives one list of every subset its share of the budget.
fn share(
    subsets: &mut [EndpointSubset],
    list: fn(&mut EndpointSubset) -> &mut Vec<EndpointAddress>,
    total: usize,
    budget: usize,
) {
    let mut left = budget;
    for subset in subsets {
        let list = list(subset);
        list.truncate(portion(list.len(), total, budget).min(left));
        left -= list.len();
    }
}

/// Rounded up as upstream does: the division and the multiplication are those of 64-bit floating point.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of addresses are far below 2^52 and never negative"
)]
fn portion(count: usize, total: usize, budget: usize) -> usize {
    ((count as f64 / total as f64) * budget as f64).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(ready: &[usize], not_ready: &[usize]) -> Vec<EndpointSubset> {
        let addresses = |n: usize| {
            (0..n).map(|i| EndpointAddress {
                ip: format!("10.0.{}.{}", i / 256, i % 256),
                ..Default::default()
            })
        };
        (0..ready.len().max(not_ready.len()))
            .map(|i| EndpointSubset {
                addresses: addresses(ready.get(i).copied().unwrap_or(0)).collect(),
                not_ready_addresses: addresses(not_ready.get(i).copied().unwrap_or(0)).collect(),
                ports: vec![EndpointPort { port: i32::try_from(i).unwrap() + 1, ..Default::default() }],
            })
            .collect()
    }

    #[test]
    fn subsets_that_get_no_share_are_dropped() {
        let mut subsets = filled(&[4; 300], &[]);
        assert_eq!(truncate(&mut subsets, 1000), 200);
        assert_eq!((subsets.len(), count(&subsets)), (250, (1000, 0)));
        let mut subsets = filled(&[1001, 0], &[0, 7]);
        assert_eq!(truncate(&mut subsets, 1000), 8);
        assert_eq!((subsets.len(), count(&subsets)), (1, (1000, 0)));
    }

    /// Upstream's test of that name.
    #[test]
    #[allow(non_snake_case, reason = "tests that upstream has, too, keep upstream's names")]
    fn TestTruncateEndpoints() {
        type Counts<'a> = (&'a [usize], &'a [usize]);
        let cases: [(Counts<'_>, Counts<'_>); 5] = [
            ((&[], &[]), (&[], &[])),
            ((&[3], &[4]), (&[3], &[4])),
            ((&[500, 300], &[100, 100]), (&[500, 300], &[100, 100])),
            ((&[205, 400, 402, 400, 693], &[7, 0, 0, 0, 0]), (&[98, 191, 192, 191, 328], &[0, 0, 0, 0, 0])),
            (
                (&[90, 110, 50, 10, 20], &[101, 200, 200, 201, 298]),
                (&[90, 110, 50, 10, 20], &[73, 144, 144, 145, 214]),
            ),
        ];
        for ((ready, not_ready), (kept_ready, kept_not_ready)) in cases {
            let mut subsets = filled(ready, not_ready);
            let before = count(&subsets);
            let dropped = truncate(&mut subsets, 1000);
            let lengths: (Vec<_>, Vec<_>) =
                subsets.iter().map(|s| (s.addresses.len(), s.not_ready_addresses.len())).unzip();
            assert_eq!((&lengths.0[..], &lengths.1[..]), (kept_ready, kept_not_ready));
            let after = count(&subsets);
            assert_eq!(dropped, before.0 + before.1 - after.0 - after.1);
        }
    }
}
