//! The messages of nf_tables: who touched which chains.
//!
//! A transaction is announced as its changes, each naming its table and chain, and then its end, naming the process. Our
//! own transactions are told from others by counting processes: while we write, `n` restores may touch chains that
//! concern us from `n` processes. One process more is somebody else. (Process numbers themselves say nothing: the kernel
//! gives them as seen from outside of our container.)
//!
//! Invariant: if messages were lost, everything is suspected.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use fairlead_compiler::{ChainName, ChainRef, Table};
use fairlead_objects::Family;
use tokio::io::{Interest, unix::AsyncFd};

use super::{Concern, Suspicion};
use crate::netlink::{Message, Socket, find};

/// linux/netfilter/nfnetlink.h: the multicast group of nf_tables.
const GROUP: u32 = 7;
/// Types of messages, the subsystem in the upper byte.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const GENERATION: u16 = SUBSYSTEM | 15;
/// Attributes.
const TABLE_NAME: u16 = 1;
const CHAIN_HANDLE: u16 = 2;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const GENERATION_PROCESS: u16 = 2;
/// Size of the fixed part, `nfgenmsg`.
const FIXED: usize = 4;
/// Messages that may wait: a full load of 10,000 Services while the loop is busy for a moment.
const ROOM: usize = 32 << 20;
/// A transaction that touches more than this is a flush, a load, or ours.
const MOST_CHAINS: usize = 64;

/// What one process touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Touched {
    chains: BTreeSet<ChainRef>,
    /// Whole tables, or too many chains to count.
    everything: bool,
}

impl Touched {
    fn add(&mut self, chain: ChainRef) {
        if !self.everything {
            self.chains.insert(chain);
            self.everything = self.chains.len() > MOST_CHAINS;
        }
    }

    fn merge(&mut self, other: Self) {
        self.everything |= other.everything;
        self.chains.extend(other.chains);
    }

    fn is_nothing(&self) -> bool {
        !self.everything && self.chains.is_empty()
    }

    fn concerns(&self, concern: Concern<'_>) -> bool {
        self.everything || self.chains.iter().any(concern)
    }
}

/// Tells a renamed chain from a new one: both are announced by name, as new, but numbers of new chains only grow.
#[derive(Debug, Default)]
struct Numbers {
    /// The newest chain of each table, since we listen.
    newest: BTreeMap<Table, u64>,
    /// Chains of others that were announced before.
    strangers: BTreeSet<(Table, u64)>,
}

impl Numbers {
    /// Whether the chain, which is announced under this name, may have been one of ours: it is old, and nothing was heard of
    /// it but that.
    fn may_have_been_ours(&mut self, table: &Table, number: u64, name: &str) -> bool {
        let newest = self.newest.get(table).copied();
        // Until the first one was made that we heard of, any may be old.
        let is_old = newest.is_none_or(|newest| number <= newest);
        self.newest.insert(table.clone(), newest.map_or(number, |newest| newest.max(number)));
        !name.starts_with("KUBE-") && self.strangers.insert((table.clone(), number)) && is_old
    }

    fn forget(&mut self, table: &Table, number: u64) {
        self.strangers.remove(&(table.clone(), number));
    }
}

/// Who touched what. Pure: messages go in, suspicions come out.
#[derive(Debug)]
struct Notes {
    family: u8,
    numbers: Numbers,
    /// The transaction whose end has not come.
    open: Touched,
    /// By others.
    foreign: Touched,
    /// While we write: by process.
    window: Option<BTreeMap<u32, Touched>>,
}

impl Notes {
    fn new(family: Family) -> Self {
        let family = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let (open, foreign) = (Touched::default(), Touched::default());
        Self { family, numbers: Numbers::default(), open, foreign, window: None }
    }

    fn observe(&mut self, message: Message<'_>) {
        let Some(attributes) = message.body.get(FIXED..) else { return };
        if message.kind == GENERATION {
            let process = find(attributes, GENERATION_PROCESS).and_then(|value| value.try_into().ok());
            self.close(process.map_or(0, u32::from_be_bytes));
            return;
        }
        if message.body.first() != Some(&self.family) {
            return;
        }
        let chain = match message.kind {
            NEW_TABLE | DELETE_TABLE => {
                // Making a table changes nothing of what is in it; being without one of ours does.
                let name = find(attributes, TABLE_NAME).and_then(text);
                let ours = name.is_none_or(|name| !matches!(Table::named(name), Table::Other(_)));
                self.open.everything |= ours && message.kind == DELETE_TABLE;
                return;
            }
            NEW_CHAIN | DELETE_CHAIN => find(attributes, CHAIN_NAME),
            NEW_RULE | DELETE_RULE => find(attributes, RULE_CHAIN),
            _ => return,
        };
        if let (Some(table), Some(chain)) =
            (find(attributes, TABLE_NAME).and_then(text), chain.and_then(text))
        {
            let table = Table::named(table);
            let number = find(attributes, CHAIN_HANDLE).and_then(|value| value.try_into().ok());
            match (message.kind, number.map(u64::from_be_bytes)) {
                (NEW_CHAIN, Some(number)) => {
                    self.open.everything |= self.numbers.may_have_been_ours(&table, number, chain);
                }
                (DELETE_CHAIN, Some(number)) => self.numbers.forget(&table, number),
                _ => {}
            }
            self.open.add(ChainRef::new(table, ChainName::from(chain)));
        }
    }

    fn close(&mut self, process: u32) {
        let touched = std::mem::take(&mut self.open);
        if touched.is_nothing() {
            return;
        }
        match &mut self.window {
            Some(window) => window.entry(process).or_default().merge(touched),
            None => self.foreign.merge(touched),
        }
    }

    fn lost(&mut self) {
        self.foreign.everything = true;
    }

    fn begin(&mut self, afresh: bool) {
        if afresh {
            self.foreign = Touched::default();
        }
        self.window = Some(BTreeMap::new());
    }

    fn end(&mut self, writers: usize, concern: Concern<'_>) {
        let mut window = self.window.take().unwrap_or_default();
        window.retain(|_, touched| touched.concerns(concern));
        if window.len() > writers {
            // Which of them is not ours cannot be told.
            for touched in window.into_values() {
                self.foreign.merge(touched);
            }
        }
    }

    fn take(&mut self, concern: Concern<'_>) -> Suspicion {
        let Touched { chains, everything } = std::mem::take(&mut self.foreign);
        if everything {
            return Suspicion::Everything;
        }
        let mut suspicion = Suspicion::Nothing;
        for chain in chains.into_iter().filter(|chain| concern(chain)) {
            suspicion.add(Suspicion::Chains([chain].into()));
        }
        suspicion
    }
}

/// Names end with a zero byte.
fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// Listens to nf_tables.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<Socket>,
    notes: Notes,
}

impl Listener {
    /// Listens from now on, in the network namespace we run in.
    pub fn new(family: Family) -> io::Result<Self> {
        let socket = registered(Socket::netfilter()?.listen(GROUP, ROOM)?)?;
        Ok(Self { socket, notes: Notes::new(family) })
    }

    pub(super) async fn stirred(&mut self, idle: bool) {
        while !idle || self.notes.foreign.is_nothing() {
            let Ok(mut guard) = self.socket.readable_mut().await else {
                return std::future::pending().await;
            };
            let notes = &mut self.notes;
            match guard.try_io(|socket| socket.get_mut().receive(|message| notes.observe(message))) {
                Ok(Err(error)) if is_overrun(&error) => notes.lost(),
                _ => {}
            }
        }
    }

    pub(super) fn begin(&mut self, afresh: bool) {
        self.drain();
        self.notes.begin(afresh);
    }

    pub(super) fn end(&mut self, writers: usize, concern: Concern<'_>) {
        // The kernel announces a transaction before it lets its process go on.
        self.drain();
        self.notes.end(writers, concern);
    }

    pub(super) fn take(&mut self, concern: Concern<'_>) -> Suspicion {
        self.drain();
        self.notes.take(concern)
    }

    fn drain(&mut self) {
        let notes = &mut self.notes;
        loop {
            match self.socket.get_mut().receive(|message| notes.observe(message)) {
                Ok(()) => {}
                Err(error) if is_overrun(&error) => notes.lost(),
                Err(_) => return,
            }
        }
    }
}

#[allow(unsafe_code, reason = "tokio takes a promise, instead of a type that keeps it")]
fn registered(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, never closes or replaces it while it lives, and only ever names that one.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(registered?)
}

/// More was sent than the socket had room for.
fn is_overrun(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOBUFS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    const V4: u8 = 2;

    fn notes() -> Notes {
        Notes::new(Family::V4)
    }

    fn rule(notes: &mut Notes, family: u8, table: &str, chain: &str) {
        let name = |kind, text: &str| attribute(kind, format!("{text}\0").as_bytes());
        let mut body = vec![family, 0, 0, 0];
        body.extend(name(TABLE_NAME, table));
        body.extend(name(RULE_CHAIN, chain));
        notes.observe(Message { kind: NEW_RULE, body: &body });
    }

    fn new_chain(notes: &mut Notes, number: u64, name: &str) {
        let mut body = vec![V4, 0, 0, 0];
        body.extend(attribute(TABLE_NAME, b"nat\0"));
        body.extend(attribute(CHAIN_HANDLE, &number.to_be_bytes()));
        body.extend(attribute(CHAIN_NAME, format!("{name}\0").as_bytes()));
        notes.observe(Message { kind: NEW_CHAIN, body: &body });
        end(notes, 1);
    }

    fn end(notes: &mut Notes, process: u32) {
        let mut body = vec![0, 0, 0, 0];
        body.extend(attribute(1, &[0, 0, 0, 9]));
        body.extend(attribute(GENERATION_PROCESS, &process.to_be_bytes()));
        notes.observe(Message { kind: GENERATION, body: &body });
    }

    fn chain(name: &str) -> ChainRef {
        ChainRef::new(Table::Nat, ChainName::from(name))
    }

    fn ours(chain: &ChainRef) -> bool {
        chain.name.as_str().starts_with("KUBE-")
    }

    #[test]
    fn only_chains_that_concern_us_are_suspected() {
        let mut notes = notes();
        rule(&mut notes, V4, "nat", "DOCKER");
        rule(&mut notes, V4, "nat", "KUBE-SERVICES");
        rule(&mut notes, 10, "nat", "KUBE-NODEPORTS");
        end(&mut notes, 1);
        assert_eq!(notes.take(&ours), Suspicion::Chains([chain("KUBE-SERVICES")].into()));
        assert_eq!(notes.take(&ours), Suspicion::Nothing);
    }

    #[test]
    fn our_own_writing_is_not_suspected_and_a_stranger_in_between_is() {
        let mut notes = notes();
        notes.begin(false);
        for process in [10, 11] {
            rule(&mut notes, V4, "nat", "KUBE-SERVICES");
            end(&mut notes, process);
        }
        rule(&mut notes, V4, "nat", "DOCKER");
        end(&mut notes, 12);
        notes.end(2, &ours);
        assert_eq!(notes.take(&ours), Suspicion::Nothing);

        notes.begin(false);
        for (process, name) in [(20, "KUBE-SERVICES"), (21, "KUBE-MARK-MASQ")] {
            rule(&mut notes, V4, "nat", name);
            end(&mut notes, process);
        }
        notes.end(1, &ours);
        let both = [chain("KUBE-SERVICES"), chain("KUBE-MARK-MASQ")].into();
        assert_eq!(notes.take(&ours), Suspicion::Chains(both));
    }

    #[test]
    fn deleted_table_lost_messages_and_floods_make_everything_suspect() {
        let mut notes = notes();
        let body = [vec![V4, 0, 0, 0], attribute(TABLE_NAME, b"nat\0")].concat();
        notes.observe(Message { kind: DELETE_TABLE, body: &body });
        end(&mut notes, 1);
        assert_eq!(notes.take(&ours), Suspicion::Everything);
        notes.lost();
        assert_eq!(notes.take(&ours), Suspicion::Everything);
        for number in 0..100 {
            rule(&mut notes, V4, "nat", &format!("KUBE-SVC-{number}"));
        }
        end(&mut notes, 1);
        assert_eq!(notes.take(&ours), Suspicion::Everything);
    }

    #[test]
    fn chain_that_takes_another_name_makes_everything_suspect_once() {
        let mut notes = notes();
        new_chain(&mut notes, 7, "KUBE-SERVICES");
        assert_eq!(notes.take(&ours), Suspicion::Chains([chain("KUBE-SERVICES")].into()));
        for (number, name, is_suspected) in [
            (9, "DOCKER", false),
            (9, "DOCKER", false),
            (7, "KEPT", true),
            (7, "KEPT", false),
            (5, "OLD", true),
        ] {
            new_chain(&mut notes, number, name);
            assert_eq!(!notes.take(&ours).is_nothing(), is_suspected, "{name}");
        }
    }

    #[test]
    fn what_a_full_sync_reads_anyway_is_forgotten() {
        let mut notes = notes();
        rule(&mut notes, V4, "nat", "KUBE-SERVICES");
        end(&mut notes, 1);
        notes.begin(true);
        notes.end(0, &ours);
        assert_eq!(notes.take(&ours), Suspicion::Nothing);
    }
}
