//! Rules as the tracer reads them, and the ways in which the states of a changing ruleset may have met one packet.
//!
//! A packet passes the hooks of one table after those of the other, and of one node after those of the other. So while
//! rules change it may meet each table of each node in any of the states that there were.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

use anyhow::{Context, Result, ensure};
use fairlead_compiler::{self as compiler, Affinity, Dump, Match, Probability, Table};

use super::{
    super::Bed,
    history::{History, State},
    memory::Recalled,
};

/// Rules of a node.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) dump: Dump,
    /// The lists that rules look clients up on, and within how many seconds.
    pub(super) recalls: BTreeSet<(Arc<str>, u32)>,
}

/// The rules of all nodes at some moment.
pub(super) type World = BTreeMap<u8, Arc<Parsed>>;

/// Texts that were parsed, the last one last.
pub(super) type Cache = Vec<(Arc<str>, Arc<Parsed>)>;

/// More texts than are in use at a time.
const CACHED: usize = 16;

/// A test that changes rules more often within one request compares nothing.
const WORLDS: usize = 5_000;

impl Parsed {
    fn of(dump: Dump) -> Self {
        let chains = dump.tables.values().flat_map(BTreeMap::values);
        let matches = chains.flat_map(|chain| &chain.rules).flat_map(|rule| &rule.matches);
        let recalls = matches.filter_map(|condition| match condition {
            Match::Affinity { list, action: Affinity::Recall { seconds } } => {
                Some((Arc::clone(list), *seconds))
            }
            _ => None,
        });
        Self { recalls: recalls.collect(), dump }
    }

    /// The rules as they are for a client on these lists; and whether it may be on one. The tracer takes lists for
    /// empty: a rule that finds the client loses the question, one that may find it becomes a matter of chance.
    pub(super) fn recalling(&self, recalled: impl Fn(&Arc<str>) -> Recalled) -> (Cow<'_, Dump>, bool) {
        let verdicts: BTreeMap<&Arc<str>, Recalled> =
            self.recalls.iter().map(|(list, _)| (list, recalled(list))).collect();
        if verdicts.values().all(|verdict| *verdict == Recalled::No) {
            return (Cow::Borrowed(&self.dump), false);
        }
        let mut dump = self.dump.clone();
        let nat = dump.tables.get_mut(&Table::Nat).into_iter().flat_map(BTreeMap::values_mut);
        for condition in nat.flat_map(|chain| &mut chain.rules).flat_map(|rule| &mut rule.matches) {
            let Match::Affinity { list, action: Affinity::Recall { .. } } = condition else { continue };
            match verdicts.get(list) {
                Some(Recalled::Yes) => *condition = Match::Random(Probability::one_in(1)),
                Some(Recalled::Maybe) => *condition = Match::Random(Probability::one_in(2)),
                _ => {}
            }
        }
        (Cow::Owned(dump), verdicts.values().any(|verdict| *verdict == Recalled::Maybe))
    }
}

impl Bed {
    /// Every way in which one packet may have met the rules.
    pub(super) fn worlds(&self, history: &History) -> Result<Vec<World>> {
        let mut worlds = vec![World::new()];
        for (node, states) in &history.states {
            let mut more = Vec::new();
            for parsed in self.mixed(states).with_context(|| format!("the rules of node {node}"))? {
                for world in &worlds {
                    let mut world = world.clone();
                    world.insert(*node, Arc::clone(&parsed));
                    more.push(world);
                }
            }
            worlds = more;
            ensure!(worlds.len() <= WORLDS, "the rules changed too often to compare anything with them");
        }
        Ok(worlds)
    }

    /// The nat table of each state with the filter table of each.
    fn mixed(&self, states: &[State]) -> Result<Vec<Arc<Parsed>>> {
        let parsed: Vec<Arc<Parsed>> =
            states.iter().map(|state| self.parsed(&state.text)).collect::<Result<_>>()?;
        if let [only] = parsed.as_slice() {
            return Ok(vec![Arc::clone(only)]);
        }
        let (mut nats, mut filters): (Vec<&Dump>, Vec<&Dump>) = (Vec::new(), Vec::new());
        for Parsed { dump, .. } in parsed.iter().map(AsRef::as_ref) {
            for (kept, table) in [(&mut nats, Table::Nat), (&mut filters, Table::Filter)] {
                if !kept.iter().any(|known| known.tables.get(&table) == dump.tables.get(&table)) {
                    kept.push(dump);
                }
            }
        }
        let mix = |nat: &Dump, filter: &Dump| {
            let tables = [(Table::Nat, nat), (Table::Filter, filter)];
            let tables = tables.map(|(table, dump)| (table.clone(), dump.tables.get(&table).cloned()));
            let tables = tables.into_iter().filter_map(|(table, chains)| Some((table, chains?))).collect();
            Arc::new(Parsed::of(Dump { tables }))
        };
        Ok(nats.iter().flat_map(|nat| filters.iter().map(|filter| mix(nat, filter))).collect())
    }

    fn parsed(&self, text: &Arc<str>) -> Result<Arc<Parsed>> {
        let mut cache = self.tracer.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, parsed)) = cache.iter().find(|(known, _)| known == text) {
            return Ok(Arc::clone(parsed));
        }
        let parsed = Arc::new(Parsed::of(compiler::parse(text)?));
        cache.push((Arc::clone(text), Arc::clone(&parsed)));
        if cache.len() > CACHED {
            cache.remove(0);
        }
        Ok(parsed)
    }
}
