//! Upstream's tests of the arithmetic of topology hints, by name.

#![allow(non_snake_case, reason = "tests that upstream has, too, keep upstream's names")]

use super::{
    deal::{Hand, Seat, kept, settle},
    split::{Allocation, Moves, Split},
    *,
};

const ZONES: [&str; 3] = ["a", "b", "c"];

/// Counts of zones `a`, `b` and `c`; a zone with 0 is left out.
fn counts(of: [usize; 3]) -> ZoneCounts {
    let all = ZONES.iter().zip(of).filter(|(_, count)| *count > 0);
    all.map(|(zone, count)| (Arc::from(*zone), count)).collect()
}

fn split(desired: [f64; 3], maximum: usize) -> Split {
    let allocations = desired.map(|desired| Allocation { desired, maximum });
    Split::new(ZONES.iter().map(|zone| Arc::from(*zone)).zip(allocations).collect())
}

fn shares(of: &[(&str, f64)]) -> ZoneShares {
    let nodes: Vec<_> = of
        .iter()
        .map(|(zone, cpu)| fairlead_objects::Node {
            allocatable_cpu: Some(cpu.to_string().into()),
            ..fairlead_objects::builders::node(zone, "192.168.0.1", zone)
        })
        .collect();
    ZoneShares::of(&nodes).expect("there are zones")
}

/// Slices as lists of endpoints (zone, hints).
fn hands(slices: &[&[(&str, &[&str])]]) -> Vec<Hand> {
    let mut number = 0;
    let mut seat = |position, zone: &str, hints: &[&str]| {
        number += 1;
        let order = (Vec::new(), format!("pod-{number:04}"));
        Seat {
            order,
            position,
            zone: zone.into(),
            hints: hints.iter().map(|zone| Arc::from(*zone)).collect(),
        }
    };
    let hand = |(slice, seats): (usize, &&[(&str, &[&str])])| Hand {
        slice,
        seats: seats.iter().enumerate().map(|(i, (zone, hints))| seat(i, zone, hints)).collect(),
    };
    slices.iter().enumerate().map(hand).collect()
}

#[test]
fn Test_getGivingAndReceivingZones() {
    let none = ([0; 3], [0; 3]);
    let cases = [
        ("nothing is allocated and nothing desired", [0.0; 3], [0; 3], none),
        ("everything is as desired", [1.0, 2.0, 3.0], [1, 2, 3], none),
        ("only zone a has endpoints", [5.1, 5.1, 5.8], [16, 0, 0], ([10, 0, 0], [0, 5, 5])),
        ("a fraction above one half moves a whole", [5.0, 5.6, 5.4], [16, 0, 0], ([11, 0, 0], [0, 6, 5])),
        ("two zones give to one", [5.0, 5.6, 5.4], [0, 8, 8], ([0, 2, 3], [5, 0, 0])),
        ("less than one half does not move", [5.4, 5.4, 5.2], [5, 5, 6], none),
        ("less than one on both sides does not move", [5.3, 5.3, 5.4], [6, 5, 5], none),
        ("more is desired than there is", [10.0, 10.0, 10.0], [1, 1, 1], none),
        ("more is there than desired", [1.0, 1.0, 1.0], [9, 9, 9], none),
        ("two zones give all to a third", [0.0, 0.0, 30.0], [15, 15, 0], ([15, 15, 0], [0, 0, 30])),
    ];
    for (case, desired, allocated, (give, receive)) in cases {
        let moves = split(desired, 100).moves(&counts(allocated));
        assert_eq!(moves, Moves { give: counts(give), receive: counts(receive) }, "{case}");
    }
}

#[test]
fn Test_redistributeHints() {
    type Case<'a> = (&'a str, [usize; 3], [usize; 3], &'a [&'a str]);
    let cases: [Case<'_>; 3] = [
        ("empty", [0; 3], [0; 3], &[]),
        ("one from a to b", [1, 0, 0], [0, 1, 0], &["b"]),
        ("two from a to b and c", [2, 0, 0], [0, 1, 1], &["b", "c"]),
    ];
    for (case, give, receive, expected) in cases {
        let mut moves = Moves { give: counts(give), receive: counts(receive) };
        let taken: Vec<_> = std::iter::from_fn(|| moves.next("a")).collect();
        assert_eq!(taken.iter().map(|zone| &**zone).collect::<Vec<_>>(), expected, "{case}");
        assert_eq!(moves.next("b"), None, "{case}: others keep theirs");
    }
}

#[test]
fn Test_getHintsByZone() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a [&'a str])], [usize; 3], Option<[usize; 3]>);
    let cases: [Case<'_>; 8] = [
        ("no endpoints", &[], [0; 3], Some([0; 3])),
        ("hints that fit", &[("a", &["a"]), ("b", &["b"])], [0; 3], Some([1, 1, 0])),
        ("hints beside others that fit", &[("a", &["a"])], [2, 3, 3], Some([1, 0, 0])),
        ("hints to two zones count twice", &[("a", &["a", "b"])], [0; 3], Some([1, 1, 0])),
        ("zone without allocation", &[("a", &["a"]), ("d", &["d"])], [0; 3], None),
        ("endpoint without hints", &[("a", &["a"]), ("b", &[])], [0; 3], None),
        ("more than the maximum", &[("a", &["a"] as &[&str]); 4], [0; 3], None),
        ("more than the maximum beside others", &[("a", &["a"] as &[&str]); 2], [2, 0, 0], None),
    ];
    let split = split([2.0; 3], 3);
    for (case, endpoints, allocated, expected) in cases {
        let found = kept(&split, &hands(&[endpoints])[0], &counts(allocated));
        assert_eq!(found, expected.map(counts), "{case}");
    }
}

#[test]
fn splits_are_refused_where_a_zone_would_be_overloaded() {
    let equal = shares(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]);
    let refused = |endpoints: usize| equal.split(endpoints).err();
    assert_eq!(refused(2), Some(Unhinted::InsufficientEndpoints { endpoints: 2, zones: 3 }));
    for endpoints in [4, 5, 8, 11] {
        let why = Unhinted::MinimumsExceedTotal { endpoints, zones: 3 };
        assert_eq!(refused(endpoints), Some(why));
    }
    for endpoints in [3, 6, 7, 9, 12, 100] {
        assert_eq!(refused(endpoints), None, "{endpoints}");
    }
}

#[test]
fn slices_are_dealt_in_part_where_the_rest_fits() {
    let shares = shares(&[("a", 1.0), ("b", 1.0)]);
    let mut slices = hands(&[&[("a", &["a"]), ("b", &["a"])], &[("b", &[]), ("b", &[])]]);
    let counts = settle(&shares.split(4).unwrap(), &mut slices);
    assert_eq!(counts, self::counts([2, 2, 0]));
    assert_eq!(slices[0].seats[1].hints, [Arc::from("a")], "a hint that fits stays, even across zones");
}

#[test]
fn split_that_cannot_be_reached_is_dealt_once_and_then_left_alone() {
    // Zone a may have at most five, but giving away a tenth is not worth it.
    let shares = shares(&[("a", 59.0), ("b", 3.0), ("c", 8.0)]);
    let split = shares.split(7).unwrap();
    assert_eq!(split.maximum("a"), Some(5));
    let slice: &[(&str, &[&str])] =
        &[("a", &[]), ("a", &[]), ("a", &[]), ("a", &[]), ("a", &[]), ("a", &[]), ("b", &[])];
    let mut dealt = hands(&[slice]);
    assert_eq!(settle(&split, &mut dealt), counts([6, 1, 0]));
    let mut again = dealt.clone();
    settle(&split, &mut again);
    assert_eq!(again, dealt);
}

#[test]
fn hints_that_would_be_dealt_again_and_again_are_dealt_afresh() {
    // Seven endpoints are to be hinted to zone a, which may have six. Kept slices and dealt ones would change places with
    // every plan, because zone c, which has no share, gets its endpoints back whenever they are dealt.
    let split = shares(&[("a", 8.0), ("b", 0.3)]).split(7).unwrap();
    let mut slices = hands(&[
        &[("a", &[])],
        &[("a", &["a"]), ("a", &["a"]), ("c", &["a"]), ("c", &["a"])],
        &[("c", &["a"]), ("a", &["a"])],
    ]);
    settle(&split, &mut slices);
    let mut again = slices.clone();
    settle(&split, &mut again);
    assert_eq!(again, slices);
}

#[test]
fn zone_with_a_tiny_share_gets_its_minimum() {
    // Its share is half an endpoint, but one is the least that it can have.
    let split = shares(&[("a", 95.0), ("b", 5.0)]).split(10).unwrap();
    let moves = split.moves(&counts([10, 0, 0]));
    assert_eq!(moves, Moves { give: counts([1, 0, 0]), receive: counts([0, 1, 0]) });
}
