//! An in-memory table of flows for tests.

use std::io;

use fairlead_objects::Family;
use parking_lot::{Condvar, Mutex};

use super::{Ends, Flow, FlowTable, Listing};

/// Flows, and how many lists fail or are partial from now on.
#[derive(Debug, Default)]
pub(crate) struct Model {
    flows: Mutex<Vec<Ends>>,
    failures: Mutex<usize>,
    interruptions: Mutex<usize>,
    lists: Mutex<usize>,
    held: Mutex<bool>,
    released: Condvar,
}

impl Model {
    pub(crate) fn add(&self, destination: &str, answerer: &str) {
        let (destination, answerer) = (destination.parse().unwrap(), answerer.parse().unwrap());
        self.flows.lock().push(Ends { destination, answerer });
    }

    pub(crate) fn flows(&self) -> Vec<String> {
        self.flows.lock().iter().map(|ends| format!("{}>{}", ends.destination, ends.answerer)).collect()
    }

    pub(crate) fn fail(&self, lists: usize) {
        *self.failures.lock() = lists;
    }

    pub(crate) fn interrupt(&self, lists: usize) {
        *self.interruptions.lock() = lists;
    }

    /// Whether lists wait, after they are counted and before they read.
    pub(crate) fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.released.notify_all();
    }

    pub(crate) fn lists(&self) -> usize {
        *self.lists.lock()
    }
}

fn counted_down(count: &Mutex<usize>) -> bool {
    let mut count = count.lock();
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

impl FlowTable for Model {
    fn list(&self, _: Family, wanted: &dyn Fn(&Ends) -> bool) -> io::Result<Listing> {
        *self.lists.lock() += 1;
        self.released.wait_while(&mut self.held.lock(), |held| *held);
        if counted_down(&self.failures) {
            return Err(io::Error::other("no"));
        }
        let partial = counted_down(&self.interruptions);
        let flows = self.flows.lock();
        let wanted = flows.iter().filter(|ends| wanted(ends));
        let flows = wanted.map(|ends| Flow { ends: *ends, identity: Vec::new() });
        // A partial list lacks its end.
        let keep = if partial { 1 } else { usize::MAX };
        Ok(Listing { flows: flows.take(keep).collect(), partial })
    }

    fn delete(&self, _: Family, doomed: &[Flow]) -> io::Result<u64> {
        let mut flows = self.flows.lock();
        let before = flows.len();
        flows.retain(|ends| doomed.iter().all(|flow| flow.ends != *ends));
        u64::try_from(before - flows.len()).map_err(io::Error::other)
    }
}
