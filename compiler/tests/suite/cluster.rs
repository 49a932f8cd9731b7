//! The cluster that the tests run in: the node of kube-proxy's own unit tests.

use std::net::IpAddr;

use fairlead_compiler::{
    Config, Detector, Dump, Host, NodeFacts, Origin, Outcome, Packet, ProxyState, Ruleset, Trace, compile,
    trace,
};
use fairlead_objects::{EndpointSlice, Family, NodeName, Protocol, Service, ServiceKey, builders};
use serde_json::{Value, json};

pub(crate) const NODE: &str = "test-node";

/// State, settings and node facts.
pub(crate) struct Cluster {
    pub(crate) state: ProxyState,
    pub(crate) config: Config,
    pub(crate) facts: NodeFacts,
}

impl Cluster {
    /// Node 192.168.0.2, Pods in 10.0.0.0/8.
    pub(crate) fn v4() -> Self {
        Self::of(Family::V4, "192.168.0.2", "10.0.0.0/8")
    }

    /// Node 2001:db8::1, Pods in fd00:10::/64.
    pub(crate) fn v6() -> Self {
        Self::of(Family::V6, "2001:db8::1", "fd00:10::/64")
    }

    fn of(family: Family, node_ip: &str, pods: &str) -> Self {
        let addresses = [
            "127.0.0.1/8",
            "192.168.0.2/24",
            "192.168.1.2/24",
            "192.168.99.11/24",
            "::1/128",
            "2001:db8::1/64",
            "2001:db8:1::2/64",
        ];
        Self {
            state: ProxyState::new(family),
            config: Config {
                detector: Detector::Cidr(pods.parse().unwrap()),
                nfacct: true,
                ..Config::default()
            },
            facts: NodeFacts {
                name: NodeName::new(NODE),
                zone: None,
                node_ip: node_ip.parse().unwrap(),
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                family,
            },
        }
    }

    /// Adds `ns/NAME`, with `spec` merged over cluster IP 172.30.0.41 (or its IPv6 like) and TCP port 80 named p80.
    pub(crate) fn service(&mut self, name: &str, spec: Value) -> &mut Self {
        let service = service(self.state.family(), name, spec);
        self.state.set_service(&service);
        self
    }

    /// Adds a slice of `ns/SERVICE` with TCP port 80 named p80.
    pub(crate) fn slice(&mut self, service: &str, endpoints: &[Value]) -> &mut Self {
        self.slice_with(&format!("{service}-1"), service, json!([{"name": "p80", "port": 80}]), endpoints)
    }

    pub(crate) fn slice_with(
        &mut self,
        name: &str,
        service: &str,
        ports: Value,
        endpoints: &[Value],
    ) -> &mut Self {
        let slice = slice(self.state.family(), name, service, ports, endpoints);
        self.state.set_slice(&slice);
        self
    }

    pub(crate) fn compile(&self) -> Ruleset {
        compile(&self.state, &self.config, &self.facts)
    }

    /// Traces a TCP packet; from an address of the node it starts in OUTPUT.
    pub(crate) fn trace(&self, from: &str, to: &str, port: u16) -> Trace {
        self.trace_protocol(Protocol::Tcp, from, to, port)
    }

    pub(crate) fn trace_protocol(&self, protocol: Protocol, from: &str, to: &str, port: u16) -> Trace {
        let dump = Dump::from(&self.compile());
        trace(&dump, &packet(protocol, from, to, port, &Host::from(&self.facts)), &Host::from(&self.facts))
    }

    /// The outcome of a packet as kube-proxy's tests write it: endpoints in order, or `REJECT`, or `DROP`, or nothing; and
    /// whether it is masqueraded.
    pub(crate) fn flow(&self, protocol: Protocol, from: &str, to: &str, port: u16) -> (String, bool) {
        summary(&self.trace_protocol(protocol, from, to, port))
    }

    /// Asserts flows: source, destination, port, what comes out, masqueraded.
    pub(crate) fn assert_flows(&self, flows: &[(&str, &str, &str, u16, &str, bool)]) {
        for (name, from, to, port, output, masquerade) in flows {
            let actual = self.flow(Protocol::Tcp, from, to, *port);
            assert_eq!(actual, ((*output).to_owned(), *masquerade), "{name}: {from} -> {to}:{port}");
        }
    }
}

pub(crate) fn packet(protocol: Protocol, from: &str, to: &str, port: u16, host: &Host) -> Packet {
    let source: IpAddr = from.parse().unwrap();
    let origin = if host.is_local(source) { Origin::Node } else { Origin::Interface(None) };
    Packet {
        source,
        source_port: 40_000,
        destination: to.parse().unwrap(),
        destination_port: port,
        protocol,
        origin,
    }
}

pub(crate) fn summary(trace: &Trace) -> (String, bool) {
    let output = match trace.outcome {
        Outcome::Accepted => {
            let targets =
                trace.targets.iter().map(|to| std::net::SocketAddr::new(to.address, to.port).to_string());
            targets.collect::<Vec<_>>().join(", ")
        }
        Outcome::NoMatch => String::new(),
        Outcome::Rejected => "REJECT".to_owned(),
        Outcome::Dropped => "DROP".to_owned(),
    };
    (output, trace.masquerade)
}

pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey::new("ns", name)
}

pub(crate) fn service(family: Family, name: &str, spec: Value) -> Service {
    let ip = match family {
        Family::V4 => "172.30.0.41",
        Family::V6 => "fd00:172:30::41",
    };
    let mut base = json!({"clusterIP": ip, "clusterIPs": null, "ipFamilies": null,
                          "ports": [{"name": "p80", "port": 80, "protocol": "TCP"}]});
    builders::merge(&mut base, spec);
    builders::service_in("ns", name, base)
}

pub(crate) fn slice(
    family: Family,
    name: &str,
    service: &str,
    ports: Value,
    endpoints: &[Value],
) -> EndpointSlice {
    builders::object(json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": family.as_str(), "ports": ports, "endpoints": endpoints
    }))
}

/// A ready endpoint on another node.
pub(crate) fn remote(ip: &str) -> Value {
    json!({"addresses": [ip], "nodeName": "other-node"})
}

/// A ready endpoint on the node.
pub(crate) fn local(ip: &str) -> Value {
    json!({"addresses": [ip], "nodeName": NODE})
}

/// `endpoint`, terminating, and still serving or not.
pub(crate) fn terminating(mut endpoint: Value, serving: bool) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": serving, "terminating": true});
    endpoint
}

/// `endpoint`, not ready.
pub(crate) fn unready(mut endpoint: Value) -> Value {
    endpoint["conditions"] = json!({"ready": false, "serving": false, "terminating": false});
    endpoint
}
