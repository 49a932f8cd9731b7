//! Random Services: every type, family, policy and kind of address, alone and together.

use serde_json::{Map, Value, json};

use super::world::SLOTS;
use crate::differential::controller::random::Random;
use crate::plan;

/// Ports that Services listen on. Each slot has as many node ports of its own, one for each number: that is how the API
/// server hands them out, whatever the protocol.
const PORTS: [usize; 4] = [53, 80, 443, 8080];

/// What kind of Service it is, as far as the API server lets nobody change that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    kind: FrameKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FrameKind {
    /// With cluster IPs, primary first.
    Addressed(Vec<String>),
    Headless,
    ExternalName,
}

impl Frame {
    /// The n-th frame of a run.
    pub(super) fn random(n: usize, random: &mut Random) -> Self {
        // Some cluster IPs are neighbours and some far apart. A thousand frames later they begin again.
        let (near, far) = (n % 1000 + 256, n % 1000 * 37 % 1000 + 2048);
        let low = if random.chance(50) { near } else { far + n % 7 * 1024 };
        let v4 = format!("10.96.{}.{}", low / 256 % 250, low % 256);
        let v6 = format!("fd00:96::{:x}:{:x}", 0, low);
        let kind = match random.below(100) {
            0..4 => FrameKind::Headless,
            4..8 => FrameKind::ExternalName,
            8..45 => FrameKind::Addressed(vec![v4]),
            45..60 => FrameKind::Addressed(vec![v6]),
            60..90 => FrameKind::Addressed(vec![v4, v6]),
            _ => FrameKind::Addressed(vec![v6, v4]),
        };
        Self { kind }
    }
}

/// A Service of that frame.
pub(super) fn service(
    namespace: &str,
    name: &str,
    number: usize,
    frame: &Frame,
    random: &mut Random,
) -> Value {
    let mut spec = Map::new();
    let mut status = None;
    match &frame.kind {
        FrameKind::ExternalName => {
            spec.insert("type".into(), json!("ExternalName"));
            spec.insert("externalName".into(), json!("example.org"));
            spec.insert("ports".into(), json!(ports(number, false, random)));
        }
        FrameKind::Headless => {
            spec.insert("clusterIP".into(), json!("None"));
            spec.insert("clusterIPs".into(), json!(["None"]));
            spec.insert("ports".into(), json!(ports(number, false, random)));
        }
        FrameKind::Addressed(ips) => {
            status = addressed(&mut spec, number, ips, random);
        }
    }
    let mut labels = Map::new();
    if random.chance(4) {
        labels.insert("service.kubernetes.io/service-proxy-name".into(), json!("another"));
    }
    let metadata = json!({"namespace": namespace, "name": name, "labels": labels});
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    if let (Some(status), Some(fields)) = (status, service.as_object_mut()) {
        fields.insert("status".into(), status);
    }
    service
}

/// Fills in a Service that has cluster IPs; gives its status, if it may have one.
fn addressed(
    spec: &mut Map<String, Value>,
    number: usize,
    ips: &[String],
    random: &mut Random,
) -> Option<Value> {
    let kind = random.one_of(["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
    let families: Vec<_> = ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
    let node_ports = kind == "NodePort" || (kind == "LoadBalancer" && random.chance(75));
    spec.insert("type".into(), json!(kind));
    spec.insert("clusterIP".into(), json!(ips.first()));
    spec.insert("clusterIPs".into(), json!(ips));
    spec.insert("ipFamilies".into(), json!(families));
    let policy = if ips.len() > 1 { "RequireDualStack" } else { "SingleStack" };
    spec.insert("ipFamilyPolicy".into(), json!(policy));
    spec.insert("ports".into(), json!(ports(number, node_ports, random)));
    if random.chance(25) {
        let seconds = random.one_of([1, 60, 10_800, 86_400]);
        spec.insert("sessionAffinity".into(), json!("ClientIP"));
        spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": seconds}}));
    } else {
        spec.insert("sessionAffinity".into(), json!("None"));
    }
    let internal = if random.chance(25) { "Local" } else { "Cluster" };
    spec.insert("internalTrafficPolicy".into(), json!(internal));
    if random.chance(15) {
        spec.insert("publishNotReadyAddresses".into(), json!(true));
    }
    let external = external_ips(number, ips, random);
    if !external.is_empty() || kind != "ClusterIP" {
        let local = random.chance(45);
        spec.insert("externalTrafficPolicy".into(), json!(if local { "Local" } else { "Cluster" }));
        if kind == "LoadBalancer" && local {
            spec.insert("healthCheckNodePort".into(), json!(32_000 + number));
        }
    }
    spec.insert("externalIPs".into(), json!(external));
    (kind == "LoadBalancer").then(|| {
        spec.insert("allocateLoadBalancerNodePorts".into(), json!(node_ports));
        spec.insert("loadBalancerSourceRanges".into(), json!(source_ranges(random)));
        json!({"loadBalancer": {"ingress": ingress(number, random)}})
    })
}

/// Ports of the Service of a slot.
pub(super) fn ports(number: usize, node_ports: bool, random: &mut Random) -> Vec<Value> {
    let count = random.one_of([1, 1, 2, 3]);
    let mut ports: Vec<Value> = Vec::new();
    for n in 0..count {
        let protocol = random.one_of(["TCP", "TCP", "UDP", "SCTP"]);
        let which = random.one_of([0, 1, 1, 2, 3]);
        let port = PORTS[which];
        if ports.iter().any(|other| other["protocol"] == protocol && other["port"] == port) {
            continue;
        }
        let mut fields = json!({"protocol": protocol, "port": port});
        if count > 1 || random.chance(70) {
            fields["name"] = json!(format!("p{n}"));
        }
        if node_ports {
            fields["nodePort"] = json!(30_000 + number * PORTS.len() + which);
        }
        ports.push(fields);
    }
    ports
}

/// Its own, some that others claim as well, nodes', cluster IPs.
fn external_ips(number: usize, cluster_ips: &[String], random: &mut Random) -> Vec<String> {
    if !random.chance(45) {
        return Vec::new();
    }
    let (here, there) = (plan::host(11), plan::host(12));
    let neighbour = random.below(SLOTS);
    let mut pool = vec![
        format!("198.51.100.{}", number + 1),
        format!("2001:db8:51::{:x}", number + 1),
        "198.51.100.200".to_owned(),
        "2001:db8:51::200".to_owned(),
        format!("192.0.2.{}", number + 1),
        format!("192.0.2.{}", neighbour + 1),
        here.v4.to_string(),
        here.v6.to_string(),
        there.v4.to_string(),
        format!("10.96.1.{neighbour}"),
    ];
    pool.extend(cluster_ips.iter().filter(|_| random.chance(50)).cloned());
    let mut chosen: Vec<String> = pool.into_iter().filter(|_| random.chance(25)).collect();
    if random.chance(15) {
        chosen.extend(chosen.first().cloned());
    }
    chosen
}

fn ingress(number: usize, random: &mut Random) -> Vec<Value> {
    let here = plan::host(11);
    let pool = [
        (70, format!("192.0.2.{}", number + 1)),
        (40, format!("2001:db8:2::{:x}", number + 1)),
        (20, format!("192.0.2.{}", number + 101)),
        (10, here.v4.to_string()),
        (10, here.v6.to_string()),
        (5, format!("198.51.100.{}", number + 1)),
        (4, "0.0.0.0".to_owned()),
        (4, "169.254.1.1".to_owned()),
    ];
    let mut entries = Vec::new();
    for (chance, ip) in pool {
        if random.chance(chance) {
            let mode = if random.chance(15) { "Proxy" } else { "VIP" };
            entries.push(json!({"ip": ip, "ipMode": mode}));
        }
    }
    if random.chance(10) {
        entries.push(json!({"hostname": "lb.example.org"}));
    }
    entries
}

/// Around a client outside, the nodes, the Pods; none; all; of one family only.
fn source_ranges(random: &mut Random) -> Vec<&'static str> {
    if random.chance(45) {
        return Vec::new();
    }
    let pool = [
        (40, "203.0.113.0/25"),
        (30, "172.30.0.0/24"),
        (20, "10.244.0.0/16"),
        (15, "192.0.2.0/24"),
        (40, "2001:db8:113::/48"),
        (20, "fd00:30::/64"),
        (10, "fd00:244::/32"),
        (5, "0.0.0.0/0"),
        (5, "::/0"),
    ];
    pool.into_iter().filter(|(chance, _)| random.chance(*chance)).map(|(_, range)| range).collect()
}
