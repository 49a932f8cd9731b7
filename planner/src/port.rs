//! Ports: what a Service port means at a Pod, and which ports a slice is for.
//!
//! Invariant: two [`PortSet`]s are equal exactly if slices with these ports may be merged.

use fairlead_objects::{EndpointPort, Pod, Protocol, Service, ServicePort, SlicePort, TargetPort};

use crate::digest::Digest;

/// A Service port whose number at some Pod is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resolved<'a> {
    pub(crate) port: &'a ServicePort,
    pub(crate) number: i32,
}

impl Resolved<'_> {
    pub(crate) fn to_endpoint_port(self) -> EndpointPort {
        EndpointPort {
            name: self.port.name.to_string(),
            port: self.number,
            protocol: self.port.protocol,
            app_protocol: self.port.app_protocol.as_deref().map(Into::into),
        }
    }

    pub(crate) fn to_slice_port(self) -> SlicePort {
        SlicePort {
            name: Some(self.port.name.to_string()),
            port: Some(self.number),
            protocol: Some(self.port.protocol),
            app_protocol: self.port.app_protocol.as_deref().map(Into::into),
        }
    }
}

/// The number of a Service port at a Pod: a number is taken as it is, a name is looked up among the ports of the Pod's
/// containers and then of its sidecars, with the protocol (upstream's FindPort).
pub(crate) fn number(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            pod.ports.iter().find(|p| p.name == *name && p.protocol == port.protocol).map(|p| p.number)
        }
    }
}

/// All ports of a Service that a Pod serves, in the Service's order.
pub(crate) fn resolve<'a>(pod: &Pod, service: &'a Service) -> Vec<Resolved<'a>> {
    service.ports.iter().filter_map(|port| Some(Resolved { port, number: number(pod, port)? })).collect()
}

/// The ports of a slice in upstream's order: what makes slices of one Service and family interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortSet {
    ports: Vec<SlicePort>,
    digest: Digest,
}

impl PortSet {
    /// The set of `ports`, with the names and protocols that the API server fills in.
    pub(crate) fn new(ports: impl IntoIterator<Item = SlicePort>) -> Self {
        let defaulted = |port: SlicePort| SlicePort {
            name: Some(port.name.unwrap_or_default()),
            protocol: Some(port.protocol.unwrap_or(Protocol::Tcp)),
            ..port
        };
        let mut ports: Vec<SlicePort> = ports.into_iter().map(defaulted).collect();
        ports.sort_by_cached_key(Digest::of_slice_port);
        let digest = Digest::of_slice_ports(&ports);
        Self { ports, digest }
    }

    pub(crate) fn ports(&self) -> &[SlicePort] {
        &self.ports
    }

    /// The set as text, for names that are derived from it.
    pub(crate) fn key(&self) -> String {
        self.digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders::{pod_with, service};
    use serde_json::{Value, json};

    use super::*;

    fn numbers(target: &Value, protocol: &str, spec: &Value) -> Vec<i32> {
        let service =
            service("web", json!({"ports": [{"port": 80, "targetPort": target, "protocol": protocol}]}));
        let pod = pod_with("a", "web", "n", "10.0.0.1", json!({"spec": spec}));
        resolve(&pod, &service).iter().map(|resolved| resolved.number).collect()
    }

    #[test]
    fn ports_are_found_as_upstream_finds_them() {
        let containers = json!({"containers": [
            {"ports": [{"name": "p", "containerPort": 11, "protocol": "TCP"}]},
            {"ports": [{"name": "p", "containerPort": 22, "protocol": "UDP"}, {"name": "q", "containerPort": -1},
                       {"name": "p", "containerPort": 33, "protocol": "TCP"},
                       {"name": "h", "containerPort": 44, "hostPort": 80, "hostIP": "10.0.0.9"}]}],
            "initContainers": [
                {"ports": [{"name": "once", "containerPort": 55}]},
                {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 66},
                                                      {"name": "p", "containerPort": 77, "protocol": "SCTP"},
                                                      {"name": "q", "containerPort": 88}]}]});
        let find = |target: Value, protocol: &str| numbers(&target, protocol, &containers);
        assert_eq!(find(json!(93), "TCP"), [93], "numbers are not checked");
        assert_eq!(find(json!("p"), "TCP"), [11], "the first container's port wins");
        assert_eq!(find(json!("p"), "UDP"), [22], "the protocol must match");
        assert_eq!(find(json!("p"), "SCTP"), [77], "sidecars come last");
        assert_eq!(find(json!("q"), "TCP"), [-1], "containers win over sidecars, whatever the number");
        assert_eq!(find(json!("h"), "TCP"), [44], "host ports do not matter");
        assert_eq!(find(json!("side"), "TCP"), [66]);
        assert_eq!(find(json!("once"), "TCP"), [0; 0], "init containers that end do not serve");
        assert_eq!(find(json!("missing"), "TCP"), [0; 0]);
        assert_eq!(numbers(&json!(null), "TCP", &json!({})), [80], "the port itself by default");
    }

    #[test]
    fn port_sets_ignore_order_and_know_the_api_defaults() {
        let port = |name: Option<&str>, number| SlicePort {
            name: name.map(Into::into),
            port: Some(number),
            protocol: None,
            app_protocol: None,
        };
        let set = PortSet::new([port(Some("a"), 1), port(None, 2)]);
        assert_eq!(set, PortSet::new([port(Some(""), 2), port(Some("a"), 1)]));
        assert_ne!(set, PortSet::new([port(Some("a"), 1)]));
    }

    /// Upstream's test of that name: where Go has two kinds of empty list, there is one key.
    #[test]
    #[allow(non_snake_case, reason = "tests that upstream has, too, keep upstream's names")]
    fn TestNewPortMapKey_NilVsEmptySlice() {
        for ports in ["null", "[]"] {
            let slice: fairlead_objects::EndpointSlice =
                serde_json::from_str(&format!(r#"{{"addressType": "IPv4", "ports": {ports}}}"#)).unwrap();
            assert_eq!(PortSet::new(slice.ports).key(), "b823fa277840572f948b7ebdb09f7a1d");
        }
    }
}
