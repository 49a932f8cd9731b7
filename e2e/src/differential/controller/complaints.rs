//! What kube-controller-manager's log says about slices that it cannot write.
//!
//! Invariant: a complaint counts only while it is repeated: what heals by a retry is not excused.

use std::collections::BTreeMap;

use super::{exception::Exception, state::Key};

/// What the endpoint controllers write for a Service, apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Endpoints.
    Endpoints,
    /// Slices of a Service with a selector.
    Selected,
    /// Mirrored slices.
    Mirrored,
}

impl Part {
    /// The part that a group of slices, or `Endpoints`, belongs to (see [`super::state::comparable`]).
    pub fn of_group(name: &str) -> Option<Self> {
        match name.split(' ').next() {
            Some("Endpoints") => Some(Self::Endpoints),
            Some("selected") => Some(Self::Selected),
            Some("mirrored") => Some(Self::Mirrored),
            _ => None,
        }
    }
}

/// What cannot be written, and why.
pub type Complaints = BTreeMap<(Key, Part), Exception>;

/// The complaints in a part of a log.
pub fn read(log: &str) -> Complaints {
    let mut found = BTreeMap::new();
    for line in log.lines() {
        let mirrors = line.contains("endpointslicemirroring_controller");
        let exception = if mirrors && line.contains("already exists") {
            Exception::MirrorRecycling
        } else if line.contains("EndpointSlice informer cache is out of date") {
            Exception::StuckTracker
        } else {
            continue;
        };
        let part = if mirrors { Part::Mirrored } else { Part::Selected };
        let key = line.split(" key=\"").nth(1).and_then(|rest| rest.split('"').next()?.split_once('/'));
        if let Some((namespace, name)) = key {
            found.insert(((namespace.to_owned(), name.to_owned()), part), exception);
        }
    }
    found
}

/// Follows a log from touch to touch.
#[derive(Debug, Default)]
pub struct Follower {
    read: usize,
    /// Complaints that were heard after the touches before this one, or at the quiet point before.
    known: Complaints,
}

impl Follower {
    /// Before the first touch of a step: what was complained of during the changes may have healed.
    pub fn begin(&mut self, log: &str) {
        self.read = log.len();
    }

    /// Before another touch: what was heard since the last one is known from now on.
    pub fn turn(&mut self, log: &str) {
        self.known.extend(read(log.get(self.read..).unwrap_or_default()));
        self.read = log.len();
    }

    /// What is still complained of since the last touch.
    pub fn repeated(&self, log: &str) -> Complaints {
        let mut repeated = read(log.get(self.read..).unwrap_or_default());
        repeated.retain(|about, _| self.known.contains_key(about));
        repeated
    }

    /// At a quiet point: what is not complained of any more is forgotten.
    pub fn settle(&mut self, log: &str) {
        self.known = self.repeated(log);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECYCLING: &str = "I1 1 endpointslicemirroring_controller.go:278] \"Error mirroring EndpointSlices for Endpoints, \
                             retrying\" key=\"a/b\" err=\"x already exists\"\n";
    const STUCK: &str = "I1 1 endpointslice_controller.go:346] \"Error syncing endpoint slices for service, retrying\" \
                         key=\"a/c\" err=\"EndpointSlice informer cache is out of date\"\n";

    fn about(name: &str, part: Part) -> (Key, Part) {
        (("a".to_owned(), name.to_owned()), part)
    }

    #[test]
    fn the_log_tells_what_is_stuck_and_where() {
        let log = format!("{RECYCLING}I1 1 other.go:1] \"fine\" key=\"a/d\"\n{STUCK}");
        let expected = [
            (about("b", Part::Mirrored), Exception::MirrorRecycling),
            (about("c", Part::Selected), Exception::StuckTracker),
        ];
        assert_eq!(read(&log), expected.into());
    }

    #[test]
    fn a_complaint_counts_once_it_is_repeated_after_a_touch() {
        let mut follower = Follower::default();
        let mut log = STUCK.to_owned();
        follower.begin(&log);
        log.push_str(STUCK);
        assert!(follower.repeated(&log).is_empty(), "once before the touch and once after it");
        follower.turn(&log);
        assert!(follower.repeated(&log).is_empty(), "not again yet");
        log.push_str(STUCK);
        assert_eq!(follower.repeated(&log).len(), 1);
        follower.settle(&log);
        follower.begin(&log);
        log.push_str(STUCK);
        assert_eq!(follower.repeated(&log).len(), 1, "known from the quiet point before");
        follower.begin(&log);
        follower.settle(&log);
        log.push_str(STUCK);
        follower.begin(&log);
        log.push_str(STUCK);
        assert!(follower.repeated(&log).is_empty(), "it was over in between");
    }
}
