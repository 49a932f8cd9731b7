//! Random Services.
//!
//! Invariant: [`ServiceModel::object`] gives the whole of what the script wants; what is not in it is removed when it is
//! applied.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::random::Random;

/// The labels that Pods and selectors are made of.
pub const APPS: [&str; 4] = ["red", "green", "blue", "grey"];
/// A second label of Pods.
pub const TIERS: [&str; 2] = ["front", "back"];

/// What kind of Service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With a cluster IP.
    Cluster,
    /// With a port on every node.
    Node,
    /// Without a cluster IP.
    Headless,
    /// A DNS name elsewhere.
    External,
}

/// Which families it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What the API server makes of it.
    Default,
    /// One family.
    One(&'static str),
    /// Both, in this order.
    Both(&'static str, &'static str),
}

/// What the script knows of a Service.
#[derive(Clone, Debug)]
pub struct ServiceModel {
    /// Name.
    pub name: String,
    /// What its Pods have; `None` is a Service whose Endpoints are made by hand.
    pub selector: Option<BTreeMap<&'static str, &'static str>>,
    /// Kind.
    pub kind: Kind,
    /// Whether all its endpoints appeared at once and none changed since: then both sides pack them alike.
    pub fresh: bool,
    /// What it was before it became a DNS name, and will be again: the label of headless Services is only written along with
    /// something else, so that what has the wrong one depends on what else there was to write.
    before: Kind,
    families: Wanted,
    ports: Value,
    labels: BTreeMap<&'static str, &'static str>,
    publish: bool,
    distribution: Option<&'static str>,
    auto: bool,
}

impl ServiceModel {
    /// A Service of any shape. `auto` says whether topology mode `Auto` is among them.
    pub fn any(random: &mut Random, name: String, auto: bool) -> Self {
        let kind = match random.below(20) {
            0..11 => Kind::Cluster,
            11 => Kind::Node,
            12..19 => Kind::Headless,
            _ => Kind::External,
        };
        let mut service = Self {
            name,
            selector: random.chance(78).then(|| selector(random)),
            kind,
            before: if kind == Kind::External {
                random.one_of([Kind::Cluster, Kind::Headless])
            } else {
                kind
            },
            fresh: false,
            families: families(random),
            ports: Value::Null,
            labels: labels(random),
            publish: random.chance(15),
            distribution: distribution(random),
            auto: auto && random.chance(12),
        };
        service.ports = service.any_ports(random);
        service
    }

    /// Changes one thing about it. Only when nothing else is about to happen to it (`calm`) does it become one that the
    /// controllers leave alone: else what stays of it would depend on what they saw first.
    pub fn alter(&mut self, random: &mut Random, calm: bool) {
        self.fresh = false;
        match random.below(12) {
            0 | 1 => self.labels = labels(random),
            2 | 3 => self.selector = Some(selector(random)),
            4 if calm => self.selector = None,
            5 | 6 => self.ports = self.any_ports(random),
            7 => self.publish = !self.publish,
            8 | 9 => self.distribution = distribution(random),
            10 => self.alter_kind(random, calm),
            _ => {
                self.families = match self.families {
                    Wanted::One("IPv4") => Wanted::Both("IPv4", "IPv6"),
                    Wanted::One(_) => Wanted::Both("IPv6", "IPv4"),
                    Wanted::Both(first, _) => Wanted::One(first),
                    Wanted::Default => Wanted::Default,
                }
            }
        }
    }

    /// Makes it one that has a selector.
    #[must_use]
    pub fn selecting(mut self, random: &mut Random) -> Self {
        if self.selector.is_none() {
            self.selector = Some(selector(random));
        }
        self
    }

    fn alter_kind(&mut self, random: &mut Random, calm: bool) {
        let was = self.kind;
        self.kind = match was {
            Kind::External => self.before,
            _ if calm && random.chance(60) => Kind::External,
            Kind::Cluster => Kind::Node,
            Kind::Node => Kind::Cluster,
            Kind::Headless => Kind::Headless,
        };
        if was != Kind::External {
            self.before = was;
        }
        if self.kind != Kind::Headless && self.ports == json!([]) {
            self.ports = json!([{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]);
        }
    }

    fn any_ports(&self, random: &mut Random) -> Value {
        let http = json!({"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"});
        let dns = json!({"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"});
        match random.below(9) {
            0 if self.kind == Kind::Headless => json!([]),
            0 | 1 => json!([http]),
            2 => json!([{"port": 80, "targetPort": 8080, "protocol": "TCP"}]),
            3 => json!([http, dns]),
            4 => json!([
                {"name": "b", "port": 81, "targetPort": 9001, "protocol": "TCP"},
                {"name": "a", "port": 80, "targetPort": 9000, "protocol": "TCP"},
                {"name": "c", "port": 82, "targetPort": 9002, "protocol": "SCTP"},
            ]),
            5 => json!([{"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP",
                "appProtocol": "kubernetes.io/h2c"}]),
            6 => json!([{"name": "x", "port": 80, "targetPort": "nowhere", "protocol": "TCP"}]),
            7 => json!([http, {"name": "side", "port": 90, "targetPort": "side", "protocol": "TCP"}]),
            _ => json!([{"name": "same-tcp", "port": 53, "targetPort": 5353, "protocol": "TCP"},
                {"name": "same-udp", "port": 53, "targetPort": 5353, "protocol": "UDP"}]),
        }
    }

    /// The object to apply.
    pub fn object(&self, namespace: &str) -> Value {
        let mut spec = json!({"ports": self.ports, "publishNotReadyAddresses": self.publish});
        if let Some(selector) = &self.selector {
            spec["selector"] = json!(selector);
        }
        if let Some(distribution) = self.distribution {
            spec["trafficDistribution"] = json!(distribution);
        }
        match self.kind {
            Kind::Cluster => spec["type"] = json!("ClusterIP"),
            Kind::Node => spec["type"] = json!("NodePort"),
            Kind::Headless => spec["clusterIP"] = json!("None"),
            Kind::External => {
                spec["type"] = json!("ExternalName");
                spec["externalName"] = json!("elsewhere.example.com");
            }
        }
        match self.families {
            Wanted::One(family) if self.kind != Kind::External => {
                spec["ipFamilyPolicy"] = json!("SingleStack");
                spec["ipFamilies"] = json!([family]);
            }
            Wanted::Both(first, second) if self.kind != Kind::External => {
                spec["ipFamilyPolicy"] = json!("RequireDualStack");
                spec["ipFamilies"] = json!([first, second]);
            }
            _ => {}
        }
        let annotations =
            if self.auto { json!({"service.kubernetes.io/topology-mode": "Auto"}) } else { json!({}) };
        json!({"apiVersion": "v1", "kind": "Service", "spec": spec, "metadata": {
            "name": self.name, "namespace": namespace, "labels": self.labels, "annotations": annotations}})
    }
}

fn selector(random: &mut Random) -> BTreeMap<&'static str, &'static str> {
    let mut selector = BTreeMap::from([("app", random.one_of(APPS))]);
    if random.chance(25) {
        selector.insert("tier", random.one_of(TIERS));
    }
    selector
}

fn families(random: &mut Random) -> Wanted {
    match random.below(8) {
        0..2 => Wanted::Default,
        2..4 => Wanted::One("IPv4"),
        4 => Wanted::One("IPv6"),
        5..7 => Wanted::Both("IPv4", "IPv6"),
        _ => Wanted::Both("IPv6", "IPv4"),
    }
}

fn distribution(random: &mut Random) -> Option<&'static str> {
    random.one_of([None, None, None, Some("PreferClose"), Some("PreferSameZone"), Some("PreferSameNode")])
}

/// Now and then some that the controllers themselves use.
fn labels(random: &mut Random) -> BTreeMap<&'static str, &'static str> {
    let all = [
        ("team", "one", 30),
        ("team", "two", 30),
        ("env", "test", 30),
        ("service.kubernetes.io/headless", "", 4),
        ("kubernetes.io/service-name", "somebody-else", 4),
        ("endpoints.kubernetes.io/managed-by", "me", 4),
        ("endpointslice.kubernetes.io/managed-by", "me", 4),
        ("service.kubernetes.io/service-proxy-name", "other", 4),
    ];
    all.into_iter()
        .filter(|(_, _, percent)| random.chance(*percent))
        .map(|(key, value, _)| (key, value))
        .collect()
}
