//! Reads what `iptables-save` prints, of any ruleset.
//!
//! Invariants: every rule of the text is in the dump, with what we do not understand kept as it was; what we render is read
//! back as the same typed rules; text that ends early is an error, never a smaller ruleset.

mod rule;
mod words;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    dump::{Dump, InstalledChain, Policy},
    ruleset::{ChainName, Table},
};

/// Why a text is not what `iptables-save` prints.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Reads the output of `iptables-save`, with or without counters.
pub fn parse(save: &str) -> Result<Dump, ParseError> {
    let mut dump = Dump::default();
    let mut open: Option<(Table, BTreeMap<ChainName, InstalledChain>)> = None;
    let mut last = 0;
    for (index, text) in save.lines().enumerate() {
        let (line, text) = (index + 1, text.trim());
        last = line;
        let error = |reason| ParseError { line, reason };
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(name) = text.strip_prefix('*') {
            if open.is_some() {
                return Err(error("a table begins before the one above is committed"));
            }
            let table = Table::named(name.trim());
            let chains = dump.tables.remove(&table).unwrap_or_default();
            open = Some((table, chains));
            continue;
        }
        let Some((table, mut chains)) = open.take() else {
            return Err(error("expected a table, as in *nat"));
        };
        if text == "COMMIT" {
            dump.tables.insert(table, chains);
            continue;
        }
        read_line(text, &mut chains).map_err(error)?;
        open = Some((table, chains));
    }
    match open {
        Some(_) => Err(ParseError { line: last, reason: "the text ends before COMMIT" }),
        None => Ok(dump),
    }
}

/// Reads a chain line or a rule.
fn read_line(text: &str, chains: &mut BTreeMap<ChainName, InstalledChain>) -> Result<(), &'static str> {
    if let Some(declaration) = text.strip_prefix(':') {
        let mut fields = declaration.split_ascii_whitespace();
        let name = fields.next().ok_or("expected the name of a chain")?;
        let policy = match fields.next() {
            Some("ACCEPT") => Some(Policy::Accept),
            Some("DROP") => Some(Policy::Drop),
            _ => None,
        };
        chains.insert(name.into(), InstalledChain { policy, rules: Vec::new() });
        return Ok(());
    }
    let mut words = words::split(text)?;
    if words.first().is_some_and(|word| word.starts_with('[')) {
        words.remove(0);
    }
    let mut words = words.into_iter();
    let command = words.next().unwrap_or_default();
    let name = words.next().ok_or("expected the name of a chain")?;
    let words: Vec<_> = words.collect();
    let name = ChainName::new(&*name);
    let at = match &*command {
        "-A" => chains.get(&name).map_or(0, |chain| chain.rules.len()),
        "-I" => 0,
        _ => return Err("expected a rule, as in -A CHAIN"),
    };
    let rule = rule::read(&words, |name| chains.contains_key(name))?;
    chains.entry(name).or_default().rules.insert(at, rule);
    Ok(())
}
