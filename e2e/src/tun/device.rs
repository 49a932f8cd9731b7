//! A TUN device in a namespace: what the kernel sends out by it is read here, what is written here comes in by it.
//!
//! Invariant: the device is there for as long as this value is.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use rustix::{
    fs::OFlags,
    io::Errno,
    ioctl::{Opcode, Updater, opcode},
};

use super::Error;
use crate::netns::Netns;

/// linux/if_tun.h: make the device, or take it.
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const IFF_TUN: u16 = 0x0001;
/// Packets begin with their IP header.
const IFF_NO_PI: u16 = 0x1000;
/// Longest name of an interface, with the zero at its end.
const NAME: usize = 16;

/// `struct ifreq`, as far as this request uses it.
#[repr(C)]
struct Request {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// A TUN device.
#[derive(Debug)]
pub(super) struct Tun {
    fd: OwnedFd,
}

impl Tun {
    /// Makes it in this namespace; it is still down.
    pub(super) fn create(namespace: &Netns, name: &str) -> Result<Self, Error> {
        let made = namespace.run(|| {
            let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
            let fd = OwnedFd::from(file);
            set_interface(fd.as_fd(), name)?;
            Ok(fd)
        });
        let made: io::Result<OwnedFd> = made.map_err(Error::Namespace)?;
        Ok(Self { fd: made.map_err(|source| Error::Device { name: name.to_owned(), source })? })
    }

    /// A packet comes in.
    pub(super) fn write(&self, packet: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.fd, packet)?;
        Ok(())
    }

    /// The next packet that went out, if there is one.
    pub(super) fn read<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(length) => Ok(buffer.get(..length)),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[allow(unsafe_code, reason = "no safe wrapper knows this request")]
fn set_interface(fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = Request { name: [0; NAME], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    // The last byte stays zero.
    for (place, byte) in request.name.iter_mut().take(NAME - 1).zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: the request reads and writes one `ifreq` of 40 bytes, which `request` is.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<TUNSETIFF, Request>::new(&mut request)) }?;
    Ok(())
}
