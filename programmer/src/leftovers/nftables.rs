//! kube-proxy's mode nftables: one table in each family, which is removed as a whole.

use std::io;

use fairlead_objects::Family;

use crate::netlink::{Request, Socket};

/// linux/netfilter/nf_tables.h.
const SUBSYSTEM: u8 = 10;
const DELETE_TABLE: u16 = 0xa02;
const TABLE_NAME: u16 = 1;
/// The name of kube-proxy's tables.
const TABLE: &[u8] = b"kube-proxy\0";

/// Removes the table; false if there is none.
pub fn remove_table(family: Family) -> io::Result<bool> {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    let request = Request::new(DELETE_TABLE, &[number, 0, 0, 0]).with(TABLE_NAME, TABLE);
    match Socket::netfilter()?.transaction(SUBSYSTEM, &request) {
        Ok(()) => Ok(true),
        // No such table; no nf_tables at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}
