//! Slices of Services with a selector, beyond upstream's own tests (`upstream/`).

#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

mod world;

use fairlead_objects::{
    AddressType, Family, Pod, Service, Uid,
    builders::{merge, object, pod, pod_with, service, slice},
};
use fairlead_planner::{EndpointsPlan, MAX_ADDRESSES, NoteKind, PLACEHOLDER_UID};
use serde_json::{Value, json};
use world::{SLICES, World, actions, at, pods};

fn world(spec: Value) -> World {
    World::new(service("web", spec)).only(SLICES)
}

fn dual_pod(name: &str) -> Pod {
    let ips = json!({"status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}});
    pod_with(name, "web", "n1", "10.0.0.1", ips)
}

/// Address types of all slices and how many endpoints they hold, sorted.
fn types(world: &World) -> Vec<(AddressType, usize)> {
    let mut types: Vec<_> =
        world.slices.iter().map(|s| (s.address_type.clone(), s.endpoints.len())).collect();
    types.sort();
    types
}

#[test]
fn placeholder_is_made_kept_and_reused() {
    let mut world = world(json!({}));
    world.triggers.slices = Some(at(1_767_225_600));
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (1, 0, 0));
    let [made] = &plan.slices.create[..] else { panic!("one slice") };
    assert!(made.endpoints.is_empty() && made.ports.is_empty());
    assert_eq!(made.metadata.generate_name.as_deref(), Some("web-"));
    assert!(made.metadata.name.as_ref().unwrap().starts_with("web-"));
    assert_eq!(made.label("kubernetes.io/service-name"), Some("web"));
    assert_eq!(made.label("endpointslice.kubernetes.io/managed-by"), Some("endpointslice-controller.k8s.io"));
    let trigger =
        &made.metadata.annotations.as_ref().unwrap()["endpoints.kubernetes.io/last-change-trigger-time"];
    assert_eq!(trigger, "2026-01-01T00:00:00Z");
    let owner = &made.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (&*owner.api_version, &*owner.kind, &*owner.name, &*owner.uid),
        ("v1", "Service", "web", "uid-web")
    );
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));

    let name = world.slices[0].metadata.name.clone();
    world.triggers.slices = None;
    world.pods = pods(0, 1);
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    assert_eq!(world.slices[0].metadata.name, name, "the placeholder became the first real slice");
    assert_eq!(world.slices[0].metadata.annotations, None, "the trigger time is cleared");
    world.pods.clear();
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    assert_eq!((world.slices[0].metadata.name.clone(), world.sizes()), (name, vec![0]));
}

#[test]
fn family_without_addresses_gets_a_placeholder() {
    let mut world = world(json!({"ipFamilies": ["IPv4", "IPv6"]})).with_pods(pods(1, 1));
    let plan = world.sync();
    assert_eq!(types(&world), [(AddressType::IPv4, 1), (AddressType::IPv6, 0)]);
    assert!(plan.notes.iter().any(|note| note.kind == NoteKind::WrongFamily(Family::V6)));
}

#[test]
fn slices_of_a_family_that_was_dropped_are_deleted() {
    let mut world = world(json!({"ipFamilies": ["IPv4", "IPv6"]})).with_pods([dual_pod("a")]);
    world.sync();
    world.service_mut().ip_families.truncate(1);
    assert_eq!(actions(&world.sync().slices), (0, 0, 1));
    assert_eq!(types(&world), [(AddressType::IPv4, 1)]);
}

#[test]
fn endpoint_says_everything_about_its_pod() {
    let named = json!({"spec": {"hostname": "h", "subdomain": "web"}});
    let mut world =
        world(json!({"ports": [{"name": "p", "port": 80, "targetPort": "http", "appProtocol": "h2c"}]}))
            .with_pods([pod_with("a", "web", "n1", "10.0.0.1", named)]);
    world.sync();
    let slice = serde_json::to_value(&world.slices[0]).unwrap();
    assert_eq!(
        slice["endpoints"],
        json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
                "hostname": "h", "nodeName": "n1", "zone": "z1",
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": "uid-a"}}])
    );
    assert_eq!(slice["ports"], json!([{"name": "p", "port": 8080, "protocol": "TCP", "appProtocol": "h2c"}]));
}

#[test]
fn pods_that_share_an_address_are_two_endpoints_unless_one_has_ended() {
    let ended = json!({"status": {"phase": "Succeeded"}});
    let both = [pod("a", "web", "n1", "10.0.0.1"), pod("b", "web", "n1", "10.0.0.1")];
    let mut world = world(json!({})).with_pods(both);
    world.sync();
    assert_eq!(world.sizes(), [2]);
    world.pods[1] = pod_with("b", "web", "n1", "10.0.0.1", ended);
    let plan = world.sync();
    assert_eq!(world.sizes(), [1]);
    assert_eq!(plan.notes[0].reason(), "PodEnded");
}

#[test]
fn recreated_pod_of_the_same_name_and_address_is_updated_in_place() {
    let mut world = world(json!({})).with_pods(pods(1, 3));
    world.sync();
    world.pods[1].uid = Uid::new("another");
    let plan = world.sync();
    assert_eq!((actions(&plan.slices), plan.slices.updated, plan.slices.added), ((0, 1, 0), 1, 0));
}

#[test]
fn slices_of_others_are_never_touched() {
    let mut world = world(json!({})).with_pods(pods(1, 2));
    let manual = slice("web-manual", "web", 80, &[("10.0.0.1", "n1", true)]);
    let mut other = slice("web-other", "web", 80, &[("10.0.0.2", "n1", true)]);
    let labels = other.metadata.labels.as_mut().unwrap();
    labels.insert("endpointslice.kubernetes.io/managed-by".to_owned(), "somebody".to_owned());
    world.slices = vec![manual.clone(), other.clone()];
    assert_eq!(actions(&world.sync().slices), (1, 0, 0));
    assert!(world.slices.contains(&manual) && world.slices.contains(&other));
    world.service = None;
    assert_eq!(actions(&world.sync().slices), (0, 0, 1));
    assert_eq!(world.slices, [manual, other]);
}

#[test]
fn slice_on_its_way_out_is_ignored_and_its_name_not_reused() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.sync();
    let name = world.slices[0].metadata.name.clone();
    let mut leaving = serde_json::to_value(&world.slices[0]).unwrap();
    merge(
        &mut leaving,
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["f"]}}),
    );
    world.slices = vec![object(leaving)];
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (1, 0, 0));
    assert_ne!(plan.slices.create[0].metadata.name, name);
}

#[test]
fn service_being_deleted_gets_updates_deletions_and_recycling_but_no_new_slice() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.service = world.service.map(|service| Service { terminating: true, ..service });
    let plan = world.plan();
    assert!(plan.is_empty());
    assert_eq!(plan.notes.last().map(fairlead_planner::Note::reason), Some("ServiceTerminating"));

    world.service_mut().terminating = false;
    world.sync();
    world.service_mut().terminating = true;
    world.pods[0].ready = false;
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    world.service_mut().ports[0].target = fairlead_objects::TargetPort::Number(81);
    assert_eq!(actions(&world.sync().slices), (0, 1, 0), "the old slice is recycled");
}

#[test]
fn updates_keep_what_is_not_ours() {
    let mut world = world(json!({})).with_pods(pods(1, 1));
    world.sync();
    let mut stored = serde_json::to_value(&world.slices[0]).unwrap();
    merge(
        &mut stored,
        json!({"metadata": {"annotations": {"mine": "stays"}, "finalizers": ["f"], "labels": {"mine": "goes"}}}),
    );
    world.slices = vec![object(stored)];
    // A change of port recycles the slice, the hardest case.
    world.service_mut().ports[0].target = fairlead_objects::TargetPort::Number(81);
    let plan = world.sync();
    let [written] = &plan.slices.update[..] else { panic!("one update") };
    assert!(written.metadata.resource_version.is_some());
    assert_eq!(written.metadata.annotations.as_ref().unwrap()["mine"], "stays");
    assert_eq!(written.metadata.finalizers, Some(vec!["f".to_owned()]));
    assert_eq!(written.label("mine"), None);
}

#[test]
fn headless_label_is_kept_right() {
    let mut world = world(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    world.sync();
    assert_eq!(world.slices[0].label("service.kubernetes.io/headless"), Some(""));
    world.service = Some(service("web", json!({})));
    assert_eq!(actions(&world.sync().slices), (0, 1, 0));
    assert_eq!(world.slices[0].label("service.kubernetes.io/headless"), None);
}

#[test]
fn pod_on_a_missing_node_waits_unless_published_regardless() {
    let both = [pod("a", "web", "n1", "10.0.0.1"), pod("b", "web", "n2", "10.0.0.2")];
    let mut world = world(json!({})).with_pods(both);
    let plan = world.sync();
    assert_eq!(world.sizes(), [1]);
    assert!(plan.needs_retry());
    assert!(plan.notes.iter().any(|note| note.kind == NoteKind::NodeUnknown("n2".into())));
    let mut published = world.clone();
    published.service_mut().publish_not_ready_addresses = true;
    let plan = published.sync();
    assert_eq!(published.sizes(), [2]);
    assert!(!plan.needs_retry());
    let zones: Vec<_> =
        published.slices[0].endpoints.iter().map(|endpoint| endpoint.zone.as_deref()).collect();
    assert_eq!(zones, [Some("z1"), None]);

    world.nodes = Some([].into());
    let plan = world.sync();
    assert_eq!((world.sizes(), plan.slices.removed), (vec![0], 1));
    world.nodes = None;
    world.sync();
    assert_eq!(world.sizes(), [2], "without any information on Nodes nothing is concluded");
}

#[test]
fn pod_without_a_node_waits_for_one() {
    let unscheduled = Pod { node: None, ..pods(1, 1).remove(0) };
    let mut world = world(json!({})).with_pods([unscheduled]);
    let plan = world.sync();
    assert_eq!(world.sizes(), [0]);
    assert_eq!(plan.notes[0].kind, NoteKind::PodUnscheduled);
    world.nodes = None;
    world.sync();
    assert_eq!(world.slices[0].endpoints[0].node_name, None);
}

#[test]
fn pod_that_serves_no_port_is_listed_without_ports() {
    let mut world = world(json!({"ports": [{"port": 80, "targetPort": "missing"}]})).with_pods(pods(1, 1));
    let plan = world.sync();
    assert_eq!(world.slices[0].endpoints.len(), 1);
    assert!(world.slices[0].ports.is_empty());
    let reasons: Vec<_> = plan.notes.iter().map(fairlead_planner::Note::reason).collect();
    assert_eq!(reasons, ["PortNotFound", "NoPortResolved"]);
}

#[test]
fn input_that_no_api_server_has_seen_works() {
    let bare: fairlead_objects::ServiceObject = object(
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    );
    let ip_only = json!({"status": {"podIPs": null}, "metadata": {"uid": null}, "spec": {"nodeName": null}});
    let mut world = World::new(bare.into()).with_pods([pod_with("a", "web", "n1", "fd00::1", ip_only)]);
    world.nodes = None;
    world.sync();
    assert_eq!(types(&world), [(AddressType::IPv6, 1)]);
    assert_eq!(world.slices[0].metadata.owner_references.as_ref().unwrap()[0].uid, PLACEHOLDER_UID);
    assert_eq!(world.slices[0].label("service.kubernetes.io/headless"), None);
    assert_eq!(world.endpoints.unwrap().subsets[0].addresses[0].ip, "fd00::1");
}

#[test]
fn names_taken_by_unseen_objects_are_not_used() {
    let world = world(json!({})).with_pods(pods(1, 1));
    let name = |taken: &[String]| {
        world.with_input(|input| {
            let input = fairlead_planner::PlanInput { taken_names: taken, ..*input };
            fairlead_planner::plan(&input).slices.create[0].metadata.name.clone().unwrap()
        })
    };
    let first = name(&[]);
    assert_eq!(name(&[]), first);
    assert_ne!(name(std::slice::from_ref(&first)), first);
}

/// Endpoints end at 1000 addresses, slices do not end.
#[test]
fn five_thousand_pods_fill_slices_and_truncate_endpoints_once() {
    let mut world = World::new(service("web", json!({}))).with_pods(pods(0, 5000));
    let plan = world.sync();
    assert_eq!((actions(&plan.slices), plan.slices.desired_endpoints), ((50, 0, 0), 5000));
    let endpoints = world.endpoints.clone().unwrap();
    assert_eq!(endpoints.subsets[0].addresses.len(), MAX_ADDRESSES);
    let over = NoteKind::OverCapacity { kept: MAX_ADDRESSES, left_out: 4000 };
    assert!(plan.notes.iter().any(|note| note.kind == over));
    world.pods.remove(4000);
    let plan = world.sync();
    assert_eq!(actions(&plan.slices), (0, 1, 0));
    assert_eq!(plan.endpoints, EndpointsPlan::Keep, "nothing of what is in it has changed");
}
