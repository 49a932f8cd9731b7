//! Reading packets: which of ours it is, and what it says.
//!
//! Invariant: what is not ours is no error, it is not seen.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::{
    Icmpv4Slice, Icmpv6Slice, IpNumber, LaxIpSlice, TcpSlice, UdpSlice, checksum::Sum16BitWords,
};

use super::{Complaint, crc32c::crc32c};

/// Where the checksum of an SCTP packet is.
const SCTP_CHECKSUM: std::ops::Range<usize> = 8..12;

/// A packet of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// One that we sent, on its way.
    Packet { tag: u32, source: SocketAddr, destination: SocketAddr },
    /// What the node has to say about one that we sent, to its sender; the port is known where a connection is.
    Complaint { tag: u32, complaint: Complaint, from: IpAddr, to: IpAddr, port: Option<u16> },
}

/// What a whole packet is.
pub(super) fn packet(bytes: &[u8]) -> Option<Sight> {
    let (ip, _) = LaxIpSlice::from_slice(bytes).ok()?;
    let payload = ip.payload();
    segment(payload.ip_number, (ip.source_addr(), ip.destination_addr()), payload.payload)
}

/// What a packet is without its IP header.
pub(super) fn segment(protocol: IpNumber, (from, to): (IpAddr, IpAddr), bytes: &[u8]) -> Option<Sight> {
    let sight = |tag: u32, ports: (u16, u16)| {
        let (source, destination) = (SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1));
        Some(Sight::Packet { tag, source, destination })
    };
    match protocol {
        IpNumber::TCP => {
            let tcp = TcpSlice::from_slice(bytes).ok()?;
            if tcp.rst() {
                let acknowledged = tcp.acknowledgment_number().wrapping_sub(1);
                let tag = if tcp.ack() { acknowledged } else { tcp.sequence_number() };
                let (complaint, port) = (Complaint::Reset, Some(tcp.destination_port()));
                return Some(Sight::Complaint { tag, complaint, from, to, port });
            }
            sight(tcp.sequence_number(), (tcp.source_port(), tcp.destination_port()))
        }
        IpNumber::UDP => {
            let udp = UdpSlice::from_slice_lax(bytes).ok()?;
            sight(number(udp.payload(), 0)?, (udp.source_port(), udp.destination_port()))
        }
        IpNumber::SCTP => sight(number(bytes, 16)?, (port(bytes, 0)?, port(bytes, 2)?)),
        IpNumber::ICMP => {
            let icmp = Icmpv4Slice::from_slice(bytes).ok()?;
            complaint((icmp.type_u8(), icmp.code_u8()), (3, 3), icmp.payload(), (from, to))
        }
        IpNumber::IPV6_ICMP => {
            let icmp = Icmpv6Slice::from_slice(bytes).ok()?;
            complaint((icmp.type_u8(), icmp.code_u8()), (1, 4), icmp.payload(), (from, to))
        }
        _ => None,
    }
}

/// An ICMP error; it quotes the packet that it is about.
fn complaint(
    kind: (u8, u8),
    port_unreachable: (u8, u8),
    quoted: &[u8],
    (from, to): (IpAddr, IpAddr),
) -> Option<Sight> {
    let Some(Sight::Packet { tag, .. }) = packet(quoted) else { return None };
    let complaint =
        if kind == port_unreachable { Complaint::PortUnreachable } else { Complaint::Other(kind.0, kind.1) };
    Some(Sight::Complaint { tag, complaint, from, to, port: None })
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Whether a receiver would accept the checksums of a whole packet.
pub(super) fn is_intact(bytes: &[u8]) -> bool {
    let Ok((ip, _)) = LaxIpSlice::from_slice(bytes) else { return false };
    if let Some(v4) = ip.ipv4()
        && v4.header().to_header().calc_header_checksum() != v4.header().header_checksum()
    {
        return false;
    }
    let payload = ip.payload();
    let sum = |pseudo: Sum16BitWords| pseudo.add_slice(payload.payload).ones_complement() == 0;
    match payload.ip_number {
        IpNumber::SCTP => sctp_is_intact(payload.payload),
        IpNumber::ICMP => sum(Sum16BitWords::new()),
        IpNumber::TCP | IpNumber::UDP | IpNumber::IPV6_ICMP => sum(pseudo_header(
            ip.source_addr(),
            ip.destination_addr(),
            payload.ip_number,
            payload.payload.len(),
        )),
        _ => true,
    }
}

fn sctp_is_intact(bytes: &[u8]) -> bool {
    let Some(told) = bytes.get(SCTP_CHECKSUM) else { return false };
    let without = bytes.iter().enumerate();
    let without = without.map(|(place, byte)| if SCTP_CHECKSUM.contains(&place) { 0 } else { *byte });
    crc32c(without).to_le_bytes() == told
}

/// What TCP, UDP and ICMPv6 sum up beside themselves.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: IpNumber, length: usize) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    for address in [from, to] {
        sum = match address {
            IpAddr::V4(v4) => sum.add_4bytes(v4.octets()),
            IpAddr::V6(v6) => sum.add_16bytes(v6.octets()),
        };
    }
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    sum.add_2bytes([0, protocol.0]).add_2bytes(length.to_be_bytes())
}

/// Stands for an address that a socket does not tell.
pub(super) const UNKNOWN: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

#[cfg(test)]
mod tests {
    use etherparse::{
        Icmpv4Type, PacketBuilder,
        icmpv4::{DestUnreachableHeader, TimeExceededCode},
    };
    use fairlead_objects::Protocol;

    use super::{
        super::{
            Kind,
            packet::{HOPS, Packet, Role},
        },
        *,
    };

    const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    fn probe(from: &str, to: &str, protocol: Protocol, kind: Kind) -> Vec<u8> {
        let (source, destination) = (from.parse().unwrap(), to.parse().unwrap());
        let role = Role::Probe(kind);
        Packet { source, destination, protocol, role, tag: 77, hops: HOPS }.write().unwrap()
    }

    fn icmp(kind: Icmpv4Type, about: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64).icmpv4(kind).write(&mut bytes, about).unwrap();
        bytes
    }

    #[test]
    fn packets_are_known_again_and_intact() {
        for protocol in PROTOCOLS {
            for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
                let bytes = probe(from, to, protocol, Kind::First);
                let seen = Sight::Packet {
                    tag: 77,
                    source: from.parse().unwrap(),
                    destination: to.parse().unwrap(),
                };
                assert_eq!(packet(&bytes), Some(seen), "{protocol}");
                assert!(is_intact(&bytes), "{protocol} {from}");
                let damaged = probe(from, to, protocol, Kind::Damaged);
                assert_eq!(packet(&damaged), Some(seen), "{protocol}");
                assert!(!is_intact(&damaged), "{protocol} {from}");
            }
        }
    }

    #[test]
    fn an_icmp_error_is_about_the_packet_that_it_quotes() {
        let unreachable = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
        let expired = Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit);
        for protocol in PROTOCOLS {
            let about = probe("10.0.0.1:1000", "10.0.0.2:80", protocol, Kind::First);
            for (kind, complaint) in [
                (unreachable.clone(), Complaint::PortUnreachable),
                (expired.clone(), Complaint::Other(11, 0)),
            ] {
                let bytes = icmp(kind, &about);
                let (from, to) = ("10.0.0.9".parse().unwrap(), "10.0.0.1".parse().unwrap());
                let about = Sight::Complaint { tag: 77, complaint, from, to, port: None };
                assert_eq!(packet(&bytes), Some(about));
                assert!(is_intact(&bytes));
            }
        }
    }

    #[test]
    fn a_reset_is_about_the_packet_that_it_acknowledges() {
        let reset = |step: etherparse::PacketBuilderStep<etherparse::TcpHeader>| {
            let mut bytes = Vec::new();
            step.write(&mut bytes, &[]).unwrap();
            packet(&bytes)
        };
        let (from, to) = ("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap());
        let (complaint, port) = (Complaint::Reset, Some(1000));
        let about = Some(Sight::Complaint { tag: 77, complaint, from, to, port });
        let tcp = |sequence| PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64).tcp(80, 1000, sequence, 0);
        assert_eq!(reset(tcp(0).rst().ack(78)), about);
        assert_eq!(reset(tcp(77).rst()), about, "to what acknowledged something itself");
    }

    #[test]
    fn what_is_no_packet_is_not_seen() {
        assert_eq!(packet(&[]), None);
        assert_eq!(packet(&[0x45, 0, 0, 20]), None);
        assert_eq!(packet(&[0xff; 60]), None);
    }
}
