//! Builders for tests: short, valid objects, made as the API server would send them.
//!
//! They go through JSON and the same conversions as real input, so that a test cannot hold a view that no input leads to.

mod realistic;

pub use realistic::{RealisticPods, Workload};
use serde_json::{Value, json};

use crate::{EndpointSlice, Endpoints, Node, NodeObject, Pod, PodObject, Service, ServiceObject};

/// Reads any of our objects from JSON, for shapes that no builder covers.
///
/// # Panics
/// If `value` is not such an object.
#[allow(clippy::expect_used, reason = "only for tests, where it is the assertion")]
pub fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a test's object has the shape of its kind")
}

/// A Service in namespace `default` with uid `uid-NAME`; `spec` is merged over a ClusterIP Service with cluster IP
/// 10.96.0.10, selector `app: NAME` and port 80.
pub fn service(name: &str, spec: Value) -> Service {
    service_in("default", name, spec)
}

/// As [`service`], in another namespace.
pub fn service_in(namespace: &str, name: &str, spec: Value) -> Service {
    let mut object = json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"),
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
                 "selector": {"app": name}, "ports": [{"port": 80, "protocol": "TCP"}]}
    });
    merge(&mut object["spec"], spec);
    self::object::<ServiceObject>(object).into()
}

/// A running, ready Pod in namespace `default` on `node`, with label `app: APP`, uid `uid-NAME` and one address.
pub fn pod(name: &str, app: &str, node: &str, ip: &str) -> Pod {
    pod_with(name, app, node, ip, json!({}))
}

/// As [`pod`], with `patch` merged over the whole object.
pub fn pod_with(name: &str, app: &str, node: &str, ip: &str, patch: Value) -> Pod {
    let mut object = json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "ports": [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                   "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}]}
    });
    merge(&mut object, patch);
    self::object::<PodObject>(object).into()
}

/// A ready Node with one address and a zone.
pub fn node(name: &str, ip: &str, zone: &str) -> Node {
    object::<NodeObject>(json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}], "allocatable": {"cpu": "2"},
                   "conditions": [{"type": "Ready", "status": "True"}]}
    }))
    .into()
}

/// Hand-made Endpoints in namespace `default`.
#[allow(
    clippy::needless_pass_by_value,
    reason = "tests write `json!` in the call, as for the other builders"
)]
pub fn endpoints(name: &str, subsets: Value) -> Endpoints {
    object(
        json!({"metadata": {"namespace": "default", "name": name, "uid": format!("uid-ep-{name}")}, "subsets": subsets}),
    )
}

/// An IPv4 slice of a Service in namespace `default`: `endpoints` as (address, node, ready), port `http` as given.
pub fn slice(name: &str, service: &str, port: u16, endpoints: &[(&str, &str, bool)]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(ip, node, ready)| {
            json!({"addresses": [ip], "nodeName": node,
                   "conditions": {"ready": ready, "serving": ready, "terminating": false}})
        })
        .collect();
    object(json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "resourceVersion": "1",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "port": port, "protocol": "TCP"}]
    }))
}

/// Merges `patch` into `target` as a JSON merge patch (RFC 7386) does.
pub fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(&key);
                } else {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterIp, Family, Phase, ServiceType, TargetPort};

    #[test]
    fn service_without_defaulting_gets_the_api_defaults() {
        let bare: Service = object::<ServiceObject>(json!({
            "metadata": {"name": "bare"}, "spec": {"ports": [{"port": 80}], "selector": {}}
        }))
        .into();
        assert_eq!(&*bare.key.namespace, "default");
        assert_eq!(bare.kind, ServiceType::ClusterIp);
        assert_eq!(bare.cluster_ip, ClusterIp::Unset);
        assert_eq!(bare.selector, None);
        assert_eq!(bare.ports[0].target, TargetPort::Number(80));
    }

    #[test]
    fn cluster_ip_follows_the_order_of_the_families() {
        let dual = service(
            "dual",
            json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv6", "IPv4"]}),
        );
        assert_eq!(dual.cluster_ip_of(Family::V4), Some("10.96.0.1".parse().unwrap()));
        assert_eq!(dual.cluster_ip_of(Family::V6), Some("fd00::1".parse().unwrap()));
    }

    #[test]
    fn sidecar_ports_come_after_container_ports_and_plain_init_containers_have_none() {
        let pod = pod_with(
            "p",
            "a",
            "n",
            "10.0.0.1",
            json!({"spec": {"initContainers": [
                {"name": "init", "ports": [{"name": "once", "containerPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 2}]}]}}),
        );
        let names: Vec<_> = pod.ports.iter().map(|port| &*port.name).collect();
        assert_eq!(names, ["http", "side"]);
        assert_eq!(pod.phase, Phase::Live);
    }

    #[test]
    fn null_lists_are_empty_and_managed_fields_are_dropped() {
        let slice: EndpointSlice = object(json!({
            "metadata": {"name": "s", "managedFields": [{"manager": "m"}], "finalizers": ["f"]},
            "addressType": "IP", "endpoints": null, "ports": null
        }));
        assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
        assert_eq!(slice.metadata.managed_fields, None);
        assert_eq!(slice.metadata.finalizers, Some(vec!["f".to_owned()]));
        assert_eq!(slice.address_type, crate::AddressType::Other("IP".to_owned()));
    }
}
