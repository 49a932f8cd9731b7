//! Frontends of a Service port: the rules that dispatch chains hold for it, as in kube-proxy's iptables proxier.
//!
//! Texts of comments are those that kube-proxy writes, because people and tools search for them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    chains::PortRules,
    counters,
    dispatch::{Entry, EntryId, Path},
    matches::{AddressSide, Match},
    rule::{Rule, Target},
};

/// A tree that frontends are filed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    /// nat KUBE-SERVICES: cluster IPs
    Services,
    /// nat KUBE-SERVICES: external IPs and load balancers' addresses, behind the cluster IPs
    External,
    /// nat KUBE-NODEPORTS
    NodePorts,
    /// filter KUBE-SERVICES: cluster IPs without endpoints
    RefusedServices,
    /// filter KUBE-EXTERNAL-SERVICES: external addresses without endpoints
    RefusedExternal,
    /// filter KUBE-EXTERNAL-SERVICES: node ports without endpoints
    RefusedNodePorts,
    /// filter KUBE-PROXY-FIREWALL: what no source range admitted
    Firewall,
    /// filter KUBE-NODEPORTS: health check ports
    HealthChecks,
}

/// Rules of dispatch chains.
pub(crate) type Entries = BTreeMap<(Scope, EntryId), Entry>;

/// Which frontend of a Service port an entry is for.
const CLUSTER_IP: u8 = 0;
const EXTERNAL_IP: u8 = 1;
const LOAD_BALANCER_IP: u8 = 2;
const NODE_PORT: u8 = 3;

impl PortRules<'_> {
    /// Files the rules of all frontends.
    pub(crate) fn add_frontends(&self, entries: &mut Entries) {
        self.add_cluster_ip(entries);
        for address in &self.port.external_ips {
            let rule =
                Rule::to(Target::Jump(self.names.external())).because(format!("{} external IP", self.spn));
            self.add_external(entries, *address, EXTERNAL_IP, rule);
        }
        for address in &self.port.load_balancer_ips {
            let chain = if self.has_firewall() { self.names.firewall() } else { self.names.external() };
            let rule = Rule::to(Target::Jump(chain)).because(format!("{} loadbalancer IP", self.spn));
            self.add_external(entries, *address, LOAD_BALANCER_IP, rule);
            self.add_firewall(entries, *address);
        }
        if self.port.node_port != 0 {
            self.add_node_port(entries);
        }
        self.add_health_check(entries);
    }

    fn add_cluster_ip(&self, entries: &mut Entries) {
        let address = self.port.cluster_ip;
        let entry = match self.internal_refusal() {
            Some(refusal) => {
                let id = self.address_entry(address, CLUSTER_IP);
                entries.insert((Scope::RefusedServices, id), vec![self.at(address, refusal)].into());
                return;
            }
            None if self.is_inlined() => self.inlined_entry(),
            None => {
                let jump = Rule::to(Target::Jump(self.internal_chain()));
                vec![self.at(address, jump.because(format!("{} cluster IP", self.spn)))].into()
            }
        };
        entries.insert((Scope::Services, self.address_entry(address, CLUSTER_IP)), entry);
    }

    fn add_external(&self, entries: &mut Entries, address: IpAddr, frontend: u8, jump: Rule) {
        let id = self.address_entry(address, frontend);
        if self.choice.any {
            entries.insert((Scope::External, id.clone()), vec![self.at(address, jump)].into());
        }
        // With a Local policy and no local endpoint both rules exist: what the external chain lets fall through is dropped.
        if let Some(refusal) = self.external_refusal() {
            entries.insert((Scope::RefusedExternal, id), vec![self.at(address, refusal)].into());
        }
    }

    /// Only packets that the firewall chain let fall through still carry the load balancer's address.
    fn add_firewall(&self, entries: &mut Entries, address: IpAddr) {
        if self.has_firewall() {
            let reason = format!("{} traffic not accepted by {}", self.spn, self.names.firewall());
            let rule = self.at(address, Rule::to(Target::Drop).because(reason));
            entries
                .insert((Scope::Firewall, self.address_entry(address, LOAD_BALANCER_IP)), vec![rule].into());
        }
    }

    fn add_node_port(&self, entries: &mut Entries) {
        let port = self.port.node_port;
        let id = self.port_entry(port);
        if self.choice.any {
            let jump = self.to_port(port, Rule::to(Target::Jump(self.names.external())).because(&self.spn));
            let mut rules = Vec::with_capacity(2);
            if let Some(loopback) = self.counted_loopback() {
                let counted = jump.clone().when(loopback).when(Match::Counter(counters::LOCALHOST.into()));
                rules.push(counted);
            }
            rules.push(jump);
            entries.insert((Scope::NodePorts, id.clone()), rules.into());
        }
        if let Some(refusal) = self.external_refusal() {
            let to_node = Match::Local { side: AddressSide::Destination, negated: false };
            entries.insert(
                (Scope::RefusedNodePorts, id),
                vec![self.to_port(port, refusal).when(to_node)].into(),
            );
        }
    }

    fn counted_loopback(&self) -> Option<Match> {
        let active = self.config.nfacct && self.config.localhost_node_ports_active(self.facts.family);
        active.then(|| Match::Destination { net: crate::statics::loopback_v4(), negated: false })
    }

    /// Exists regardless of endpoints: the answer is the health server's to give.
    fn add_health_check(&self, entries: &mut Entries) {
        let port = self.port.health_check_node_port;
        if port != 0 {
            let tcp = fairlead_objects::Protocol::Tcp;
            let rule = Rule::to(Target::Accept).because(format!("{} health check node port", self.spn));
            let rule = rule.when(Match::protocol(tcp)).when(Match::port(tcp, port));
            let id = EntryId {
                path: Path::of_port(tcp, port),
                contestable: false,
                owner: Arc::clone(&self.port.name),
                frontend: NODE_PORT,
            };
            entries.insert((Scope::HealthChecks, id), vec![rule].into());
        }
    }

    fn address_entry(&self, address: IpAddr, frontend: u8) -> EntryId {
        let path = Path::of_address(address, self.port.protocol(), self.port.port);
        EntryId { path, contestable: frontend != CLUSTER_IP, owner: Arc::clone(&self.port.name), frontend }
    }

    fn port_entry(&self, port: u16) -> EntryId {
        let path = Path::of_port(self.port.protocol(), port);
        EntryId { path, contestable: false, owner: Arc::clone(&self.port.name), frontend: NODE_PORT }
    }

    /// `rule` for packets to the Service's port of `address`.
    pub(crate) fn at(&self, address: IpAddr, rule: Rule) -> Rule {
        self.to_port(self.port.port, rule.when(Match::destination(address)))
    }

    fn to_port(&self, port: u16, rule: Rule) -> Rule {
        let protocol = self.port.protocol();
        rule.when(Match::protocol(protocol)).when(Match::port(protocol, port))
    }
}
