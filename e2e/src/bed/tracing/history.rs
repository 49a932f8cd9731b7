//! Which rules the nodes had while a client asked.
//!
//! With nf_tables the kernel counts changes, so unchanged rules cost no more than a question, and a change that was not
//! seen is known to have been missed. The older iptables has no such count: its rules are read again and again, and
//! whenever they changed, more may have happened than was seen.
//!
//! Invariant: a history begins with the rules from before the job and ends with those from after it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    panic::resume_unwind,
    sync::{
        Arc, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use fairlead_objects::Family;

use super::{
    super::Bed,
    generation::Generation,
    memory::{self, Lists},
};
use crate::programs::Variant;

/// How often the rules are looked at while a client asks.
const PAUSE: Duration = Duration::from_millis(2);
/// The same where a look means to read them.
const LEGACY_PAUSE: Duration = Duration::from_millis(50);
/// Nobody changes rules so many times without a rest.
const ATTEMPTS: usize = 100;

/// One state of a node's rules.
#[derive(Clone, Debug)]
pub(super) struct State {
    generation: Option<u32>,
    pub(super) text: Arc<str>,
}

/// The rules of all nodes over some time, of one family.
#[derive(Debug)]
pub(in crate::bed) struct History {
    pub(super) family: Family,
    /// By node, the states seen, in order.
    pub(super) states: BTreeMap<u8, Vec<State>>,
    /// There may have been states that were not seen.
    pub(super) missed: bool,
    /// Which clients the nodes remembered at the beginning.
    pub(super) lists: Lists,
}

impl History {
    /// Whether the rules changed.
    pub(super) fn is_changing(&self) -> bool {
        self.states.values().any(|states| states.len() > 1)
    }

    fn add(&mut self, node: u8, state: State) {
        let states = self.states.entry(node).or_default();
        let Some(last) = states.last_mut() else { return states.push(state) };
        if last.text == state.text {
            last.generation = state.generation;
            return;
        }
        let next = last.generation.zip(state.generation).is_some_and(|(old, new)| new == old.wrapping_add(1));
        self.missed |= !next;
        states.push(state);
    }
}

impl Bed {
    /// Does a job and watches the rules meanwhile.
    pub(in crate::bed) fn observe<T: Send>(
        &self,
        family: Family,
        job: impl FnOnce() -> T + Send,
    ) -> Result<(T, History)> {
        let mut history = History { family, states: BTreeMap::new(), missed: false, lists: Lists::new() };
        self.look(&mut history)?;
        history.lists = self.lists(&history)?;
        let pause = if self.options.variant == Variant::Nft { PAUSE } else { LEGACY_PAUSE };
        let (running, ended) = mpsc::channel::<()>();
        let result = thread::scope(|scope| -> Result<T> {
            let job = scope.spawn(move || {
                // Its end, also by a panic, wakes the one who watches.
                let _running = running;
                job()
            });
            while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                self.look(&mut history)?;
            }
            Ok(job.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })?;
        self.look(&mut history)?;
        Ok((result, history))
    }

    /// Which clients the nodes remember now, if any rule asks for it.
    pub(super) fn lists(&self, history: &History) -> Result<Lists> {
        let mut lists = Lists::new();
        for (node, states) in &history.states {
            if states.iter().any(|state| state.text.contains("-m recent")) {
                lists.extend(memory::read(*node, self.node_netns(*node)?)?);
            }
        }
        Ok(lists)
    }

    fn look(&self, history: &mut History) -> Result<()> {
        for node in &self.plan {
            let state = self.state(node.number, history.family)?;
            history.add(node.number, state);
        }
        Ok(())
    }

    /// The rules of a node; read only if they may have changed since they were last read.
    fn state(&self, node: u8, family: Family) -> Result<State> {
        if self.options.variant != Variant::Nft {
            return Ok(State { generation: None, text: self.save(node, family)?.into() });
        }
        let mut states = self.tracer.states.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ATTEMPTS {
            let generation = Some(self.generation(node)?);
            if let Some(known) = states.get(&(node, family))
                && known.generation == generation
            {
                return Ok(known.clone());
            }
            let text = self.save(node, family)?.into();
            if Some(self.generation(node)?) == generation {
                states.insert((node, family), State { generation, text });
            }
        }
        bail!("the rules of node {node} never rest")
    }

    fn generation(&self, node: u8) -> Result<u32> {
        let mut generations = self.tracer.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = match generations.entry(node) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Generation::of(self.node_netns(node)?)?),
        };
        generation.read()
    }
}
