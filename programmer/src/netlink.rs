//! Netlink, as far as we need it: requests with nested attributes, dumps, acknowledged commands, and multicast groups.
//!
//! The kernel's interface is a few fixed layouts, so this speaks it over rustix's sockets (in the dependency graph
//! anyway) rather than through a crate per protocol.
//!
//! Invariants: malformed messages end a list, they never panic; an error of the kernel is an [`io::Error`] with its code.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    sockopt,
};

/// netlink(7): message types and flags.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// linux/netfilter/nfnetlink.h: what surrounds a transaction.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const DUMP_INTERRUPTED: u16 = 0x10;
/// Flags in the type of an attribute: it holds attributes, it is in network byte order.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;
/// Sizes of the fixed parts: `nlmsghdr`, `nlattr`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// The kernel sends replies of at most this size.
const BUFFER: usize = 64 * 1024;
/// The kernel answers at once, or never.
const PATIENCE: Duration = Duration::from_secs(10);

/// One message as it came.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// What follows the header.
    pub body: &'a [u8],
}

/// How a dump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dumped {
    /// Everything was there.
    Complete,
    /// What was dumped changed meanwhile, so something may be missing.
    Interrupted,
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// For route netlink.
    pub fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// For netfilter's subsystems.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    /// For generic netlink.
    pub fn generic() -> io::Result<Self> {
        Self::open(Some(netlink::GENERIC))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let family = AddressFamily::NETLINK;
        let fd = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { fd, buffer: vec![0; BUFFER] })
    }

    /// Makes it receive what is sent to `group`, without ever blocking, with room for `room` bytes that wait.
    pub fn listen(self, group: u32, room: usize) -> io::Result<Self> {
        let groups = group.checked_sub(1).and_then(|bit| 1_u32.checked_shl(bit)).unwrap_or_default();
        rustix::net::bind(&self.fd, &SocketAddrNetlink::new(0, groups))?;
        // Beyond the limit of the system if we may, else as much as that allows.
        sockopt::set_socket_recv_buffer_size_force(&self.fd, room)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&self.fd, room))?;
        rustix::io::ioctl_fionbio(&self.fd, true)?;
        Ok(self)
    }

    /// Hands each message of the next datagram to `each`; an error of kind `WouldBlock` if there is none now.
    pub fn receive(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        let (received, _) = rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::empty())?;
        for (_, message) in Messages(self.buffer.get(..received).unwrap_or_default()) {
            each(message);
        }
        Ok(())
    }

    /// Asks for a list, and hands each message of it to `each`.
    pub fn dump(&mut self, request: &Request, mut each: impl FnMut(Message<'_>)) -> io::Result<Dumped> {
        self.send(request, REQUEST | DUMP)?;
        let mut dumped = Dumped::Complete;
        loop {
            let (received, _) = rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::empty())?;
            let datagram = self.buffer.get(..received).unwrap_or_default();
            if datagram.is_empty() {
                return Ok(dumped);
            }
            for (flags, message) in Messages(datagram) {
                if flags & DUMP_INTERRUPTED != 0 {
                    dumped = Dumped::Interrupted;
                }
                match message.kind {
                    DONE => return outcome(message.body).map(|()| dumped),
                    ERROR => return outcome(message.body).map(|()| dumped),
                    _ => each(message),
                }
            }
        }
    }

    /// Has the kernel do something, and waits until it is done.
    pub fn command(&mut self, request: &Request) -> io::Result<()> {
        self.send(request, REQUEST | ACK)?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<()> {
        loop {
            let (received, _) = rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::empty())?;
            let datagram = self.buffer.get(..received).unwrap_or_default();
            let mut answers = Messages(datagram).filter(|(_, message)| message.kind == ERROR);
            if let Some((_, answer)) = answers.next() {
                return outcome(answer.body);
            }
            if datagram.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Has a subsystem of netfilter do one thing in a transaction, and waits until it is done.
    pub fn transaction(&mut self, subsystem: u8, request: &Request) -> io::Result<()> {
        let fixed = [0, 0, 0, subsystem];
        let mut bytes = Request::new(BATCH_BEGIN, &fixed).bytes(REQUEST);
        bytes.extend(request.bytes(REQUEST | ACK));
        bytes.extend(Request::new(BATCH_END, &fixed).bytes(REQUEST));
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        self.answer()
    }

    fn send(&self, request: &Request, flags: u16) -> io::Result<()> {
        rustix::net::send(&self.fd, &request.bytes(flags), SendFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The code that ends a dump or answers a command: 0 or a negative errno.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Request {
    kind: u16,
    /// Besides those that say what kind of request it is.
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// Of this type, with the fixed part of its subsystem.
    pub fn new(kind: u16, fixed: &[u8]) -> Self {
        Self { kind, flags: 0, body: fixed.to_vec() }
    }

    /// That fails where it would otherwise be content with what is there or is not.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.flags |= EXCLUSIVE;
        self
    }

    /// With an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        add_attribute(&mut self.body, kind, value);
        self
    }

    /// With an attribute that holds attributes, which are given as (type, value).
    #[must_use]
    pub fn with_nested(mut self, kind: u16, attributes: &[u8]) -> Self {
        add_attribute(&mut self.body, kind | NESTED, attributes);
        self
    }

    /// As it is sent.
    pub(crate) fn bytes(&self, flags: u16) -> Vec<u8> {
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | flags).to_ne_bytes());
        bytes.extend([0; 8]); // sequence number and port: the kernel fills in ours
        bytes.extend(&self.body);
        bytes
    }
}

/// One attribute as bytes, to be nested in another.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ATTRIBUTE + value.len());
    add_attribute(&mut bytes, kind, value);
    bytes
}

/// One attribute that holds attributes, as bytes.
pub fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

fn add_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The messages of a datagram, each with its flags.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, Message<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = self.0.get(HEADER..length)?;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((flags, Message { kind, body }))
    }
}

/// The attributes in `bytes`, by type.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(ATTRIBUTE..length)?;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of that type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Messages and attributes start at multiples of four. Never zero, so that a length of zero cannot loop.
fn aligned(length: usize) -> usize {
    length.max(1).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = [attribute(1, &[7]), attribute(2, b"abcde")].concat();
        let bytes = [nested(5, &inner), attribute(6, &[])].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(5, inner.as_slice()), (6, &[])]);
        assert_eq!(find(&inner, 2), Some(b"abcde".as_slice()));
    }

    #[test]
    fn malformed_messages_and_attributes_end_the_list() {
        let message = Request::new(20, &[1, 2, 3, 4]).bytes(0);
        assert_eq!(Messages(&message).count(), 1);
        assert_eq!(Messages(&message[..18]).count(), 0);
        assert_eq!(Messages(&[0; 32]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 8, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
    }

    #[test]
    fn error_of_the_kernel_keeps_its_code() {
        let error = outcome(&(-1_i32).to_ne_bytes()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
    }
}
