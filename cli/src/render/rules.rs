//! `fairlead render rules`.

use std::collections::BTreeMap;

use anyhow::bail;
use fairlead_compiler::Ruleset;
use fairlead_objects::Family;
use serde::Serialize;

use crate::{
    Answer,
    args::{OutputFormat, RenderRules, RulesFormat},
    compilation::Compilation,
    output,
};

/// Compiles the rules of one node and one family.
pub(crate) fn run(args: &RenderRules) -> anyhow::Result<Answer> {
    if args.format == RulesFormat::Nft {
        bail!("--format nft is not yet possible in this version");
    }
    let compilation = Compilation::read(&args.supply, &args.node, &args.facts, Family::from(args.family))?;
    let output = match args.output.output {
        OutputFormat::Yaml => compilation.ruleset.render_document(),
        OutputFormat::Json => output::json(&Document::from(&compilation.ruleset))?,
    };
    Ok(Answer::yes(compilation.notices, output))
}

/// Rules as JSON: chains by table, and the rules that lead to them from the built-in chains.
#[derive(Serialize)]
struct Document {
    family: Family,
    tables: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    jumps: Vec<JumpLine>,
}

/// A rule in a built-in chain; the first of a chain stands at its top.
#[derive(Serialize)]
struct JumpLine {
    table: String,
    chain: String,
    rule: String,
}

impl From<&Ruleset> for Document {
    fn from(ruleset: &Ruleset) -> Self {
        let tables = ruleset.tables.iter().map(|(table, chains)| {
            let chains = chains.iter().map(|(name, chain)| {
                (name.to_string(), chain.rules.iter().map(ToString::to_string).collect())
            });
            (table.to_string(), chains.collect())
        });
        let jumps = ruleset.jumps.iter().map(|jump| JumpLine {
            table: jump.table.to_string(),
            chain: jump.from.to_string(),
            rule: jump.rule.to_string(),
        });
        Self { family: ruleset.family, tables: tables.collect(), jumps: jumps.collect() }
    }
}
