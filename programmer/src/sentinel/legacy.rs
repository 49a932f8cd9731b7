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

/// What the counts mean. Pure: counts go in, a suspicion comes out.
///
/// After a comparison of everything that had to write, everything is compared again: what others wrote meanwhile cannot be
/// told from what we wrote. The last comparison is one that wrote nothing while nobody else did.
#[derive(Debug, Default)]
struct Ledger {
    /// As of the end of our last writing.
    known: Counts,
    /// While everything is compared: as of its begin.
    began: Option<Counts>,
    /// Entries of filter and nat that are not ours, at that time.
    beyond: Option<[i64; 2]>,
    suspicious: bool,
}

impl Ledger {
    fn look(&mut self, counts: Counts) {
        self.suspicious |= counts != self.known;
    }

    fn begin(&mut self, counts: Counts, afresh: bool) {
        if afresh {
            self.suspicious = false;
            self.began = Some(counts);
        } else {
            self.look(counts);
            self.began = None;
        }
    }

    /// We wrote so often, and `ours` is what filter and nat should hold of ours; or it failed, and everything will be
    /// compared anyway.
    fn end(&mut self, counts: Counts, written: Option<(usize, [usize; 2])>) {
        self.known = counts;
        let (began, Some((writers, ours))) = (self.began.take(), written) else { return };
        let [filter, nat, _] = counts.map(|counts| counts.map_or(0, |(entries, _)| i64::from(entries)));
        let count = |ours: usize| i64::try_from(ours).unwrap_or(i64::MAX);
        let beyond = Some([filter - count(ours[0]), nat - count(ours[1])]);
        self.suspicious |= match began {
            Some(began) => writers > 0 || began != counts,
            // What is there beyond our own entries must be as much as before.
            None => self.beyond != beyond,
        };
        self.beyond = beyond;
    }

    fn take(&mut self, counts: Counts) -> Suspicion {
        // Whatever comes of it: these counts were looked at.
        self.known = counts;
        if std::mem::take(&mut self.suspicious) { Suspicion::Everything } else { Suspicion::Nothing }
    }
}

/// Looks at the counts again and again.
#[derive(Debug)]
pub struct Poll {
    socket: UdpSocket,
    level: libc::c_int,
    ledger: Ledger,
    next: Instant,
    rolling: Instant,
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
        let ledger = Ledger::default();
        let mut poll = Self { socket, level, ledger, next: now + PERIOD, rolling: now + ROLLING };
        poll.ledger.known = poll.counts();
        Ok(poll)
    }

    fn counts(&self) -> Counts {
        TABLES.map(|table| info(self.socket.as_raw_fd(), self.level, table).ok())
    }

    pub(super) async fn stirred(&mut self) {
        while !self.ledger.suspicious {
            sleep_until(self.next).await;
            self.next = Instant::now() + PERIOD;
            self.ledger.look(self.counts());
            if Instant::now() >= self.rolling {
                self.rolling = Instant::now() + ROLLING;
                self.ledger.suspicious = true;
            }
        }
    }

    pub(super) fn begin(&mut self, afresh: bool) {
        if afresh {
            self.rolling = Instant::now() + ROLLING;
        }
        self.ledger.begin(self.counts(), afresh);
    }

    pub(super) fn end(&mut self, written: Option<(usize, [usize; 2])>) {
        self.ledger.end(self.counts(), written);
    }

    pub(super) fn take(&mut self) -> Suspicion {
        self.ledger.take(self.counts())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// With `entries` in filter and in nat, 40 of them ours.
    fn counts(entries: u32) -> Counts {
        [Some((entries, entries * 200)), Some((entries, entries * 200)), None]
    }

    const OURS: [usize; 2] = [40, 40];

    /// Everything was compared, and nothing had to be written.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.begin(counts(50), true);
        ledger.end(counts(50), Some((0, OURS)));
        assert!(!ledger.suspicious);
        ledger
    }

    #[test]
    fn other_counts_are_suspicious_and_our_own_writing_is_not() {
        let mut ledger = ledger();
        ledger.begin(counts(50), false);
        ledger.end(counts(53), Some((1, [43, 43])));
        ledger.look(counts(53));
        assert_eq!(ledger.take(counts(53)), Suspicion::Nothing);
        ledger.look(counts(52));
        assert_eq!(ledger.take(counts(52)), Suspicion::Everything);
        ledger.look(counts(52));
        assert_eq!(ledger.take(counts(52)), Suspicion::Nothing);
    }

    #[test]
    fn stranger_who_writes_before_or_while_we_write_is_suspected() {
        for (before, after) in [(51, 54), (50, 54)] {
            let mut ledger = ledger();
            ledger.begin(counts(before), false);
            ledger.end(counts(after), Some((1, [43, 43])));
            assert_eq!(ledger.take(counts(after)), Suspicion::Everything);
        }
    }

    #[test]
    fn comparison_is_repeated_until_nobody_wrote_meanwhile() {
        let mut ledger = ledger();
        for (writers, before, after, again) in
            [(1, 49, 50, true), (0, 50, 48, true), (1, 48, 50, true), (0, 50, 50, false)]
        {
            ledger.begin(counts(before), true);
            ledger.end(counts(after), Some((writers, OURS)));
            assert_eq!(!ledger.take(counts(after)).is_nothing(), again);
        }
    }

    #[test]
    fn what_failed_is_compared_anyway() {
        let mut ledger = ledger();
        ledger.begin(counts(50), false);
        ledger.end(counts(47), None);
        assert_eq!(ledger.take(counts(47)), Suspicion::Nothing);
    }
}
