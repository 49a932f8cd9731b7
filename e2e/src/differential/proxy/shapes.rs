//! Objects of shapes that nobody expects, as far as the API server lets them in. The compiler's own tests say what
//! becomes of each; here kube-proxy has the same.

use serde_json::{Value, json};

use super::world::{Doomed, Step};
use crate::plan;

/// Few enough for an API request, and more than one slice may have.
const ENDPOINTS: usize = 1500;

/// All of them at once.
pub(super) fn arrive() -> Step {
    let mut apply = Vec::new();
    for (service, slices) in [many_ports(), many_endpoints(), own_addresses(), own_cluster_ip()] {
        apply.push(service);
        apply.extend(slices);
    }
    for (service, slices) in [one_number(), declining(), taking_over(), twice_and_self(), leftovers()] {
        apply.push(service);
        apply.extend(slices);
    }
    apply.push(slice(
        "of-nobody",
        0,
        &json!([{"name": "p", "port": 80}]),
        &json!([endpoint("10.244.2.9", "node2")]),
    ));
    let names = apply.iter().filter(|object| object["kind"] == "Service");
    let touched = names.filter_map(|service| Some(("default".to_owned(), name(service)?))).collect();
    Step { apply, touched, ..Step::default() }
}

/// And away again.
pub(super) fn leave(arrived: &Step) -> Step {
    let doomed = |object: &Value| {
        let kind = if object["kind"] == "Service" { "Service" } else { "EndpointSlice" };
        Some(Doomed { kind, namespace: "default".to_owned(), name: name(object)? })
    };
    Step {
        delete: arrived.apply.iter().filter_map(doomed).collect(),
        touched: arrived.touched.clone(),
        ..Step::default()
    }
}

fn name(object: &Value) -> Option<String> {
    Some(object.pointer("/metadata/name")?.as_str()?.to_owned())
}

type Shape = (Value, Vec<Value>);

fn service(name: &str, last: u8, more: &Value) -> Value {
    let ip = format!("10.96.254.{last}");
    let mut spec = json!({
        "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        "ports": [{"name": "p", "protocol": "TCP", "port": 80}],
    });
    fairlead_objects::builders::merge(&mut spec, more.clone());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name}, "spec": spec})
}

fn slice(service: &str, n: usize, ports: &Value, endpoints: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": format!("{service}-{n}"),
                     "labels": {"kubernetes.io/service-name": service}},
        "ports": ports, "endpoints": endpoints,
    })
}

fn plain(service: &str, endpoints: &Value) -> Vec<Value> {
    vec![slice(service, 0, &json!([{"name": "p", "protocol": "TCP", "port": 8080}]), endpoints)]
}

fn endpoint(ip: &str, node: &str) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": true}})
}

fn both() -> Value {
    json!([endpoint("10.244.1.2", "node1"), endpoint("10.244.2.2", "node2")])
}

fn many_ports() -> Shape {
    let port = |n: usize| json!({"name": format!("p{n}"), "protocol": "TCP", "port": 1000 + n});
    let ports: Vec<Value> = (0..250).map(port).collect();
    let slices = ports.chunks(100).enumerate();
    let slices = slices.map(|(n, part)| slice("many-ports", n, &json!(part), &both())).collect();
    (service("many-ports", 1, &json!({"ports": ports})), slices)
}

fn many_endpoints() -> Shape {
    let ip = |n: usize| endpoint(&format!("10.244.{}.{}", 3 + n / 250, 2 + n % 250), "node3");
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(ip).collect();
    let slices = endpoints.chunks(800).enumerate().map(|(n, part)| {
        slice("many-endpoints", n, &json!([{"name": "p", "protocol": "TCP", "port": 8080}]), &json!(part))
    });
    let slices = slices.collect();
    let affinity = json!({"sessionAffinity": "ClientIP",
                          "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_400}}});
    (service("many-endpoints", 2, &affinity), slices)
}

/// The node's own, and addresses that are nobody's.
fn own_addresses() -> Shape {
    let ips = [
        &*plan::host(11).v4.to_string(),
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "169.254.1.1",
        "255.255.255.255",
    ]
    .map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
    let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.244.0.0/16", "172.30.0.0/24"],
                      "ports": [{"name": "p", "protocol": "TCP", "port": 80, "nodePort": 31_000}]});
    let mut service = service("own-addresses", 3, &spec);
    service["status"] = json!({"loadBalancer": {"ingress": ips}});
    (service, plain("own-addresses", &both()))
}

fn own_cluster_ip() -> Shape {
    let spec = json!({"externalIPs": ["10.96.254.4", "10.96.254.4", "198.51.100.77"],
                      "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
    let there = json!([endpoint("10.244.2.2", "node2")]);
    (service("own-cluster-ip", 4, &spec), plain("own-cluster-ip", &there))
}

/// One node port for three protocols.
fn one_number() -> Shape {
    let protocols = ["TCP", "UDP", "SCTP"];
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 53, "nodePort": 31_053});
    let target =
        |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 5353});
    let spec = json!({"type": "NodePort", "ports": protocols.map(port)});
    let slice = slice("one-number", 0, &json!(protocols.map(target)), &both());
    (service("one-number", 5, &spec), vec![slice])
}

/// Claims the node's address on the node port of [`taking_over`], and has no endpoint here for those outside.
fn declining() -> Shape {
    let spec = json!({"externalIPs": [plan::host(11).v4], "externalTrafficPolicy": "Local",
                      "ports": [{"name": "p", "protocol": "TCP", "port": 31_700}]});
    (service("declining", 6, &spec), plain("declining", &json!([endpoint("10.244.2.2", "node2")])))
}

fn taking_over() -> Shape {
    let port = json!([{"name": "p", "protocol": "TCP", "port": 80, "nodePort": 31_700}]);
    (service("taking-over", 7, &json!({"type": "NodePort", "ports": port})), plain("taking-over", &both()))
}

/// An endpoint in three conditions, and the node itself, which is listed for two slices.
fn twice_and_self() -> Shape {
    let on_its_way_out = json!({"ready": false, "serving": true, "terminating": true});
    let own = endpoint(&plan::host(11).v4.to_string(), "node1");
    let mut leaving = own.clone();
    leaving["conditions"] = on_its_way_out.clone();
    let mut first = endpoint("10.244.2.3", "node2");
    first["conditions"] = json!({"ready": false, "serving": false});
    let mut last = endpoint("10.244.2.3", "node2");
    last["conditions"] = on_its_way_out;
    let again = endpoint("10.244.2.3", "node2");
    let port = json!([{"name": "p", "protocol": "TCP", "port": 8080}]);
    let slices = vec![
        slice("twice-and-self", 0, &port, &json!([first, again, last, own])),
        slice("twice-and-self", 1, &port, &json!([leaving, endpoint("10.244.1.2", "node1")])),
    ];
    let node_port = json!([{"name": "p", "protocol": "TCP", "port": 80, "nodePort": 31_800}]);
    (service("twice-and-self", 8, &json!({"type": "NodePort", "ports": node_port})), slices)
}

/// What is IPv6 at a Service that is not.
fn leftovers() -> Shape {
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["2001:db8:51::77"],
                      "loadBalancerSourceRanges": ["2001:db8::/32"], "allocateLoadBalancerNodePorts": false});
    let mut service = service("leftovers", 9, &spec);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "2001:db8:2::77", "ipMode": "VIP"},
                                                            {"ip": "192.0.2.77", "ipMode": "VIP"}]}});
    let mut six = slice("leftovers", 1, &json!([{"name": "p", "protocol": "TCP", "port": 8080}]), &json!([]));
    six["addressType"] = json!("IPv6");
    six["endpoints"] = json!([endpoint("fd00:244:0:2::9", "node2")]);
    let mut slices = plain("leftovers", &both());
    slices.push(six);
    (service, slices)
}
