//! `fairlead render rules`.

use std::collections::BTreeMap;

use anyhow::bail;
use fairlead_compiler::{ProxyState, Ruleset, compile};
use fairlead_objects::{ClusterIp, EndpointSlice, Family, Service, ServiceType};
use serde::Serialize;

use crate::{
    Answer,
    args::{OutputFormat, RenderRules, RulesFormat},
    config::{self, Settings},
    input::{self, Objects},
    node, output,
    snapshot::{Snapshot, node_warning, warnings},
};

/// Compiles the rules of one node and one family.
pub(crate) fn run(args: &RenderRules) -> anyhow::Result<Answer> {
    if args.format == RulesFormat::Nft {
        bail!("--format nft is not yet possible in this version");
    }
    let family = Family::from(args.family);
    let (settings, mut notices) =
        args.host.config.as_deref().map_or_else(|| Ok((Settings::default(), Vec::new())), config::read)?;
    let (objects, input_notices) = input::read(&args.files.files)?;
    notices.extend(input_notices);
    let target = node::target(&args.host, &settings, &objects, family)?;
    notices.extend(target.notices);
    let mut state = ProxyState::new(family);
    for slice in slices(&objects, &mut notices) {
        state.set_slice(&slice);
    }
    for service in objects.services.values() {
        notices.extend(incomplete(service, family));
        state.set_service(service);
    }
    let ruleset = compile(&state, &target.config, &target.facts);
    let output = match args.output.output {
        OutputFormat::Yaml => ruleset.render_document(),
        OutputFormat::Json => output::json(&Document::from(&ruleset))?,
    };
    Ok(Answer { notices, output })
}

/// The slices that the node would see: planned where the input says what from, as they are otherwise.
fn slices(objects: &Objects, notices: &mut Vec<String>) -> Vec<EndpointSlice> {
    notices.extend(node_warning(objects));
    let snapshot = Snapshot::new(objects);
    let mut slices = Vec::new();
    for service in objects.services.values() {
        let given = snapshot.slices(&service.key);
        if is_planned(service, objects) {
            let (outcome, notes) = snapshot.outcome(service);
            notices.extend(warnings(&notes));
            slices.extend(outcome.slices);
        } else {
            if given.is_empty() && service.kind != ServiceType::ExternalName {
                notices.push(format!(
                    "warning: Service {}: nothing in the input gives it endpoints",
                    service.key
                ));
            }
            slices.extend(given.iter().copied().cloned());
        }
    }
    slices
}

/// Whether the input holds what the slices of `service` are made from.
fn is_planned(service: &Service, objects: &Objects) -> bool {
    match service.selector {
        Some(_) => !objects.pods.is_empty(),
        None => objects.endpoints.contains_key(&service.key),
    }
}

/// Warnings about what an API server would have allocated for `service` and the input does not say.
fn incomplete(service: &Service, family: Family) -> Vec<String> {
    if service.kind == ServiceType::ExternalName || service.cluster_ip == ClusterIp::None {
        return Vec::new();
    }
    let key = &service.key;
    let mut warnings = Vec::new();
    if service.cluster_ip == ClusterIp::Unset {
        warnings
            .push(format!("warning: Service {key}: no clusterIP in the input, so no {family} rule for one"));
    }
    let lacks_node_port = service.ports.iter().any(|port| port.node_port == 0);
    if service.kind == ServiceType::NodePort && lacks_node_port {
        warnings.push(format!(
            "warning: Service {key}: a port without nodePort in the input, so no rule for one"
        ));
    }
    warnings
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
