//! What a daemon still waits for.
//!
//! Each part of a daemon that must be there before it does its work holds a [`Gate`]; the daemon is ready when every gate
//! is open. A gate that opened stays open: a daemon that knew the whole state once goes on working from it while a
//! connection is being repaired, and says so as a note.
//!
//! Invariant: the list of gates is in the order in which they were made, so that the text is stable.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

/// All gates of a daemon. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    gates: Arc<Mutex<Vec<Gate>>>,
}

/// One thing that a daemon waits for. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    name: Arc<str>,
    state: Arc<watch::Sender<State>>,
}

/// State of a gate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// It has been open.
    pub open: bool,
    /// What hinders it now, or what is wrong although it has been open.
    pub trouble: Option<String>,
}

impl Readiness {
    /// Adds a closed gate; `name` is what its reader knows it by, such as `Pods`.
    pub fn gate(&self, name: impl Into<Arc<str>>) -> Gate {
        let gate = Gate { name: name.into(), state: Arc::default() };
        self.gates.lock().push(gate.clone());
        gate
    }

    /// Whether every gate is open.
    pub fn is_ready(&self) -> bool {
        self.gates.lock().iter().all(Gate::is_open)
    }

    /// Waits until every gate that exists now is open.
    pub async fn wait(&self) {
        let gates: Vec<Gate> = self.gates.lock().clone();
        for gate in gates {
            gate.opened().await;
        }
    }

    /// All gates, in the order in which they were made.
    pub fn gates(&self) -> Vec<Gate> {
        self.gates.lock().clone()
    }
}

/// One line per gate: `[+]Pods ok`, `[-]Pods: forbidden: ...`.
impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for gate in self.gates.lock().iter() {
            let State { open, trouble } = gate.state();
            let mark = if open { '+' } else { '-' };
            match (open, trouble) {
                (true, None) => writeln!(f, "[{mark}]{} ok", gate.name)?,
                (true, Some(trouble)) => writeln!(f, "[{mark}]{} was ok, now: {trouble}", gate.name)?,
                (false, None) => writeln!(f, "[{mark}]waiting for {}", gate.name)?,
                (false, Some(trouble)) => writeln!(f, "[{mark}]waiting for {}: {trouble}", gate.name)?,
            }
        }
        Ok(())
    }
}

impl Gate {
    /// What it is known by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens it, and forgets any trouble.
    pub fn open(&self) {
        self.state.send_replace(State { open: true, trouble: None });
    }

    /// Says what is wrong. Returns whether that is news.
    pub fn trouble(&self, text: impl Into<String>) -> bool {
        let text = text.into();
        self.state.send_if_modified(|state| {
            let news = state.trouble.as_deref() != Some(&text);
            state.trouble = Some(text);
            news
        })
    }

    /// Says that nothing is wrong any more. Returns whether that is news.
    pub fn well(&self) -> bool {
        self.state.send_if_modified(|state| state.trouble.take().is_some())
    }

    /// Whether it has been open.
    pub fn is_open(&self) -> bool {
        self.state.borrow().open
    }

    /// Whether something is wrong now.
    pub fn is_troubled(&self) -> bool {
        self.state.borrow().trouble.is_some()
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until it opens.
    pub async fn opened(&self) {
        self.until(|state| state.open).await;
    }

    /// Waits until it opens or meets trouble: until the first attempt is over, either way.
    pub async fn attempted(&self) {
        self.until(|state| state.open || state.trouble.is_some()).await;
    }

    async fn until(&self, condition: impl Fn(&State) -> bool) {
        let mut receiver = self.state.subscribe();
        // The sender lives as long as `self`, so this does not end for another reason.
        drop(receiver.wait_for(|state| condition(state)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing_and_why() {
        let readiness = Readiness::default();
        let (services, pods) = (readiness.gate("Services"), readiness.gate("Pods"));
        services.open();
        pods.trouble("forbidden: no list");
        assert!(!readiness.is_ready());
        assert_eq!(readiness.to_string(), "[+]Services ok\n[-]waiting for Pods: forbidden: no list\n");
    }

    #[test]
    fn gate_that_was_open_stays_open_in_trouble() {
        let readiness = Readiness::default();
        let gate = readiness.gate("Pods");
        gate.open();
        assert!(gate.trouble("unreachable"));
        assert!(!gate.trouble("unreachable"), "the same trouble is no news");
        assert!(readiness.is_ready());
        assert!(gate.well() && !gate.well());
    }

    #[tokio::test]
    async fn attempt_ends_with_trouble_as_well() {
        let gate = Readiness::default().gate("Pods");
        gate.trouble("forbidden");
        gate.attempted().await;
    }
}
