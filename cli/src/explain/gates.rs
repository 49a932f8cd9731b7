//! Gates: what a selected Pod has to pass on its way to an endpoint that gets traffic.
//!
//! Invariants: a gate fails or limits because of a note of the planner or of what the planned slices say; gates come in one
//! order, and those behind one that ends the way are not judged.

use fairlead_objects::{ContainerPort, Endpoint, EndpointSlice, Pod, Service, TargetPort};
use fairlead_planner::{Note, NoteKind, Scope, Subject};
use serde::Serialize;

use super::report::Standing;
use crate::{condition::Condition, objects::Objects, snapshot::Decision};

/// One thing that is asked of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum GateName {
    Selector,
    Phase,
    Address,
    Port,
    Readiness,
    Termination,
    Node,
    Slice,
}

/// How a Pod got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Passage {
    Passed,
    /// In part: for one of its families or some of its ports, or until something better comes.
    Limited,
    Failed,
    /// An earlier gate ended the way.
    NotReached,
}

/// A gate and how a Pod got through it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gate {
    #[serde(rename = "gate")]
    pub(super) name: GateName,
    pub(super) passage: Passage,
    /// What was found there, in a word or two.
    pub(super) found: String,
    /// Whole sentences; the planner's own where it noted something.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) reasons: Vec<String>,
    /// The field to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) field: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Gate {
    fn new(name: GateName, passage: Passage, found: impl Into<String>) -> Self {
        Self { name, passage, found: found.into(), reasons: Vec::new(), field: None, remedy: None }
    }

    fn passed(name: GateName, found: impl Into<String>) -> Self {
        Self::new(name, Passage::Passed, found)
    }

    fn because(mut self, reasons: impl IntoIterator<Item = String>, field: &str, remedy: &str) -> Self {
        self.reasons.extend(reasons);
        self.field = Some(field.to_owned());
        self.remedy = Some(remedy.to_owned());
        self
    }

    /// Whether nothing behind it matters any more.
    fn ends(&self) -> bool {
        let decisive = matches!(self.name, GateName::Phase | GateName::Address | GateName::Node);
        decisive && self.passage == Passage::Failed
    }
}

/// A selected Pod, and how it got through.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodReport {
    pub(super) name: String,
    pub(super) result: Standing,
    /// In order.
    pub(super) gates: Vec<Gate>,
}

impl PodReport {
    /// Takes a selected Pod through all gates.
    pub(super) fn new(pod: &Pod, decision: &Decision<'_>, objects: &Objects) -> Self {
        let examination = Examination::new(pod, decision, objects);
        let standings = examination
            .entries
            .iter()
            .map(|(slice, endpoint)| Standing::of(&decision.service, slice, endpoint));
        Self {
            name: pod.name.to_string(),
            result: standings.min().unwrap_or(Standing::Out),
            gates: examination.gates(),
        }
    }

    /// The first gate that kept it from serving fully.
    pub(super) fn first_obstacle(&self) -> Option<&Gate> {
        let failed = self.gates.iter().find(|gate| gate.passage == Passage::Failed);
        failed.or_else(|| self.gates.iter().find(|gate| gate.passage == Passage::Limited))
    }
}

/// A Pod with all that is known of it.
struct Examination<'a> {
    pod: &'a Pod,
    service: &'a Service,
    notes: Vec<&'a Note>,
    /// Its endpoints in the planned slices.
    entries: Vec<(&'a EndpointSlice, &'a Endpoint)>,
    /// Conditions that do not hold.
    failing: &'a [Condition],
    /// Whether there are Nodes to look at.
    nodes_known: bool,
}

impl<'a> Examination<'a> {
    fn new(pod: &'a Pod, decision: &'a Decision<'_>, objects: &'a Objects) -> Self {
        let concerns = |note: &&Note| match &note.subject {
            Subject::Pod { namespace, name } => *namespace == pod.namespace && *name == pod.name,
            _ => false,
        };
        let uid = pod.uid.to_string();
        let stands_for = |endpoint: &&Endpoint| {
            endpoint
                .target_ref
                .as_ref()
                .is_some_and(|target| target.kind == "Pod" && target.name == *pod.name && target.uid == uid)
        };
        let slices = decision.outcome.slices.iter();
        let failing = objects.failing.get(&(pod.namespace.clone(), pod.name.clone()));
        Self {
            pod,
            service: &decision.service,
            notes: decision.plan.notes.iter().filter(concerns).collect(),
            entries: slices
                .flat_map(|slice| {
                    slice.endpoints.iter().filter(stands_for).map(move |endpoint| (slice, endpoint))
                })
                .collect(),
            failing: failing.map_or(&[], Vec::as_slice),
            nodes_known: objects.are_nodes_known(),
        }
    }

    fn gates(&self) -> Vec<Gate> {
        let all: [fn(&Self) -> Gate; 8] = [
            |_| Gate::passed(GateName::Selector, "ok"),
            Self::phase,
            Self::address,
            Self::port,
            Self::readiness,
            Self::termination,
            Self::node,
            Self::slice,
        ];
        let mut gates: Vec<Gate> = Vec::new();
        let mut ended = false;
        for judge in all {
            let gate = judge(self);
            let gate = if ended { Gate::new(gate.name, Passage::NotReached, "") } else { gate };
            ended |= gate.ends();
            gates.push(gate);
        }
        gates
    }

    fn noted(&self, is_meant: impl Fn(&NoteKind) -> bool) -> Vec<&'a Note> {
        self.notes.iter().copied().filter(|note| is_meant(&note.kind)).collect()
    }

    fn phase(&self) -> Gate {
        let ended = self.noted(|kind| matches!(kind, NoteKind::PodEnded(_)));
        if ended.is_empty() {
            return Gate::passed(GateName::Phase, "ok");
        }
        Gate::new(GateName::Phase, Passage::Failed, format!("{:?}", self.pod.phase)).because(
            sentences(&ended),
            "status.phase",
            "a Pod that has ended never serves again; its owner has to make a new one",
        )
    }

    fn address(&self) -> Gate {
        let none = self.noted(|kind| matches!(kind, NoteKind::PodWithoutAddress));
        if !none.is_empty() {
            return Gate::new(GateName::Address, Passage::Failed, "none").because(
                sentences(&none),
                "status.podIPs",
                "wait for its address; its events say what holds it up (kubectl describe pod)",
            );
        }
        let found = self.addresses();
        let wrong = self.noted(|kind| matches!(kind, NoteKind::WrongFamily(_)));
        let special = self.noted(|kind| matches!(kind, NoteKind::SpecialAddress(_)));
        if wrong.is_empty() && special.is_empty() {
            return Gate::passed(GateName::Address, found);
        }
        let node_stops =
            |kind: &NoteKind| matches!(kind, NoteKind::NodeUnknown(_) | NoteKind::PodUnscheduled);
        let gets_on = !self.entries.is_empty() || !self.noted(node_stops).is_empty();
        let passage = if gets_on { Passage::Limited } else { Passage::Failed };
        if !special.is_empty() {
            return Gate::new(GateName::Address, passage, found).because(
                sentences(&special).into_iter().chain(sentences(&wrong)),
                "status.podIPs",
                "see why the network of its Node gave it such an address; others cannot reach it there",
            );
        }
        Gate::new(GateName::Address, passage, found).because(
            sentences(&wrong),
            "status.podIPs, spec.ipFamilies of the Service",
            "give the Service a family that its Pods have, or the Pods addresses of both",
        )
    }

    /// The addresses that were used, or else all that it has.
    fn addresses(&self) -> String {
        let mut used: Vec<String> =
            self.entries.iter().flat_map(|(_, endpoint)| endpoint.addresses.iter().cloned()).collect();
        if used.is_empty() {
            let all = if self.pod.ips.is_empty() { self.pod.ip.as_slice() } else { &self.pod.ips };
            used = all.iter().map(ToString::to_string).collect();
        }
        used.dedup();
        used.join(",")
    }

    fn port(&self) -> Gate {
        if self.service.ports.is_empty() {
            return Gate::passed(GateName::Port, "ok");
        }
        let lost = self.noted(|kind| matches!(kind, NoteKind::PortNotFound { .. }));
        if lost.is_empty() {
            return Gate::passed(GateName::Port, self.ports().unwrap_or_else(|| "ok".to_owned()));
        }
        let all = self.noted(|kind| matches!(kind, NoteKind::NoPortResolved));
        let (passage, found) = if all.is_empty() {
            (Passage::Limited, self.ports().unwrap_or_else(|| "some".to_owned()))
        } else {
            (Passage::Failed, "none".to_owned())
        };
        let reasons = lost.iter().chain(&all).map(ToString::to_string);
        Gate::new(GateName::Port, passage, found).because(
            reasons,
            "spec.containers[].ports[].name, spec.ports[].targetPort of the Service",
            &self.port_remedy(&lost),
        )
    }

    fn ports(&self) -> Option<String> {
        let (slice, _) = self.entries.first()?;
        let text = |port: &fairlead_objects::SlicePort| match (port.name.as_deref(), port.port) {
            (Some("") | None, Some(number)) => number.to_string(),
            (Some(name), Some(number)) => format!("{name}:{number}"),
            (name, None) => name.unwrap_or_default().to_owned(),
        };
        let ports: Vec<String> = slice.ports.iter().map(text).collect();
        (!ports.is_empty()).then(|| ports.join(","))
    }

    fn port_remedy(&self, lost: &[&Note]) -> String {
        let mut wanted: Vec<String> = lost.iter().filter_map(|note| target_name(&note.kind)).collect();
        wanted.dedup();
        let named: Vec<String> = self.pod.ports.iter().map(named_port).collect();
        let has = if named.is_empty() {
            "it has no named port".to_owned()
        } else {
            format!("its named ports are {}", named.join(", "))
        };
        format!("name a container port {}, or change targetPort; {has}", wanted.join(" and "))
    }

    fn readiness(&self) -> Gate {
        let noted = self.noted(|kind| matches!(kind, NoteKind::PodNotReady));
        let not_serving = self.entries.iter().any(|(_, endpoint)| endpoint.conditions.serving == Some(false));
        if self.service.publish_not_ready_addresses && not_serving {
            return Gate::passed(GateName::Readiness, "published regardless");
        }
        if noted.is_empty() && !not_serving {
            return Gate::passed(GateName::Readiness, "ok");
        }
        let mut reasons: Vec<String> = noted.iter().map(ToString::to_string).collect();
        reasons.extend(self.failing.iter().map(ToString::to_string));
        if self.failing.is_empty() {
            reasons.push("it has no condition Ready".to_owned());
        }
        let remedy = format!(
            "see which probe or readiness gate fails: kubectl -n {} describe pod {}",
            self.pod.namespace, self.pod.name
        );
        Gate::new(GateName::Readiness, Passage::Failed, "not ready").because(
            reasons,
            "status.conditions[type=Ready]",
            &remedy,
        )
    }

    fn termination(&self) -> Gate {
        let terminating =
            self.entries.iter().any(|(_, endpoint)| endpoint.conditions.terminating == Some(true));
        if !terminating {
            return Gate::passed(GateName::Termination, "ok");
        }
        if self.service.publish_not_ready_addresses {
            return Gate::passed(GateName::Termination, "published regardless");
        }
        let serving = self.entries.iter().any(|(_, endpoint)| endpoint.conditions.serving != Some(false));
        let noted = self.noted(|kind| matches!(kind, NoteKind::PodTerminating));
        let mut reasons: Vec<String> = noted.iter().map(ToString::to_string).collect();
        let passage = if serving {
            reasons.push("it gets traffic only as long as there is no ready endpoint".to_owned());
            Passage::Limited
        } else {
            Passage::Failed
        };
        Gate::new(GateName::Termination, passage, "terminating").because(
            reasons,
            "metadata.deletionTimestamp",
            "its deletion cannot be undone; others have to be ready",
        )
    }

    fn node(&self) -> Gate {
        let stops = self.noted(|kind| matches!(kind, NoteKind::NodeUnknown(_) | NoteKind::PodUnscheduled));
        let node = self.pod.node.as_deref().unwrap_or_default();
        if !stops.is_empty() {
            let found = if node.is_empty() { "none" } else { node };
            return Gate::new(GateName::Node, Passage::Failed, found).because(
                sentences(&stops),
                "spec.nodeName",
                "wait for the Node to be there; in files, add the Node object or leave out all Nodes",
            );
        }
        let remarks = self.noted(|kind| matches!(kind, NoteKind::ZoneUnknown(_)));
        if !remarks.is_empty() {
            return Gate::new(GateName::Node, Passage::Limited, node).because(
                sentences(&remarks),
                "spec.nodeName",
                "without a zone it gets no topology hints; add the Node object",
            );
        }
        if self.nodes_known {
            Gate::passed(GateName::Node, node)
        } else {
            Gate::passed(GateName::Node, "not checked")
        }
    }

    fn slice(&self) -> Gate {
        let mut names: Vec<String> =
            self.entries.iter().filter_map(|(slice, _)| slice.metadata.name.clone()).collect();
        names.dedup();
        if names.is_empty() {
            return Gate::new(GateName::Slice, Passage::Failed, "none");
        }
        Gate::passed(GateName::Slice, names.join(","))
    }
}

fn sentences(notes: &[&Note]) -> Vec<String> {
    let mut notes = notes.to_vec();
    // What keeps it out of the slices says more than what keeps it out of the Endpoints.
    notes.sort_by_key(|note| note.scope == Scope::Endpoints);
    notes.iter().map(ToString::to_string).collect()
}

fn target_name(kind: &NoteKind) -> Option<String> {
    match kind {
        NoteKind::PortNotFound { target: TargetPort::Name(name), protocol, .. } => {
            Some(format!("{name} ({protocol})"))
        }
        _ => None,
    }
}

fn named_port(port: &ContainerPort) -> String {
    format!("{} ({}/{})", port.name, port.number, port.protocol)
}
