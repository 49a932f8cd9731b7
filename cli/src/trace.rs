//! `fairlead trace`: the first packet of a connection on its way through the rules of a node.
//!
//! Invariant: the account says what the compiler's tracer found, and what it could not take into account.

mod account;
mod counters;
mod decision;
mod gaps;
mod live;

use std::{net::IpAddr, path::Path};

use anyhow::{Context, bail, ensure};
use fairlead_compiler::{Dump, Host, Origin, Outcome, Packet, Share, Table, parse, wellknown};
use fairlead_objects::Family;
use serde::Serialize;

use crate::{
    Answer,
    args::{NodeFlags, ReportFormat, RulesFormat, Trace},
    compilation::Compilation,
    input::Source,
    output,
};
use counters::{Counter, Counters};

/// Rules, and the node that they are for.
struct Site {
    dump: Dump,
    counters: Counters,
    host: Host,
    /// How to speak of the node.
    name: String,
    /// Whole lines for standard error.
    notices: Vec<String>,
}

/// Walks one packet.
pub(crate) fn run(args: &Trace) -> anyhow::Result<Answer> {
    if args.format == RulesFormat::Nft {
        bail!("--format nft is not yet possible in this version");
    }
    let family = family(args)?;
    let site = site(args, family)?;
    let packet = packet(args, &site)?;
    let found = fairlead_compiler::trace(&site.dump, &packet, &site.host);
    let mut notices = site.notices;
    notices.extend(gaps::notices(&site.dump, &found));
    let output = match args.output.output {
        ReportFormat::Text => account::text(&site.dump, &site.counters, &packet, &site.name, &found),
        ReportFormat::Json => output::json(&Report::new(&site.dump, &site.counters, &found))?,
        ReportFormat::Yaml => output::yaml(&Report::new(&site.dump, &site.counters, &found))?,
    };
    let yes = matches!(found.outcome, Outcome::Accepted | Outcome::NoMatch);
    Ok(Answer { yes, notices, output })
}

fn family(args: &Trace) -> anyhow::Result<Family> {
    let family = Family::of(args.to.address);
    let from = Family::of(args.from);
    ensure!(
        from == family,
        "--from {} is an {from} address and --to {} an {family} one; a packet has both of one family",
        args.from,
        args.to.address
    );
    if let Some(asked) = args.family.map(Family::from) {
        ensure!(asked == family, "--family {asked} does not fit --from {}, which is {family}", args.from);
    }
    Ok(family)
}

fn site(args: &Trace, family: Family) -> anyhow::Result<Site> {
    if let Some(path) = &args.rules {
        return saved_rules(path, &args.facts);
    }
    if args.live {
        return live_rules(family);
    }
    let name = args.node.as_deref().context("--node is missing")?;
    let Compilation { ruleset, facts, notices } = Compilation::read(&args.supply, name, &args.facts, family)?;
    Ok(Site {
        dump: Dump::from(&ruleset),
        counters: Counters::default(),
        host: Host::from(&facts),
        name: format!("node {name}"),
        notices,
    })
}

/// Rules in the kernel.
fn live_rules(family: Family) -> anyhow::Result<Site> {
    let live::Node { save, addresses, variant, mut notices } = live::read(family)?;
    let dump = parse(&save).context("this node's rules cannot be understood")?;
    if dump.chain(&Table::Nat, wellknown::SERVICES).is_none() {
        notices.push(format!(
            "warning: iptables-{variant} has no chain {} here: nothing programs Services on this node, or not by it",
            wellknown::SERVICES
        ));
    }
    let name = format!("this node (iptables-{variant})");
    Ok(Site { dump, counters: Counters::read(&save), host: Host { addresses }, name, notices })
}

/// Rules as `iptables-save` prints them.
fn saved_rules(path: &Path, flags: &NodeFlags) -> anyhow::Result<Site> {
    let Source { name, text } = Source::read(path)?;
    let name = if name == "-" { "standard input".to_owned() } else { name };
    let dump = parse(&text).with_context(|| format!("{name}: is not what iptables-save prints"))?;
    ensure!(!dump.tables.is_empty(), "{name}: is not what iptables-save prints: it has no table, as in *nat");
    let mut notices = Vec::new();
    for table in [Table::Filter, Table::Nat] {
        if !dump.tables.contains_key(&table) {
            notices.push(format!("warning: {name}: has no table {table}, which counts as empty"));
        }
    }
    let interfaces = flags.node_cidr.iter().map(ipnet::IpNet::addr);
    let addresses: Vec<IpAddr> = flags.node_ip.iter().copied().chain(interfaces).collect();
    if addresses.is_empty() {
        notices.push(
            "warning: neither --node-ip nor --node-cidr: only loopback addresses count as the node's own"
                .to_owned(),
        );
    }
    let counters = Counters::read(&text);
    Ok(Site { dump, counters, host: Host { addresses }, name: format!("the node of {name}"), notices })
}

fn packet(args: &Trace, site: &Site) -> anyhow::Result<Packet> {
    let own = site.host.is_local(args.from);
    if let (true, Some(interface)) = (own, &args.in_interface) {
        bail!(
            "--in-interface {interface}: a packet from {}, which is the node's own address, arrives on no interface",
            args.from
        );
    }
    Ok(Packet {
        source: args.from,
        // Of the range that clients get their ports from; no rule of ours asks for it.
        source_port: 49_152,
        destination: args.to.address,
        destination_port: args.to.port,
        protocol: args.to.protocol,
        origin: if own { Origin::Node } else { Origin::Interface(args.in_interface.clone()) },
    })
}

/// A trace for scripts.
#[derive(Serialize)]
struct Report {
    /// The best that can happen: `accepted`, `no match` (no Service is concerned), `rejected` or `dropped`.
    verdict: &'static str,
    targets: Vec<TargetLine>,
    /// Whether the source is rewritten on any way.
    masquerade: bool,
    path: Vec<PathLine>,
}

/// An endpoint that can be reached.
#[derive(Serialize)]
struct TargetLine {
    address: IpAddr,
    port: u16,
    probability: f64,
}

/// A rule that holds on any way.
#[derive(Serialize)]
struct PathLine {
    table: String,
    chain: String,
    rule: String,
    /// Whether it decides what becomes of the packet; absent for no.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    decides: bool,
    /// What met it before, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    counter: Option<Counter>,
}

impl Report {
    fn new(dump: &Dump, counters: &Counters, trace: &fairlead_compiler::Trace) -> Self {
        let mut targets: Vec<((IpAddr, u16), Share)> = Vec::new();
        for target in &trace.targets {
            let key = (target.address, target.port);
            match targets.iter_mut().find(|(known, _)| *known == key) {
                Some((_, share)) => *share = share.or(target.probability),
                None => targets.push((key, target.probability)),
            }
        }
        let line = |((address, port), share): ((IpAddr, u16), Share)| TargetLine {
            address,
            port,
            probability: share.as_f64(),
        };
        let path = trace.path.iter().map(|step| PathLine {
            table: step.table.to_string(),
            chain: step.chain.to_string(),
            rule: step.rule.clone(),
            decides: decision::decides(dump, trace, step),
            counter: counters.of_rule(step),
        });
        Self {
            verdict: trace.outcome.as_str(),
            targets: targets.into_iter().map(line).collect(),
            masquerade: trace.masquerade,
            path: path.collect(),
        }
    }
}
