//! Chains of a Service port: policy chains (SVC, SVL), external chain (EXT), firewall chain (FW), endpoint chains (SEP), as in
//! kube-proxy's iptables proxier, but with endpoints inlined where nothing needs a chain for each.
//!
//! Invariant: a chain is emitted iff some rule of the Service port leads to it.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    categorize::{Choice, categorize},
    config::Config,
    dispatch::{Entry, Marking, Masquerade},
    endpoint::{Endpoint, Endpoints},
    facts::NodeFacts,
    frontends::Entries,
    groups::{self, Draw, UNGROUPED_MAX, weighted},
    matches::{AddressSide, Affinity, Match},
    names::ServiceChains,
    rule::{Rule, Target},
    ruleset::{ChainName, wellknown},
    service_port::ServicePort,
};

/// Most endpoints that stand in a dispatch chain, instead of a chain of their Service.
const INLINED_ENDPOINTS: usize = 2;

/// All rules of a Service: entries of dispatch chains, and chains in nat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceRules {
    pub(crate) entries: Entries,
    pub(crate) chains: BTreeMap<ChainName, Vec<Rule>>,
}

impl ServiceRules {
    /// Compiles a Service. `commented`: rules for single endpoints carry comments.
    pub(crate) fn of(
        ports: &[ServicePort],
        endpoints: &Endpoints,
        config: &Config,
        facts: &NodeFacts,
        commented: bool,
    ) -> Self {
        let mut rules = Self::default();
        for port in ports {
            let endpoints = endpoints.get(&port.name.port).map_or(&[][..], Vec::as_slice);
            let port = PortRules::new(port, endpoints, config, facts, commented);
            port.add_frontends(&mut rules.entries);
            port.add_chains(&mut rules.chains);
        }
        rules
    }
}

/// One Service port while it is being compiled.
pub(crate) struct PortRules<'a> {
    pub(crate) port: &'a ServicePort,
    pub(crate) choice: Choice,
    pub(crate) config: &'a Config,
    pub(crate) facts: &'a NodeFacts,
    pub(crate) names: ServiceChains,
    /// `namespace/name:port`
    pub(crate) spn: String,
    commented: bool,
}

impl<'a> PortRules<'a> {
    fn new(
        port: &'a ServicePort,
        endpoints: &[Endpoint],
        config: &'a Config,
        facts: &'a NodeFacts,
        commented: bool,
    ) -> Self {
        let choice = categorize(endpoints, port, facts);
        let (names, spn) = (ServiceChains::of(&port.name), port.name.to_string());
        Self { port, choice, config, facts, names, spn, commented }
    }

    /// What happens to internal traffic if it cannot be delivered: rejected if there is no endpoint anywhere, dropped if only
    /// the policy stands in the way.
    pub(crate) fn internal_refusal(&self) -> Option<Rule> {
        self.refusal(self.port.internal_local)
    }

    /// The same for external traffic.
    pub(crate) fn external_refusal(&self) -> Option<Rule> {
        self.refusal(self.port.external_local)
    }

    fn refusal(&self, local: bool) -> Option<Rule> {
        if !self.choice.any {
            Some(Rule::to(Target::Reject(None)).because(format!("{} has no endpoints", self.spn)))
        } else if local && self.choice.local.is_empty() {
            Some(Rule::to(Target::Drop).because(format!("{} has no local endpoints", self.spn)))
        } else {
            None
        }
    }

    /// The policy chain of the cluster IP.
    pub(crate) fn internal_chain(&self) -> ChainName {
        if self.port.internal_local { self.names.local() } else { self.names.cluster() }
    }

    pub(crate) fn has_firewall(&self) -> bool {
        self.choice.any && !self.port.load_balancer_ips.is_empty() && !self.port.source_ranges.is_empty()
    }

    fn has_external(&self) -> bool {
        self.choice.any && self.port.externally_accessible()
    }

    /// Whether endpoints stand in the dispatch chain: few of them, and nothing else needs a chain of the Service.
    pub(crate) fn is_inlined(&self) -> bool {
        self.config.bpf
            && self.affinity().is_none()
            && !self.has_external()
            && self.internal_endpoints().len() <= INLINED_ENDPOINTS
    }

    fn internal_endpoints(&self) -> &[Endpoint] {
        if self.port.internal_local { &self.choice.local } else { &self.choice.cluster }
    }

    /// The entry of an inlined Service port. Its first rule says whose all are; kube-proxy, too, saves comments where there are many
    /// endpoints.
    pub(crate) fn inlined_entry(&self) -> Entry {
        let comment = format!("{} cluster IP", self.spn);
        let explain = |rule: Rule, first: bool| {
            if first || self.commented { rule.because(&comment) } else { rule }
        };
        let mut rules = Vec::with_capacity(INLINED_ENDPOINTS);
        for (rule, _, endpoint) in choices(self.internal_endpoints(), self.draw()) {
            let rule = Rule { target: Some(Target::Dnat(endpoint.address)), ..rule };
            rules.push(explain(self.at(self.port.cluster_ip, rule), rules.is_empty()));
        }
        let marking = match internal_masquerade(self.config, self.facts) {
            Some(_) => Marking::Before { commented: self.commented },
            None => Marking::Behind,
        };
        Entry { marking, rules: rules.into() }
    }

    /// Files all chains of the Service port.
    fn add_chains(&self, chains: &mut BTreeMap<ChainName, Vec<Rule>>) {
        let internal = self.internal_refusal().is_none();
        if internal && self.is_inlined() {
            return;
        }
        let policies = [
            (false, &self.choice.cluster, self.names.cluster()),
            (true, &self.choice.local, self.names.local()),
        ];
        for (local, endpoints, name) in policies {
            if !endpoints.is_empty() {
                let masquerade = internal && self.port.internal_local == local;
                let hops = self.hops(endpoints);
                let mut rules = self.policy_head(&hops, masquerade);
                if hops.len() > UNGROUPED_MAX && !self.has_endpoint_chains() {
                    rules.extend(self.choose_group(&hops, local, chains));
                } else {
                    rules.extend(self.choose(&hops, self.draw()));
                }
                chains.insert(name, rules);
                chains.extend(
                    hops.iter().filter_map(|hop| Some((hop.chain.clone()?, self.endpoint_chain(hop)))),
                );
            }
        }
        if self.has_external() {
            chains.insert(self.names.external(), self.external_chain());
        }
        if self.has_firewall() {
            chains.insert(self.names.firewall(), self.firewall_chain());
        }
    }

    /// Endpoints with their chains, if each has one. Names are hashes: they are made once.
    fn hops<'e>(&self, endpoints: &'e [Endpoint]) -> Vec<Hop<'e>> {
        let chain = |endpoint: &Endpoint| self.names.endpoint(endpoint.address);
        let named = self.has_endpoint_chains();
        endpoints.iter().map(|endpoint| Hop { endpoint, chain: named.then(|| chain(endpoint)) }).collect()
    }

    /// What a policy chain begins with: masquerading of cluster-IP traffic, affinity.
    fn policy_head(&self, hops: &[Hop<'_>], masquerade: bool) -> Vec<Rule> {
        let mut rules = Vec::with_capacity(hops.len() * 2 + 1);
        if masquerade {
            rules.extend(self.internal_masquerade());
        }
        if let Some(seconds) = self.affinity() {
            for hop in hops {
                let recall = hop.affinity(Affinity::Recall { seconds });
                let rule = recall.into_iter().fold(Rule::to(hop.target()), Rule::when);
                rules.push(self.endpoint_comment(rule, hop.endpoint));
            }
        }
        rules
    }

    /// What decides which endpoint a connection gets.
    fn draw(&self) -> Draw {
        if self.config.statistic { Draw::Random } else { Draw::by_source_port(self.port.protocol()) }
    }

    /// Seconds for which a client stays with an endpoint, if this kernel can remember clients.
    fn affinity(&self) -> Option<u32> {
        self.port.affinity.filter(|_| self.config.recent)
    }

    /// What it goes on with: one of the endpoints at random.
    fn choose<'h>(&self, hops: impl IntoIterator<Item = &'h Hop<'h>>, draw: Draw) -> Vec<Rule> {
        let hops: Vec<_> = hops.into_iter().collect();
        let rules = choices(&hops, draw).map(|(rule, _, hop)| {
            let rule = Rule { target: Some(hop.target()), ..rule };
            let rule =
                if hop.chain.is_none() || draw != Draw::Random { self.of_protocol(rule) } else { rule };
            self.endpoint_comment(rule, hop.endpoint)
        });
        rules.collect()
    }

    fn of_protocol(&self, rule: Rule) -> Rule {
        rule.when(Match::protocol(self.port.protocol()))
    }

    /// The same for many endpoints: one of the groups at random, and in the group's chain one of its endpoints.
    fn choose_group(
        &self,
        hops: &[Hop<'_>],
        local: bool,
        chains: &mut BTreeMap<ChainName, Vec<Rule>>,
    ) -> Vec<Rule> {
        let groups: Vec<_> = groups::deal(hops, |hop| hop.endpoint.address).into_iter().collect();
        let mut rules = Vec::with_capacity(groups.len());
        for (rule, draw, (number, members)) in weighted(&groups, self.draw(), |(_, members)| members.len()) {
            let name = self.names.group(local, *number);
            chains.insert(name.clone(), self.choose(members.iter().copied(), draw));
            let rule = if draw == Draw::Random { rule } else { self.of_protocol(rule) };
            rules.push(Rule { target: Some(Target::Jump(name)), ..rule });
        }
        rules
    }

    fn has_endpoint_chains(&self) -> bool {
        !self.config.bpf || self.affinity().is_some()
    }

    fn endpoint_chain(&self, hop: &Hop<'_>) -> Vec<Rule> {
        let address = hop.endpoint.address;
        let mut rules = Vec::with_capacity(2);
        if !self.config.bpf {
            let itself = Match::Source { net: IpNet::from(address.ip()), negated: false };
            rules.push(self.plain_comment(mark().when(itself)));
        }
        let dnat = Rule::to(Target::Dnat(address)).when(Match::protocol(self.port.protocol()));
        let remember = self.affinity().and_then(|_| hop.affinity(Affinity::Remember));
        rules.push(self.plain_comment(remember.into_iter().fold(dnat, Rule::when)));
        rules
    }

    fn endpoint_comment(&self, rule: Rule, endpoint: &Endpoint) -> Rule {
        if self.commented { rule.because(format!("{} -> {}", self.spn, endpoint.address)) } else { rule }
    }

    fn plain_comment(&self, rule: Rule) -> Rule {
        if self.commented { rule.because(&self.spn) } else { rule }
    }

    /// Matches the cluster IP, so that external traffic which reaches the same chain is not affected.
    fn internal_masquerade(&self) -> Option<Rule> {
        let rule = self.at(self.port.cluster_ip, internal_masquerade(self.config, self.facts)?.set());
        Some(rule.because(format!("{} cluster IP", self.spn)))
    }

    fn external_chain(&self) -> Vec<Rule> {
        let spn = &self.spn;
        let to_cluster = || Rule::to(Target::Jump(self.names.cluster()));
        if !self.port.external_local {
            return vec![
                mark().because(format!("masquerade traffic for {spn} external destinations")),
                to_cluster(),
            ];
        }
        let mut rules = Vec::with_capacity(4);
        // Pods and the node itself reach all endpoints, as if the address were the cluster IP: the policy is for clients
        // from outside, whose address it preserves. (There is a cluster endpoint whenever there is any.)
        let from_node = || Match::Local { side: AddressSide::Source, negated: false };
        if let Some(from_pod) = self.config.detector.local(self.facts.family) {
            let rule = to_cluster().when(from_pod);
            rules.push(rule.because(format!("pod traffic for {spn} external destinations")));
        }
        let masquerade = mark().when(from_node());
        rules.push(masquerade.because(format!("masquerade LOCAL traffic for {spn} external destinations")));
        let route = to_cluster().when(from_node());
        rules.push(route.because(format!("route LOCAL traffic for {spn} external destinations")));
        if !self.choice.local.is_empty() {
            rules.push(Rule::to(Target::Jump(self.names.local())));
        }
        rules
    }

    fn firewall_chain(&self) -> Vec<Rule> {
        let ranges = &self.port.source_ranges;
        let mut sources: Vec<IpNet> = ranges.clone();
        // A node that has the load balancer's address on one of its interfaces may use it as its source.
        if ranges.iter().any(|range| range.contains(&self.facts.node_ip)) {
            sources.extend(self.port.load_balancer_ips.iter().copied().map(<IpNet as From<IpAddr>>::from));
        }
        let admit = |net| {
            let rule =
                Rule::to(Target::Jump(self.names.external())).when(Match::Source { net, negated: false });
            rule.because(format!("{} loadbalancer IP", self.spn))
        };
        let mut rules: Vec<_> = sources.into_iter().map(admit).collect();
        let note = format!("other traffic to {} will be dropped by {}", self.spn, wellknown::PROXY_FIREWALL);
        rules.push(Rule::default().because(note));
        rules
    }
}

/// Which clients of cluster IPs are masqueraded, if any.
pub(crate) fn internal_masquerade(config: &Config, facts: &NodeFacts) -> Option<Masquerade> {
    let sources =
        if config.masquerade_all { Vec::new() } else { vec![config.detector.not_local(facts.family)?] };
    Some(Masquerade { sources, mark: config.masquerade_mark() })
}

/// Asks for masquerading.
fn mark() -> Rule {
    Rule::to(Target::Jump(ChainName::from(wellknown::MARK_MASQ)))
}

/// An endpoint, and its chain if it has one.
struct Hop<'a> {
    endpoint: &'a Endpoint,
    chain: Option<ChainName>,
}

impl Hop<'_> {
    /// What a policy chain does to choose it.
    fn target(&self) -> Target {
        match &self.chain {
            Some(chain) => Target::Jump(chain.clone()),
            None => Target::Dnat(self.endpoint.address),
        }
    }

    /// Its list of clients is called like its chain.
    fn affinity(&self, action: Affinity) -> Option<Match> {
        let list = self.chain.as_ref()?.as_str().into();
        Some(Match::Affinity { list, action })
    }
}

/// One rule per endpoint, so that each is chosen equally often: 1/n, then 1/(n-1) of the rest, the last always.
fn choices<T>(endpoints: &[T], draw: Draw) -> impl Iterator<Item = (Rule, Draw, &T)> {
    weighted(endpoints, draw, |_| 1)
}
