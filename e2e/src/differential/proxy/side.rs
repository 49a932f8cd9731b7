//! Our side in one family: the compiler, kept up to date, and a kernel that has its rules.
//!
//! Invariants: after every step the rulebook holds what a fresh compilation gives, and the kernel holds what the
//! rulebook holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use fairlead_compiler::{
    Config, Detector, Dump, NodeFacts, ProxyState, Rulebook, compile, diff, parse, render,
};
use fairlead_objects::{EndpointSlice, Family, NodeName, Service, ServiceKey};
use ipnet::IpNet;

use super::OURS;
use crate::{
    Bed,
    plan::{self, Families, Node},
};

/// One family of ours.
pub(super) struct Side {
    facts: NodeFacts,
    config: Config,
    state: ProxyState,
    book: Rulebook,
    services: BTreeSet<ServiceKey>,
    slices: BTreeSet<(String, String)>,
    installed: Dump,
}

impl Side {
    /// The rules of a node without Services.
    pub(super) fn new(bed: &Bed, node: &Node, family: Family, settings: fn(&mut Config)) -> Result<Self> {
        let networks = plan::cluster_networks(Families::DualStack).split(',');
        let networks: Vec<IpNet> = networks.filter_map(|network| network.parse().ok()).collect();
        let pods = networks.into_iter().find(|network| Family::of(network.addr()) == family);
        let mut config =
            Config { detector: pods.map_or(Detector::None, Detector::Cidr), ..Config::default() };
        settings(&mut config);
        let facts = facts(node, family)?;
        let mut side = Self {
            state: ProxyState::new(family),
            book: Rulebook::new(config.clone(), facts.clone()),
            facts,
            config,
            services: BTreeSet::new(),
            slices: BTreeSet::new(),
            installed: Dump::default(),
        };
        side.install(bed)?;
        Ok(side)
    }

    /// The node that the rules are for.
    pub(super) fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// What the kernel has.
    pub(super) fn installed(&self) -> &Dump {
        &self.installed
    }

    /// Takes over the objects of a moment, as the programmer would.
    pub(super) fn follow(
        &mut self,
        bed: &Bed,
        services: &BTreeMap<ServiceKey, Service>,
        slices: &[EndpointSlice],
    ) -> Result<()> {
        for gone in self.services.iter().filter(|key| !services.contains_key(*key)) {
            self.state.remove_service(gone);
        }
        for service in services.values() {
            self.state.set_service(service);
        }
        let name = |slice: &EndpointSlice| {
            let metadata = &slice.metadata;
            (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
        };
        let names: BTreeSet<_> = slices.iter().map(name).collect();
        for (namespace, name) in self.slices.difference(&names) {
            self.state.remove_slice(namespace, name);
        }
        for slice in slices {
            self.state.set_slice(slice);
        }
        (self.services, self.slices) = (services.keys().cloned().collect(), names);
        let dirty = self.state.take_dirty();
        self.book.refresh(&self.state, &dirty);
        let fresh = compile(&self.state, &self.config, &self.facts);
        ensure!(*self.book.ruleset() == fresh, "step by step gives other rules than all at once");
        self.install(bed)
    }

    /// Brings the kernel to what the rulebook holds, and reads it back.
    fn install(&mut self, bed: &Bed) -> Result<()> {
        let family = self.facts.family;
        self.installed = parse(&bed.save(OURS, family)?)?;
        let document = render(&diff(&self.installed, self.book.ruleset()));
        restore(bed, family, &document).with_context(|| document.clone())?;
        self.installed = parse(&bed.save(OURS, family)?)?;
        let left = diff(&self.installed, self.book.ruleset());
        ensure!(left.is_empty(), "the kernel has other rules than it was given: {left:#?}");
        Ok(())
    }
}

fn facts(node: &Node, family: Family) -> Result<NodeFacts> {
    let (v4, v6) = (node.addresses.v4, node.addresses.v6);
    let addresses = [format!("{v4}/24"), format!("{v6}/64"), "127.0.0.1/8".to_owned(), "::1/128".to_owned()];
    Ok(NodeFacts {
        name: NodeName::new(node.name.as_str()),
        zone: Some(format!("zone{}", node.number).into()),
        node_ip: match family {
            Family::V4 => v4.into(),
            Family::V6 => v6.into(),
        },
        addresses: addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>()?,
        family,
    })
}

fn restore(bed: &Bed, family: Family, document: &str) -> Result<()> {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    let mut command = Command::new(bed.options.variant.program(program));
    command
        .args(["--noflush", "-w", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.env("XTABLES_LOCKFILE", bed.dir().join("xtables-restored.lock"));
    let output = bed.node_netns(OURS)?.run(|| -> std::io::Result<_> {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(document.as_bytes())?;
        }
        child.wait_with_output()
    })??;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
