//! kube-proxy's mode ipvs, but for its chains: virtual servers, the interface `kube-ipvs0`, sets of addresses and ports.
//!
//! All over netlink, so that neither `ipvsadm` nor `ipset` need be there. A kernel without ip_vs or ip_set has none of it,
//! and none of the requests loads a module.

use std::io;

use crate::netlink::{Request, Socket, find};

/// A network interface to remove.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it has to be, so that it is the one that is meant.
    pub kind: &'a str,
}

/// The interface that carries the addresses of Services.
pub const DEVICE: Device<'_> = Device { name: "kube-ipvs0", kind: "dummy" };

/// rtnetlink(7): messages, and attributes of a link.
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
/// `struct ifinfomsg`; the index is its second word.
const LINK_MESSAGE: usize = 16;

/// linux/genetlink.h: the controller, which knows the families.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// linux/ip_vs.h.
const IPVS: &[u8] = b"IPVS\0";
const IPVS_FLUSH: u8 = 17;
/// `struct genlmsghdr`.
const GENERIC_HEADER: usize = 4;

/// linux/netfilter/ipset/ip_set.h.
const DESTROY_SET: u16 = 0x603;
const SET_PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
/// The oldest version that the kernel still speaks.
const PROTOCOL: u8 = 6;
/// Longest name of a set.
const NAME_MAX: usize = 31;

/// The sets of both families, without the prefixes that tell them apart.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The interfaces could not be read.
    #[error("reading network interfaces")]
    Interfaces(#[source] io::Error),
    /// Virtual servers stay.
    #[error("removing virtual servers; `ipvsadm --clear` does")]
    Servers(#[source] io::Error),
    /// The interface is something else.
    #[error("interface {name} is not of kind {kind}, so it is not kube-proxy's")]
    Foreign {
        /// Its name.
        name: String,
        /// What it should be.
        kind: String,
    },
    /// The interface stays.
    #[error("removing interface {name}; `ip link delete {name}` does")]
    Device {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A set stays.
    #[error("removing set {name}; `ipset destroy {name}` does")]
    Set {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    index: [u8; 4],
    kind: Option<Vec<u8>>,
}

/// Removes virtual servers and the interface (that is [`DEVICE`]), if the interface is there.
pub fn remove_servers_and(Device { name, kind }: Device<'_>) -> Result<bool, IpvsError> {
    let mut socket = Socket::route().map_err(IpvsError::Interfaces)?;
    let Some(link) = link(&mut socket, name).map_err(IpvsError::Interfaces)? else { return Ok(false) };
    if link.kind.as_deref() != Some(kind.as_bytes()) {
        return Err(IpvsError::Foreign { name: name.to_owned(), kind: kind.to_owned() });
    }
    flush_servers().map_err(IpvsError::Servers)?;
    let deleted = socket.command(&deletion(&link));
    deleted.map_err(|source| IpvsError::Device { name: name.to_owned(), source })?;
    Ok(true)
}

fn link(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut found = None;
    socket.dump(&Request::new(GET_LINK, &[0; LINK_MESSAGE]), |message| {
        if message.kind == NEW_LINK {
            found = found.take().or_else(|| read_link(message.body, name));
        }
    })?;
    Ok(found)
}

/// The interface that a message describes, if it is called so.
fn read_link(body: &[u8], name: &str) -> Option<Link> {
    let index = *body.get(4..8)?.first_chunk()?;
    let attributes = body.get(LINK_MESSAGE..)?;
    if find(attributes, LINK_NAME)?.strip_suffix(&[0])? != name.as_bytes() {
        return None;
    }
    let kind = find(attributes, LINK_INFO).and_then(|info| find(info, INFO_KIND));
    Some(Link { index, kind: kind.map(|kind| kind.strip_suffix(&[0]).unwrap_or(kind).to_vec()) })
}

fn deletion(link: &Link) -> Request {
    let mut fixed = [0; LINK_MESSAGE];
    let (_, rest) = fixed.split_at_mut(4);
    if let Some(index) = rest.first_chunk_mut() {
        *index = link.index;
    }
    Request::new(DELETE_LINK, &fixed)
}

/// Nothing to do in a kernel without ip_vs.
fn flush_servers() -> io::Result<()> {
    let mut socket = Socket::generic()?;
    let mut family = None;
    socket.dump(&Request::new(CONTROLLER, &[GET_FAMILY, 1, 0, 0]), |message| {
        family = family.take().or_else(|| ipvs_family(message.body));
    })?;
    family.map_or(Ok(()), |family| socket.command(&flush(family)))
}

/// The number of the family ip_vs, if that is what a message describes.
fn ipvs_family(body: &[u8]) -> Option<u16> {
    let attributes = body.get(GENERIC_HEADER..)?;
    let number = || Some(u16::from_ne_bytes(*find(attributes, FAMILY_ID)?.first_chunk()?));
    (find(attributes, FAMILY_NAME)? == IPVS).then(number)?
}

fn flush(family: u16) -> Request {
    Request::new(family, &[IPVS_FLUSH, 1, 0, 0])
}

/// Removes the sets of both families. How many there were.
pub fn destroy_sets() -> Result<usize, IpvsError> {
    let mut destroyed = 0;
    for name in SETS.iter().flat_map(|set| [set_name("KUBE-", set), set_name("KUBE-6-", set)]) {
        destroyed += usize::from(destroy_set(&name).map_err(|source| IpvsError::Set { name, source })?);
    }
    Ok(destroyed)
}

/// Cut off where kube-proxy cuts it off.
fn set_name(prefix: &str, set: &str) -> String {
    format!("{prefix}{set}").chars().take(NAME_MAX).collect()
}

fn destroy_set(name: &str) -> io::Result<bool> {
    match Socket::netfilter()?.command(&destruction(name)) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            // No such set; no ip_set at all.
            Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => Ok(false),
            _ => Err(error),
        },
    }
}

fn destruction(name: &str) -> Request {
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    Request::new(DESTROY_SET, &[0; 4]).exclusive().with(SET_PROTOCOL, &[PROTOCOL]).with(SET_NAME, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{attribute, nested};

    /// linux/ip_vs.h and genetlink.h; libipvs sends the same.
    #[test]
    fn virtual_servers_are_flushed_by_the_message_that_ip_vs_knows() {
        assert_eq!(flush(0x1e).bytes(0x5), [20, 0, 0, 0, 0x1e, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 17, 1, 0, 0]);
        let described = |name: &[u8]| {
            [&[1, 2, 0, 0][..], &attribute(FAMILY_NAME, name), &attribute(FAMILY_ID, &[0x1e, 0])].concat()
        };
        assert_eq!(ipvs_family(&described(b"IPVS\0")), Some(0x1e));
        assert_eq!(ipvs_family(&described(b"nl80211\0")), None);
        assert_eq!(ipvs_family(&[1]), None);
    }

    #[test]
    fn only_a_dummy_interface_of_that_name_is_meant() {
        let message = |name: &[u8], kind: &[u8]| {
            let fixed = [0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let info = nested(LINK_INFO, &attribute(INFO_KIND, kind));
            [&fixed[..], &attribute(LINK_NAME, name), &info].concat()
        };
        let link = read_link(&message(b"kube-ipvs0\0", b"dummy\0"), DEVICE.name).unwrap();
        assert_eq!(link, Link { index: [7, 0, 0, 0], kind: Some(b"dummy".to_vec()) });
        assert_eq!(read_link(&message(b"kube-ipvs1\0", b"dummy\0"), DEVICE.name), None);
        let header = [32, 0, 0, 0, 17, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fixed = [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(deletion(&link).bytes(0x5), [header, fixed].concat());
    }

    #[test]
    fn sets_are_called_as_kube_proxy_calls_them() {
        assert_eq!(set_name("KUBE-6-", "LOAD-BALANCER-SOURCE-CIDR"), "KUBE-6-LOAD-BALANCER-SOURCE-CID");
        assert_eq!(set_name("KUBE-", "LOAD-BALANCER-SOURCE-CIDR"), "KUBE-LOAD-BALANCER-SOURCE-CIDR");
    }
}
