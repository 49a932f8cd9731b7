//! The lists of clients that session affinity keeps (`xt_recent`): who is on them is the kernel's word, since when is
//! what the bed saw itself.
//!
//! Invariant: where the bed cannot know whether an entry is still young enough, the answer is "maybe", never a guess.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{netns::Netns, probe::Span};

/// Where the kernel shows the lists of the namespace that the calling thread is in.
const LISTS: &str = "/proc/thread-self/net/xt_recent";

/// The kernel counts time in ticks, and the bed takes it outside the kernel.
const MARGIN: Duration = Duration::from_millis(50);

/// The kernel keeps so many clients on a list, the last ones.
const ROOM: usize = 100;

/// A client on a list of a node.
pub(in crate::bed) type Place = (u8, Arc<str>, IpAddr);

/// Who is on which list.
pub(in crate::bed) type Lists = BTreeSet<Place>;

/// Whether a rule finds a client on its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recalled {
    Yes,
    No,
    Maybe,
}

/// When a client was put on a list.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    /// For sure not before this; `None` if it is not sure that it was.
    after: Option<Instant>,
    /// At the latest.
    before: Instant,
}

/// All that is known about entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    stamps: BTreeMap<Place, Stamp>,
}

impl Memory {
    /// Takes over what the kernel says. An entry that the bed did not see coming is older than nothing but `oldest`.
    pub(super) fn sync(&mut self, lists: &Lists, oldest: Instant) {
        self.stamps.retain(|place, _| lists.contains(place));
        for place in lists {
            let unseen = Stamp { after: Some(oldest), before: Instant::now() };
            let stamp = self.stamps.entry(place.clone()).or_insert(unseen);
            stamp.after = stamp.after.or(Some(oldest));
        }
    }

    /// What a rule with this timeout finds when a packet comes in that time.
    pub(super) fn recall(&self, place: &Place, seconds: u32, packet: Span) -> Recalled {
        let Some(stamp) = self.stamps.get(place) else { return Recalled::No };
        let timeout = Duration::from_secs(seconds.into());
        let oldest = stamp.after.map(|after| packet.until.saturating_duration_since(after));
        let youngest = packet.from.saturating_duration_since(stamp.before);
        match oldest {
            Some(age) if age + MARGIN <= timeout => Recalled::Yes,
            _ if youngest > timeout + MARGIN => Recalled::No,
            _ => Recalled::Maybe,
        }
    }

    /// A packet put its sender on one of these lists. `sure`: on all of them.
    pub(super) fn put(&mut self, places: &Lists, packet: Span, sure: bool) {
        for place in places {
            let unsure = Stamp { after: None, before: packet.until };
            let stamp = self.stamps.entry(place.clone()).or_insert(unsure);
            stamp.before = packet.until;
            if sure {
                stamp.after = Some(packet.from);
            }
        }
    }

    /// A client that is not on a list any more, though it should be. Of a full list nothing is known.
    pub(super) fn forgotten(&self, node: u8, list: &Arc<str>, seconds: u32, lists: &Lists) -> Option<Place> {
        let timeout = Duration::from_secs(seconds.into());
        let full = lists.iter().filter(|place| place.0 == node && place.1 == *list).count() >= ROOM;
        let missing = |place: &&Place| {
            let stamp = self.stamps.get(*place).and_then(|stamp| stamp.after);
            !lists.contains(*place) && stamp.is_some_and(|after| after.elapsed() + MARGIN < timeout)
        };
        self.places(node, list).find(missing).filter(|_| !full).cloned()
    }

    /// The entries of a list.
    pub(super) fn places<'a>(&'a self, node: u8, list: &'a Arc<str>) -> impl Iterator<Item = &'a Place> {
        self.stamps.keys().filter(move |place| place.0 == node && place.1 == *list)
    }

    /// The clients that were put on a list so recently that no timeout has taken them off.
    pub(super) fn fresh(&self, since: Instant) -> impl Iterator<Item = &Place> {
        let young = move |stamp: &Stamp| {
            stamp.after.is_some_and(|after| after >= since && after.elapsed() < Duration::from_millis(500))
        };
        self.stamps.iter().filter(move |(_, stamp)| young(stamp)).map(|(place, _)| place)
    }
}

/// What the kernel has of a node. Lists come and go with the rules that name them.
pub(in crate::bed) fn read(node: u8, namespace: &Netns) -> Result<Lists> {
    let lists = namespace.run(|| -> io::Result<Vec<(Arc<str>, String)>> {
        let folder = Path::new(LISTS);
        let names = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found?.collect::<io::Result<Vec<_>>>()?,
        };
        let texts = names.into_iter().map(|list| {
            let name = list.file_name().to_string_lossy().into_owned();
            match fs::read_to_string(list.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((name.into(), String::new())),
                text => Ok((name.into(), text?)),
            }
        });
        texts.collect()
    })??;
    let clients = |text: &str| text.lines().filter_map(client).collect::<Vec<IpAddr>>();
    Ok(lists
        .iter()
        .flat_map(|(list, text)| {
            clients(text).into_iter().map(move |client| (node, Arc::clone(list), client))
        })
        .collect())
}

/// The address in a line `src=10.244.1.2 ttl: 64 last_seen: 4295 oldest_pkt: 1 4295`.
fn client(line: &str) -> Option<IpAddr> {
    line.strip_prefix("src=")?.split(' ').next()?.parse().ok()
}
