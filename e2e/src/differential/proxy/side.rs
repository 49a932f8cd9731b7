//! Our side in one family: the compiler, kept up to date, and the kernel that has its rules.
//!
//! Invariants: after every step the rulebook holds what a fresh compilation gives, and the kernel holds what the
//! rulebook holds.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use fairlead_compiler::{
    Config, Detector, Dump, NodeFacts, ProxyState, Rulebook, Subject, compare, compile, diff, render,
};
use fairlead_objects::{EndpointSlice, Family, Service, ServiceKey};
use ipnet::IpNet;

use super::kernel::Kernel;
use crate::plan::{self, Families};

/// One family of ours.
pub(super) struct Side {
    facts: NodeFacts,
    config: Config,
    state: ProxyState,
    book: Rulebook,
    services: BTreeSet<ServiceKey>,
    slices: BTreeSet<(String, String)>,
}

impl Side {
    /// The rules of a node without Services, installed.
    pub(super) fn new(kernel: &mut Kernel, facts: NodeFacts, settings: fn(&mut Config)) -> Result<Self> {
        let mut side = Self {
            state: ProxyState::new(facts.family),
            book: Rulebook::new(config(facts.family, settings), facts.clone()),
            config: config(facts.family, settings),
            facts,
            services: BTreeSet::new(),
            slices: BTreeSet::new(),
        };
        kernel.read(side.facts.family)?;
        side.install(kernel)?;
        Ok(side)
    }

    /// Takes over the objects of a moment, as the programmer would.
    pub(super) fn follow(
        &mut self,
        kernel: &mut Kernel,
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
        self.install(kernel)
    }

    /// What the programmer as a shadow would say of kube-proxy's rules: nothing, but where that leaves it to chance.
    pub(super) fn shadow(&self, installed: &Dump) -> Result<()> {
        let Self { facts, config, state, book, .. } = self;
        let found = compare(Subject { installed, desired: book.ruleset(), state, config, facts });
        let divergences = found.differences.iter().filter(|difference| difference.excuse.is_none());
        let told: Vec<String> = divergences.map(ToString::to_string).collect();
        ensure!(told.is_empty(), "a shadow would tell of\n{}", told.join("\n"));
        Ok(())
    }

    /// Brings the kernel from what was read last to what the rulebook holds, and reads it again.
    fn install(&mut self, kernel: &mut Kernel) -> Result<()> {
        let family = self.facts.family;
        let delta = diff(kernel.installed(family), self.book.ruleset());
        if delta.is_empty() {
            return Ok(());
        }
        kernel.restore(family, &render(&delta))?;
        let left = diff(kernel.read(family)?, self.book.ruleset());
        ensure!(left.is_empty(), "the kernel has other rules than it was given: {left:#?}");
        Ok(())
    }
}

/// kube-proxy's defaults and the bed's Pod networks, with the settings on top.
pub(super) fn config(family: Family, settings: fn(&mut Config)) -> Config {
    let networks = plan::cluster_networks(Families::DualStack).split(',');
    let networks: Vec<IpNet> = networks.filter_map(|network| network.parse().ok()).collect();
    let pods = networks.into_iter().find(|network| Family::of(network.addr()) == family);
    let mut config = Config { detector: pods.map_or(Detector::None, Detector::Cidr), ..Config::default() };
    settings(&mut config);
    config
}
