//! The kernel's conntrack table over netlink.
//!
//! The kernel is asked to list UDP only, which it can since Linux 5.8. Older ones ignore the wish or refuse it; flows of
//! other protocols are left out here in any case.

use std::{io, net::SocketAddr};

use fairlead_objects::Family;

use super::{Ends, Flow, FlowTable, Listing};
use crate::{
    interfaces::ip,
    netlink::{Dumped, Message, Request, Socket, attribute, attributes, find, nested},
};

/// linux/netfilter/nfnetlink_conntrack.h: message types, the subsystem in the upper byte.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const NEW: u16 = 0x100;
/// Attributes of an entry.
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Attributes of a tuple, of its addresses and of its protocol.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const V4_SOURCE: u16 = 1;
const V4_DESTINATION: u16 = 2;
const V6_SOURCE: u16 = 3;
const V6_DESTINATION: u16 = 4;
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// Attribute of a filter: which parts of the original tuple must match; here the number of the protocol.
const FILTER_ORIGINAL: u16 = 1;
const FILTER_PROTOCOL_NUMBER: u32 = 1 << 3;
const UDP: u8 = 17;
/// Size of the fixed part, `nfgenmsg`.
const FIXED: usize = 4;

/// The conntrack table of the network namespace we run in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel;

fn fixed(family: Family) -> [u8; FIXED] {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    [number, 0, 0, 0]
}

/// All UDP entries of a family.
fn request(family: Family, filtered: bool) -> Request {
    let all = Request::new(GET, &fixed(family));
    if !filtered {
        return all;
    }
    let tuple = nested(TUPLE_PROTOCOL, &attribute(NUMBER, &[UDP]));
    let filter = attribute(FILTER_ORIGINAL, &FILTER_PROTOCOL_NUMBER.to_ne_bytes());
    all.with_nested(TUPLE_ORIGINAL, &tuple).with_nested(FILTER, &filter)
}

impl FlowTable for Kernel {
    fn list(&self, family: Family, wanted: &dyn Fn(&Ends) -> bool) -> io::Result<Listing> {
        let list = |filtered| {
            let mut flows = Vec::new();
            let dumped = Socket::netfilter()?.dump(&request(family, filtered), |message| {
                flows.extend(read_flow(message, wanted));
            })?;
            Ok(Listing { flows, partial: dumped == Dumped::Interrupted })
        };
        match list(true) {
            Err(error) if is_refusal(&error) => list(false),
            other => other,
        }
    }

    fn delete(&self, family: Family, flows: &[Flow]) -> io::Result<u64> {
        if flows.is_empty() {
            return Ok(0);
        }
        let mut socket = Socket::netfilter()?;
        let mut deleted = 0;
        for flow in flows {
            let mut fixed = fixed(family).to_vec();
            fixed.extend(&flow.identity);
            match socket.command(&Request::new(DELETE, &fixed)) {
                Ok(()) => deleted += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

fn read_flow(message: Message<'_>, wanted: &dyn Fn(&Ends) -> bool) -> Option<Flow> {
    if message.kind != NEW {
        return None;
    }
    let entry = message.body.get(FIXED..)?;
    let original = Tuple::read(find(entry, TUPLE_ORIGINAL)?)?;
    let reply = Tuple::read(find(entry, TUPLE_REPLY)?)?;
    let ends = Ends { destination: original.destination, answerer: reply.source };
    if original.protocol != UDP || !wanted(&ends) {
        return None;
    }
    let mut identity = Vec::new();
    for (kind, value) in attributes(entry) {
        match kind {
            TUPLE_ORIGINAL => identity.extend(nested(kind, value)),
            ID | ZONE => identity.extend(attribute(kind, value)),
            _ => {}
        }
    }
    Some(Flow { ends, identity })
}

/// One direction of an entry.
struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (mut source, mut destination) = (None, None);
        for (kind, value) in attributes(find(bytes, TUPLE_IP)?) {
            match kind {
                V4_SOURCE | V6_SOURCE => source = ip(value),
                V4_DESTINATION | V6_DESTINATION => destination = ip(value),
                _ => {}
            }
        }
        let protocol = find(bytes, TUPLE_PROTOCOL)?;
        let port = |kind| Some(u16::from_be_bytes(find(protocol, kind)?.try_into().ok()?));
        Some(Self {
            protocol: *find(protocol, NUMBER)?.first()?,
            source: SocketAddr::new(source?, port(SOURCE_PORT)?),
            destination: SocketAddr::new(destination?, port(DESTINATION_PORT)?),
        })
    }
}
