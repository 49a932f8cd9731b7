//! Hints of topology mode `Auto`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use fairlead_objects::{
    Family, Node,
    builders::{node, service},
};
use fairlead_planner::{Plan, Remembered, Unhinted, ZoneCounts, ZoneShares};
use serde_json::json;

use crate::{
    rows,
    world::{SLICES, World, actions, pods},
};

/// A Node per zone and CPU, named after its zone.
fn nodes(zones: &[(&str, &str)]) -> BTreeMap<Arc<str>, Node> {
    let one = |(zone, cpu): &(&str, &str)| {
        let cpu = Some(*cpu).filter(|cpu| !cpu.is_empty()).map(Arc::from);
        Node { allocatable_cpu: cpu, ..node(zone, "192.168.0.1", zone) }
    };
    zones.iter().map(|zone| (Arc::from(zone.0), one(zone))).collect()
}

/// A world with so many ready Pods in each of these zones; the shares are those of the CPU.
fn world(zones: &[(&str, &str, usize)]) -> World {
    let mut service = service("web", json!({}));
    service.annotations.insert("service.kubernetes.io/topology-mode".into(), "Auto".into());
    let mut world = World::new(service).only(SLICES);
    world.nodes = Some(nodes(&zones.iter().map(|(zone, cpu, _)| (*zone, *cpu)).collect::<Vec<_>>()));
    for (zone, _, count) in zones {
        let mut more = pods(world.pods.len() + 1, *count);
        for pod in &mut more {
            pod.node = Some(Arc::from(*zone));
        }
        world.pods.extend(more);
    }
    world
}

/// Hints as (zone of the endpoint, zone of the hint).
fn hints(world: &World) -> Vec<(&str, &str)> {
    let endpoints = world.slices.iter().flat_map(|slice| &slice.endpoints);
    let mut hints: Vec<(IpAddr, (&str, &str))> = endpoints
        .filter_map(|endpoint| {
            let [zone] = &endpoint.hints.as_ref()?.for_zones[..] else { panic!("one zone") };
            Some((endpoint.addresses[0].parse().unwrap(), (endpoint.zone.as_deref()?, &*zone.name)))
        })
        .collect();
    hints.sort();
    hints.into_iter().map(|(_, hint)| hint).collect()
}

/// How many endpoints are hinted to each zone, and how many of them to another than their own.
fn summary(world: &World) -> (Vec<usize>, usize) {
    let (mut zones, mut cross) = (BTreeMap::new(), 0);
    for (from, to) in hints(world) {
        *zones.entry(to).or_insert(0) += 1;
        cross += usize::from(from != to);
    }
    (zones.into_values().collect(), cross)
}

fn events(plan: &Plan) -> Vec<(&'static str, String)> {
    let about = |reason: &str| reason.starts_with("TopologyAware");
    let notes = plan.notes.iter().filter(|note| about(note.reason()));
    notes.map(|note| (note.reason(), note.to_string())).collect()
}

#[test]
fn TestAddHints() {
    let disabled = |why: &str| ("TopologyAwareHintsDisabled", format!("{why}, addressType: IPv4"));
    let insufficient =
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes";
    let enabled =
        ("TopologyAwareHintsEnabled", "Topology Aware Hints has been enabled, addressType: IPv4".to_owned());
    // Zones with CPU and ready endpoints; endpoints besides that are not ready; hints; Event.
    let cases = [
        ("no shares, no endpoints", vec![("a", "1", 0)], 0, vec![], disabled(insufficient)),
        ("no shares", vec![("a", "1", 1)], 0, vec![], disabled(insufficient)),
        (
            "too few endpoints",
            vec![("a", "1", 1), ("b", "1", 1), ("c", "1", 0)],
            0,
            vec![],
            disabled("Insufficient number of endpoints (2 endpoints, 3 zones)"),
        ),
        (
            "two of each",
            vec![("a", "4500m", 1), ("b", "5500m", 1)],
            0,
            vec![("a", "a"), ("b", "b")],
            enabled.clone(),
        ),
        (
            "not ready ones do not count",
            vec![("a", "4500m", 1), ("b", "5500m", 1)],
            2,
            vec![("a", "a"), ("b", "b")],
            enabled.clone(),
        ),
        (
            "one is donated",
            vec![("a", "35", 5), ("b", "35", 2), ("c", "30", 3)],
            0,
            [("a", "b")]
                .into_iter()
                .chain([("a", "a"); 4])
                .chain([("b", "b"); 2])
                .chain([("c", "c"); 3])
                .collect(),
            enabled,
        ),
    ];
    for (case, zones, not_ready, expected, event) in rows("TestAddHints", cases) {
        let mut world = world(&zones);
        for mut pod in pods(100, not_ready) {
            (pod.node, pod.ready) = (Some("a".into()), false);
            world.pods.push(pod);
        }
        let plan = world.sync();
        assert_eq!(hints(&world), expected, "{case}");
        assert_eq!(events(&plan), [event], "{case}");
    }
}

#[test]
fn TestSetNodes() {
    let plain = |zones: &[(&str, &str)]| nodes(zones);
    let with = |zones: &[(&str, &str)], name: &str, change: &dyn Fn(&mut Node)| {
        let mut nodes = nodes(zones);
        change(nodes.get_mut(name).unwrap());
        nodes
    };
    let role = |label: &'static str| move |node: &mut Node| drop(node.labels.insert(label.into(), "".into()));
    let (two, three) = ([("a", "1"), ("b", "1")], [("a", "1"), ("b", "1"), ("c", "7")]);
    let unready = |node: &mut Node| node.ready = false;
    let same_zone =
        |node: &mut Node| drop(node.labels.insert("topology.kubernetes.io/zone".into(), "a".into()));
    let half = Some(vec![0.5, 0.5]);
    let cases = [
        ("no nodes", plain(&[]), None),
        ("one node", plain(&[("a", "1")]), None),
        ("one zone", with(&two, "b", &same_zone), None),
        ("two zones", plain(&two), half.clone()),
        ("one of two not ready", with(&two, "b", &unready), None),
        ("one of three not ready", with(&three, "c", &unready), half.clone()),
        (
            "one of two in the control plane",
            with(&two, "b", &role("node-role.kubernetes.io/control-plane")),
            None,
        ),
        (
            "one of three in the control plane",
            with(&three, "c", &role("node-role.kubernetes.io/control-plane")),
            half.clone(),
        ),
        ("one of three a master", with(&three, "c", &role("node-role.kubernetes.io/master")), half),
        ("uneven", plain(&[("a", "5"), ("b", "4500m"), ("c", "0.5")]), Some(vec![0.5, 0.45, 0.05])),
        ("no zone", with(&three, "c", &|node| drop(node.labels.remove("topology.kubernetes.io/zone"))), None),
        ("no CPU", plain(&[("a", "1"), ("b", "1"), ("c", "")]), None),
        ("zero CPU", plain(&[("a", "1"), ("b", "1"), ("c", "0")]), None),
    ];
    for (case, nodes, expected) in rows("TestSetNodes", cases) {
        let found = ZoneShares::of(nodes.values());
        let found = found.map(|shares| shares.iter().map(|(_, share)| share).collect::<Vec<_>>());
        assert_eq!(found, expected, "{case}");
    }
}

#[test]
fn Test_getTotalReadyEndpoints() {
    // Nine zones, so that every split is refused and the refusal says how many there are. Pods before, Pods now, and the
    // last so many of them not ready.
    let cases = [
        ("no endpoints", 0, 0, 0),
        ("in slices to create", 0, 3, 0),
        ("in slices to update", 3, 5, 0),
        ("in unchanged slices", 4, 4, 0),
        ("in all, and some are not ready", 3, 8, 2),
    ];
    let zones = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|zone| (zone, "1", 0));
    for (case, before, now, not_ready) in rows("Test_getTotalReadyEndpoints", cases) {
        let mut world = world(&zones);
        world.limits.endpoints_per_slice = 3;
        let mut all = pods(0, now);
        for (i, pod) in all.iter_mut().enumerate() {
            (pod.node, pod.ready) = (Some("a".into()), i < now - not_ready);
        }
        world.pods = all[..before].to_vec();
        world.sync();
        world.pods = all;
        let why = Unhinted::InsufficientEndpoints { endpoints: now - not_ready, zones: 9 };
        assert_eq!(world.sync().topology.refused, BTreeMap::from([(Family::V4, why)]), "{case}");
    }
}

#[test]
fn TestReconcileTopology() {
    let even = |[a, b, c]: [usize; 3]| world(&[("a", "1", a), ("b", "1", b), ("c", "1", c)]);
    let mut unknown = even([3, 3, 3]);
    unknown.nodes = None;
    let mut disabled = even([3, 3, 3]);
    disabled.service_mut().annotations.clear();
    let cases = [
        ("nothing known of nodes", unknown, (vec![], 0)),
        ("3 endpoints in one zone", even([0, 0, 3]), (vec![1, 1, 1], 2)),
        ("4 endpoints", even([2, 1, 1]), (vec![], 0)),
        ("9 endpoints", even([4, 3, 2]), (vec![3, 3, 3], 1)),
        ("annotation disabled", disabled, (vec![], 0)),
    ];
    for (case, mut world, expected) in rows("TestReconcileTopology", cases) {
        world.limits.endpoints_per_slice = 5;
        // Slices without hints exist already.
        let auto = std::mem::take(&mut world.service_mut().annotations);
        world.sync();
        world.service_mut().annotations = auto;
        let (create, update, delete) = actions(&world.sync().slices);
        assert_eq!(summary(&world), expected, "{case}");
        assert_eq!((create, update, delete), (0, expected.0.iter().sum::<usize>().div_ceil(5), 0), "{case}");
    }
}

fn counts(of: [usize; 3]) -> Remembered {
    let counts = ["a", "b", "c"].map(Arc::from).into_iter().zip(of);
    let counts: ZoneCounts = counts.filter(|(_, count)| *count > 0).collect();
    Remembered { hinted: BTreeMap::from([(Family::V4, counts)]), ..Remembered::default() }
}

#[test]
fn Test_checkNodeTopologyDistribution() {
    let uneven = [("a", "100m"), ("b", "1"), ("c", "2")];
    let even = [("a", "1"), ("b", "1")];
    let mut unready = nodes(&uneven);
    unready.get_mut("a").unwrap().ready = false;
    let falling = [("a", "2"), ("b", "1"), ("c", "100m")];
    let cases = [
        ("nothing is hinted", nodes(&[]), Remembered::default(), false),
        ("a zone has too few", nodes(&uneven), counts([1, 2, 3]), true),
        ("a zone has too few, another is not ready", unready, counts([1, 2, 3]), true),
        ("two zones, almost even", nodes(&even), counts([5, 4, 0]), false),
        ("a node has no zone", nodes(&[("a", "1"), ("b", "1"), ("", "1")]), counts([5, 4, 0]), true),
        ("a node has no CPU", nodes(&[("a", "1"), ("b", "1"), ("c", "")]), counts([5, 4, 0]), true),
        ("two zones, uneven", nodes(&even), counts([6, 4, 0]), true),
        ("in proportion", nodes(&falling), counts([20, 10, 1]), false),
        ("a zone has none", nodes(&falling), counts([20, 10, 0]), true),
    ];
    for (case, nodes, remembered, overloaded) in rows("Test_checkNodeTopologyDistribution", cases) {
        let shares = ZoneShares::of(nodes.values());
        assert_eq!(remembered.is_overloaded(shares.as_ref()), overloaded, "{case}");
        assert_eq!(remembered.is_outdated(shares.as_ref()), overloaded, "{case}");
    }
}

#[test]
fn TestUpdateNode() {
    let mut world = world(&[("a", "1", 2), ("b", "1", 2)]);
    let zoned = world.nodes.clone();
    for node in world.nodes.as_mut().unwrap().values_mut() {
        node.labels.clear();
    }
    world.sync();
    assert_eq!(world.remembered.refused[&Family::V4], Unhinted::InsufficientNodes);
    assert!(!world.remembered.is_outdated(world.shares().as_ref()));
    world.nodes = zoned;
    assert!(world.remembered.is_outdated(world.shares().as_ref()), "the zones make the Service worth a look");
    let plan = world.sync();
    assert_eq!(events(&plan)[0].0, "TopologyAwareHintsEnabled");
    assert_eq!(summary(&world), (vec![2, 2], 0));
}
