use serde_json::json;

use super::*;

fn one(objects: Value) -> BTreeMap<Key, Value> {
    BTreeMap::from([(web(), objects)])
}

fn web() -> Key {
    ("here".to_owned(), "web".to_owned())
}

fn facts(managed: bool, port_sets: &[&str]) -> BTreeMap<Key, Facts> {
    let port_sets = port_sets.iter().map(|text| (*text).to_owned()).collect();
    BTreeMap::from([(web(), Facts { managed, auto: false, port_sets })])
}

/// Compares, of a Service with a selector.
fn compared(comparison: &mut Comparison, kcm: &Value, ours: &Value) -> Vec<Difference> {
    let (kcm, ours) = (one(kcm.clone()), one(ours.clone()));
    comparison.note(&ours, facts(true, &["[1]"]), Complaints::new());
    comparison.differences(&kcm, &ours)
}

fn endpoints(address: &Value) -> Value {
    json!({"Endpoints": {
        "metadata": {"labels": {"endpoints.kubernetes.io/managed-by": "endpoint-controller"}},
        "subsets": [{"addresses": [address]}]}})
}

#[test]
fn differences_are_told_where_they_are() {
    let (kcm, ours) = (json!({"a": {"b": [1, 2], "c": 1}}), json!({"a": {"b": [2, 3], "c": 1}}));
    let found = compared(&mut Comparison::default(), &kcm, &ours);
    assert_eq!(found[0].to_string(), "Service here/web\n  a: b:\n    only kcm: 1\n    only ours: 3");
    assert!(compared(&mut Comparison::default(), &kcm, &kcm).is_empty());
}

const HERE: &str = "selected IPv4 slices with ports [2]";
const EMPTY: &str = "selected IPv4 slices with ports []";

fn group(addresses: &[&str]) -> Value {
    json!({"endpoints": addresses})
}

#[test]
fn an_empty_slice_of_the_genuine_side_is_excused_beside_others_only() {
    let without = json!({(HERE): group(&["10.0.0.1"])});
    let with = json!({(HERE): group(&["10.0.0.1"]), (EMPTY): group(&[])});
    let mut comparison = Comparison::default();
    assert!(compared(&mut comparison, &with, &without).is_empty());
    assert_eq!(comparison.used, BTreeMap::from([(Exception::EmptySlice, 1)]));
    let alone = json!({(EMPTY): group(&[])});
    assert_eq!(compared(&mut comparison, &alone, &json!({})).len(), 1);
    let full = json!({(HERE): group(&["10.0.0.1"]), (EMPTY): group(&["10.0.0.2"])});
    assert_eq!(compared(&mut comparison, &full, &without).len(), 1);
}

#[test]
fn an_empty_slice_of_ours_is_excused_only_where_a_pod_has_its_ports() {
    let without = json!({(HERE): group(&["10.0.0.1"])});
    let with = |ports: &str| {
        let name = format!("selected IPv4 slices with ports {ports}");
        json!({(HERE): group(&["10.0.0.1"]), (name): group(&[])})
    };
    assert!(compared(&mut Comparison::default(), &without, &with("[1]")).is_empty());
    assert_eq!(compared(&mut Comparison::default(), &without, &with("[]")).len(), 1);
}

#[test]
fn endpoints_of_a_pod_without_node_are_excused_until_a_controller_wrote_others() {
    let mut comparison = Comparison::default();
    let without = one(endpoints(&json!({"ip": "10.0.0.1", "targetRef": {"kind": "Pod"}})));
    let with = one(endpoints(&json!({"ip": "10.0.0.1", "nodeName": "a", "targetRef": {"kind": "Pod"}})));
    let empty = one(json!({}));
    comparison.note(&without, facts(true, &[]), Complaints::new());
    assert!(comparison.differences(&empty, &without).is_empty());
    comparison.note(&with, facts(false, &[]), Complaints::new());
    assert!(comparison.differences(&empty, &with).is_empty());
    assert_eq!(comparison.excuse(&web(), Part::Selected), None);
    comparison.note(&with, facts(true, &[]), Complaints::new());
    assert_eq!(comparison.differences(&empty, &with).len(), 1);
}

#[test]
fn what_is_complained_of_excuses_that_part_only() {
    let mut comparison = Comparison::default();
    let mirrored = "mirrored IPv4 slices with ports []";
    let mut missing = |group: Value| {
        let (kcm, ours) = (one(group), one(json!({})));
        let complaints = [((web(), Part::Selected), Exception::StuckTracker)].into();
        comparison.note(&ours, facts(true, &[]), complaints);
        comparison.differences(&kcm, &ours).len()
    };
    assert_eq!(missing(json!({(HERE): group(&[])})), 0);
    assert_eq!(missing(json!({(mirrored): group(&[])})), 1);
    assert_eq!(missing(endpoints(&json!({}))), 1);
}

#[test]
fn what_could_not_be_written_is_excused_while_its_service_is_left_alone() {
    let mut comparison = Comparison::default();
    let (kcm, ours) = (one(json!({(HERE): group(&[])})), one(json!({})));
    let complaints = [((web(), Part::Selected), Exception::StuckTracker)].into();
    comparison.note(&ours, facts(true, &[]), complaints);
    comparison.note(&ours, facts(false, &[]), Complaints::new());
    assert!(comparison.differences(&kcm, &ours).is_empty());
    comparison.note(&ours, facts(true, &[]), Complaints::new());
    assert_eq!(comparison.differences(&kcm, &ours).len(), 1);
}

#[test]
fn drawn_addresses_of_a_full_mirrored_slice_are_excused_where_subsets_share_it() {
    let mirrored = "mirrored IPv4 slices with ports [1]";
    let full = |from: usize| {
        let addresses: Vec<usize> = (from..from + MIRRORED_PER_SUBSET).collect();
        json!({"endpoints": addresses, "ports": "[1]"})
    };
    let side = |group: Value, subsets: usize| {
        let subsets = vec![json!({"ports": [1]}); subsets];
        json!({"Endpoints": {"subsets": subsets}, (mirrored): group})
    };
    let mut comparison = Comparison::default();
    assert!(compared(&mut comparison, &side(full(0), 2), &side(full(1), 2)).is_empty());
    assert_eq!(comparison.excuse(&web(), Part::Mirrored), Some(Exception::MirrorCut));
    assert_eq!(compared(&mut comparison, &side(full(0), 1), &side(full(1), 1)).len(), 1);
    let fewer = json!({"endpoints": [1], "ports": "[1]"});
    assert_eq!(compared(&mut comparison, &side(fewer, 2), &side(full(1), 2)).len(), 1);
}

#[test]
fn slices_of_no_service_are_excused_on_the_genuine_side_only() {
    let (some, none) = (one(json!({(HERE): group(&[])})), BTreeMap::new());
    let mut comparison = Comparison::default();
    comparison.note(&none, BTreeMap::new(), Complaints::new());
    assert!(comparison.differences(&some, &none).is_empty());
    assert_eq!(comparison.differences(&none, &some).len(), 1);
    comparison.note(&none, facts(true, &[]), Complaints::new());
    assert_eq!(comparison.differences(&some, &none).len(), 1);
}

#[test]
fn hints_of_the_genuine_side_are_excused_where_they_are_drawn() {
    let mut comparison = Comparison::default();
    let auto = Facts { managed: true, auto: true, port_sets: BTreeSet::new() };
    comparison.note(&BTreeMap::new(), BTreeMap::from([(web(), auto)]), Complaints::new());
    let excused = Some(Exception::HintsDealtAgain);
    assert_eq!(comparison.excuse_write(&web(), Part::Selected, true), excused);
    assert_eq!(comparison.excuse_write(&web(), Part::Selected, false), None);
    comparison.note(&BTreeMap::new(), facts(true, &[]), Complaints::new());
    assert_eq!(comparison.excuse_write(&web(), Part::Selected, true), None);
}
