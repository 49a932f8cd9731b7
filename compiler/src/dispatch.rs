//! Dispatch: trees of chains that lead a packet to the few rules that may concern it.
//!
//! Entries (the rules of one frontend) are filed under a [`Path`]: destination address, protocol, port, four bits at a
//! time. A node of the tree with few rules is a *bucket*, one chain with these rules; one with many is a *branch*, a chain of
//! at most sixteen jumps. Levels on which all entries agree are skipped. Jumps return: what no rule decides about comes back.
//!
//! Invariants:
//! * the tree is a function of the set of its entries, whatever the order in which they came and went;
//! * no chain has more than [`LEAF_MAX`] rules, not counting those that mark for masquerading, unless a single frontend does;
//! * a packet to an entry that asks for masquerading is marked once on its way there, by its own rule or by one that others
//!   share, and one that no rule decides about comes back as it was;
//! * a change touches the nodes on one path from the root, and no others are looked at.

mod entry;
mod path;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use entry::{Entry, EntryId, Marking, Masquerade};
pub(crate) use path::{Path, Space};
pub(crate) use tree::Tree;

/// Most rules in a bucket, without those that mark for masquerading.
pub(crate) const LEAF_MAX: usize = 48;
/// A bucket with so few rules gets no chain: they stand in the branch instead of the jump.
const INLINE_MAX: usize = 1;
/// So many frontends make it worth two rules to mark for masquerading together.
const SHARERS_MIN: usize = 3;
