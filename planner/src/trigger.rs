//! Trigger times: which change a written object answers to, so that consumers can measure how late it is
//! (as upstream's TriggerTimeTracker; the annotation `endpoints.kubernetes.io/last-change-trigger-time`).
//!
//! Stateful, but without a clock: all times come from the objects. Invariant: a time that was returned is returned again
//! only if it was given back.

use std::{collections::BTreeMap, sync::Arc};

use fairlead_objects::{Pod, Service, ServiceKey, Timestamp};

/// Remembers the times that earlier plans of each Service have answered to. Endpoints and slices need one each.
#[derive(Clone, Debug, Default)]
pub struct TriggerTimes {
    services: BTreeMap<ServiceKey, Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    created: Option<Timestamp>,
    pods: BTreeMap<Arc<str>, Timestamp>,
    unsent: Option<Timestamp>,
}

impl TriggerTimes {
    /// The earliest change since the last call, over the Service's creation and the readiness of all matching Pods; for
    /// a Service that was not seen before, its creation. `None` if nothing that carries a time has changed.
    pub fn next(&mut self, service: &Service, pods: &[&Pod]) -> Option<Timestamp> {
        let known = self.services.remove(&service.key);
        let first_time = known.is_none();
        let before = known.unwrap_or_default();
        let times: BTreeMap<Arc<str>, Timestamp> =
            pods.iter().filter_map(|pod| Some((Arc::clone(&pod.name), pod.ready_changed?))).collect();
        let next = if first_time {
            service.created
        } else {
            let changed =
                times.iter().filter(|(pod, time)| before.pods.get(*pod).is_none_or(|seen| *time > seen));
            let created = service.created.filter(|time| before.created.is_none_or(|seen| *time > seen));
            changed.map(|(_, time)| *time).chain(created).chain(before.unsent).min()
        };
        let seen = Seen { created: service.created, pods: times, unsent: None };
        self.services.insert(service.key.clone(), seen);
        next
    }

    /// Says that the write for which `trigger` was taken has failed: the next call takes it into account again.
    pub fn give_back(&mut self, key: &ServiceKey, trigger: Timestamp) {
        if let Some(seen) = self.services.get_mut(key) {
            seen.unsent = Some(seen.unsent.map_or(trigger, |unsent| unsent.min(trigger)));
        }
    }

    /// Forgets a Service that is gone.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.services.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders::{pod_with, service};
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn created(second: i64) -> Service {
        Service { created: Some(at(second)), ..service("web", json!({})) }
    }

    fn changed(name: &str, second: i64) -> Pod {
        Pod { ready_changed: Some(at(second)), ..pod_with(name, "web", "n", "10.0.0.1", json!({})) }
    }

    #[test]
    fn service_seen_first_answers_to_its_creation() {
        let mut times = TriggerTimes::default();
        assert_eq!(times.next(&created(1), &[&changed("a", 3)]), Some(at(1)));
    }

    #[test]
    fn pods_added_answer_to_the_earliest_new_one() {
        let mut times = TriggerTimes::default();
        times.next(&created(1), &[&changed("a", 2)]);
        let next = times.next(&created(1), &[&changed("a", 2), &changed("b", 5), &changed("c", 4)]);
        assert_eq!(next, Some(at(4)));
    }

    #[test]
    fn nothing_changed_answers_to_nothing() {
        let mut times = TriggerTimes::default();
        times.next(&created(1), &[&changed("a", 2)]);
        assert_eq!(times.next(&created(1), &[&changed("a", 2)]), None);
        assert_eq!(times.next(&created(1), &[]), None);
    }

    #[test]
    fn pod_deleted_and_added_again_answers_to_the_new_pod() {
        let mut times = TriggerTimes::default();
        times.next(&created(1), &[&changed("a", 2)]);
        times.next(&created(1), &[]);
        assert_eq!(times.next(&created(1), &[&changed("a", 6)]), Some(at(6)));
    }

    #[test]
    fn service_recreated_after_forgetting_answers_to_its_new_creation() {
        let mut times = TriggerTimes::default();
        times.next(&created(1), &[&changed("a", 2)]);
        times.forget(&created(1).key);
        assert_eq!(times.next(&created(8), &[&changed("a", 2)]), Some(at(8)));
    }

    #[test]
    fn clocks_that_jump_back_delay_no_time_and_repeat_none() {
        let mut times = TriggerTimes::default();
        times.next(&created(1), &[&changed("a", 100), &changed("b", 100)]);
        assert_eq!(
            times.next(&created(1), &[&changed("a", 5), &changed("b", 100)]),
            None,
            "the clock of a's Node"
        );
        assert_eq!(
            times.next(&created(1), &[&changed("a", 6), &changed("b", 100)]),
            Some(at(6)),
            "it goes on from there"
        );
        assert_eq!(times.next(&created(1), &[&changed("a", 6), &changed("b", 100)]), None);
        times.next(&created(1), &[&changed("a", 9_000_000_000)]);
        assert_eq!(times.next(&created(1), &[&changed("a", 7)]), None, "back from the far future");
        assert_eq!(times.next(&created(1), &[&changed("a", 8)]), Some(at(8)));
    }

    #[test]
    fn time_given_back_is_returned_once_more() {
        let mut times = TriggerTimes::default();
        let service = created(1);
        times.next(&service, &[]);
        assert_eq!(times.next(&service, &[&changed("a", 3)]), Some(at(3)));
        times.give_back(&service.key, at(3));
        assert_eq!(times.next(&service, &[&changed("a", 3), &changed("b", 5)]), Some(at(3)));
        assert_eq!(times.next(&service, &[&changed("a", 3), &changed("b", 5)]), None);
    }
}
