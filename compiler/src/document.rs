//! Documents: deltas as input of `iptables-restore --noflush`.
//!
//! A chain line creates a chain or flushes it; what no line mentions stays. `filter` is committed before `nat`. Within a
//! table: chain lines, rules, jumps from built-in chains, removals, deletions.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use crate::{
    delta::{ChainRef, Delta},
    ruleset::{Chain, Jump, Ruleset, Table},
    text::JumpText,
};

/// Renders a delta. Empty for an empty delta.
pub fn render(delta: &Delta) -> String {
    let mut text = String::new();
    for (table, part) in parts(delta) {
        // Writing to a String cannot fail.
        _ = write_table(&mut text, table, &part);
    }
    text
}

impl Ruleset {
    /// A complete document for a node that has nothing of ours: all chains, and the jumps from the built-in ones.
    pub fn render_document(&self) -> String {
        render(&Delta::everything(self))
    }
}

/// What a delta does to one table.
#[derive(Default)]
struct Part<'a> {
    put: Vec<(&'a ChainRef, &'a Chain)>,
    delete: Vec<&'a ChainRef>,
    hook: Vec<&'a Jump>,
    unhook: Vec<&'a Jump>,
}

fn parts(delta: &Delta) -> BTreeMap<&Table, Part<'_>> {
    let mut parts: BTreeMap<&Table, Part<'_>> = BTreeMap::new();
    for (reference, chain) in &delta.put {
        parts.entry(&reference.table).or_default().put.push((reference, chain));
    }
    for reference in &delta.delete {
        parts.entry(&reference.table).or_default().delete.push(reference);
    }
    for jump in &delta.hook {
        parts.entry(&jump.table).or_default().hook.push(jump);
    }
    for jump in &delta.unhook {
        parts.entry(&jump.table).or_default().unhook.push(jump);
    }
    parts
}

fn write_table(text: &mut String, table: &Table, part: &Part<'_>) -> fmt::Result {
    writeln!(text, "*{table}")?;
    let lines = part.put.iter().map(|(reference, _)| *reference).chain(part.delete.iter().copied());
    for reference in lines {
        writeln!(text, ":{} - [0:0]", reference.name)?;
    }
    for (reference, chain) in &part.put {
        for rule in &chain.rules {
            writeln!(text, "-A {} {rule}", reference.name)?;
        }
    }
    // Each is inserted above the one before, so the lowest comes first.
    for jump in part.hook.iter().rev() {
        writeln!(text, "-I {} {}", jump.from, JumpText(&jump.rule))?;
    }
    for jump in &part.unhook {
        writeln!(text, "-D {} {}", jump.from, JumpText(&jump.rule))?;
    }
    for reference in &part.delete {
        writeln!(text, "-X {}", reference.name)?;
    }
    writeln!(text, "COMMIT")
}
