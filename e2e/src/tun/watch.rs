//! Putting together what became of each packet of a batch.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    Answer, End, Entry, Error, Fate, Kind,
    packet::{Packet, Role},
    sight::{Sight, UNKNOWN},
};

/// Packets that are on their way, and the sentinels after them.
pub(super) struct Watch<'a> {
    packets: &'a [(Entry, Packet)],
    places: BTreeMap<u32, usize>,
    fates: Vec<Fate>,
    sentinels: BTreeMap<u32, Entry>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(packets: &'a [(Entry, Packet)]) -> Self {
        let fate = |packet: &Packet| Fate {
            sent_from: packet.source,
            end: End::Nowhere,
            answer: None,
            tag: packet.tag,
        };
        Self {
            packets,
            places: packets.iter().enumerate().map(|(place, (_, packet))| (packet.tag, place)).collect(),
            fates: packets.iter().map(|(_, packet)| fate(packet)).collect(),
            sentinels: BTreeMap::new(),
        }
    }

    /// This packet found no route.
    pub(super) fn cannot_be_sent(&mut self, place: usize) {
        if let Some(fate) = self.fates.get_mut(place) {
            fate.end = End::Unroutable;
        }
    }

    /// A sentinel was sent by this way.
    pub(super) fn expect(&mut self, entry: Entry, tag: u32) {
        self.sentinels.insert(tag, entry);
    }

    /// A way whose sentinel is not out yet.
    pub(super) fn missing(&self) -> Option<Entry> {
        self.sentinels.values().next().copied()
    }

    /// Something was seen to come out by this way.
    pub(super) fn see(
        &mut self,
        by: Entry,
        sight: Sight,
        intact: impl FnOnce() -> bool,
    ) -> Result<(), Error> {
        let (Sight::Packet { tag, .. } | Sight::Complaint { tag, .. }) = sight;
        if self.sentinels.remove(&tag).is_some() {
            return Ok(());
        }
        let Some(place) = self.places.get(&tag) else { return Ok(()) };
        let (Some((_, packet)), Some(fate)) = (self.packets.get(*place), self.fates.get_mut(*place)) else {
            return Ok(());
        };
        if let Sight::Complaint { to, port, .. } = sight
            && !is_to(packet.source, to, port)
        {
            return Ok(());
        }
        let damaged = packet.role == Role::Probe(Kind::Damaged) && matches!(sight, Sight::Packet { .. });
        if !damaged && !intact() {
            return Err(Error::Checksum(format!("{packet}: {sight:?}")));
        }
        let before = *fate;
        let again = match sight {
            Sight::Packet { source, destination, .. } => {
                fate.end = end(by, source, destination);
                before.end != End::Nowhere
            }
            Sight::Complaint { complaint, from, .. } => {
                fate.answer = Some(Answer { complaint, from, by });
                before.answer.is_some()
            }
        };
        if again {
            let (first, second) = (before.to_string(), fate.to_string());
            return Err(Error::Twice { packet: packet.to_string(), first, second });
        }
        Ok(())
    }

    /// What became of each packet, in their order.
    pub(super) fn fates(self) -> Vec<Fate> {
        self.fates
    }
}

/// Whether a complaint goes to the sender. What a client of the node says to a server of the node, when it is accepted
/// without having asked, does not.
fn is_to(sender: SocketAddr, to: IpAddr, port: Option<u16>) -> bool {
    (to == UNKNOWN || to == sender.ip()) && port.is_none_or(|port| port == sender.port())
}

fn end(by: Entry, source: SocketAddr, destination: SocketAddr) -> End {
    match by {
        Entry::Node => End::Delivered { source, destination },
        Entry::Pods | Entry::World => End::Left { by, source, destination },
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::Protocol;

    use super::{
        super::{Complaint, packet::HOPS},
        *,
    };

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn packet(tag: u32, kind: Kind) -> (Entry, Packet) {
        let (source, destination) = (address("10.0.0.1:1000"), address("10.0.0.2:80"));
        let role = Role::Probe(kind);
        (Entry::World, Packet { source, destination, protocol: Protocol::Udp, role, tag, hops: HOPS })
    }

    fn passing(tag: u32) -> Sight {
        Sight::Packet { tag, source: address("10.0.0.1:1000"), destination: address("10.0.0.3:8080") }
    }

    fn complaint(tag: u32) -> Sight {
        let (from, to) = (address("10.0.0.2:0").ip(), address("10.0.0.1:0").ip());
        Sight::Complaint { tag, complaint: Complaint::PortUnreachable, from, to, port: None }
    }

    #[test]
    fn sights_of_one_packet_are_its_fate() {
        let packets = [packet(1, Kind::First), packet(2, Kind::First), packet(3, Kind::First)];
        let mut watch = Watch::new(&packets);
        watch.see(Entry::Node, passing(2), || true).unwrap();
        watch.see(Entry::World, complaint(2), || true).unwrap();
        watch.see(Entry::World, complaint(1), || true).unwrap();
        watch.see(Entry::World, passing(99), || false).unwrap();
        let fates = watch.fates();
        assert!(fates[0].is_rejected() && !fates[0].is_dropped());
        assert_eq!(fates[1].destination(), Some(address("10.0.0.3:8080")));
        assert!(fates[1].answer.is_some() && !fates[1].is_rejected());
        assert!(fates[2].is_dropped());
    }

    #[test]
    fn sentinels_are_missing_until_they_are_seen() {
        let packets = [packet(1, Kind::First)];
        let mut watch = Watch::new(&packets);
        watch.expect(Entry::World, 2);
        watch.expect(Entry::Node, 3);
        watch.see(Entry::World, complaint(2), || true).unwrap();
        assert_eq!(watch.missing(), Some(Entry::Node));
        watch.see(Entry::Node, passing(3), || true).unwrap();
        assert_eq!(watch.missing(), None);
    }

    #[test]
    fn what_is_said_to_others_is_no_answer() {
        let packets = [packet(1, Kind::First)];
        let mut watch = Watch::new(&packets);
        let (from, to) = (address("10.0.0.2:0").ip(), address("10.0.0.1:0").ip());
        for (to, port) in [(from, Some(1000)), (to, Some(999))] {
            let reset = Sight::Complaint { tag: 1, complaint: Complaint::Reset, from, to, port };
            watch.see(Entry::World, reset, || true).unwrap();
        }
        assert!(watch.fates()[0].is_dropped());
    }

    #[test]
    fn wrong_checksums_are_an_error_unless_they_were_sent() {
        let packets = [packet(1, Kind::First), packet(2, Kind::Damaged)];
        let mut watch = Watch::new(&packets);
        assert!(matches!(watch.see(Entry::Pods, passing(1), || false), Err(Error::Checksum(_))));
        watch.see(Entry::Pods, passing(2), || false).unwrap();
    }

    #[test]
    fn a_packet_that_goes_two_ways_is_an_error() {
        let packets = [packet(1, Kind::First)];
        let mut watch = Watch::new(&packets);
        watch.see(Entry::Pods, passing(1), || true).unwrap();
        assert!(matches!(watch.see(Entry::World, passing(1), || true), Err(Error::Twice { .. })));
    }
}
