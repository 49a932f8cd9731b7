//! The addresses of this node's network interfaces, asked from the kernel over route netlink.
//!
//! Needed where node ports are restricted to some networks (`--nodeport-addresses`), and to tell flows to this node from
//! others. `/proc/net/fib_trie` would do for IPv4, but leaves out addresses of interfaces that are down, which
//! kube-proxy counts.
//!
//! Invariant: reads only; malformed replies are left out, they never panic.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fairlead_objects::Family;
use ipnet::IpNet;

use crate::netlink::{Request, Socket, attributes};

/// rtnetlink(7): message types.
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// rtnetlink(7): attributes of an address.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Size of the fixed part, `ifaddrmsg`.
const ADDRESS_MESSAGE: usize = 8;

/// All addresses of `family`, with the length of their networks, in the kernel's order.
pub fn addresses(family: Family) -> io::Result<Vec<IpNet>> {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    let mut found = Vec::new();
    // Of every interface.
    let request = Request::new(RTM_GETADDR, &[number, 0, 0, 0, 0, 0, 0, 0]);
    Socket::route()?.dump(&request, |message| {
        if message.kind == RTM_NEWADDR {
            found.extend(read_address(message.body));
        }
    })?;
    Ok(found)
}

fn read_address(body: &[u8]) -> Option<IpNet> {
    let prefix = *body.get(1)?;
    let (mut address, mut local) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_MESSAGE..)?) {
        match kind {
            IFA_ADDRESS => address = ip(value),
            IFA_LOCAL => local = ip(value),
            _ => {}
        }
    }
    // On a point-to-point link, `address` is the other end.
    IpNet::new(local.or(address)?, prefix).ok()
}

/// An address as netlink has it.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into());
    let v6 = || Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into());
    v4().or_else(v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    #[test]
    fn kernel_lists_no_address_of_the_other_family() {
        for family in Family::ALL {
            let addresses = addresses(family).unwrap();
            assert!(addresses.iter().all(|net| Family::of(net.addr()) == family), "{addresses:?}");
        }
    }

    #[test]
    fn own_end_of_a_point_to_point_link_is_the_address() {
        let mut body = vec![2, 32, 0, 0, 1, 0, 0, 0];
        body.extend(attribute(IFA_ADDRESS, &[10, 0, 0, 2]));
        body.extend(attribute(IFA_LOCAL, &[10, 0, 0, 1]));
        assert_eq!(read_address(&body), Some("10.0.0.1/32".parse().unwrap()));
        assert_eq!(read_address(&body[..10]), None);
    }
}
