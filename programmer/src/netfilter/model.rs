//! An in-memory packet filter for tests: it applies restore documents and prints tables, as the programs do, to the
//! extent that the sync loop can tell the difference.
//!
//! Invariants: a document is applied completely or not at all (per table); a jump to a chain that does not exist is
//! refused, and so is the deletion of a chain that is in use or not empty.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use parking_lot::Mutex;

use super::{Netfilter, Refusal, ToolError, Variant};

type Table = BTreeMap<String, Vec<String>>;

/// Chains that the kernel has and nobody declares.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Targets that are no chains.
const VERDICTS: [&str; 7] = ["ACCEPT", "DROP", "REJECT", "RETURN", "MARK", "MASQUERADE", "DNAT"];

/// The tables of one family.
#[derive(Debug, Default)]
pub(crate) struct Model {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<String, Table>,
    documents: Vec<String>,
    refusals: usize,
    /// Text that no document may hold, and whether the line is named.
    refused_text: Option<(String, bool)>,
    delay: Duration,
}

impl Model {
    /// With what the given saves hold.
    pub(crate) fn with(saves: &[&str]) -> Self {
        let model = Self::default();
        for save in saves {
            let mut state = model.state.lock();
            let (name, table) = apply(&state.tables, save).unwrap();
            state.tables.insert(name, table);
        }
        model
    }

    /// Refuses the next `count` documents.
    pub(crate) fn refuse(&self, count: usize) {
        self.state.lock().refusals = count;
    }

    /// Refuses documents with `text` from now on.
    pub(crate) fn refuse_text(&self, text: &str, names_line: bool) {
        self.state.lock().refused_text = Some((text.to_owned(), names_line));
    }

    /// How many documents were restored.
    pub(crate) fn restores(&self) -> usize {
        self.state.lock().documents.len()
    }

    /// The documents restored since the last call.
    pub(crate) fn take_documents(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().documents)
    }

    /// Lets every restore take so long.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.state.lock().delay = delay;
    }

    /// What `iptables -F` and `-X` in all tables leave.
    pub(crate) fn flush(&self) {
        self.state.lock().tables.clear();
    }

    /// Removes a chain behind everyone's back.
    pub(crate) fn lose(&self, table: &str, chain: &str) {
        if let Some(table) = self.state.lock().tables.get_mut(table) {
            table.remove(chain);
        }
    }
}

impl Netfilter for Model {
    fn variant(&self) -> Variant {
        Variant::Nft
    }

    async fn save(&self, table: &str) -> Result<String, ToolError> {
        let state = self.state.lock();
        Ok(state.tables.get(table).map(|chains| print(table, chains)).unwrap_or_default())
    }

    async fn restore(&self, document: &str) -> Result<(), ToolError> {
        let delay = self.state.lock().delay;
        tokio::time::sleep(delay).await;
        let mut state = self.state.lock();
        if state.refusals > 0 {
            state.refusals -= 1;
            return Err(refused("line 2 failed", document));
        }
        if let Some((text, names_line)) = &state.refused_text
            && let Some(index) = document.lines().position(|line| line.contains(text.as_str()))
        {
            let number = if *names_line { index + 1 } else { document.lines().count() };
            return Err(refused(&format!("line {number} failed"), document));
        }
        for part in document.split_inclusive("COMMIT\n") {
            let (name, table) = apply(&state.tables, part).map_err(|reason| refused(&reason, document))?;
            state.tables.insert(name, table);
        }
        state.documents.push(document.to_owned());
        Ok(())
    }
}

fn refused(reason: &str, document: &str) -> ToolError {
    ToolError::Refused { program: "model".to_owned(), refusal: Refusal::parse(reason, document) }
}

fn apply(tables: &BTreeMap<String, Table>, part: &str) -> Result<(String, Table), String> {
    let mut lines = part.lines().filter(|line| !line.starts_with('#'));
    let name = lines.next().and_then(|line| line.strip_prefix('*')).ok_or("no table")?;
    let mut table = tables.get(name).cloned().unwrap_or_default();
    for line in lines.take_while(|line| *line != "COMMIT") {
        edit(&mut table, line).map_err(|reason| format!("{reason} ({line})"))?;
    }
    let target =
        |rule: &str| rule.rsplit_once("-j ").map(|(_, rest)| rest.split(' ').next().unwrap_or("").to_owned());
    let mut targets = table.values().flatten().filter_map(|rule| target(rule));
    if let Some(missing) = targets.find(|target| is_chain(target) && !table.contains_key(target)) {
        return Err(format!("Chain '{missing}' does not exist"));
    }
    Ok((name.to_owned(), table))
}

fn is_chain(target: &str) -> bool {
    !VERDICTS.contains(&target)
}

fn edit(table: &mut Table, line: &str) -> Result<(), String> {
    if let Some(declaration) = line.strip_prefix(':') {
        let chain = declaration.split(' ').next().unwrap_or_default();
        let builtin = !declaration.contains(" - ");
        let rules = table.entry(chain.to_owned()).or_default();
        if !builtin {
            rules.clear();
        }
        return Ok(());
    }
    let (verb, rest) = line.split_once(' ').ok_or("no verb")?;
    let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "-X" => {
            let used = table.values().flatten().any(|rule| rule.ends_with(&format!("-j {chain}")));
            if used || table.get(chain).is_none_or(|rules| !rules.is_empty()) {
                return Err(format!("chain {chain} is in use, not empty or missing"));
            }
            table.remove(chain);
        }
        "-F" => table.get_mut(chain).ok_or("no chain")?.clear(),
        "-D" => {
            let rules = table.get_mut(chain).ok_or("no chain")?;
            let index = rules.iter().position(|known| known == rule).ok_or("no such rule")?;
            rules.remove(index);
        }
        "-I" => {
            let rule = rule.strip_prefix("1 ").unwrap_or(rule);
            // Built-in chains are there before anything is written.
            table.entry(chain.to_owned()).or_default().insert(0, rule.to_owned());
        }
        "-A" => table.entry(chain.to_owned()).or_default().push(rule.to_owned()),
        _ => return Err("unknown verb".to_owned()),
    }
    Ok(())
}

fn print(name: &str, chains: &Table) -> String {
    let mut text = format!("*{name}\n");
    for chain in chains.keys() {
        let policy = if BUILT_IN.contains(&chain.as_str()) { "ACCEPT" } else { "-" };
        let _ = writeln!(text, ":{chain} {policy} [0:0]");
    }
    for (chain, rules) in chains {
        for rule in rules {
            let _ = writeln!(text, "-A {chain} {rule}");
        }
    }
    text.push_str("COMMIT\n");
    text
}
