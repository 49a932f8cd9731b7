//! Objects that no API server lets in, or that are larger than anybody expects, through the real iptables: what it makes of
//! them is what the compiler meant, and packets find their way. (`compiler/tests/suite/odd_shapes.rs` has them all, and
//! hostile text in every field, without a kernel.)

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use fairlead_compiler::{ProxyState, Rule, Table, Target};
use fairlead_e2e::tun::{Entry, Probe};
use fairlead_objects::{EndpointSlice, Family, Protocol, ServiceObject, builders::object};
use serde_json::{Value, json};

use crate::{
    LEGACY, NFT, as_root,
    node::{Make, Node, node},
    oracle::PLAIN,
    questions::node_addresses,
    shapes::TARGET_PORT,
};

/// What means something to iptables-restore, or to a shell.
const HOSTILE: [&str; 10] = [
    "x\" -j DROP\n-A FORWARD -j DROP\nCOMMIT\n*filter\n:FORWARD DROP\n",
    "x\\",
    "\\\" -j ACCEPT \\",
    "$(id) `id` ; id",
    "--to-destination 6.6.6.6:6 -j DNAT",
    "' -j DROP #",
    "# ! -F %s%n",
    "\u{0}\u{1b}[31m\u{202e}n\u{e4}me\r\u{2028}",
    "an address of 255 characters and more: ..............................................................................\
     ....................................................................................................................\
     ....................................................................................................................",
    "",
];
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
/// In one Service.
const MANY: u16 = 5_000;
/// Packets to them, and more different endpoints than chance leaves out.
const SENT: usize = 600;
const MET: usize = 450;

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// A Service with hostile text wherever an object has text, and its slice. Addresses have leading zeros.
fn hostile(number: u8, text: &str) -> (ServiceObject, EndpointSlice) {
    let name = format!("s{number}{text}");
    let (affinity, texts) = (if number.is_multiple_of(2) { "ClientIP" } else { "None" }, json!({text: text}));
    let service = json!({
        "metadata": {"namespace": format!("ns{text}"), "name": name, "annotations": texts, "labels": texts},
        "spec": {
            "type": "LoadBalancer", "clusterIP": format!("010.096.004.{number:03}"), "sessionAffinity": affinity,
            "externalIPs": [format!("192.000.004.{number:03}"), text], "loadBalancerSourceRanges": ["203.0.113.0/24", text],
            "ports": [{"name": text, "port": 80, "nodePort": 30_000 + u16::from(number), "appProtocol": text}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": text}, {"ip": format!("192.000.005.{number:03}"), "hostname": text}]}},
    });
    let endpoint = json!({"addresses": [format!("010.244.002.{number:03}")], "nodeName": text, "hostname": text,
                          "hints": {"forZones": [{"name": text}]}});
    let slice = json!({
        "metadata": {"namespace": format!("ns{text}"), "name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "endpoints": [endpoint, {"addresses": [text]}],
        "ports": [{"name": text, "port": TARGET_PORT}],
    });
    (object(service), object(slice))
}

/// Nobody's rules but ours are there, and from the chains of the machine only jumps to ours.
fn assert_ours(node: &Node) -> Result<()> {
    for (table, chains) in &node.dump(Family::V4).tables {
        for (name, chain) in chains {
            let ours = name.as_str().starts_with("KUBE-");
            let leads = |rule: &Rule| matches!(&rule.target, Some(Target::Jump(to)) if to.as_str().starts_with("KUBE-"));
            let led = chain.rules.iter().all(leads);
            ensure!(ours || led, "{table} {} has {:?}", name.as_str(), chain.rules);
        }
    }
    Ok(())
}

#[test]
fn hostile_text_and_leading_zeros_load_and_lead_nobody_astray() -> Result<()> {
    as_root(|| {
        for make in [NFT, LEGACY, Make { bpf: false, ..NFT }] {
            let mut node = node(PLAIN, make, &[])?;
            let mut state = ProxyState::new(Family::V4);
            for (number, text) in (1..).zip(HOSTILE) {
                let (service, slice) = hostile(number, text);
                state.set_service(&service.into());
                state.set_slice(&slice);
            }
            node.follow(make, &state)?;
            assert_ours(&node)?;
            let [own, _] = node_addresses(Family::V4);
            for (number, text) in (1..).zip(HOSTILE) {
                let endpoint = at(Ipv4Addr::new(10, 244, 2, number), TARGET_PORT);
                for place in [
                    at(Ipv4Addr::new(10, 96, 4, number), 80),
                    at(Ipv4Addr::new(192, 0, 4, number), 80),
                    at(Ipv4Addr::new(192, 0, 5, number), 80),
                    at(own, 30_000 + u16::from(number)),
                ] {
                    let fate = node.harness.send(&Probe::new(Entry::World, OUTSIDE, Protocol::Tcp, place))?;
                    ensure!(fate.destination() == Some(endpoint), "{text:?} at {place}: {fate}");
                }
            }
        }
        Ok(())
    })
}

fn crowded() -> ProxyState {
    let mut state = ProxyState::new(Family::V4);
    let service: ServiceObject = object(json!({
        "metadata": {"namespace": "default", "name": "many"},
        "spec": {"clusterIP": "10.96.4.1", "ports": [{"name": "p", "port": 80}]},
    }));
    state.set_service(&service.into());
    let numbers: Vec<u16> = (0..MANY).collect();
    for (n, part) in numbers.chunks(1000).enumerate() {
        let endpoint = |number: &u16| {
            let [high, low] = number.to_be_bytes();
            json!({"addresses": [Ipv4Addr::new(10, 244, 100 + high, low).to_string()]})
        };
        let endpoints: Vec<Value> = part.iter().map(endpoint).collect();
        let slice: EndpointSlice = object(json!({
            "metadata": {"namespace": "default", "name": format!("many-{n}"), "labels": {"kubernetes.io/service-name": "many"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "p", "port": TARGET_PORT}],
        }));
        state.set_slice(&slice);
    }
    state
}

#[test]
fn five_thousand_endpoints_of_one_service_load_and_get_packets() -> Result<()> {
    as_root(|| {
        for make in [NFT, LEGACY] {
            let mut node = node(PLAIN, make, &[])?;
            node.follow(make, &crowded())?;
            let rules: usize =
                node.dump(Family::V4).tables[&Table::Nat].values().map(|c| c.rules.len()).sum();
            let tell = || format!("{:?}, {rules} rules in nat", make.variant);
            let place = at(Ipv4Addr::new(10, 96, 4, 1), 80);
            let clients = (0..SENT).map(|number| -> Result<IpAddr> {
                let [high, low] = u16::try_from(number)?.to_be_bytes();
                Ok(Ipv4Addr::new(100, 64, high, low).into())
            });
            let clients = clients.collect::<Result<Vec<_>>>()?;
            let probe = |client: &IpAddr| Probe::new(Entry::World, *client, Protocol::Tcp, place);
            let probes: Vec<Probe> = clients.iter().map(probe).collect();
            let mut met = BTreeSet::new();
            for fate in node.harness.send_all(&probes)? {
                let target = fate.destination().with_context(|| format!("{}: {fate}", tell()))?;
                let network: ipnet::IpNet = "10.244.96.0/19".parse()?;
                ensure!(target.port() == TARGET_PORT && network.contains(&target.ip()), "{}: {fate}", tell());
                met.insert(target);
            }
            ensure!(met.len() > MET, "{}: {SENT} packets met {} endpoints", tell(), met.len());
        }
        Ok(())
    })
}
