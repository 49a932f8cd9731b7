//! What the index makes dirty, and what it makes of answers and watch events that cross each other.

use std::collections::BTreeMap;

use fairlead_objects::builders::{endpoints, node, object, pod, pod_with, service, slice};
use fairlead_planner::{NodeLookup, Nodes};
use serde_json::{Value, json};

use super::*;

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

fn index() -> Index {
    Index::new(true)
}

fn keys(dirty: Dirty) -> Vec<String> {
    dirty.into_iter().map(|(key, _)| key.name.to_string()).collect()
}

fn selecting(name: &str, selector: Value) -> Service {
    // Replaced, not merged: the builder's own selector must go.
    let mut service = service(name, json!({}));
    service.selector = Some(object::<BTreeMap<Arc<str>, Arc<str>>>(selector));
    service
}

fn ours(name: &str, service: &str, version: u64) -> EndpointSlice {
    let mut slice = slice(name, service, 80, &[]);
    let labels = slice.metadata.labels.get_or_insert_default();
    labels.insert(labels::SLICE_MANAGED_BY.to_owned(), labels::SLICE_CONTROLLER.to_owned());
    slice.metadata.resource_version = Some(version.to_string());
    slice
}

fn with_port(mut slice: EndpointSlice, port: i32) -> EndpointSlice {
    slice.ports[0].port = Some(port);
    slice
}

fn pods_of(index: &Index, name: &str) -> Vec<String> {
    let mut names: Vec<String> =
        index.snapshot(&key(name)).pods.iter().map(|pod| pod.name.to_string()).collect();
    names.sort();
    names
}

fn ports_of(index: &Index, name: &str) -> Vec<Option<i32>> {
    index.snapshot(&key(name)).slices.iter().map(|slice| slice.ports[0].port).collect()
}

#[test]
fn pod_dirties_the_services_that_select_it_in_either_order_of_arrival() {
    let mut index = index();
    index.apply_service(service("early", json!({"selector": {"app": "web"}})));
    assert_eq!(keys(index.apply_pod(pod("a", "web", "n", "10.0.0.1"))), ["early"]);
    index.apply_service(selecting("late", json!({"app": "web"})));
    assert_eq!(pods_of(&index, "late"), ["a"]);
    assert_eq!(keys(index.apply_pod(pod("a", "web", "n", "10.0.0.2"))), ["early", "late"]);
}

#[test]
fn pod_event_without_a_difference_dirties_nothing() {
    let mut index = index();
    index.apply_service(service("web", json!({})));
    index.apply_pod(pod("a", "web", "n", "10.0.0.1"));
    assert!(index.apply_pod(pod("a", "web", "n", "10.0.0.1")).is_empty());
}

#[test]
fn all_pairs_of_a_selector_must_match() {
    let mut index = index();
    index.apply_service(selecting("web", json!({"app": "web", "tier": "front"})));
    assert!(index.apply_pod(pod("a", "web", "n", "10.0.0.1")).is_empty());
    let relabelled =
        pod_with("a", "web", "n", "10.0.0.1", json!({"metadata": {"labels": {"tier": "front"}}}));
    assert_eq!(keys(index.apply_pod(relabelled)), ["web"]);
    assert_eq!(pods_of(&index, "web"), ["a"]);
}

#[test]
fn relabelled_pod_dirties_only_services_it_joins_or_leaves() {
    let mut index = index();
    for (name, selector) in
        [("both", json!({"app": "web"})), ("old", json!({"v": "1"})), ("new", json!({"v": "2"}))]
    {
        index.apply_service(selecting(name, selector));
    }
    let version = |v: &str| pod_with("a", "web", "n", "10.0.0.1", json!({"metadata": {"labels": {"v": v}}}));
    index.apply_pod(version("1"));
    assert_eq!(keys(index.apply_pod(version("2"))), ["new", "old"]);
    assert!(pods_of(&index, "old").is_empty());
}

#[test]
fn changed_selector_gathers_other_pods() {
    let mut index = index();
    index.apply_service(selecting("web", json!({"app": "web"})));
    index.apply_pod(pod("a", "web", "n", "10.0.0.1"));
    index.apply_pod(pod("b", "api", "n", "10.0.0.2"));
    index.apply_service(selecting("web", json!({"app": "api"})));
    assert_eq!(pods_of(&index, "web"), ["b"]);
    assert!(index.apply_pod(pod("a", "web", "n", "10.0.0.9")).is_empty());
}

#[test]
fn deleted_pod_dirties_its_last_services_once() {
    let mut index = index();
    index.apply_service(service("web", json!({})));
    index.apply_pod(pod("a", "web", "n", "10.0.0.1"));
    let (namespace, name) = ("default".into(), "a".into());
    assert_eq!(keys(index.delete_pod(&namespace, &name)), ["web"]);
    assert!(index.delete_pod(&namespace, &name).is_empty());
}

#[test]
fn node_arrival_zone_change_and_deletion_dirty_the_services_of_its_pods() {
    let mut index = index();
    index.apply_service(service("web", json!({})));
    index.apply_service(service("other", json!({})));
    index.apply_pod(pod("a", "web", "n1", "10.0.0.1"));
    assert_eq!(keys(index.apply_node(node("n1", "192.0.2.1", "east"))), ["web"]);
    assert!(
        index.apply_node(node("n1", "192.0.2.99", "east")).is_empty(),
        "neither existence nor zone changed"
    );
    assert_eq!(keys(index.apply_node(node("n1", "192.0.2.1", "west"))), ["web"]);
    assert_eq!(keys(index.delete_node(&"n1".into())), ["web"]);
    assert!(index.apply_node(node("n2", "192.0.2.2", "east")).is_empty());
}

#[test]
fn sweep_drops_what_a_list_did_not_hold() {
    let mut index = index();
    index.begin(Kind::Services);
    index.apply_service(service("kept", json!({})));
    index.apply_service(service("gone", json!({})));
    assert!(index.sweep(Kind::Services).is_empty());
    index.begin(Kind::Services);
    index.apply_service(service("kept", json!({})));
    assert_eq!(keys(index.sweep(Kind::Services)), ["gone"]);
    assert!(!index.knows(&key("gone")));
}

#[test]
fn service_event_that_changes_only_the_version_dirties_nothing() {
    let mut index = index();
    index.apply_service(service("web", json!({})));
    let mut newer = service("web", json!({}));
    newer.resource_version = "99".into();
    assert!(index.apply_service(newer).is_empty());
}

#[test]
fn echo_of_our_own_write_dirties_nothing_and_a_foreign_change_does() {
    let mut index = index();
    index.wrote_slice(with_port(ours("web-1", "web", 10), 8080));
    assert!(index.apply_slice(with_port(ours("web-1", "web", 10), 8080)).is_empty());
    assert_eq!(keys(index.apply_slice(with_port(ours("web-1", "web", 11), 9))), ["web"]);
}

#[test]
fn echo_that_overtakes_the_answer_dirties_nothing() {
    let mut index = index();
    let object = ServiceKey::new("default", "web-1");
    index.sending_slice(&object, &with_port(ours("web-1", "web", 0), 8080));
    assert!(index.apply_slice(with_port(ours("web-1", "web", 10), 8080)).is_empty());
    assert!(!index.apply_slice(with_port(ours("web-1", "web", 11), 9)).is_empty(), "not what we sent");
    index.sending_deletion(Kind::EndpointSlices, &object, Some("uid-web-1".to_owned()));
    assert!(index.delete_slice(&ours("web-1", "web", 12)).is_empty());
    assert!(ports_of(&index, "web").is_empty());
}

#[test]
fn deletion_by_others_after_our_request_was_answered_is_news() {
    let mut index = index();
    let object = ServiceKey::new("default", "web-1");
    index.apply_slice(ours("web-1", "web", 10));
    index.sending_deletion(Kind::EndpointSlices, &object, Some("uid-web-1".to_owned()));
    index.answered(Kind::EndpointSlices, &object);
    assert_eq!(keys(index.delete_slice(&ours("web-1", "web", 12))), ["web"]);
}

#[test]
fn lagging_watch_does_not_undo_our_own_write() {
    let mut index = index();
    index.apply_slice(with_port(ours("web-1", "web", 9), 1));
    index.wrote_slice(with_port(ours("web-1", "web", 12), 3));
    // "9" < "12" < "100" as numbers, not as text.
    assert!(index.apply_slice(with_port(ours("web-1", "web", 11), 2)).is_empty());
    assert_eq!(ports_of(&index, "web"), [Some(3)]);
    assert!(!index.apply_slice(with_port(ours("web-1", "web", 100), 4)).is_empty());
}

#[test]
fn slice_that_we_deleted_stays_deleted_until_a_new_one_has_its_name() {
    let mut index = index();
    index.apply_slice(ours("web-1", "web", 9));
    index.deleted_slice(&"default".into(), Gone { name: "web-1".into(), uid: Some("uid-web-1".into()) });
    assert!(index.apply_slice(ours("web-1", "web", 10)).is_empty());
    assert!(ports_of(&index, "web").is_empty());
    assert!(index.delete_slice(&ours("web-1", "web", 11)).is_empty(), "the confirmation is no news");
    let mut again = ours("web-1", "web", 12);
    again.metadata.uid = Some("another".into());
    index.wrote_slice(again.clone());
    assert_eq!(ports_of(&index, "web").len(), 1);
}

#[test]
fn late_confirmation_of_a_deletion_does_not_hit_the_successor() {
    let mut index = index();
    index.apply_slice(ours("web-1", "web", 9));
    index.deleted_slice(&"default".into(), Gone { name: "web-1".into(), uid: Some("uid-web-1".into()) });
    let mut again = ours("web-1", "web", 12);
    again.metadata.uid = Some("another".into());
    index.wrote_slice(again);
    index.delete_slice(&ours("web-1", "web", 11));
    assert_eq!(ports_of(&index, "web").len(), 1);
}

#[test]
fn own_slice_deleted_by_others_dirties_its_service() {
    let mut index = index();
    index.wrote_slice(ours("web-1", "web", 10));
    assert_eq!(keys(index.delete_slice(&ours("web-1", "web", 11))), ["web"]);
}

#[test]
fn foreign_slices_dirty_nothing_until_they_claim_to_be_ours() {
    let mut index = index();
    assert!(index.apply_slice(slice("x", "web", 80, &[])).is_empty());
    assert_eq!(index.snapshot(&key("web")).slices.len(), 1, "but they are in the snapshot");
    assert_eq!(keys(index.apply_slice(ours("x", "web", 2))), ["web"]);
}

#[test]
fn slice_moved_to_another_service_dirties_both() {
    let mut index = index();
    index.apply_slice(ours("x", "web", 1));
    assert_eq!(keys(index.apply_slice(ours("x", "api", 2))), ["api", "web"]);
    assert!(!index.knows(&key("web")));
}

#[test]
fn own_write_that_a_list_missed_survives_but_is_looked_at_again() {
    let mut index = index();
    index.begin(Kind::EndpointSlices);
    index.wrote_slice(ours("web-1", "web", 10));
    assert_eq!(keys(index.sweep(Kind::EndpointSlices)), ["web"]);
    let snapshot = index.snapshot(&key("web"));
    assert!(snapshot.suspect && snapshot.slices.len() == 1);
    index.replace(&key("web"), None, Vec::new(), Some("20"));
    let snapshot = index.snapshot(&key("web"));
    assert!(!snapshot.suspect && snapshot.slices.is_empty());
}

#[test]
fn live_state_wins_over_older_events_and_loses_against_newer_ones() {
    let mut index = index();
    index.apply_slice(ours("web-1", "web", 10));
    index.replace(&key("web"), None, vec![ours("web-2", "web", 15)], Some("20"));
    assert!(index.apply_slice(ours("web-1", "web", 18)).is_empty(), "it was gone at 20");
    assert_eq!(index.snapshot(&key("web")).slices.len(), 1);
    assert!(!index.apply_slice(ours("web-1", "web", 25)).is_empty(), "it came back after 20");
}

#[test]
fn name_that_belongs_to_another_service_is_remembered_as_taken() {
    let mut index = index();
    index.suspect_name(&key("web"), "web-1".to_owned());
    index.replace(&key("web"), None, Vec::new(), Some("20"));
    assert_eq!(index.snapshot(&key("web")).taken_names, ["web-1"]);
}

#[test]
fn name_that_turns_out_to_be_our_own_slice_is_not_taken() {
    let mut index = index();
    index.suspect_name(&key("web"), "web-1".to_owned());
    index.replace(&key("web"), None, vec![ours("web-1", "web", 15)], Some("20"));
    assert!(index.snapshot(&key("web")).taken_names.is_empty());
}

#[test]
fn endpoints_of_a_missing_service_dirty_its_key_and_election_records_do_not() {
    let mut index = index();
    assert_eq!(keys(index.apply_endpoints(endpoints("left", json!([])))), ["left"]);
    let mut record = endpoints("lock", json!([]));
    record.metadata.annotations = Some(BTreeMap::from([(labels::LEADER.to_owned(), "{}".to_owned())]));
    assert!(index.apply_endpoints(record).is_empty());
}

#[test]
fn snapshot_holds_only_what_concerns_the_service() {
    let mut index = index();
    index.apply_service(service("web", json!({})));
    index.apply_pod(pod("a", "web", "n1", "10.0.0.1"));
    index.apply_pod(pod("b", "api", "n1", "10.0.0.2"));
    index.apply_node(node("n1", "192.0.2.1", "east"));
    index.apply_slice(ours("api-1", "api", 1));
    let snapshot = index.snapshot(&key("web"));
    assert_eq!(snapshot.pods.len(), 1);
    assert!(snapshot.slices.is_empty());
    assert!(matches!(snapshot.node("n1"), NodeLookup::Known(_)));
    assert_eq!(snapshot.node("n2"), NodeLookup::Missing);
}

#[test]
fn nothing_is_left_when_everything_is_gone() {
    let mut index = index();
    index.apply_service(service("web", json!({})));
    index.apply_pod(pod("a", "web", "n1", "10.0.0.1"));
    index.delete_pod(&"default".into(), &"a".into());
    index.delete_service(&key("web"));
    assert_eq!(index.sizes(), Sizes::default());
    assert!(index.nodes.is_empty() && index.namespaces.is_empty());
}

fn sized(name: &str, zone: &str, cpu: &str) -> Node {
    let mut node = node(name, "10.0.0.9", zone);
    node.ready = true;
    node.allocatable_cpu = Some(cpu.into());
    node
}

#[test]
fn change_of_the_shares_dirties_services_whose_hints_it_outdates() {
    use fairlead_objects::Family;
    use fairlead_planner::{Remembered, Unhinted};

    let mut index = index();
    for (name, zone) in [("a", "za"), ("b", "zb")] {
        index.apply_node(sized(name, zone, "2"));
    }
    let counts = [("za", 2), ("zb", 2)].map(|(zone, count)| (Arc::from(zone), count));
    let hinted = [(Family::V4, BTreeMap::from(counts))].into();
    index.remember(&key("hinted"), Remembered { hinted, ..Remembered::default() });
    let refused = [(Family::V4, Unhinted::InsufficientNodes)].into();
    assert!(index.apply_node(sized("a", "za", "2")).is_empty(), "a heartbeat");
    let overloaded = index.apply_node(sized("a", "za", "20"));
    assert_eq!(overloaded.into_iter().collect::<Vec<_>>(), [(key("hinted"), Cause::Node)]);
    index.remember(&key("hinted"), Remembered { refused, ..Remembered::default() });
    assert_eq!(keys(index.apply_node(sized("c", "zb", "20"))), ["hinted"], "can be hinted now");
    index.remember(&key("hinted"), Remembered::default());
    assert!(index.delete_node(&"c".into()).is_empty());
}

#[test]
fn snapshot_knows_the_shares_for_services_that_ask_for_them() {
    let mut index = index();
    index.apply_node(sized("a", "za", "2"));
    let mut auto = service("auto", json!({}));
    auto.annotations = object(json!({"service.kubernetes.io/topology-mode": "Auto"}));
    index.apply_service(auto);
    index.apply_service(service("plain", json!({})));
    assert!(index.snapshot(&key("auto")).shares.is_none(), "one zone only");
    index.apply_node(sized("b", "zb", "2"));
    assert!(index.snapshot(&key("auto")).shares.is_some());
    assert!(index.snapshot(&key("plain")).shares.is_none());
    let mut unready = sized("b", "zb", "2");
    unready.ready = false;
    index.apply_node(unready);
    assert!(index.snapshot(&key("auto")).shares.is_none());
}

/// Upstream looks at addresses, readiness and deletion only.
#[test]
fn pod_dirties_its_services_by_everything_that_plans_depend_on() {
    for patch in [
        json!({"status": {"phase": "Failed"}}),
        json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}}),
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        json!({"metadata": {"uid": "another"}}),
        json!({"spec": {"nodeName": "n2"}}),
        json!({"spec": {"hostname": "h", "subdomain": "web"}}),
        json!({"spec": {"containers": [{"ports": [{"name": "http", "containerPort": 9}]}]}}),
    ] {
        let mut index = index();
        index.apply_service(service("web", json!({})));
        index.apply_pod(pod("a", "web", "n1", "10.0.0.1"));
        let dirty = index.apply_pod(pod_with("a", "web", "n1", "10.0.0.1", patch.clone()));
        assert_eq!(keys(dirty), ["web"], "{patch}");
    }
}

/// Upstream takes note of such an answer, and waits for the object to be seen for ever.
#[test]
fn answer_that_comes_after_the_deletion_does_not_bring_the_object_back() {
    let mut index = index();
    let object = ServiceKey::new("default", "web-1");
    index.sending_slice(&object, &with_port(ours("web-1", "web", 0), 8080));
    index.apply_slice(with_port(ours("web-1", "web", 10), 8080));
    assert_eq!(keys(index.delete_slice(&ours("web-1", "web", 12))), ["web"]);
    index.wrote_slice(with_port(ours("web-1", "web", 10), 8080));
    index.answered(Kind::EndpointSlices, &object);
    assert!(ports_of(&index, "web").is_empty(), "it was gone at 12");
    let mut again = ours("web-1", "web", 13);
    again.metadata.uid = Some("another".into());
    index.apply_slice(again);
    assert_eq!(ports_of(&index, "web").len(), 1);
}
