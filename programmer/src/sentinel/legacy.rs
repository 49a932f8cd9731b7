//! The counts of x_tables: how many entries a table has, and how large it is.
//!
//! `getsockopt(IPT_SO_GET_INFO)` is the only thing that the kernel tells about a table without copying all of it, and no
//! safe wrapper knows it.
//!
//! Invariant: an edit that keeps both counts is found within half a minute, any other within a second.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use fairlead_objects::Family;
use tokio::time::{Instant, sleep_until};

use super::Suspicion;

/// How often to look at the counts.
const PERIOD: Duration = Duration::from_millis(250);
/// How often to suspect everything in spite of equal counts.
const ROLLING: Duration = Duration::from_secs(25);
/// linux/netfilter_ipv4/ip_tables.h and ip6_tables.h: the option has the same number in both levels.
const GET_INFO: libc::c_int = 64;
/// `struct ipt_getinfo`: name (32), hooks (4), entry points (5 x 4), underflows (5 x 4), number of entries, size.
const INFO: usize = 84;
const ENTRIES: usize = 76;
const TABLES: [&str; 3] = ["filter", "nat", "mangle"];

/// Number of entries and size of each table.
type Counts = [Option<(u32, u32)>; TABLES.len()];

/// Looks at the counts again and again.
#[derive(Debug)]
pub struct Poll {
    socket: UdpSocket,
    level: libc::c_int,
    /// As of the end of our last writing.
    known: Counts,
    /// Entries of filter and nat that are not ours, at that time.
    beyond: Option<[i64; 2]>,
    doubted: bool,
    next: Instant,
    rolling: Instant,
    suspicious: bool,
}

impl Poll {
    /// Looks from now on, in the network namespace we run in.
    pub fn new(family: Family) -> io::Result<Self> {
        let (socket, level) = match family {
            Family::V4 => {
                (UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?, libc::SOL_IP)
            }
            Family::V6 => {
                (UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("[::]:0"))?, libc::SOL_IPV6)
            }
        };
        let now = Instant::now();
        let mut poll = Self {
            socket,
            level,
            known: Counts::default(),
            beyond: None,
            doubted: false,
            next: now + PERIOD,
            rolling: now + ROLLING,
            suspicious: false,
        };
        poll.known = poll.counts();
        Ok(poll)
    }

    fn counts(&self) -> Counts {
        TABLES.map(|table| info(self.socket.as_raw_fd(), self.level, table).ok())
    }

    pub(super) async fn stirred(&mut self) {
        while !self.suspicious {
            sleep_until(self.next).await;
            self.next = Instant::now() + PERIOD;
            self.look();
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.suspicious |= self.counts() != self.known;
        if now >= self.rolling {
            self.rolling = now + ROLLING;
            self.suspicious = true;
        }
    }

    pub(super) fn begin(&mut self, afresh: bool) {
        if afresh {
            self.suspicious = false;
            self.rolling = Instant::now() + ROLLING;
        } else {
            self.suspicious |= self.counts() != self.known;
        }
    }

    /// What is there beyond our own entries must be as much as before we wrote; else somebody else wrote meanwhile. (Or
    /// did before, and was looked at already: so there is one doubt, and no second.)
    pub(super) fn end(&mut self, ours: Option<[usize; 2]>) {
        self.known = self.counts();
        let [filter, nat, _] = self.known.map(|counts| counts.map_or(0, |(entries, _)| i64::from(entries)));
        let count = |ours: usize| i64::try_from(ours).unwrap_or(i64::MAX);
        let beyond = ours.map(|ours| [filter - count(ours[0]), nat - count(ours[1])]);
        let differs = self.beyond.is_some() && beyond.is_some() && self.beyond != beyond;
        self.doubted = differs && !self.doubted;
        self.suspicious |= self.doubted;
        self.beyond = beyond;
    }

    pub(super) fn take(&mut self) -> Suspicion {
        // Whatever comes of it: these counts were looked at.
        self.known = self.counts();
        if std::mem::take(&mut self.suspicious) { Suspicion::Everything } else { Suspicion::Nothing }
    }
}

#[allow(unsafe_code, reason = "no safe wrapper knows this socket option")]
fn info(socket: RawFd, level: libc::c_int, table: &str) -> io::Result<(u32, u32)> {
    let mut info = [0_u8; INFO];
    for (place, byte) in info.iter_mut().zip(table.bytes()) {
        *place = byte;
    }
    let mut length = libc::socklen_t::try_from(INFO).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the kernel reads and writes at most `length` bytes of `info`, which are there, and `length` itself.
    let code = unsafe {
        libc::getsockopt(socket, level, GET_INFO, info.as_mut_ptr().cast(), std::ptr::from_mut(&mut length))
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    let number =
        |at: usize| info.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    number(ENTRIES).zip(number(ENTRIES + 4)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
