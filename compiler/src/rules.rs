//! Lists of rules that are held in several places: in the dispatch tree, in the ruleset, in what is to be written.
//!
//! Invariant: a copy of a list shares its rules, so that a rule is held once.

use std::{iter, slice, sync::Arc};

use crate::rule::Rule;

/// Rules, in order. They do not change any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Box<[Arc<Rule>]>);

impl Rules {
    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first one.
    pub fn first(&self) -> Option<&Rule> {
        self.iter().next()
    }

    /// All of them.
    pub fn iter(&self) -> <&Self as IntoIterator>::IntoIter {
        self.into_iter()
    }

    /// Copies of them, to be changed.
    pub fn to_vec(&self) -> Vec<Rule> {
        self.iter().cloned().collect()
    }

    /// All of them, to be held elsewhere, too.
    pub(crate) fn shared(&self) -> impl Iterator<Item = Arc<Rule>> {
        self.0.iter().cloned()
    }
}

impl<'a> IntoIterator for &'a Rules {
    type Item = &'a Rule;
    type IntoIter = iter::Map<slice::Iter<'a, Arc<Rule>>, fn(&'a Arc<Rule>) -> &'a Rule>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl FromIterator<Arc<Rule>> for Rules {
    fn from_iter<I: IntoIterator<Item = Arc<Rule>>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}

impl From<Vec<Rule>> for Rules {
    fn from(rules: Vec<Rule>) -> Self {
        rules.into_iter().map(Rule::shared).collect()
    }
}

impl PartialEq<Rules> for Vec<Rule> {
    fn eq(&self, other: &Rules) -> bool {
        self.iter().eq(other)
    }
}
