//! Fields that the lean views read leniently, checked as an API server would.
//!
//! The views drop what they cannot use (an address that is none, an unknown Service type), because an API server has
//! checked it before. A file has nobody in front of it, so this table says what to expect where.
//!
//! Invariants: an absent or `null` field is never a problem unless the table requires it; an empty text counts as absent.

use fairlead_objects::{parse_address, parse_network};
use serde_json::Value;

use super::document::Step;

/// What a field must hold.
#[derive(Clone, Copy)]
enum Expect {
    /// An IPv4 or IPv6 address.
    Address,
    /// An address or `None`.
    ClusterIp,
    /// `ADDRESS/LENGTH`.
    Network,
    /// A port number; must be there.
    Port,
    /// A port number or nothing.
    PortIfAny,
    /// A port number or the name of a container port.
    TargetPort,
    /// One of these texts.
    OneOf(&'static [&'static str]),
}

/// Field paths below an object; `[]` stands for every item of a list.
type Table = &'static [(&'static str, Expect)];

const SERVICE: Table = &[
    ("spec.type", Expect::OneOf(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
    ("spec.clusterIP", Expect::ClusterIp),
    ("spec.clusterIPs[]", Expect::ClusterIp),
    ("spec.ports[].port", Expect::Port),
    ("spec.ports[].targetPort", Expect::TargetPort),
    ("spec.ports[].nodePort", Expect::PortIfAny),
    ("spec.externalIPs[]", Expect::Address),
    ("spec.loadBalancerSourceRanges[]", Expect::Network),
    ("spec.ipFamilyPolicy", Expect::OneOf(&["PreferDualStack", "RequireDualStack", "SingleStack"])),
    ("spec.sessionAffinity", Expect::OneOf(&["ClientIP", "None"])),
    ("spec.externalTrafficPolicy", Expect::OneOf(&["Cluster", "Local"])),
    ("spec.internalTrafficPolicy", Expect::OneOf(&["Cluster", "Local"])),
    ("spec.healthCheckNodePort", Expect::PortIfAny),
    ("status.loadBalancer.ingress[].ip", Expect::Address),
];

const POD: Table = &[
    ("spec.containers[].ports[].containerPort", Expect::Port),
    ("spec.initContainers[].ports[].containerPort", Expect::Port),
    ("status.podIP", Expect::Address),
    ("status.podIPs[].ip", Expect::Address),
];

const NODE: Table = &[("spec.podCIDR", Expect::Network), ("spec.podCIDRs[]", Expect::Network)];

const ENDPOINTS: Table = &[
    ("subsets[].addresses[].ip", Expect::Address),
    ("subsets[].notReadyAddresses[].ip", Expect::Address),
    ("subsets[].ports[].port", Expect::Port),
];

const SLICE: Table =
    &[("addressType", Expect::OneOf(&["FQDN", "IPv4", "IPv6"])), ("ports[].port", Expect::PortIfAny)];

/// Only slices of IP addresses; those of type FQDN hold names.
const IP_SLICE: Table = &[("endpoints[].addresses[]", Expect::Address)];

/// Checks `object` of `kind`. Returns the paths of what is wrong, relative to the object, and what was expected.
pub(crate) fn check(kind: &str, object: &Value) -> Vec<(Vec<Step>, String)> {
    let mut found = Vec::new();
    let mut check = |table: Table| {
        for (path, expect) in table {
            walk(object, path, *expect, &mut Vec::new(), &mut found);
        }
    };
    match kind {
        "Service" => check(SERVICE),
        "Pod" => check(POD),
        "Node" => check(NODE),
        "Endpoints" => check(ENDPOINTS),
        "EndpointSlice" => {
            check(SLICE);
            if object.get("addressType").and_then(Value::as_str) != Some("FQDN") {
                check(IP_SLICE);
            }
        }
        _ => {}
    }
    found
}

fn walk(value: &Value, path: &str, expect: Expect, at: &mut Vec<Step>, found: &mut Vec<(Vec<Step>, String)>) {
    if let Some(rest) = path.strip_prefix("[]") {
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            at.push(Step::Index(index));
            walk(item, rest, expect, at, found);
            at.pop();
        }
        return;
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    if path.is_empty() {
        if let Err(message) = expect.verify(value) {
            found.push((at.clone(), message));
        }
        return;
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (key, rest) = path.split_at(end);
    // Anything but a mapping has the wrong type, which deserialising it says better.
    let Some(mapping) = value.as_object() else { return };
    at.push(Step::from(key));
    walk(mapping.get(key).unwrap_or(&Value::Null), rest, expect, at, found);
    at.pop();
}

impl Expect {
    fn verify(self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Self::Port, Value::Null) => Err("missing; expected a port number from 1 to 65535".to_owned()),
            (Self::Port, Value::Number(number)) => verify_port(number, 1),
            (Self::PortIfAny | Self::TargetPort, Value::Number(number)) => verify_port(number, 0),
            (_, Value::String(text)) => self.verify_text(text),
            // Absent, or of a wrong type, which deserialising says better.
            _ => Ok(()),
        }
    }

    fn verify_text(self, text: &str) -> Result<(), String> {
        let (good, expected) = match self {
            Self::Address => (parse_address(text).is_ok(), "an IPv4 or IPv6 address".to_owned()),
            Self::ClusterIp => (
                text == "None" || parse_address(text).is_ok(),
                "an IPv4 or IPv6 address or \"None\"".to_owned(),
            ),
            Self::Network => (parse_network(text).is_ok(), "a network as ADDRESS/LENGTH".to_owned()),
            Self::OneOf(choices) => (choices.contains(&text), format!("one of {}", choices.join(", "))),
            Self::Port | Self::PortIfAny | Self::TargetPort => (true, String::new()),
        };
        if good || text.is_empty() { Ok(()) } else { Err(format!("found {text:?}, expected {expected}")) }
    }
}

fn verify_port(number: &serde_json::Number, lowest: u64) -> Result<(), String> {
    // Fractions are left to deserialising, which knows the type.
    if number.is_f64() || number.as_u64().is_some_and(|port| (lowest..=65_535).contains(&port)) {
        return Ok(());
    }
    Err(format!("found {number}, expected a port number from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_null_and_empty_fields_are_fine() {
        for spec in [json!({}), json!({"clusterIP": "", "type": null, "ports": null}), json!(null)] {
            assert_eq!(check("Service", &json!({"spec": spec})), []);
        }
    }

    #[test]
    fn wrong_fields_are_named_with_their_position() {
        let object = json!({"spec": {"type": "Nodeport", "clusterIPs": ["10.96.0.1", "10.96"],
                                     "ports": [{"port": 80}, {"name": "x"}, {"port": 70000}]}});
        let found: Vec<_> = check("Service", &object).into_iter().map(|(path, _)| path).collect();
        let ports = |index| vec!["spec".into(), "ports".into(), Step::Index(index), "port".into()];
        assert_eq!(
            found,
            [
                vec!["spec".into(), "type".into()],
                vec!["spec".into(), "clusterIPs".into(), Step::Index(1)],
                ports(1),
                ports(2),
            ]
        );
    }

    #[test]
    fn names_are_no_addresses_except_in_slices_of_type_fqdn() {
        let slice = |kind: &str| json!({"addressType": kind, "endpoints": [{"addresses": ["example.com"]}]});
        assert_eq!(check("EndpointSlice", &slice("FQDN")), []);
        assert_eq!(check("EndpointSlice", &slice("IPv4")).len(), 1);
    }
}
