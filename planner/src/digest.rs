//! The order of ports and subsets: by FNV-1a-128 digest of a textual dump, as upstream's deep-hash of Go objects.
//!
//! The order means nothing, but users see it, and an object that is ordered otherwise would look changed to everybody who
//! compares it with what kube-controller-manager wrote.
//!
//! Invariant: the dump of a value is the text that Go's `spew` printer gives for the same API object.

use fairlead_objects::{EndpointAddress, EndpointPort, EndpointSubset, ObjectReference, SlicePort};

const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// Digest of a dump; compares as upstream's bytes and hexadecimal text do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(u128);

impl Digest {
    fn of(text: &str) -> Self {
        let digest =
            text.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
        Self(digest)
    }

    /// Digest of a port of core/v1 Endpoints.
    pub(crate) fn of_port(port: &EndpointPort) -> Self {
        Self::of(&format!("(v1.EndpointPort){}", core_port(port)))
    }

    /// Digest of a subset whose lists are in order.
    pub(crate) fn of_subset(subset: &EndpointSubset) -> Self {
        Self::of(&format!(
            "(v1.EndpointSubset){{Addresses:([]v1.EndpointAddress){} NotReadyAddresses:([]v1.EndpointAddress){} Ports:([]v1.EndpointPort){}}}",
            list(&subset.addresses, address),
            list(&subset.not_ready_addresses, address),
            list(&subset.ports, core_port),
        ))
    }

    /// Digest of a port of a slice.
    pub(crate) fn of_slice_port(port: &SlicePort) -> Self {
        Self::of(&format!("(v1.EndpointPort){}", slice_port(port)))
    }

    /// Digest of the ports of a slice, which are in order; an absent list is an empty one.
    pub(crate) fn of_slice_ports(ports: &[SlicePort]) -> Self {
        let ports: Vec<String> = ports.iter().map(slice_port).collect();
        Self::of(&format!("([]v1.EndpointPort)[{}]", ports.join(" ")))
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn list<T>(items: &[T], dump: impl Fn(&T) -> String) -> String {
    if items.is_empty() {
        return "<nil>".to_owned();
    }
    format!("[{}]", items.iter().map(dump).collect::<Vec<_>>().join(" "))
}

fn text_pointer(value: Option<&str>) -> &str {
    value.unwrap_or("<nil>")
}

fn core_port(port: &EndpointPort) -> String {
    format!(
        "{{Name:(string){} Port:(int32){} Protocol:(v1.Protocol){} AppProtocol:(*string){}}}",
        port.name,
        port.port,
        port.protocol,
        text_pointer(port.app_protocol.as_deref()),
    )
}

fn slice_port(port: &SlicePort) -> String {
    format!(
        "{{Name:(*string){} Protocol:(*v1.Protocol){} Port:(*int32){} AppProtocol:(*string){}}}",
        text_pointer(port.name.as_deref()),
        text_pointer(port.protocol.map(fairlead_objects::Protocol::as_str)),
        port.port.map_or_else(|| "<nil>".to_owned(), |number| number.to_string()),
        text_pointer(port.app_protocol.as_deref()),
    )
}

fn address(address: &EndpointAddress) -> String {
    format!(
        "{{IP:(string){} Hostname:(string){} NodeName:(*string){} TargetRef:(*v1.ObjectReference){}}}",
        address.ip,
        address.hostname,
        text_pointer(address.node_name.as_deref()),
        address.target_ref.as_deref().map_or_else(|| "<nil>".to_owned(), reference),
    )
}

fn reference(reference: &ObjectReference) -> String {
    format!(
        "{{Kind:(string){} Namespace:(string){} Name:(string){} UID:(types.UID){} APIVersion:(string){} ResourceVersion:(string){} FieldPath:(string){}}}",
        reference.kind,
        reference.namespace,
        reference.name,
        reference.uid,
        reference.api_version,
        reference.resource_version,
        reference.field_path,
    )
}

#[cfg(test)]
mod tests {
    use fairlead_objects::{Protocol, builders::object};
    use serde_json::json;

    use super::*;

    fn port(name: &str, port: i32, protocol: Protocol, app: Option<&str>) -> EndpointPort {
        EndpointPort { name: name.into(), port, protocol, app_protocol: app.map(Into::into) }
    }

    fn of_slice(name: &str, port: i32, protocol: Protocol, app: Option<&str>) -> SlicePort {
        SlicePort {
            name: Some(name.into()),
            port: Some(port),
            protocol: Some(protocol),
            app_protocol: app.map(Into::into),
        }
    }

    #[test]
    fn core_ports_have_upstreams_digests() {
        for (port, digest) in [
            (port("http", 8080, Protocol::Tcp, None), "25304a33da9e6ece350a4142a45f5b75"),
            (
                port("https", 8443, Protocol::Tcp, Some("kubernetes.io/h2c")),
                "f39f05385df1c5146bde870d0bd7c0e6",
            ),
            (port("", 53, Protocol::Udp, None), "6664b17942a804b50d12b277797d312d"),
        ] {
            assert_eq!(Digest::of_port(&port).to_string(), digest);
        }
    }

    #[test]
    fn subsets_have_upstreams_digests() {
        let ready: EndpointSubset = object(json!({
            "addresses": [{"ip": "10.0.0.1", "nodeName": "n1",
                           "targetRef": {"kind": "Pod", "namespace": "ns", "name": "pod-a", "uid": "uid-a"}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
        }));
        assert_eq!(Digest::of_subset(&ready).to_string(), "9afbeff9ef1ebc02b6a0ee475536e4af");
        let not_ready: EndpointSubset = object(json!({
            "notReadyAddresses": [{"ip": "10.0.0.2", "hostname": "h"}],
            "ports": [{"name": "https", "port": 8443, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"},
                      {"port": 53, "protocol": "UDP"}]
        }));
        assert_eq!(Digest::of_subset(&not_ready).to_string(), "d8ab14b2b5254c2bf08f61dce445139c");
    }

    #[test]
    fn slice_ports_have_upstreams_digests() {
        let http = of_slice("http", 8080, Protocol::Tcp, None);
        let https = of_slice("https", 8443, Protocol::Tcp, None);
        let dns = of_slice("", 53, Protocol::Udp, Some("kubernetes.io/h2c"));
        for (port, digest) in [
            (&http, "0e874d5677090ee5c32afa85f637c347"),
            (&https, "96bd08971af7335e18af891d4fe83877"),
            (&dns, "32d2507b122b36c0ad29913aefd4a37c"),
            (&SlicePort::default(), "ad866eb7cd5162a9e20434ebd9deeacd"),
        ] {
            assert_eq!(Digest::of_slice_port(port).to_string(), digest);
        }
        let all = [http, dns, https];
        assert_eq!(Digest::of_slice_ports(&all).to_string(), "fdbb1c38852eedd6819af58743859e00");
        assert_eq!(Digest::of_slice_ports(&[]).to_string(), "b823fa277840572f948b7ebdb09f7a1d");
    }
}
