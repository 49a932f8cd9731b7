//! The mirroring reconciler: what subsets become.

use fairlead_objects::{
    AddressType,
    builders::{merge, object, service},
};
use serde_json::{Value, json};

use crate::{
    rows,
    world::{MIRROR, World, actions},
};

/// Reads `ADDRESS.. : PORT..`; an address with `!` is not ready.
fn subset(text: &str) -> Value {
    let (addresses, ports) = text.split_once(" :").unwrap_or((text, ""));
    let list = |ready: bool| -> Value {
        let listed = addresses.split_whitespace().filter(|text| text.starts_with('!') != ready);
        listed.map(|text| json!({"ip": text.trim_start_matches('!')})).collect()
    };
    let port = |port: &str| json!({"name": format!("p{port}"), "port": port.parse::<i32>().unwrap(), "protocol": "TCP"});
    let ports: Value = ports.split_whitespace().map(port).collect();
    json!({"addresses": list(true), "notReadyAddresses": list(false), "ports": ports})
}

/// One case: what there is, what is expected.
struct Case {
    subsets: &'static [&'static str],
    /// Merged over the metadata of the Endpoints.
    metadata: Value,
    /// Subsets that were mirrored before, and what was done to the slices since.
    before: Option<(&'static [&'static str], Value)>,
    max: usize,
    /// Sizes of IPv4 and IPv6 slices.
    slices: [&'static [usize]; 2],
    /// Creates, updates and deletes.
    actions: (usize, usize, usize),
    /// Addresses that the notes call invalid, and skipped in all.
    notes: [usize; 2],
}

fn case(subsets: &'static [&'static str], slices: [&'static [usize]; 2]) -> Case {
    let actions = (slices[0].len() + slices[1].len(), 0, 0);
    Case { subsets, metadata: json!({}), before: None, max: 1000, slices, actions, notes: [0, 0] }
}

impl Case {
    fn after(self, before: &'static [&'static str], patch: Value, actions: (usize, usize, usize)) -> Self {
        Self { before: Some((before, patch)), actions, ..self }
    }

    fn with(self, metadata: Value) -> Self {
        Self { metadata, ..self }
    }

    fn run(self, name: &str) {
        let endpoints = |subsets: &[&str], metadata: &Value| {
            let mut endpoints = json!({"metadata": {"namespace": "default", "name": "web", "uid": "uid-ep", "resourceVersion": "3"},
                                       "subsets": subsets.iter().map(|text| subset(text)).collect::<Vec<_>>()});
            merge(&mut endpoints["metadata"], metadata.clone());
            Some(object(endpoints))
        };
        let mut world = World::new(service("web", json!({"selector": null}))).only(MIRROR);
        world.limits.mirrored_per_subset = self.max;
        if let Some((subsets, patch)) = self.before {
            world.endpoints = endpoints(subsets, &json!({}));
            world.sync();
            for slice in &mut world.slices {
                let mut stored = serde_json::to_value(&*slice).unwrap();
                merge(&mut stored, patch.clone());
                *slice = object(stored);
            }
        }
        world.endpoints = endpoints(self.subsets, &self.metadata);
        let plan = world.sync();
        assert_eq!(actions(&plan.mirror), self.actions, "{name}");
        let sizes = [AddressType::IPv4, AddressType::IPv6].map(|kind| {
            let of_kind = world.slices.iter().filter(|slice| slice.address_type == kind);
            let mut sizes: Vec<_> = of_kind.map(|slice| slice.endpoints.len()).collect();
            sizes.sort_unstable();
            sizes
        });
        assert_eq!([&sizes[0][..], &sizes[1][..]], self.slices, "{name}");
        let [invalid, skipped] = self.notes;
        let mut expected = Vec::new();
        if invalid > 0 {
            expected.push(format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices"));
        }
        if skipped > invalid {
            let max = self.max;
            expected.push(format!(
                "A max of {max} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            ));
        }
        assert_eq!(plan.notes.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn TestReconcile() {
    let one: &'static [&'static str] = &["10.0.0.1 : 80"];
    let v4: [&'static [usize]; 2] = [&[1], &[]];
    let same = (0, 0, 0);
    let annotations = |key: &str, value: &str| json!({"annotations": {key: value}});
    let applied = "kubectl.kubernetes.io/last-applied-configuration";
    let owner = json!([{"apiVersion": "v1", "kind": "Endpoints", "name": "web", "uid": "earlier"}]);
    let stored = |metadata: Value| json!({ "metadata": metadata });
    let cases = [
        ("no subsets", case(&[], [&[], &[]])),
        ("subset without addresses", case(&[" : 80"], [&[], &[]])),
        ("one address and no port", case(&["10.0.0.1"], v4)),
        ("one address", case(one, v4)),
        ("one address, not ready", case(&["!10.0.0.1 : 80"], v4)),
        ("one address and two ports", case(&["10.0.0.1 : 80 81"], v4)),
        ("one address of v6", case(&["2000::1 : 80"], [&[], &[1]])),
        ("other port, other address", case(&["10.0.0.1 : 80", "10.0.0.2 : 81"], [&[1, 1], &[]])),
        ("other port, same address", case(&["10.0.0.1 : 80", "10.0.0.1 : 81"], v4)),
        ("same port, other address", case(&["10.0.0.1 : 80", "10.0.0.2 : 80"], [&[2], &[]])),
        ("same port, same address", case(&["10.0.0.1 : 80", "10.0.0.1 : 80"], v4)),
        ("same port, one address not ready", case(&["10.0.0.1 : 80", "!10.0.0.1 : 80"], v4)),
        (
            "Endpoints being deleted",
            Case { actions: same, slices: [&[], &[]], ..case(one, v4) }
                .with(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ),
        ("the same slice exists", case(one, v4).after(one, json!({}), same)),
        ("a slice exists, Endpoints are empty", case(&[], [&[], &[]]).after(one, json!({}), (0, 0, 1))),
        ("a slice of another port exists", case(one, v4).after(&["10.0.0.1 : 81"], json!({}), (0, 1, 0))),
        (
            "an address is added",
            case(&["10.0.0.1 10.0.0.2 : 80"], [&[2], &[]]).after(one, json!({}), (0, 1, 0)),
        ),
        ("an address is removed", case(one, v4).after(&["10.0.0.1 10.0.0.2 : 80"], json!({}), (0, 1, 0))),
        (
            "the slice of another owner exists",
            case(one, v4).after(one, stored(json!({"ownerReferences": owner})), (0, 1, 0)),
        ),
        (
            "the slice has an annotation more",
            case(one, v4).after(one, stored(annotations("foo", "bar")), (0, 1, 0)),
        ),
        (
            "the Endpoints have an annotation more",
            case(one, v4).after(one, json!({}), (0, 1, 0)).with(annotations("foo", "bar")),
        ),
        (
            "the slice lacks a label",
            case(one, v4).after(one, json!({}), (0, 1, 0)).with(json!({"labels": {"foo": "bar"}})),
        ),
        (
            "the slice has a label more",
            case(one, v4).after(one, stored(json!({"labels": {"foo": "bar"}})), (0, 1, 0)),
        ),
        ("last-applied-configuration", case(one, v4).with(annotations(applied, "{}"))),
        (
            "last-applied-configuration is added",
            case(one, v4).after(one, json!({}), same).with(annotations(applied, "{}")),
        ),
        (
            "the trigger time changes",
            case(one, v4).after(one, json!({}), same).with(annotations(
                "endpoints.kubernetes.io/last-change-trigger-time",
                "2026-01-01T00:00:00Z",
            )),
        ),
        (
            "dual stack, two subsets",
            case(&["10.0.0.1 10.0.0.2 2000::1 : 80", "10.0.0.3 2000::3 : 81"], [&[1, 2], &[1, 1]]),
        ),
        (
            "dual stack, not ready ones too",
            case(&["10.0.0.1 2000::1 !2000::2 : 80", "10.0.0.3 2000::3 2000::4 : 81"], [&[1, 1], &[2, 2]]),
        ),
        ("invalid addresses", Case { notes: [2, 2], ..case(&["10.0.0.1 nonsense 1.2.3 : 80"], v4) }),
        (
            "only invalid addresses",
            Case { notes: [5, 5], ..case(&["x1 x2 !x3 : 80", "x4 x5 : 81"], [&[], &[]]) },
        ),
        ("addresses with leading zeros", case(&["010.0.0.1 010.0.0.2 : 80"], [&[2], &[]])),
        ("v4 address written as v6", case(&["::ffff:10.0.0.1 : 80"], v4)),
        (
            "one too many",
            Case { max: 2, notes: [0, 1], ..case(&["10.0.0.1 10.0.0.2 !10.0.0.3 : 80"], [&[2], &[]]) },
        ),
        (
            "one too many of both types",
            Case { max: 2, notes: [0, 1], ..case(&["10.0.0.1 10.0.0.2 2000::1 : 80"], [&[2], &[]]) },
        ),
    ];
    for (name, case) in rows("TestReconcile", cases) {
        case.run(name);
    }
}
