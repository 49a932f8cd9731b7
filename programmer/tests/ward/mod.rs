//! A node whose rules other programs damage: what it should have, what it has, and what was repaired.

#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, reason = "helpers of tests are tests, too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use fairlead_objects::{Family, builders};
use fairlead_programmer::{feed::Change, netfilter::Variant};
use serde_json::{Value, json};

use crate::{
    namespace::shell,
    node::{Node, program, until},
};

pub const PROMISE: Duration = Duration::from_secs(2);
/// Of an edit on iptables-legacy that changes neither number nor size.
pub const LONG_PROMISE: Duration = Duration::from_secs(30);

/// An address in the range that tests use for that purpose.
pub fn address(family: Family, purpose: &str, number: usize) -> String {
    match (family, purpose) {
        (Family::V4, "cluster") => format!("10.96.0.{number}"),
        (Family::V6, "cluster") => format!("fd00:96::{number}"),
        (Family::V4, "external") => format!("198.51.100.{number}"),
        (Family::V6, "external") => format!("2001:db8:100::{number}"),
        (Family::V4, _) => format!("10.0.{}.{}", number / 100, number % 100),
        (Family::V6, _) => format!("fd00:10::{number}"),
    }
}

pub fn service(family: Family, number: usize, name: &str, more: Value) -> Change {
    let ip = address(family, "cluster", number);
    let mut spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family.as_str()]});
    builders::merge(&mut spec, more);
    Change::Service(Arc::new(builders::service(name, spec)))
}

/// With endpoints from `first` on, all here or all elsewhere.
pub fn slice(family: Family, name: &str, first: usize, count: usize) -> Change {
    let node = if name == "remote" { "node-b" } else { "node-a" };
    let ips: Vec<_> = (first..first + count).map(|number| address(family, "pod", number)).collect();
    let endpoints: Vec<_> = ips.iter().map(|ip| (ip.as_str(), node, true)).collect();
    let mut slice = builders::slice(name, name, 8080, &endpoints);
    slice.address_type = serde_json::from_value(family.as_str().into()).unwrap();
    Change::Slice(Arc::new(slice))
}

/// Services of every shape that has chains of its own: many of them, many endpoints, affinity, node ports, source ranges,
/// policies, no endpoints.
pub fn services(family: Family) -> Vec<Change> {
    let external = |number| address(family, "external", number);
    let range = if family == Family::V4 { "203.0.113.0/24" } else { "2001:db8:113::/48" };
    let ports = |port: u16| json!([{"port": 80, "protocol": "TCP", "nodePort": port}]);
    let shapes = [
        ("plain", 3, json!({})),
        ("crowded", 70, json!({})),
        (
            "sticky",
            2,
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
        ),
        (
            "balanced",
            2,
            json!({"type": "LoadBalancer", "ports": ports(30080), "externalIPs": [external(1)],
                               "loadBalancerSourceRanges": [range]}),
        ),
        (
            "local",
            2,
            json!({"type": "NodePort", "ports": ports(30081), "externalIPs": [external(2)],
                            "externalTrafficPolicy": "Local"}),
        ),
        (
            "remote",
            2,
            json!({"type": "NodePort", "ports": ports(30082), "externalIPs": [external(3)],
                             "externalTrafficPolicy": "Local"}),
        ),
        ("empty", 0, json!({"externalIPs": [external(4)]})),
    ];
    let mut changes = Vec::new();
    for (index, (name, endpoints, more)) in shapes.into_iter().enumerate() {
        changes.push(service(family, index + 1, name, more));
        changes.push(slice(family, name, 100 * (index + 1), endpoints));
    }
    // Enough for more than one level of the tree.
    for number in 10..40 {
        let name = format!("one-of-many-{number}");
        changes.extend([service(family, number, &name, json!({})), slice(family, &name, 1000 + number, 1)]);
    }
    changes
}

/// Table and name of a chain.
pub type Place = (String, String);

/// Lines of all tables with the table that each is in.
pub fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut table = "";
    text.lines().filter_map(move |line| {
        table = line.strip_prefix('*').unwrap_or(table);
        (line.starts_with([':', '-', '['])).then_some((table, line))
    })
}

/// Chains and rules of our tables, without what changes by itself.
pub fn saved(tool: &str) -> Vec<(String, String)> {
    let text = shell(&format!("for table in filter nat mangle; do {tool}-save -t $table; done"));
    let bare = |line: &str| line.split(" [").next().unwrap_or_default().to_owned();
    let mut lines: Vec<_> = lines(&text).map(|(table, line)| (table.to_owned(), bare(line))).collect();
    // Tables print in the order in which they were made.
    lines.sort();
    lines
}

/// A rule as a save prints it, and where it is in its chain.
#[derive(Clone, Debug)]
pub struct Rule {
    pub place: Place,
    pub number: usize,
    pub text: String,
}

impl Rule {
    pub fn is_built_in(&self) -> bool {
        !self.place.1.starts_with("KUBE-")
    }

    /// What is the same for all rules that damage to would show the same.
    pub fn kind(&self) -> String {
        let (table, chain) = &self.place;
        let mut parts = chain.splitn(3, '-');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        // No hash in a name holds a 0; the names of the tree do.
        let tree = parts.next().is_some_and(|hash| hash.contains('0'));
        let number = if self.is_built_in() { self.number } else { 0 };
        format!("{table} {first}-{second} {tree} {number}")
    }
}

/// The rules of ours that are there, the jumps to us among them.
pub fn rules(tool: &str) -> Vec<Rule> {
    let text = shell(&format!("for table in filter nat; do {tool}-save -t $table; done"));
    let mut numbers = BTreeMap::<Place, usize>::new();
    let rules = lines(&text).filter_map(|(table, line)| {
        let (chain, text) = line.strip_prefix("-A ")?.split_once(' ')?;
        let place = (table.to_owned(), chain.to_owned());
        let number = numbers.entry(place.clone()).or_default();
        *number += 1;
        Some(Rule { place, number: *number, text: text.to_owned() })
    });
    // The content of that chain is shared with kubelet and not compared; see the compiler.
    rules.filter(|rule| rule.place.1 != "KUBE-FIREWALL").collect()
}

/// The first rule of each kind of chain, and every jump from a built-in chain.
pub fn one_of_each_kind(tool: &str) -> Vec<Rule> {
    let mut seen = BTreeSet::new();
    rules(tool).into_iter().filter(|rule| seen.insert(rule.kind())).collect()
}

/// Chains with a rule that was written since [`Ward::mark`].
pub fn rewritten(tool: &str) -> BTreeSet<Place> {
    let text = shell(&format!("for table in filter nat; do {tool}-save -c -t $table; done"));
    let rules = lines(&text).filter_map(|(table, line)| {
        let (count, rule) = line.strip_prefix('[')?.split_once(':')?;
        let chain = rule.split(' ').nth(2)?;
        (count.parse::<u64>().unwrap() < MARK).then(|| (table.to_owned(), chain.to_owned()))
    });
    rules.collect()
}

/// Packets that every rule has counted, as far as it can tell.
pub const MARK: u64 = 7;

/// A node whose rules are damaged.
pub struct Ward {
    pub node: Node,
    pub variant: Variant,
    pub tool: String,
    /// As they should be.
    pub healthy: Vec<(String, String)>,
    pub damaged: BTreeSet<Place>,
    /// How many differences must have been counted.
    pub differences: u64,
}

impl Ward {
    pub async fn open(family: Family, variant: Variant) -> Self {
        let node = Node::start(family, variant, services(family)).await;
        let tool = program(family, variant);
        let healthy = saved(&tool);
        let ward = Self { node, variant, tool, healthy, damaged: BTreeSet::new(), differences: 0 };
        ward.mark().await;
        ward
    }

    /// Another program replaces all rules by equal ones that have counted: that is no damage.
    pub async fn mark(&self) {
        let Self { tool, .. } = self;
        for table in ["filter", "nat"] {
            shell(&format!(
                "{tool}-save -c -t {table} | sed -E 's/\\[[0-9]+:[0-9]+\\]/[{MARK}:700]/' | {tool}-restore -w 5 -c"
            ));
        }
        if self.variant == Variant::Nft {
            let name = "fairlead_verification_duration_seconds_count";
            until("everything was looked at", || self.node.metric(name) > 0).await;
        }
        assert_eq!(self.counted(), 0, "nothing is different");
        assert!(!self.is_marked() || rewritten(tool).is_empty());
    }

    /// ip6tables-nft-restore takes no counters, as of 1.8.9.
    pub fn is_marked(&self) -> bool {
        (self.node.family, self.variant) != (Family::V6, Variant::Nft)
    }

    pub fn counted(&self) -> u64 {
        let kinds = ["chain_missing", "chain_changed", "chain_stale", "jump_missing"];
        kinds.iter().map(|kind| self.node.metric_of("fairlead_drift_total", kind)).sum()
    }

    /// Damages `places`, each once, by `script`, and waits for the repair, of these and no others.
    pub async fn damage(
        &mut self,
        what: &str,
        places: &[Place],
        script: &str,
        promise: Duration,
    ) -> Duration {
        shell(script);
        self.damaged.extend(places.iter().cloned());
        let took = self.healed(what, promise).await;
        self.differences += u64::try_from(places.len()).unwrap();
        until(&format!("{what}: counted"), || self.counted() >= self.differences).await;
        assert_eq!(self.counted(), self.differences, "{what}: no more was repaired than was damaged");
        let rewritten = if self.is_marked() { rewritten(&self.tool) } else { BTreeSet::new() };
        assert!(rewritten.is_subset(&self.damaged), "{what}: {rewritten:?} of {:?}", self.damaged);
        took
    }

    /// Waits until the rules are as they should be.
    pub async fn healed(&self, what: &str, promise: Duration) -> Duration {
        let start = Instant::now();
        loop {
            let now = saved(&self.tool);
            if now == self.healthy {
                return start.elapsed();
            }
            if start.elapsed() > promise {
                let lost: Vec<_> = self.healthy.iter().filter(|line| !now.contains(line)).collect();
                let new: Vec<_> = now.iter().filter(|line| !self.healthy.contains(line)).collect();
                panic!("{}, {what}: not within {promise:?}: lost {lost:#?}, new {new:#?}", self.tool);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn close(self) {
        self.node.remove(self.variant).await;
    }
}
