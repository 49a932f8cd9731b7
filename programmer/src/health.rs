//! Whether the node's Service proxy works, as load balancers and kubelet ask it.
//!
//! The answers are those of kube-proxy's `proxyHealthServer`: a family is unhealthy when a change has waited for twice
//! the sync period, and `/healthz` also says whether load balancers may use the node at all. What is truer than that
//! (have we programmed anything yet?) is the matter of readiness, not of this.
//!
//! Invariant: pure state; the time is an argument, HTTP is elsewhere.

use std::{collections::BTreeMap, time::Duration};

use fairlead_objects::{Family, Node, Timestamp};
use serde::Serialize;

/// The autoscaler marks nodes that it is about to remove with this taint; load balancers should not start using them.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// What upstream prints for "never": Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// State of all families and of our Node.
#[derive(Clone, Debug)]
pub struct Health {
    timeout: Duration,
    families: BTreeMap<Family, FamilyTimes>,
    node_eligible: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct FamilyTimes {
    last_updated: Option<Timestamp>,
    oldest_pending: Option<Timestamp>,
}

/// Which question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`: may load balancers send traffic here?
    Healthz,
    /// `/livez`: should the process be restarted?
    Livez,
}

/// An answer: 200 or 503, and the body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<&'static str, FamilyAnswer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyAnswer {
    last_updated: String,
    healthy: bool,
}

impl Answer {
    /// Whether the status is 200.
    pub fn ok(&self) -> bool {
        self.healthy && self.node_eligible.unwrap_or(true)
    }
}

impl Health {
    /// Nothing known yet, for syncs that retry every `sync_period`.
    pub fn new(sync_period: Duration) -> Self {
        Self { timeout: sync_period.saturating_mul(2), families: BTreeMap::new(), node_eligible: false }
    }

    /// The sync loop of `family` has started, or a sync succeeded.
    pub fn updated(&mut self, family: Family, now: Timestamp) {
        self.families.insert(family, FamilyTimes { last_updated: Some(now), oldest_pending: None });
    }

    /// A change waits to be programmed. Only the first since the last success counts.
    pub fn queued(&mut self, family: Family, now: Timestamp) {
        self.families.entry(family).or_default().oldest_pending.get_or_insert(now);
    }

    /// What is known of our Node; `None` if it does not exist.
    pub fn observe_node(&mut self, node: Option<&Node>) {
        self.node_eligible = node.is_some_and(|node| {
            !node.terminating && !node.taints.iter().any(|taint| &**taint == TO_BE_DELETED)
        });
    }

    /// Answers a probe.
    pub fn answer(&self, probe: Probe, now: Timestamp) -> Answer {
        let reported =
            || self.families.iter().filter_map(|(family, times)| Some((*family, times.last_updated?, times)));
        let status: BTreeMap<_, _> = reported()
            .map(|(family, updated, times)| {
                let healthy = self.on_time(times, now);
                (family.as_str(), FamilyAnswer { last_updated: updated.to_string(), healthy })
            })
            .collect();
        let healthy = status.values().all(|family| family.healthy);
        let node_eligible = (probe == Probe::Healthz).then_some(self.node_eligible);
        let newest = reported().map(|(_, updated, _)| updated).max();
        let ok = healthy && node_eligible.unwrap_or(true);
        let last_updated = if ok { Some(now) } else { newest };
        Answer {
            last_updated: last_updated.map_or_else(|| NEVER.to_owned(), |time| time.to_string()),
            current_time: now.to_string(),
            node_eligible,
            healthy,
            status,
        }
    }

    fn on_time(&self, times: &FamilyTimes, now: Timestamp) -> bool {
        let waiting = times.oldest_pending.map(|since| now.duration_since(since).unsigned_abs());
        waiting.is_none_or(|waiting| waiting < self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn health() -> Health {
        Health::new(Duration::from_secs(30))
    }

    fn json_of(answer: &Answer) -> String {
        serde_json::to_string(answer).unwrap()
    }

    #[test]
    fn body_matches_upstream_before_anything_is_known() {
        let answer = health().answer(Probe::Healthz, at(0));
        assert!(!answer.ok());
        assert_eq!(
            json_of(&answer),
            r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2027-01-15T08:00:00Z","nodeEligible":false,"healthy":true}"#
        );
        let answer = health().answer(Probe::Livez, at(0));
        assert!(answer.ok());
        assert_eq!(
            json_of(&answer),
            r#"{"lastUpdated":"2027-01-15T08:00:00Z","currentTime":"2027-01-15T08:00:00Z","healthy":true}"#
        );
    }

    #[test]
    fn body_matches_upstream_when_families_have_reported() {
        let mut health = health();
        health.observe_node(Some(&builders::node("n", "10.0.0.1", "a")));
        health.updated(Family::V4, at(0));
        health.updated(Family::V6, at(1));
        assert_eq!(
            json_of(&health.answer(Probe::Healthz, at(2))),
            concat!(
                r#"{"lastUpdated":"2027-01-15T08:00:02Z","currentTime":"2027-01-15T08:00:02Z","nodeEligible":true,"#,
                r#""healthy":true,"status":{"IPv4":{"lastUpdated":"2027-01-15T08:00:00Z","healthy":true},"#,
                r#""IPv6":{"lastUpdated":"2027-01-15T08:00:01Z","healthy":true}}}"#
            )
        );
    }

    #[test]
    fn family_is_unhealthy_when_a_change_waits_for_two_sync_periods() {
        let mut health = health();
        health.updated(Family::V4, at(0));
        health.queued(Family::V4, at(10));
        health.queued(Family::V4, at(60));
        assert!(health.answer(Probe::Livez, at(69)).ok());
        let late = health.answer(Probe::Livez, at(70));
        assert!(!late.ok());
        assert_eq!(late.last_updated, at(0).to_string());
        health.updated(Family::V4, at(71));
        assert!(health.answer(Probe::Livez, at(300)).ok());
    }

    #[test]
    fn node_about_to_be_removed_is_not_eligible_but_live() {
        let tainted = builders::object::<fairlead_objects::NodeObject>(json!({
            "metadata": {"name": "n"}, "spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}}));
        let mut health = health();
        health.observe_node(Some(&tainted.into()));
        assert!(!health.answer(Probe::Healthz, at(0)).ok());
        assert!(health.answer(Probe::Livez, at(0)).ok());
    }
}
