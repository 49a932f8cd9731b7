//! The node itself as sender and receiver: raw sockets in its namespace.
//!
//! They get what passed the INPUT chain, with the addresses that it has by then, whether or not anybody listens there.
//!
//! Invariant: a packet to an address of the node is heard by exactly one of them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use etherparse::IpNumber;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, ipproto, recvfrom, sendto,
        socket_with, sockopt::set_socket_recv_buffer_size_force,
    },
};

use super::{
    Error,
    sight::{self, Sight, UNKNOWN},
};
use crate::netns::Netns;

/// Room for all that may come to the node while nobody reads, whoever it is for.
const BUFFER: usize = 8 << 20;

/// A socket that hears one protocol.
#[derive(Debug)]
struct Ear {
    fd: OwnedFd,
    protocol: IpNumber,
    /// IPv6 sockets hear one address each, because a packet comes without its header; IPv4 ones hear all.
    address: Option<IpAddr>,
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    send: [OwnedFd; 2],
    ears: Vec<Ear>,
}

impl Sockets {
    /// On a node that has these addresses beside loopback.
    pub(super) fn open(namespace: &Netns, addresses: &[IpAddr]) -> Result<Self, Error> {
        let opened = namespace.run(|| -> Result<Self, Error> {
            let send = [AddressFamily::INET, AddressFamily::INET6].map(|family| raw(family, ipproto::RAW));
            let [v4, v6] = send;
            let mut sockets = Self { send: [v4?, v6?], ears: Vec::new() };
            for protocol in [IpNumber::TCP, IpNumber::UDP, IpNumber::SCTP, IpNumber::ICMP] {
                sockets.ears.push(Ear {
                    fd: hearing(AddressFamily::INET, protocol)?,
                    protocol,
                    address: None,
                });
            }
            let fd = hearing(AddressFamily::INET6, IpNumber::IPV6_ICMP)?;
            sockets.ears.push(Ear { fd, protocol: IpNumber::IPV6_ICMP, address: Some(UNKNOWN) });
            sockets.listen(Ipv6Addr::LOCALHOST)?;
            for address in addresses {
                if let IpAddr::V6(v6) = address {
                    sockets.listen(*v6)?;
                }
            }
            Ok(sockets)
        });
        opened.map_err(Error::Namespace)?
    }

    /// Hears another address that the node has got.
    pub(super) fn add(&mut self, namespace: &Netns, address: IpAddr) -> Result<(), Error> {
        let IpAddr::V6(address) = address else { return Ok(()) };
        namespace.run(|| self.listen(address)).map_err(Error::Namespace)?
    }

    fn listen(&mut self, address: Ipv6Addr) -> Result<(), Error> {
        for protocol in [IpNumber::TCP, IpNumber::UDP, IpNumber::SCTP] {
            let fd = hearing(AddressFamily::INET6, protocol)?;
            bind(&fd, &SocketAddr::new(address.into(), 0))
                .map_err(|error| Error::Socket { what: format!("{address}"), source: error.into() })?;
            self.ears.push(Ear { fd, protocol, address: Some(address.into()) });
        }
        Ok(())
    }

    /// A process of the node sends a packet. False if no route leads there.
    pub(super) fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<bool> {
        let [v4, v6] = &self.send;
        let socket = if to.is_ipv4() { v4 } else { v6 };
        match sendto(socket, packet, SendFlags::empty(), &SocketAddr::new(to, 0)) {
            // Rules that drop a packet on its way out say so.
            Ok(_) | Err(Errno::PERM) => Ok(true),
            Err(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Descriptors to wait on.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ears.iter().map(|ear| ear.fd.as_fd())
    }

    /// Number of sockets that hear.
    pub(super) fn len(&self) -> usize {
        self.ears.len()
    }

    /// The next packet of ours that one of them heard; `None` when it has heard no more.
    pub(super) fn hear(&self, ear: usize, buffer: &mut [u8]) -> io::Result<Option<Sight>> {
        let Some(ear) = self.ears.get(ear) else { return Ok(None) };
        loop {
            let (length, from) = match recvfrom(&ear.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((length, _, from)) => (length, from),
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            let seen = match ear.address {
                None => sight::packet(bytes),
                Some(to) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    sight::segment(ear.protocol, (from.map_or(UNKNOWN, |from| from.ip()), to), bytes)
                }
            };
            if seen.is_some() {
                return Ok(seen);
            }
        }
    }

    /// Forgets what was heard so far.
    pub(super) fn forget(&self, buffer: &mut [u8]) -> io::Result<()> {
        for ear in 0..self.ears.len() {
            while self.hear(ear, buffer)?.is_some() {}
        }
        Ok(())
    }
}

/// Where the sentinel of the node's own packets goes.
pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn hearing(family: AddressFamily, protocol: IpNumber) -> Result<OwnedFd, Error> {
    let protocol = match protocol {
        IpNumber::TCP => ipproto::TCP,
        IpNumber::UDP => ipproto::UDP,
        IpNumber::SCTP => ipproto::SCTP,
        IpNumber::ICMP => ipproto::ICMP,
        _ => ipproto::ICMPV6,
    };
    let fd = raw(family, protocol)?;
    set_socket_recv_buffer_size_force(&fd, BUFFER)
        .map_err(|error| Error::Socket { what: "its buffer".to_owned(), source: error.into() })?;
    Ok(fd)
}

fn raw(family: AddressFamily, protocol: rustix::net::Protocol) -> Result<OwnedFd, Error> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(family, SocketType::RAW, flags, Some(protocol)).map_err(|error| Error::Socket {
        what: format!("protocol {}", protocol.as_raw()),
        source: error.into(),
    })
}
