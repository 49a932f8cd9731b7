//! The addresses of this node's network interfaces, asked from the kernel over route netlink.
//!
//! Needed where node ports are restricted to some networks (`--nodeport-addresses`). A request and a dump of replies
//! is all there is, so this speaks the protocol itself (rustix is in the dependency graph anyway) and needs no netlink
//! crate. `/proc/net/fib_trie` would do for IPv4, but leaves out addresses of interfaces that are down, which
//! kube-proxy counts.
//!
//! Invariant: reads only; malformed replies end the list, they never panic.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fairlead_objects::Family;
use ipnet::IpNet;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// rtnetlink(7): message types and flags.
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// rtnetlink(7): attributes of an address.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Sizes of the fixed parts: `nlmsghdr`, `ifaddrmsg`, `rtattr`.
const HEADER: usize = 16;
const ADDRESS_MESSAGE: usize = 8;
const ATTRIBUTE: usize = 4;
/// The kernel sends replies of at most this size.
const BUFFER: usize = 64 * 1024;

/// All addresses of `family`, with the length of their networks, in the kernel's order.
pub fn addresses(family: Family) -> io::Result<Vec<IpNet>> {
    // Without a protocol it is route netlink, number 0.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&socket, &request(family), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let (received, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let datagram = buffer.get(..received).unwrap_or_default();
        if received == 0 || read_datagram(datagram, &mut found)? {
            return Ok(found);
        }
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn request(family: Family) -> Vec<u8> {
    let length = u32::try_from(HEADER + ADDRESS_MESSAGE).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + ADDRESS_MESSAGE);
    message.extend(length.to_ne_bytes());
    message.extend(RTM_GETADDR.to_ne_bytes());
    message.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: the kernel fills in ours
    message.extend([family_number(family), 0, 0, 0]);
    message.extend([0; 4]); // every interface
    message
}

/// Reads the messages of one datagram; true when the dump is over.
fn read_datagram(mut datagram: &[u8], found: &mut Vec<IpNet>) -> io::Result<bool> {
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(body) = datagram.get(HEADER..length) else { return Ok(true) };
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(refusal(body)),
            RTM_NEWADDR => found.extend(read_address(body)),
            _ => {}
        }
        datagram = datagram.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

fn refusal(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(code.saturating_neg())
}

fn read_address(body: &[u8]) -> Option<IpNet> {
    let prefix = *body.get(1)?;
    let mut attributes = body.get(ADDRESS_MESSAGE..)?;
    let (mut address, mut local) = (None, None);
    while let Some(header) = attributes.first_chunk::<ATTRIBUTE>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(ATTRIBUTE..length)?;
        match u16::from_ne_bytes([header[2], header[3]]) {
            IFA_ADDRESS => address = ip(value),
            IFA_LOCAL => local = ip(value),
            _ => {}
        }
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    // On a point-to-point link, `address` is the other end.
    IpNet::new(local.or(address)?, prefix).ok()
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into());
    let v6 = || Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into());
    v4().or_else(v6)
}

/// Messages and attributes start at multiples of four. Never zero, so that a length of zero cannot loop.
fn aligned(length: usize) -> usize {
    length.max(1).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_no_address_of_the_other_family() {
        for family in Family::ALL {
            let addresses = addresses(family).unwrap();
            assert!(addresses.iter().all(|net| Family::of(net.addr()) == family), "{addresses:?}");
        }
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn attribute(kind: u16, value: [u8; 4]) -> Vec<u8> {
        let mut bytes = 8_u16.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes
    }

    #[test]
    fn own_end_of_a_point_to_point_link_is_the_address() {
        let mut body = vec![2, 32, 0, 0, 1, 0, 0, 0];
        body.extend(attribute(IFA_ADDRESS, [10, 0, 0, 2]));
        body.extend(attribute(IFA_LOCAL, [10, 0, 0, 1]));
        let mut datagram = message(RTM_NEWADDR, &body);
        datagram.extend(message(NLMSG_DONE, &[0; 4]));
        let mut found = Vec::new();
        assert!(read_datagram(&datagram, &mut found).unwrap());
        assert_eq!(found, ["10.0.0.1/32".parse().unwrap()]);
    }

    #[test]
    fn malformed_reply_ends_the_list() {
        let mut cut = message(RTM_NEWADDR, &[2, 32, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(read_datagram(&cut, &mut Vec::new()).ok(), Some(false));
        cut.truncate(20);
        assert_eq!(read_datagram(&cut, &mut Vec::new()).ok(), Some(true));
        let error =
            read_datagram(&message(NLMSG_ERROR, &(-1_i32).to_ne_bytes()), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
