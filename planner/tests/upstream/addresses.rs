//! Which address a Pod has in Endpoints.

use fairlead_objects::{
    Family, Pod,
    builders::{pod, pod_with, service},
};
use fairlead_planner::NoteKind;
use serde_json::{Value, json};

use crate::{
    rows,
    world::{ENDPOINTS, World},
};

fn v4() -> Pod {
    pod("a", "web", "n1", "10.0.0.1")
}

fn v6() -> Pod {
    pod("a", "web", "n1", "2000::1")
}

/// A Pod with both addresses, `first` among them first.
fn dual(first: Family) -> Pod {
    let mut ips = ["10.0.0.1", "2000::1"];
    if first == Family::V6 {
        ips.reverse();
    }
    let list = json!({"status": {"podIP": ips[0], "podIPs": ips.map(|ip| json!({"ip": ip}))}});
    pod_with("a", "web", "n1", "", list)
}

fn published(case: &str, spec: Value, pod: Pod, expected: Result<&str, Family>) {
    let mut world = World::new(service("web", spec)).with_pods([pod]).only(ENDPOINTS);
    let plan = world.sync();
    let subsets = &world.endpoints.as_ref().unwrap().subsets;
    let found: Vec<_> = subsets.iter().flat_map(|s| &s.addresses).map(|a| a.ip.as_str()).collect();
    assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{case}");
    let missing: Vec<_> = plan.notes.iter().map(|note| note.kind.clone()).collect();
    assert_eq!(missing, expected.err().map(NoteKind::WrongFamily).into_iter().collect::<Vec<_>>(), "{case}");
}

#[test]
fn TestPodToEndpointAddressForService() {
    let (v4_service, v4_headless) = (json!({}), json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    let v6_service = json!({"ipFamilies": ["IPv6"], "clusterIP": "fd00::9", "clusterIPs": ["fd00::9"]});
    let v6_headless = json!({"ipFamilies": ["IPv6"], "clusterIP": "None", "clusterIPs": ["None"]});
    let (one, six) = (Ok("10.0.0.1"), Ok("2000::1"));
    let cases = [
        ("v4 service, v4 pod", v4_service.clone(), v4(), one),
        ("v4 service, dual pod", v4_service.clone(), dual(Family::V4), one),
        ("v4 service, dual pod with v6 first", v4_service, dual(Family::V6), one),
        ("v4 headless, dual pod with v6 first", v4_headless, dual(Family::V6), one),
        ("v6 service, v6 pod", v6_service.clone(), v6(), six),
        ("v6 service, dual pod", v6_service.clone(), dual(Family::V4), six),
        ("v6 service, dual pod with v6 first", v6_service.clone(), dual(Family::V6), six),
        ("v6 headless, dual pod", v6_headless, dual(Family::V4), six),
        ("v6 service, v4 pod", v6_service, v4(), Err(Family::V6)),
    ];
    for (case, spec, pod, expected) in rows("TestPodToEndpointAddressForService", cases) {
        published(case, spec, pod, expected);
    }
}

#[test]
fn TestPodToEndpointAddressForServiceEmptyIPFamilies() {
    let by_v4 = json!({"ipFamilies": null, "clusterIPs": null});
    let by_v6 = json!({"ipFamilies": null, "clusterIP": "fd00::9", "clusterIPs": null});
    let headless = json!({"ipFamilies": null, "clusterIP": "None", "clusterIPs": null});
    let cases = [
        ("v4 cluster IP, v4 pod", by_v4, v4(), Ok("10.0.0.1")),
        ("v6 cluster IP, v6 pod", by_v6.clone(), v6(), Ok("2000::1")),
        ("v6 cluster IP, v4 pod", by_v6, v4(), Err(Family::V6)),
        ("headless, v4 pod", headless.clone(), v4(), Ok("10.0.0.1")),
        ("headless, v6 pod", headless, v6(), Ok("2000::1")),
    ];
    for (case, spec, pod, expected) in rows("TestPodToEndpointAddressForServiceEmptyIPFamilies", cases) {
        published(case, spec, pod, expected);
    }
}

#[test]
fn TestShouldPodBeInEndpoints() {
    let none = json!({"status": {"podIP": null, "podIPs": null}});
    let deleting = |phase: &str| json!({"status": {"phase": phase}, "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let phase = |phase: &str| json!({"status": {"phase": phase}});
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    // Whether the Pod is in Endpoints, without and with publishNotReadyAddresses, and whether it is in slices.
    let cases = [
        ("failed", phase("Failed"), [false, false, false]),
        ("succeeded", phase("Succeeded"), [false, false, false]),
        ("deleted", deleting("Running"), [false, true, true]),
        ("deleted and failed", deleting("Failed"), [false, false, false]),
        ("deleted and succeeded", deleting("Succeeded"), [false, false, false]),
        ("running", phase("Running"), [true, true, true]),
        ("pending", phase("Pending"), [true, true, true]),
        ("unknown", phase("Unknown"), [true, true, true]),
        ("without address", none, [false, false, false]),
        ("only podIPs", json!({"status": {"podIP": null}}), [true, true, true]),
        ("not ready", not_ready, [true, true, true]),
    ];
    for (case, patch, expected) in rows("TestShouldPodBeInEndpoints", cases) {
        let found = [false, true].map(|publish| {
            let mut world = World::new(service("web", json!({"publishNotReadyAddresses": publish})))
                .with_pods([pod_with("a", "web", "n1", "10.0.0.1", patch.clone())]);
            world.sync();
            [!world.endpoints.as_ref().unwrap().subsets.is_empty(), world.sizes() == [1]]
        });
        assert_eq!([found[0][0], found[1][0], found[0][1]], expected, "{case}");
        assert_eq!(found[0][1], found[1][1], "{case}: slices list the same Pods either way");
    }
}
