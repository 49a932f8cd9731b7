//! The tracker: what is a change, and what slices add up to.

use fairlead_compiler::{PortKey, ProxyState};
use fairlead_objects::{Family, NodeName, Protocol};
use serde_json::json;

use crate::cluster::{NODE, key, local, remote, service, slice, terminating, unready};

fn state() -> ProxyState {
    ProxyState::new(Family::V4)
}

fn p80() -> serde_json::Value {
    json!([{"name": "p80", "port": 80}])
}

fn addresses(state: &ProxyState, name: &str) -> Vec<String> {
    let endpoints = state.endpoints(&key(name));
    let port = PortKey { name: "p80".into(), protocol: Protocol::Tcp };
    endpoints.get(&port).into_iter().flatten().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn headless_external_name_and_handed_over_services_have_no_ports() {
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": ""}),
        json!({"type": "ExternalName"}),
        json!({"clusterIP": "fd00::1"}),
    ] {
        let mut state = state();
        state.set_service(&service(Family::V4, "svc", json!({})));
        assert_eq!(state.take_dirty(), [key("svc")].into());
        state.set_service(&service(Family::V4, "svc", spec));
        assert!(state.ports(&key("svc")).is_empty());
        assert_eq!(state.take_dirty(), [key("svc")].into());
    }
    let mut handed_over = service(Family::V4, "svc", json!({}));
    handed_over.labels.insert("service.kubernetes.io/service-proxy-name".into(), "other".into());
    let mut state = state();
    state.set_service(&handed_over);
    assert!(state.ports(&key("svc")).is_empty() && state.take_dirty().is_empty());
}

#[test]
fn change_of_metadata_is_no_change() {
    let mut state = state();
    let (mut svc, mut slice) =
        (service(Family::V4, "svc", json!({})), slice(Family::V4, "s", "svc", p80(), &[]));
    state.set_service(&svc);
    state.set_slice(&slice);
    state.take_dirty();
    svc.resource_version = "2".into();
    slice.metadata.resource_version = Some("2".to_owned());
    state.set_service(&svc);
    state.set_slice(&slice);
    assert!(state.take_dirty().is_empty());
}

#[test]
fn slices_of_a_service_add_up_in_order_of_text() {
    let mut state = state();
    state.set_slice(&slice(Family::V4, "s1", "svc", p80(), &[remote("10.0.0.2"), remote("10.0.0.10")]));
    state.set_slice(&slice(Family::V4, "s2", "svc", p80(), &[remote("10.0.0.1"), remote("10.0.0.2")]));
    assert_eq!(addresses(&state, "svc"), ["10.0.0.10:80", "10.0.0.1:80", "10.0.0.2:80"]);
    state.remove_slice("ns", "s1");
    assert_eq!(addresses(&state, "svc"), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(state.endpoint_count(), 2);
    state.remove_slice("ns", "s2");
    assert_eq!((addresses(&state, "svc").len(), state.endpoint_count()), (0, 0));
}

#[test]
fn duplicate_that_is_not_terminating_wins_in_any_order() {
    for names in [["s1", "s2"], ["s2", "s1"]] {
        let mut state = state();
        let [leaving, staying] = names;
        state.set_slice(&slice(Family::V4, leaving, "svc", p80(), &[terminating(local("10.0.0.1"), true)]));
        state.set_slice(&slice(Family::V4, staying, "svc", p80(), &[local("10.0.0.1")]));
        let endpoints = state.endpoints(&key("svc"));
        let merged: Vec<_> = endpoints.values().flatten().collect();
        assert!(merged.len() == 1 && merged[0].ready && !merged[0].terminating);
    }
}

#[test]
fn foreign_slices_and_unusable_parts_are_left_out() {
    let mut state = state();
    state.set_slice(&slice(Family::V6, "six", "svc", p80(), &[remote("fd00::1")]));
    let mut headless = slice(Family::V4, "headless", "svc", p80(), &[remote("10.0.0.9")]);
    headless
        .metadata
        .labels
        .as_mut()
        .unwrap()
        .insert("service.kubernetes.io/headless".to_owned(), String::new());
    state.set_slice(&headless);
    assert!(state.take_dirty().is_empty());
    let ports = json!([{"name": "p80", "port": 80}, {"name": "none"}, {"name": "zero", "port": 0}]);
    let endpoints =
        [remote("10.0.0.1"), json!({"addresses": []}), remote("not an address"), remote("fd00::2")];
    state.set_slice(&slice(Family::V4, "s", "svc", ports, &endpoints));
    assert_eq!(addresses(&state, "svc"), ["10.0.0.1:80"]);
    assert_eq!(state.endpoints(&key("svc")).len(), 1);
}

#[test]
fn slice_that_moves_to_another_service_leaves_the_first() {
    let mut state = state();
    state.set_slice(&slice(Family::V4, "s", "a", p80(), &[remote("10.0.0.1")]));
    state.take_dirty();
    state.set_slice(&slice(Family::V4, "s", "b", p80(), &[remote("10.0.0.1")]));
    assert_eq!(state.take_dirty(), [key("a"), key("b")].into());
    assert!(addresses(&state, "a").is_empty());
    assert_eq!((addresses(&state, "b").len(), state.endpoint_count()), (1, 1));
}

#[test]
fn health_check_counts_ready_local_addresses_once() {
    let mut state = state();
    let ports = json!([{"name": "p80", "port": 80}, {"name": "p81", "port": 81}]);
    let endpoints = [
        local("10.0.0.1"),
        local("10.0.0.2"),
        remote("10.0.0.3"),
        unready(local("10.0.0.4")),
        terminating(local("10.0.0.5"), true),
    ];
    state.set_slice(&slice(Family::V4, "s", "svc", ports.clone(), &endpoints));
    assert_eq!(state.local_ready_count(&key("svc"), &NodeName::new(NODE)), 2);
    let leaving: Vec<_> = endpoints.into_iter().map(|endpoint| terminating(endpoint, true)).collect();
    state.set_slice(&slice(Family::V4, "s", "svc", ports, &leaving));
    assert_eq!(state.local_ready_count(&key("svc"), &NodeName::new(NODE)), 0);
}

#[test]
fn source_ranges_of_the_other_family_do_not_restrict_this_one() {
    let ranges = |list: serde_json::Value| {
        let mut state = state();
        state.set_service(&service(Family::V4, "svc", json!({"loadBalancerSourceRanges": list})));
        state.ports(&key("svc"))[0].source_ranges.len()
    };
    assert_eq!(ranges(json!([" 10.0.0.0/8 ", "fd00::/8", "nonsense"])), 1);
    assert_eq!(ranges(json!(["fd00::/8"])), 0);
    assert_eq!(ranges(json!(["10.0.0.0/8", "0.0.0.0/0"])), 0);
}
