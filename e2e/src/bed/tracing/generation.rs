//! The generation of a node's nf_tables: a number that the kernel raises with every change, and tells in microseconds.
//!
//! Invariant: two equal numbers mean equal rules; the next number means that one transaction was made.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use crate::netns::Netns;

/// linux/netfilter/nf_tables.h: the subsystem, its messages and the attribute that we want.
const SUBSYSTEM: u16 = 10;
const NEW_GENERATION: u16 = 15;
const GET_GENERATION: u16 = 16;
const GENERATION_ID: u16 = 1;
/// netlink(7): the flag of a request, and the length of `nlmsghdr` and `nfgenmsg` before the attributes.
const REQUEST: u16 = 1;
const FIXED: usize = 20;

/// Asks one node.
#[derive(Debug)]
pub(super) struct Generation {
    socket: OwnedFd,
}

impl Generation {
    /// Of the rules in this namespace.
    pub(super) fn of(namespace: &Netns) -> Result<Self> {
        let socket = namespace.run(|| {
            let protocol = Some(netlink::NETFILTER);
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
        })??;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(10)))?;
        Ok(Self { socket })
    }

    /// The number of now.
    pub(super) fn read(&self) -> Result<u32> {
        let mut request = Vec::with_capacity(FIXED);
        request.extend(u32::try_from(FIXED)?.to_ne_bytes());
        request.extend((SUBSYSTEM << 8 | GET_GENERATION).to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        // Sequence number and sender, family, version and resource: none of it matters here.
        request.resize(FIXED, 0);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut answer = [0_u8; 1024];
        let (length, _) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
        parse(answer.get(..length).unwrap_or_default())
            .context("a strange answer about the rules' generation")
    }
}

fn parse(answer: &[u8]) -> Result<u32> {
    let kind = short(answer, 4)?;
    ensure!(kind == SUBSYSTEM << 8 | NEW_GENERATION, "message type {kind:#x}");
    let mut at = FIXED;
    loop {
        let (length, attribute) = (usize::from(short(answer, at)?), short(answer, at + 2)?);
        ensure!(length >= 4, "an attribute of {length} bytes");
        if attribute == GENERATION_ID {
            let value = answer.get(at + 4..at + 8).context("too short")?;
            return Ok(u32::from_be_bytes(value.try_into()?));
        }
        at += length.next_multiple_of(4);
    }
}

fn short(message: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_ne_bytes(message.get(at..at + 2).context("too short")?.try_into()?))
}
