//! Conditions of Pods: why one is not ready. The planner asks only whether it is; whoever wants it explained asks more.

use std::fmt;

use serde_json::Value;

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// `Ready`, `ContainersReady`, or that of a readiness gate.
    kind: String,
    /// `False` or `Unknown`.
    status: String,
    reason: String,
    message: String,
}

impl Condition {
    /// The conditions of a Pod that do not hold, in its order; and the readiness gates that have no condition at all.
    pub(crate) fn failing(pod: &Value) -> Vec<Self> {
        let conditions: Vec<Self> = list(pod, "/status/conditions").iter().filter_map(Self::read).collect();
        let gates = list(pod, "/spec/readinessGates").iter().map(|gate| text(gate, "conditionType"));
        let missing = gates
            .filter(|gate| !gate.is_empty() && conditions.iter().all(|condition| condition.kind != *gate))
            .map(|kind| Self {
                kind,
                status: "missing".to_owned(),
                reason: String::new(),
                message: String::new(),
            });
        let missing: Vec<Self> = missing.collect();
        conditions.into_iter().filter(|condition| condition.status != "True").chain(missing).collect()
    }

    fn read(condition: &Value) -> Option<Self> {
        let kind = text(condition, "type");
        (!kind.is_empty()).then(|| Self {
            kind,
            status: text(condition, "status"),
            reason: text(condition, "reason"),
            message: text(condition, "message"),
        })
    }
}

/// `Ready is False (ContainersNotReady: containers with unready status: [web])`
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, status, reason, message } = self;
        write!(f, "{kind} is {status}")?;
        match (reason.is_empty(), message.is_empty()) {
            (true, true) => Ok(()),
            (false, true) => write!(f, " ({reason})"),
            (true, false) => write!(f, " ({message})"),
            (false, false) => write!(f, " ({reason}: {message})"),
        }
    }
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(object: &Value, key: &str) -> String {
    object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_that_do_not_hold_are_told_with_their_reasons_and_missing_gates_too() {
        let pod = json!({
            "spec": {"readinessGates": [{"conditionType": "example.com/warm"}, {"conditionType": "example.com/up"}]},
            "status": {"conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "example.com/up", "status": "False", "reason": "Booting"},
                {"type": "Ready", "status": "False", "reason": "ReadinessGatesNotReady", "message": "gates"},
            ]},
        });
        let told: Vec<String> = Condition::failing(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "example.com/up is False (Booting)",
                "Ready is False (ReadinessGatesNotReady: gates)",
                "example.com/warm is missing",
            ]
        );
    }
}
