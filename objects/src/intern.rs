//! Shared copies of equal values: Pods of one workload have the same labels and ports, endpoints the same few nodes.
//!
//! Invariant: a value that nobody else holds any more is dropped before the table has doubled in size.

use std::{hash::Hash, sync::Arc};

use rustc_hash::FxHashSet;

/// Below this size, looking for dead entries is not worth it.
const SMALLEST_SWEEP: usize = 1024;

/// A table of shared values.
#[derive(Debug)]
pub struct Interner<T: ?Sized> {
    values: FxHashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self { values: FxHashSet::default(), sweep_at: SMALLEST_SWEEP }
    }
}

impl<T: ?Sized> Clone for Interner<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), sweep_at: self.sweep_at }
    }
}

impl<T: Eq + Hash + ?Sized> Interner<T> {
    /// The copy of `value` that all share, if there is one.
    pub fn known(&self, value: &T) -> Option<Arc<T>> {
        self.values.get(value).cloned()
    }

    /// The copy of `value` that all share.
    pub fn share(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(&value) {
            return Arc::clone(known);
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = (self.values.len() * 2).max(SMALLEST_SWEEP);
        }
        self.values.insert(Arc::clone(&value));
        value
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.values.len()
    }
}

impl Interner<str> {
    /// The copy of `word` that all share.
    pub fn word(&mut self, word: &str) -> Arc<str> {
        self.known(word).unwrap_or_else(|| self.share(word.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_one_copy() {
        let mut interner = Interner::<str>::default();
        let first = interner.share("app".into());
        assert!(Arc::ptr_eq(&first, &interner.share("app".into())));
        assert!(Arc::ptr_eq(&first, &interner.word("app")));
    }

    #[test]
    fn values_nobody_holds_do_not_pile_up() {
        let mut interner = Interner::<str>::default();
        let held = interner.share("held".into());
        for number in 0..10_000 {
            drop(interner.share(number.to_string().into()));
        }
        assert!(interner.len() <= SMALLEST_SWEEP + 1, "{} values", interner.len());
        assert!(Arc::ptr_eq(&held, &interner.share("held".into())));
    }
}
