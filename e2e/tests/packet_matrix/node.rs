//! A namespace with the rules of all shapes, as the compiler makes them for a site.

use anyhow::{Context as _, Result, ensure};
use fairlead_compiler::{
    Config, Detector as By, Dump, Host, NodeFacts, ProxyState, Ruleset, compile, diff, render,
};
use fairlead_e2e::{
    iptables::Iptables,
    plan,
    programs::Variant,
    record::Record,
    tun::{Harness, Setup},
};
use fairlead_objects::{Family, NodeName};
use ipnet::IpNet;

use crate::{
    oracle::{Detector, Firewall, Site},
    questions::{loopback, node_addresses},
    shapes::{NODE, Shape, ZONE, load_balancer},
};

/// What is done to the rules before they are loaded: whether a line of the document stays.
pub(crate) type Spoil = fn(&str) -> bool;

/// A document that does something to rules that were read.
pub(crate) type Fault = fn(&Dump) -> String;

/// Nothing.
pub(crate) const SOUND: Spoil = |_| true;

/// What a machine with a default of DROP accepts by itself.
const CLOSED: &str = "*filter\n:INPUT DROP\n:FORWARD DROP\n-A INPUT -i lo -j ACCEPT\n\
    -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";

/// How rules are made and loaded.
#[derive(Clone, Copy)]
pub(crate) struct Make {
    pub(crate) variant: Variant,
    /// With `xt_bpf` there are other rules to the same end.
    pub(crate) bpf: bool,
    pub(crate) spoil: Spoil,
}

/// The node.
pub(crate) struct Node {
    pub(crate) harness: Harness,
    pub(crate) site: Site,
    iptables: Iptables,
    dumps: [Dump; 2],
    // Its directory has the lock.
    _record: Record,
}

impl Node {
    pub(crate) fn new(site: Site, make: Make, shapes: &[Shape]) -> Result<Self> {
        let record = Record::open()?;
        let mut harness = Harness::create(&record, "node", &plan::Node::new(1), &Setup::default())?;
        if site.given {
            Family::ALL.into_iter().try_for_each(|family| harness.give(load_balancer(family)))?;
        }
        let iptables = Iptables { variant: make.variant, lock: record.dir().join("xtables.lock") };
        let mut node = Self { harness, site, iptables, dumps: <[Dump; 2]>::default(), _record: record };
        for family in Family::ALL {
            node.close(family)?;
        }
        for &family in site.families {
            node.load(family, make, shapes)?;
        }
        // Rules of the other family are what is there without ours: none.
        let Self { harness, iptables, dumps, .. } = &mut node;
        for (family, dump) in Family::ALL.into_iter().zip(dumps) {
            *dump = iptables.save(harness.netns(), family)?;
        }
        Ok(node)
    }

    pub(crate) fn dump(&self, family: Family) -> &Dump {
        let [v4, v6] = &self.dumps;
        if family == Family::V4 { v4 } else { v6 }
    }

    /// Changes rules of IPv4 that were read.
    pub(crate) fn damage(&self, fault: Fault) -> Result<()> {
        self.iptables.restore(self.harness.netns(), Family::V4, &fault(self.dump(Family::V4)))
    }

    /// For the tracer.
    pub(crate) fn host(&self, family: Family) -> Host {
        Host { addresses: self.harness.addresses(family).collect() }
    }

    fn close(&self, family: Family) -> Result<()> {
        let pods = plan::cluster_networks(plan::Families::DualStack).split(',');
        let pods = pods.filter(|network| network.contains(':') == (family == Family::V6));
        let accept =
            |network: &str| format!("-A FORWARD -s {network} -j ACCEPT\n-A FORWARD -d {network} -j ACCEPT\n");
        let more: String = match self.site.firewall {
            Firewall::Open => return Ok(()),
            Firewall::Closed => String::new(),
            Firewall::PodsOnly => pods.map(accept).collect(),
        };
        self.iptables.restore(self.harness.netns(), family, &format!("{CLOSED}{more}COMMIT\n"))
    }

    /// Goes on to other shapes.
    pub(crate) fn update(&mut self, make: Make, shapes: &[Shape]) -> Result<()> {
        let families = self.site.families.iter();
        families.map(|family| state(*family, shapes)).try_for_each(|state| self.follow(make, &state))
    }

    /// Goes on to another state of one family, by what differs only, as the programmer does.
    pub(crate) fn follow(&mut self, make: Make, state: &ProxyState) -> Result<()> {
        let family = state.family();
        let ruleset = self.ruleset(make, state)?;
        let delta = diff(self.dump(family), &ruleset);
        self.iptables.restore(self.harness.netns(), family, &render(&delta))?;
        let installed = self.iptables.save(self.harness.netns(), family)?;
        let left = diff(&installed, &ruleset);
        ensure!(left.is_empty(), "the kernel has other rules than it was given: {left:#?}");
        let [v4, v6] = &mut self.dumps;
        *(if family == Family::V4 { v4 } else { v6 }) = installed;
        Ok(())
    }

    fn ruleset(&self, make: Make, state: &ProxyState) -> Result<Ruleset> {
        let family = state.family();
        Ok(compile(state, &self.config(family, make), &self.facts(family)?))
    }

    fn load(&mut self, family: Family, make: Make, shapes: &[Shape]) -> Result<()> {
        if self.config(family, make).localhost_node_ports_active(family) {
            self.harness.netns().sysctl(&[("ipv4/conf/all/route_localnet", "1")])?;
        }
        let ruleset = self.ruleset(make, &state(family, shapes))?;
        let document = ruleset.render_document();
        let lines = document.split_inclusive('\n').filter(|line| (make.spoil)(line));
        let kept: String = lines.collect();
        self.iptables.restore(self.harness.netns(), family, &kept)?;
        let installed = self.iptables.save(self.harness.netns(), family)?;
        let left = diff(&installed, &ruleset);
        let sound = kept.len() == document.len();
        ensure!(left.is_empty() == sound, "the kernel has other rules than it was given: {left:#?}");
        Ok(())
    }

    fn config(&self, family: Family, make: Make) -> Config {
        let Site { detector, masquerade_all, node_ports, liberal, .. } = self.site;
        let detector = match detector {
            Detector::None => By::None,
            Detector::Link => By::Bridge(Setup::default().pods.into()),
            Detector::Networks => {
                let networks = plan::cluster_networks(plan::Families::DualStack).split(',');
                let mut networks = networks.filter_map(|network| network.parse::<IpNet>().ok());
                networks.find(|network| Family::of(network.addr()) == family).map_or(By::None, By::Cidr)
            }
        };
        Config {
            detector,
            masquerade_all,
            node_port_addresses: node_ports.iter().filter_map(|network| network.parse().ok()).collect(),
            liberal_tcp: liberal,
            bpf: make.bpf,
            ..Config::default()
        }
    }

    fn facts(&self, family: Family) -> Result<NodeFacts> {
        let [node_ip, _] = node_addresses(family);
        let addresses = self.harness.addresses(family).chain([loopback(family)]);
        let zone = Some(ZONE.into());
        let addresses: Vec<IpNet> = addresses.map(IpNet::from).collect();
        ensure!(addresses.contains(&node_ip.into()), "the node has another address");
        Ok(NodeFacts { name: NodeName::new(NODE), zone, node_ip, addresses, family })
    }
}

fn state(family: Family, shapes: &[Shape]) -> ProxyState {
    let mut state = ProxyState::new(family);
    for shape in shapes {
        state.set_service(&shape.service());
        state.set_slice(&shape.slice(family));
    }
    state
}

/// Makes a node, says for what if it cannot.
pub(crate) fn node(site: Site, make: Make, shapes: &[Shape]) -> Result<Node> {
    Node::new(site, make, shapes).with_context(|| format!("{site:?} by {:?}", make.variant))
}
