//! What is measured: Services, their slices, and the state and settings they are compiled with.

use std::net::Ipv4Addr;

use fairlead_compiler::{Config, Detector, NodeFacts, ProxyState};
use fairlead_objects::{
    EndpointSlice, Family, NodeName, Service,
    builders::{object, service},
};
use serde_json::json;

/// The addresses behind every Service.
pub(crate) const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 1, 3)];

/// An address that takes the place of an endpoint.
pub(crate) const OTHER_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 4);

/// The port that the endpoints listen on.
pub(crate) const ENDPOINT_PORT: u16 = 8080;

/// The cluster IP of the i-th of `count` Services: spread evenly over 10.96.0.0/16.
pub(crate) fn cluster_ip(i: usize, count: usize) -> Ipv4Addr {
    let offset = 10 + i * (65_000 / count.max(1));
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + u32::try_from(offset).unwrap_or(u32::MAX >> 8))
}

/// The i-th of `count` Services: UDP and TCP would behave alike, UDP is easier to time.
pub(crate) fn service_of(i: usize, count: usize) -> Service {
    let ip = cluster_ip(i, count);
    service(
        &name(i),
        json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "protocol": "UDP", "targetPort": ENDPOINT_PORT}]}),
    )
}

/// Its slice.
pub(crate) fn slice_of(i: usize, endpoints: &[Ipv4Addr]) -> EndpointSlice {
    let endpoints: Vec<_> =
        endpoints.iter().map(|ip| json!({"addresses": [ip], "nodeName": "node1"})).collect();
    object(json!({
        "metadata": {"namespace": "default", "name": format!("{}-slice", name(i)),
                     "labels": {"kubernetes.io/service-name": name(i)}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "port": ENDPOINT_PORT, "protocol": "UDP"}]
    }))
}

fn name(i: usize) -> String {
    format!("service-{i}")
}

/// The state with `count` Services of two endpoints each.
pub(crate) fn state(count: usize) -> ProxyState {
    let mut state = ProxyState::new(Family::V4);
    for i in 0..count {
        state.set_service(&service_of(i, count));
        state.set_slice(&slice_of(i, &ENDPOINTS));
    }
    state
}

/// Settings as on a node of a usual cluster.
pub(crate) fn config() -> Config {
    let pods = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16);
    Config { detector: Detector::Cidr(pods.into()), ..Config::default() }
}

/// The node whose rules are compiled.
pub(crate) fn facts() -> NodeFacts {
    let address = Ipv4Addr::new(172, 30, 0, 11);
    NodeFacts {
        name: NodeName::new("node1"),
        zone: None,
        node_ip: address.into(),
        addresses: vec![ipnet::Ipv4Net::new_assert(address, 24).into()],
        family: Family::V4,
    }
}
