//! What is reported, and when.

use std::sync::Arc;

use fairlead_objects::{
    EndpointSlice,
    builders::{node, pod, service},
};
use fairlead_planner::{PlanInput, outcome};
use serde_json::json;

use super::*;
use crate::index::Index;

const QUIET: Duration = Duration::from_secs(5);

fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn shadow() -> (Shadow, Exposition) {
    let exposition = Exposition::new();
    (Shadow::new(QUIET, &exposition), exposition)
}

fn at(second: u8) -> Timestamp {
    Timestamp::from_second(second.into()).unwrap()
}

/// A Service with one Pod, and the Endpoints and slices that we would leave.
fn index() -> Index {
    let mut index = Index::new(true);
    index.apply_node(node("n", "10.0.0.1", "z"));
    index.apply_service(service("web", json!({})));
    index.apply_pod(pod("a", "web", "n", "10.1.0.1"));
    let left = with_plan(&index, |plan, input| outcome(input, plan));
    index.apply_endpoints(left.endpoints.unwrap());
    left.slices.into_iter().for_each(|slice| drop(index.apply_slice(slice)));
    index
}

fn with_plan<T>(index: &Index, then: impl FnOnce(&Plan, &PlanInput<'_>) -> T) -> T {
    let snapshot = index.snapshot(&key());
    let pods: Vec<_> = snapshot.pods.iter().map(|pod| &**pod).collect();
    let slices: Vec<&EndpointSlice> = snapshot.slices.iter().map(|slice| &**slice).collect();
    let key = key();
    let input = PlanInput {
        service: snapshot.service.as_deref(),
        pods: &pods,
        endpoints: snapshot.endpoints.as_deref(),
        slices: &slices,
        ..PlanInput::new(&key, &snapshot)
    };
    then(&fairlead_planner::plan(&input), &input)
}

fn compare(shadow: &Shadow, index: &Index, second: u8) -> Vec<Divergence> {
    with_plan(index, |plan, _| shadow.compare(&key(), plan, &index.snapshot(&key()), at(second)));
    shadow.report().divergences
}

#[test]
fn agreement_is_silent() {
    let (shadow, _) = shadow();
    assert_eq!(compare(&shadow, &index(), 0), []);
    assert_eq!(shadow.report().comparisons, 1);
}

#[test]
fn edited_objects_are_reported_field_by_field_until_they_are_right_again() {
    let (shadow, exposition) = shadow();
    let mut index = index();
    let right: Arc<EndpointSlice> = Arc::clone(&index.snapshot(&key()).slices[0]);
    let mut wrong = (*right).clone();
    wrong.endpoints[0].conditions.ready = Some(false);
    index.apply_slice(wrong);
    let found = compare(&shadow, &index, 1);
    let [divergence] = &found[..] else { panic!("{found:?}") };
    assert_eq!((divergence.part, divergence.action), ("slices", "update"));
    assert_eq!(
        divergence.differences,
        ["endpoints.10.1.0.1.conditions.ready: false is there, expected true"]
    );
    assert_eq!(compare(&shadow, &index, 9)[0].since, at(1), "it is the same divergence");
    let text = exposition.encode().unwrap();
    assert!(text.contains("fairlead_shadow_divergences{part=\"slices\"} 1\n"), "{text}");
    assert!(
        text.contains("fairlead_shadow_divergences_total{part=\"slices\",action=\"update\"} 1\n"),
        "{text}"
    );
    index.apply_slice((*right).clone());
    assert_eq!(compare(&shadow, &index, 10), []);
    assert!(exposition.encode().unwrap().contains("fairlead_shadow_divergences{part=\"slices\"} 0\n"));
}

#[test]
fn missing_and_superfluous_objects_are_reported() {
    let (shadow, _) = shadow();
    let mut index = Index::new(true);
    index.apply_node(node("n", "10.0.0.1", "z"));
    index.apply_service(service("web", json!({})));
    index.apply_pod(pod("a", "web", "n", "10.1.0.1"));
    let actions = |found: Vec<Divergence>| found.iter().map(|d| (d.kind, d.action)).collect::<Vec<_>>();
    assert_eq!(actions(compare(&shadow, &index, 0)), [("Endpoints", "create"), ("EndpointSlice", "create")]);
    let mut index = self::index();
    index.delete_service(&key());
    let found = actions(compare(&shadow, &index, 0));
    assert!(found.contains(&("Endpoints", "delete")), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn service_is_compared_when_it_has_been_quiet_for_a_while() {
    let (shadow, _) = shadow();
    let start = Instant::now();
    assert_eq!(shadow.wait(&key(), start), None, "nothing has happened");
    shadow.touch(&key(), start);
    shadow.touch(&key(), start + Duration::from_secs(3));
    assert_eq!(shadow.wait(&key(), start + QUIET), Some(Duration::from_secs(3)));
    assert_eq!(shadow.wait(&key(), start + QUIET * 2), Some(Duration::ZERO));
    compare(&shadow, &index(), 0);
    assert_eq!(shadow.wait(&key(), start + QUIET * 2), None);
}
