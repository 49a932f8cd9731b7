//! What the installed rules of a proxy tell by themselves: places that they lead to, networks and interfaces they ask for.
//!
//! A proxy that forgot to remove a Service is found by this, and so is one that takes other networks for Pods'.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use fairlead_objects::{Protocol, ServiceKey};
use ipnet::IpNet;

use crate::{
    dump::Dump,
    matches::{IpProtocol, Match},
    rule::{Rule, Target},
    ruleset::{ChainName, Table, wellknown},
    trace::asked_for,
};

/// Address, protocol and port.
pub(super) type Place = (IpAddr, Protocol, u16);
/// The Service port that a comment names.
type Former = Option<(ServiceKey, Arc<str>)>;

/// Prefixes of chains that a proxy writes.
const PREFIXES: [&str; 2] = ["KUBE-", "FL-"];
/// Chains with source ranges of load balancers.
const FIREWALL: &str = "KUBE-FW-";

/// What was found in the chains of a proxy.
#[derive(Clone, Debug, Default)]
pub(super) struct Traces {
    places: BTreeMap<Place, Former>,
    /// On any address that accepts node ports.
    ports: BTreeMap<(Protocol, u16), Former>,
    ranges: BTreeMap<ChainName, Vec<IpNet>>,
    /// Networks that masquerading asks for.
    pub(super) networks: BTreeSet<IpNet>,
    /// An interface, or the beginning of its name.
    pub(super) interface: Option<Arc<str>>,
}

impl Traces {
    /// Looks through all rules of the proxy's chains.
    pub(super) fn of(installed: &Dump) -> Self {
        let mut traces = Self::default();
        for table in [Table::Filter, Table::Nat] {
            for (name, chain) in installed.chains(&table) {
                if PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)) {
                    for rule in &chain.rules {
                        traces.note(name, rule);
                    }
                }
            }
        }
        traces
    }

    /// Places that rules lead to, those of node ports on each of `nodes`.
    pub(super) fn places<'a>(&'a self, nodes: &'a [IpAddr]) -> impl Iterator<Item = (Place, Former)> + 'a {
        let ports = self.ports.iter().flat_map(|((protocol, port), former)| {
            nodes.iter().map(|address| ((*address, *protocol, *port), former.clone()))
        });
        self.places.iter().map(|(place, former)| (*place, former.clone())).chain(ports)
    }

    /// Source ranges that a firewall chain admits.
    pub(super) fn ranges(&self, chain: &ChainName) -> &[IpNet] {
        self.ranges.get(chain).map_or(&[], Vec::as_slice)
    }

    fn note(&mut self, chain: &ChainName, rule: &Rule) {
        let mut transport = None;
        for condition in &rule.matches {
            match condition {
                Match::Protocol { protocol: IpProtocol::Transport(protocol), negated: false } => {
                    transport = Some(*protocol);
                }
                Match::Source { net, .. } if chain.as_str().starts_with(FIREWALL) => {
                    self.ranges.entry(chain.clone()).or_default().push(*net);
                }
                // Endpoints are single addresses; loopback is no network of Pods.
                Match::Source { net, .. }
                    if net.prefix_len() < net.max_prefix_len() && !net.network().is_loopback() =>
                {
                    self.networks.insert(*net);
                }
                Match::InInterface { name, .. } => {
                    let name = name.as_str().strip_suffix('+').unwrap_or(name.as_str());
                    self.interface.get_or_insert_with(|| name.into());
                }
                _ => {}
            }
        }
        let is_mark = matches!(&rule.target, Some(Target::Jump(to)) if to.as_str() == wellknown::MARK_MASQ);
        match (transport, asked_for(rule)) {
            // That the address is a Service's is told by the rule that leads on.
            (Some(_), _) if is_mark => {}
            (Some(protocol), (Some(address), Some(port))) => {
                self.places.entry((address, protocol, port)).or_insert_with(|| former(rule));
            }
            (Some(protocol), (None, Some(port))) => {
                self.ports.entry((protocol, port)).or_insert_with(|| former(rule));
            }
            _ => {}
        }
    }
}

/// Comments begin with the Service port: `default/web:http cluster IP`.
fn former(rule: &Rule) -> Former {
    let name = rule.comment.as_ref()?.as_str().split(' ').next()?;
    let (service, port) = name.split_once(':').unwrap_or((name, ""));
    let (namespace, name) = service.split_once('/')?;
    Some((ServiceKey::new(namespace, name), port.into()))
}
