use std::fmt::Write as _;

use super::*;
use crate::differential::controller::change::SliceEdit;

const STEPS: usize = 100;

fn steps(seed: u64) -> Vec<Step> {
    let mut script = Script::new(seed);
    (1..=STEPS).map(|number| script.step(number)).collect()
}

fn changes(step: &Step) -> impl Iterator<Item = &Change> {
    step.edits.iter().chain(&step.changes)
}

fn text(steps: &[Step]) -> String {
    let mut text = String::new();
    for change in steps.iter().flat_map(changes) {
        writeln!(text, "{change}").unwrap();
    }
    text
}

#[test]
fn the_same_seed_gives_the_same_script() {
    assert_eq!(text(&steps(7)), text(&steps(7)));
    assert_ne!(text(&steps(7)), text(&steps(8)));
}

#[test]
fn a_script_holds_every_kind_of_change() {
    let text = text(&steps(1));
    for wanted in [
        "delete Namespace ",
        "delete Node ",
        "delete Service ",
        "delete Endpoints ",
        "(grace 60 s)",
        "Delete",
        "Stranger",
        "Hold",
        "Release",
        "\"endpointslice.kubernetes.io/managed-by\": String(\"somebody-else\")",
        "\"kubernetes.io/service-name\": String(\"nobody\")",
        "by-hand",
        "-foreign\"",
        "-orphan\"",
        "\"phase\":\"Failed\"",
        "\"type\":\"ExternalName\"",
        "\"type\":\"NodePort\"",
        "\"clusterIP\":\"None\"",
        "\"publishNotReadyAddresses\":true",
        "\"ipFamilies\":[\"IPv6\",\"IPv4\"]",
        "\"service.kubernetes.io/topology-mode\":\"Auto\"",
        "\"trafficDistribution\":\"PreferClose\"",
        "\"trafficDistribution\":\"PreferSameZone\"",
        "\"trafficDistribution\":\"PreferSameNode\"",
        "\"endpointslice.kubernetes.io/skip-mirror\":\"true\"",
        "\"crowded\"",
    ] {
        assert!(text.contains(wanted), "{wanted}");
    }
}

#[test]
fn a_step_holds_a_rolling_update() {
    let replaced = |step: &Step| {
        let gone = step.changes.iter().filter(|change| matches!(change, Change::Delete { kind: "Pod", .. }));
        gone.count() > 2 && !step.changes.iter().any(|change| change.subject().starts_with("Namespace "))
    };
    assert!(steps(1).iter().any(replaced));
}

#[test]
fn what_is_held_is_let_go_in_the_next_step() {
    let slices = |step: &Step, wanted: fn(&SliceEdit) -> bool| -> BTreeSet<String> {
        let chosen = changes(step)
            .filter(|change| matches!(change, Change::EditSlice { edit, .. } if wanted(edit)))
            .map(Change::subject);
        chosen.collect()
    };
    for seed in 1..6 {
        for pair in steps(seed).windows(2) {
            let [before, after] = pair else { continue };
            let held = slices(before, |edit| matches!(edit, SliceEdit::Hold));
            assert_eq!(slices(after, |edit| matches!(edit, SliceEdit::Release)), held, "seed {seed}");
        }
    }
}

#[test]
fn a_tame_script_takes_nothing_from_controllers() {
    let mut script = Script::tame(1);
    let steps: Vec<Step> =
        (1..=STEPS).map(|number| if number == 1 { script.first() } else { script.next(number) }).collect();
    let text = text(&steps);
    for unwanted in ["Hold", "String(\"somebody-else\")", "String(\"nobody\")", "topology-mode", "crowded"] {
        assert!(!text.contains(unwanted), "{unwanted}");
    }
}
