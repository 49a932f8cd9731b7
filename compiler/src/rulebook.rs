//! The rulebook: a ruleset that is kept up to date, and the record of what changed in it.
//!
//! Invariants: after any series of refreshes the ruleset equals the one that [`compile`] builds afresh; a refresh costs what
//! the dirty Services cost, not what all do; every change of a chain goes through [`Rulebook::set_chain`], so none is missed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fairlead_objects::ServiceKey;

use crate::{
    chains::{ServiceRules, internal_masquerade},
    config::Config,
    delta::{ChainRef, Delta},
    dispatch::{EntryId, LEAF_MAX, Space, Tree},
    facts::NodeFacts,
    frontends::Scope,
    matches::{AddressSide, Match},
    names,
    rule::{Rule, Target},
    rules::Rules,
    ruleset::{Chain, ChainName, Ruleset, Table, wellknown},
    state::ProxyState,
    statics,
    substitutes::{adapted, adapted_rule},
};

/// Builds the ruleset of a whole state.
pub fn compile(state: &ProxyState, config: &Config, facts: &NodeFacts) -> Ruleset {
    let mut book = Rulebook::new(config.clone(), facts.clone());
    let all = state.services().map(|(key, _)| key.clone()).collect();
    book.refresh(state, &all);
    book.ruleset
}

/// The ruleset of one family, refreshed Service by Service.
#[derive(Debug)]
pub struct Rulebook {
    config: Config,
    facts: NodeFacts,
    services: BTreeMap<ServiceKey, Places>,
    /// Services that are treated as absent.
    excluded: BTreeSet<ServiceKey>,
    trees: BTreeMap<Scope, Tree>,
    ruleset: Ruleset,
    /// Rules for single endpoints carry comments: there are not too many endpoints.
    commented: bool,
    /// What touched chains were when changes were last taken.
    before: BTreeMap<ChainRef, Option<Chain>>,
}

/// Where the rules of a Service are: its entries in trees, and its chains in nat.
#[derive(Debug, Default)]
struct Places {
    entries: Box<[(Scope, EntryId)]>,
    chains: Box<[ChainName]>,
}

impl Places {
    fn of(rules: &ServiceRules) -> Self {
        let (entries, chains) = (rules.entries.keys(), rules.chains.keys());
        Self { entries: entries.cloned().collect(), chains: chains.cloned().collect() }
    }

    fn is_nowhere(&self) -> bool {
        self.entries.is_empty() && self.chains.is_empty()
    }
}

impl Rulebook {
    /// The rulebook of a node without Services.
    pub fn new(config: Config, facts: NodeFacts) -> Self {
        let addresses = Space::Addresses(facts.family);
        let trees = [
            (Scope::Services, Tree::new(addresses, names::NAT_DISPATCH)),
            (Scope::External, Tree::new(addresses, names::NAT_EXTERNAL)),
            (Scope::NodePorts, Tree::new(Space::Ports, names::NAT_DISPATCH)),
            (Scope::RefusedServices, Tree::new(addresses, names::FILTER_SERVICES)),
            (Scope::RefusedExternal, Tree::new(addresses, names::FILTER_EXTERNAL)),
            (Scope::RefusedNodePorts, Tree::new(Space::Ports, names::FILTER_EXTERNAL)),
            (Scope::Firewall, Tree::new(addresses, names::FILTER_FIREWALL)),
            (Scope::HealthChecks, Tree::new(Space::Ports, names::FILTER_HEALTH)),
        ];
        let ruleset = Ruleset { family: facts.family, tables: BTreeMap::new(), jumps: Vec::new() };
        let mut book = Self {
            config,
            facts,
            services: BTreeMap::new(),
            excluded: BTreeSet::new(),
            trees: trees.into(),
            ruleset,
            commented: true,
            before: BTreeMap::new(),
        };
        book.write_statics();
        book
    }

    /// Takes over the state of the `dirty` Services, present or not.
    pub fn refresh(&mut self, state: &ProxyState, dirty: &BTreeSet<ServiceKey>) {
        let commented = state.endpoint_count() <= self.config.comment_limit;
        if commented == self.commented {
            self.rewrite(state, dirty);
        } else {
            // About as many endpoints as the limit are there, so this is cheap.
            self.commented = commented;
            self.rewrite(state, &self.every_service(state));
        }
    }

    /// Takes over other settings or node facts, of the same family.
    pub fn reconfigure(&mut self, config: Config, facts: NodeFacts, state: &ProxyState) {
        self.config = config;
        self.facts = facts;
        self.commented = state.endpoint_count() <= self.config.comment_limit;
        self.write_statics();
        self.rewrite(state, &self.every_service(state));
    }

    /// Treats exactly these Services as absent from now on, whatever the state says.
    pub fn exclude(&mut self, excluded: BTreeSet<ServiceKey>, state: &ProxyState) {
        let changed = self.excluded.symmetric_difference(&excluded).cloned().collect();
        self.excluded = excluded;
        self.rewrite(state, &changed);
    }

    /// The Services that a rule is about: those whose chain it is in, and those that dispatch would reach by it. `rule` is
    /// its text without the command and the chain. Looks at everything, so it is for when something is wrong.
    pub fn owners(&self, chain: &str, rule: &str) -> Vec<ServiceKey> {
        let adapted = |own: &Rule| adapted_rule(own.clone(), &self.config, &self.facts);
        let written = |own: Arc<Rule>| {
            own.to_string() == rule || adapted(&own).iter().any(|own| own.to_string() == rule)
        };
        let entry = |(scope, id): &(Scope, EntryId)| Some(self.trees.get(scope)?.rules_of(id));
        let owns = |places: &Places| {
            places.chains.iter().any(|own| own.as_str() == chain)
                || places.entries.iter().filter_map(entry).flatten().any(written)
        };
        self.services.iter().filter(|(_, places)| owns(places)).map(|(key, _)| key.clone()).collect()
    }

    /// The ruleset as it should be installed now.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// The settings in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The node facts in force.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// What changed since the last call; from a new rulebook everything, without jumps from built-in chains and without shared
    /// chains. Those depend on what is installed: [`diff`](crate::diff) tells.
    pub fn take_changes(&mut self) -> Delta {
        let mut delta = Delta::default();
        for (reference, before) in std::mem::take(&mut self.before) {
            match self.ruleset.chain(&reference.table, reference.name.as_str()) {
                None if before.is_some() => _ = delta.delete.insert(reference),
                Some(chain) if !chain.shared && before.as_ref() != Some(chain) => {
                    delta.put.insert(reference, chain.clone());
                }
                _ => {}
            }
        }
        delta
    }

    /// As [`Self::take_changes`], for those who compare everything anyway.
    pub fn forget_changes(&mut self) {
        self.before.clear();
    }

    fn every_service(&self, state: &ProxyState) -> BTreeSet<ServiceKey> {
        self.services.keys().chain(state.services().map(|(key, _)| key)).cloned().collect()
    }

    fn rewrite(&mut self, state: &ProxyState, keys: &BTreeSet<ServiceKey>) {
        let mut touched = BTreeSet::new();
        for key in keys {
            let ports = state.ports(key);
            let rules = if ports.is_empty() || self.excluded.contains(key) {
                ServiceRules::default()
            } else {
                ServiceRules::of(ports, &state.endpoints(key), &self.config, &self.facts, self.commented)
            };
            self.replace_service(key, rules, &mut touched);
        }
        self.write_dispatch(&touched);
    }

    fn replace_service(&mut self, key: &ServiceKey, new: ServiceRules, touched: &mut BTreeSet<Scope>) {
        let (old, places) = (self.services.remove(key).unwrap_or_default(), Places::of(&new));
        for (scope, id) in old.entries.iter().filter(|place| !new.entries.contains_key(*place)) {
            touched.insert(*scope);
            if let Some(tree) = self.trees.get_mut(scope) {
                tree.remove(id);
            }
        }
        for ((scope, id), entry) in new.entries {
            if let Some(tree) = self.trees.get_mut(&scope)
                && tree.get(&id) != Some(&entry)
            {
                touched.insert(scope);
                tree.insert(id, entry);
            }
        }
        for name in old.chains.iter().filter(|name| !new.chains.contains_key(*name)) {
            self.set_chain(Table::Nat, name.clone(), None);
        }
        // Those that are as before are no changes; taking them sees to that.
        for (name, rules) in new.chains {
            self.set_chain(Table::Nat, name, Some(rules.into()));
        }
        if !places.is_nowhere() {
            self.services.insert(key.clone(), places);
        }
    }

    fn write_statics(&mut self) {
        self.ruleset.jumps = statics::jumps(&self.config, &self.facts);
        for (table, name, chain) in statics::chains(&self.config, &self.facts) {
            self.set_chain(table, name, Some(chain));
        }
        if let Some(tree) = self.trees.get_mut(&Scope::Services) {
            tree.set_masquerade(internal_masquerade(&self.config, &self.facts));
        }
        let all = self.trees.keys().copied().collect();
        self.write_dispatch(&all);
    }

    /// Writes what changed in the trees, below their roots and at them.
    fn write_dispatch(&mut self, touched: &BTreeSet<Scope>) {
        for scope in touched {
            let table = root(*scope).0;
            for (name, rules) in self.trees.get_mut(scope).map(Tree::take_touched).unwrap_or_default() {
                self.set_chain(table.clone(), name, rules.map(Chain::from));
            }
        }
        for (table, name) in touched.iter().map(|scope| root(*scope)).collect::<BTreeSet<_>>() {
            match (&table, name) {
                (Table::Nat, wellknown::SERVICES) => {
                    let mut rules = self.root_rules(Scope::Services);
                    rules.extend(self.root_rules(Scope::External));
                    let statics = statics::node_port_dispatch(&self.config, &self.facts);
                    rules.extend(statics.into_iter().map(Rule::shared));
                    self.set_chain(table, name.into(), Some(chain_of(rules)));
                }
                (_, wellknown::EXTERNAL_SERVICES) => self.write_external(),
                _ => {
                    let rules = touched.iter().filter(|scope| root(**scope) == (table.clone(), name));
                    let rules: Rules = rules.flat_map(|scope| self.root_rules(*scope)).collect();
                    self.set_chain(table, name.into(), Some(rules.into()));
                }
            }
        }
    }

    /// filter KUBE-EXTERNAL-SERVICES has two trees: addresses, and behind them ports of the node, in a chain of their own unless
    /// all are few.
    fn write_external(&mut self) {
        let ports_chain = names::dispatch_chain(names::FILTER_EXTERNAL, "node-ports");
        let mut rules = self.root_rules(Scope::RefusedExternal);
        let ports = self.root_rules(Scope::RefusedNodePorts);
        let total: usize = [Scope::RefusedExternal, Scope::RefusedNodePorts]
            .map(|scope| self.rule_count(scope))
            .iter()
            .sum();
        if total <= LEAF_MAX {
            rules.extend(ports);
            self.set_chain(Table::Filter, ports_chain, None);
        } else if ports.is_empty() {
            self.set_chain(Table::Filter, ports_chain, None);
        } else {
            let to_node = Match::Local { side: AddressSide::Destination, negated: false };
            rules.push(Rule::to(Target::Jump(ports_chain.clone())).when(to_node).shared());
            self.set_chain(Table::Filter, ports_chain, Some(chain_of(ports)));
        }
        self.set_chain(Table::Filter, wellknown::EXTERNAL_SERVICES.into(), Some(chain_of(rules)));
    }

    fn root_rules(&self, scope: Scope) -> Vec<Arc<Rule>> {
        self.trees.get(&scope).map(Tree::root_rules).unwrap_or_default()
    }

    fn rule_count(&self, scope: Scope) -> usize {
        self.trees.get(&scope).map_or(0, Tree::rules)
    }

    /// Writes a chain of the ruleset, with what stands in for features that the kernel lacks, or removes it.
    fn set_chain(&mut self, table: Table, name: ChainName, chain: Option<Chain>) {
        let chain = chain.map(|Chain { rules, shared }| Chain {
            rules: adapted(rules, &self.config, &self.facts),
            shared,
        });
        let chains = self.ruleset.tables.entry(table.clone()).or_default();
        let old = match chain {
            Some(chain) => chains.insert(name.clone(), chain),
            None => chains.remove(&name),
        };
        self.before.entry(ChainRef::new(table, name)).or_insert(old);
    }
}

fn chain_of(rules: Vec<Arc<Rule>>) -> Chain {
    Rules::from_iter(rules).into()
}

/// The well-known chain that a tree hangs from.
fn root(scope: Scope) -> (Table, &'static str) {
    match scope {
        Scope::Services | Scope::External => (Table::Nat, wellknown::SERVICES),
        Scope::NodePorts => (Table::Nat, wellknown::NODE_PORTS),
        Scope::RefusedServices => (Table::Filter, wellknown::SERVICES),
        Scope::RefusedExternal | Scope::RefusedNodePorts => (Table::Filter, wellknown::EXTERNAL_SERVICES),
        Scope::Firewall => (Table::Filter, wellknown::PROXY_FIREWALL),
        Scope::HealthChecks => (Table::Filter, wellknown::NODE_PORTS),
    }
}
