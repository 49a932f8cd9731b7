//! Names of new slices: derived from what they hold, so that a repeated request and a new leader with an old view of the
//! cluster ask for the same object instead of making a second one.
//!
//! Invariant: a name is handed out once, and never while an object known to exist is called so.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

/// What the API server draws generated suffixes from: no vowels, no characters that look alike.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the suffix after the dash.
const SUFFIX: usize = 5;
/// Longest base that the API server keeps when it generates a name.
const MAX_BASE: usize = 58;

/// The names of slices that are in use in one namespace, as far as one Service is concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    used: BTreeSet<String>,
}

impl Names {
    pub(crate) fn new(used: BTreeSet<String>) -> Self {
        Self { used }
    }

    /// A name for a new slice: `<service>-<suffix>`. `identity` is what distinguishes the slice: owner, family, port set.
    pub(crate) fn take(&mut self, service: &str, identity: &[&str]) -> String {
        let mut ordinal: u64 = 0;
        loop {
            let name = candidate(service, identity, ordinal);
            if self.used.insert(name.clone()) {
                return name;
            }
            ordinal = ordinal.wrapping_add(1);
        }
    }
}

/// What upstream sends as `generateName`; kept so that objects look the same.
pub(crate) fn generate_name(service: &str) -> String {
    format!("{service}-")
}

fn candidate(service: &str, identity: &[&str], ordinal: u64) -> String {
    let mut hash = Sha256::new();
    for part in identity {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update(ordinal.to_be_bytes());
    let prefix = generate_name(service);
    let base: String = prefix.chars().take(MAX_BASE).collect();
    let suffix = hash.finalize().iter().take(SUFFIX).map(|byte| letter(*byte)).collect::<String>();
    base + &suffix
}

fn letter(byte: u8) -> char {
    let index = usize::from(byte) % ALPHABET.len();
    ALPHABET.get(index).copied().map_or('b', char::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_every_time_and_differ_by_identity() {
        let name = |identity: &[&str]| Names::default().take("web", identity);
        assert_eq!(name(&["uid", "IPv4", "k"]), name(&["uid", "IPv4", "k"]));
        assert_ne!(name(&["uid", "IPv4", "k"]), name(&["uid", "IPv6", "k"]));
        assert_ne!(name(&["ab", "c"]), name(&["a", "bc"]));
        assert!(name(&["uid"]).strip_prefix("web-").unwrap().bytes().all(|b| ALPHABET.contains(&b)));
    }

    #[test]
    fn names_in_use_are_passed_over() {
        let first = Names::default().take("web", &["uid"]);
        let mut names = Names::new(BTreeSet::from([first.clone()]));
        let second = names.take("web", &["uid"]);
        let third = names.take("web", &["uid"]);
        assert!(first != second && second != third && first != third);
    }

    #[test]
    fn long_names_fit_into_a_label() {
        let name = Names::default().take(&"a".repeat(63), &["uid"]);
        assert_eq!(name.len(), MAX_BASE + SUFFIX);
    }
}
