//! Trigger times. Times are seconds.

use fairlead_objects::{
    Pod, Service,
    builders::{pod, service},
};
use fairlead_planner::TriggerTimes;
use serde_json::json;

use crate::world::at;

fn created(second: i64) -> Service {
    Service { created: Some(at(second)), ..service("web", json!({})) }
}

fn changed(name: &str, second: i64) -> Pod {
    Pod { ready_changed: Some(at(second)), ..pod(name, "web", "n1", "10.0.0.1") }
}

/// When the Service was created, when Pods became ready, and the expected time.
type Step<'a> = (i64, &'a [(&'a str, i64)], Option<i64>);

fn steps(steps: &[Step<'_>]) {
    let mut times = TriggerTimes::default();
    for (step, (service, pods, expected)) in steps.iter().enumerate() {
        let pods: Vec<Pod> = pods.iter().map(|(name, second)| changed(name, *second)).collect();
        let next = times.next(&created(*service), &pods.iter().collect::<Vec<_>>());
        assert_eq!(next, expected.map(at), "step {step}");
    }
}

#[test]
fn TestNewServiceNoPods() {
    steps(&[(2, &[], Some(2))]);
}

#[test]
fn TestNewServiceExistingPods() {
    steps(&[(3, &[("1", 0), ("2", 1), ("3", 5)], Some(3))]);
}

#[test]
fn TestPodsAdded() {
    steps(&[(0, &[], Some(0)), (0, &[("1", 2), ("2", 1)], Some(1))]);
}

#[test]
fn TestPodsUpdated() {
    steps(&[(0, &[("1", 1), ("2", 2), ("3", 3)], Some(0)), (0, &[("1", 5), ("2", 4), ("3", 3)], Some(4))]);
}

#[test]
fn TestPodsUpdatedNoOp() {
    let pods = [("1", 1), ("2", 2), ("3", 3)];
    steps(&[(0, &pods, Some(0)), (0, &pods, None)]);
}

#[test]
fn TestPodDeletedThenAdded() {
    steps(&[
        (0, &[("1", 1), ("2", 2)], Some(0)),
        (0, &[("1", 1)], None),
        (0, &[("1", 1), ("2", 4)], Some(4)),
    ]);
}

#[test]
fn TestServiceDeletedThenAdded() {
    let (mut times, pods) = (TriggerTimes::default(), [changed("1", 1), changed("2", 2)]);
    let pods: Vec<&Pod> = pods.iter().collect();
    assert_eq!(times.next(&created(0), &pods), Some(at(0)));
    times.forget(&created(0).key);
    assert_eq!(times.next(&created(3), &pods), Some(at(3)));
}

#[test]
fn TestServiceUpdatedNoPodChange() {
    let mut times = TriggerTimes::default();
    let (pod, mut service) = (changed("1", 1), created(0));
    times.next(&service, &[&pod]);
    service.ports.clear();
    assert_eq!(times.next(&service, &[&pod]), None, "a change of the Service itself carries no time");
}
