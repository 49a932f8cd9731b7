//! Writing packets, to the last checksum.
//!
//! Invariant: each carries its tag where no translation reaches: TCP in its sequence number, UDP in its payload, SCTP in
//! its initiate tag.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use fairlead_objects::Protocol;

use super::{Error, Kind, crc32c::crc32c};

/// Far enough for any way through a namespace.
pub(super) const HOPS: u8 = 64;
const WINDOW: u16 = 64_000;
/// What follows the tag in a datagram.
const FILLING: [u8; 4] = *b"fare";
/// Length of an SCTP common header, and of an INIT chunk.
const SCTP_HEADER: usize = 12;
const INIT: usize = 20;
/// A cookie parameter with four bytes in it: an INIT ACK has to have one.
const COOKIE: [u8; 8] = [0, 7, 0, 8, b'f', b'a', b'r', b'e'];

/// What place in an exchange a packet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// From whom the exchange begins.
    Probe(Kind),
    /// The answer to the first packet with this tag.
    Reply(u32),
}

/// A packet to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) role: Role,
    pub(super) tag: u32,
    /// Time to live, hop limit.
    pub(super) hops: u8,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, protocol, role, .. } = self;
        write!(f, "{protocol} {role:?} {source} -> {destination}")
    }
}

impl Packet {
    /// Its bytes, IP header first.
    pub(super) fn write(&self) -> Result<Vec<u8>, Error> {
        let step = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), self.hops),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), self.hops),
            (from, to) => return Err(Error::Families(from, to)),
        };
        let mut bytes = Vec::with_capacity(96);
        match self.protocol {
            Protocol::Tcp => self.tcp(step, &mut bytes)?,
            Protocol::Udp => {
                let udp = step.udp(self.source.port(), self.destination.port());
                udp.write(&mut bytes, &[self.tag.to_be_bytes(), FILLING].concat())?;
            }
            Protocol::Sctp => step.write(&mut bytes, IpNumber::SCTP, &self.sctp())?,
        }
        if self.role == Role::Probe(Kind::Damaged)
            && let Some(last) = bytes.last_mut()
        {
            *last = !*last;
        }
        Ok(bytes)
    }

    fn tcp(&self, step: PacketBuilderStep<IpHeaders>, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let tcp = step.tcp(self.source.port(), self.destination.port(), self.tag, WINDOW).syn();
        let tcp = match self.role {
            Role::Probe(Kind::First | Kind::Damaged) => tcp,
            // A RST repeats it.
            Role::Probe(Kind::Stray) => tcp.ack(self.tag),
            Role::Reply(to) => tcp.ack(to.wrapping_add(1)),
        };
        Ok(tcp.write(bytes, &[])?)
    }

    /// An INIT, or an INIT ACK, in its packet.
    fn sctp(&self) -> Vec<u8> {
        let (chunk, verification, cookie): (u8, u32, &[u8]) = match self.role {
            Role::Probe(Kind::First | Kind::Damaged) => (1, 0, &[]),
            Role::Probe(Kind::Stray) => (2, 1, &COOKIE),
            Role::Reply(to) => (2, to, &COOKIE),
        };
        let length = INIT + cookie.len();
        let mut bytes = Vec::with_capacity(SCTP_HEADER + length);
        bytes.extend(self.source.port().to_be_bytes());
        bytes.extend(self.destination.port().to_be_bytes());
        bytes.extend(verification.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([chunk, 0, 0, u8::try_from(length).unwrap_or(u8::MAX)]);
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend(u32::from(WINDOW).to_be_bytes());
        // One stream each way, and the first TSN.
        bytes.extend([0, 1, 0, 1, 0, 0, 0, 1]);
        bytes.extend(cookie);
        let checksum = crc32c(bytes.iter().copied());
        // Unlike all else in the packet, least significant byte first.
        for (place, byte) in bytes.iter_mut().skip(8).zip(checksum.to_le_bytes()) {
            *place = byte;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str, protocol: Protocol, role: Role) -> Vec<u8> {
        let (source, destination) = (from.parse().unwrap(), to.parse().unwrap());
        Packet { source, destination, protocol, role, tag: 0x0102_0304, hops: HOPS }.write().unwrap()
    }

    fn first(protocol: Protocol) -> Vec<u8> {
        packet("10.0.0.1:1000", "10.0.0.2:80", protocol, Role::Probe(Kind::First))
    }

    #[test]
    fn tcp_begins_with_a_syn_and_its_tag() {
        let bytes = first(Protocol::Tcp);
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[9], 6);
        assert_eq!(bytes[20..28], [3, 232, 0, 80, 1, 2, 3, 4]);
        assert_eq!(bytes[33], 0x02, "SYN alone");
    }

    #[test]
    fn a_reply_acknowledges_the_tag_that_it_answers() {
        let bytes = packet("10.0.0.1:80", "10.0.0.2:1000", Protocol::Tcp, Role::Reply(9));
        assert_eq!(bytes[28..32], [0, 0, 0, 10]);
        assert_eq!(bytes[33], 0x12, "SYN and ACK");
        let bytes = packet("10.0.0.1:80", "10.0.0.2:1000", Protocol::Sctp, Role::Reply(9));
        assert_eq!(bytes[24..28], [0, 0, 0, 9], "verification tag");
        assert_eq!(bytes[32], 2, "INIT ACK");
    }

    #[test]
    fn sctp_begins_with_an_init_without_verification_tag() {
        let bytes = packet("[fd00::1]:1000", "[fd00::2]:80", Protocol::Sctp, Role::Probe(Kind::First));
        assert_eq!(bytes.len(), 40 + SCTP_HEADER + INIT);
        assert_eq!(bytes[6], 132);
        assert_eq!(bytes[44..48], [0; 4]);
        assert_eq!(bytes[52..56], [1, 0, 0, 20]);
        assert_eq!(bytes[56..60], [1, 2, 3, 4]);
    }

    #[test]
    fn no_packet_is_of_two_families() {
        let packet = Packet {
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "[fd00::2]:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            role: Role::Probe(Kind::First),
            tag: 1,
            hops: HOPS,
        };
        assert!(matches!(packet.write(), Err(Error::Families(..))));
    }
}
