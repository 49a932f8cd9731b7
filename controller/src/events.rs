//! Events: upstream's reasons, off the path of the work.
//!
//! Invariants: publishing never delays a reconcile; when too many Events wait, new ones are dropped and counted. Notes that
//! come with every plan are published when they appear, not on every sync.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fairlead_daemon::failure;
use fairlead_objects::ServiceKey;
use fairlead_planner::{Note, NoteKind, Parts, Subject, Unhinted};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

use crate::{metrics::Metrics, part::Part};

/// How many Events may wait.
const WAITING: usize = 256;
/// The API server takes no longer sentence, in bytes.
const LONGEST: usize = 1024;
/// How long publishing one may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Regarding {
    /// The Service of that uid.
    Service(Option<String>),
    /// The Endpoints of that uid.
    Endpoints(Option<String>),
}

/// One Event to publish.
#[derive(Clone, Debug)]
struct Message {
    part: Part,
    reference: ObjectReference,
    reason: &'static str,
    note: String,
    type_: EventType,
}

/// Uids of what Events are about.
#[derive(Clone, Debug, Default)]
pub struct Uids {
    /// Of the Service.
    pub service: Option<String>,
    /// Of its Endpoints.
    pub endpoints: Option<String>,
}

/// Takes Events and publishes them in the background.
#[derive(Debug)]
pub struct Events {
    sender: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
    /// What was published for a Service's newest plan of each part.
    published: Mutex<FxHashMap<ServiceKey, Vec<(Part, String)>>>,
}

/// The receiving end of [`Events`], to be run as a task.
#[derive(Debug)]
pub struct Publisher {
    receiver: mpsc::Receiver<Message>,
}

impl Events {
    /// Both ends.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Publisher) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self { sender, metrics, published: Mutex::default() }, Publisher { receiver })
    }

    /// Publishes a warning.
    pub fn warn(
        &self,
        part: Part,
        key: &ServiceKey,
        regarding: Regarding,
        reason: &'static str,
        note: String,
    ) {
        self.publish(part, key, regarding, (EventType::Warning, reason, note));
    }

    fn publish(
        &self,
        part: Part,
        key: &ServiceKey,
        regarding: Regarding,
        (type_, reason, note): (EventType, &'static str, String),
    ) {
        let (kind, uid) = match regarding {
            Regarding::Service(uid) => ("Service", uid),
            Regarding::Endpoints(uid) => ("Endpoints", uid),
        };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid,
            ..ObjectReference::default()
        };
        let note = shortened(note);
        if self.sender.try_send(Message { part, reference, reason, note, type_ }).is_err() {
            self.metrics.event_dropped();
        }
    }

    /// Publishes those notes of a plan that upstream publishes, if the last plan of that part did not have them. `parts` are
    /// those that were planned.
    pub fn noted(&self, key: &ServiceKey, parts: Parts, notes: &[Note], uids: &Uids) {
        let mut current: Vec<News> = notes.iter().filter_map(News::of).collect();
        current.extend(News::of_missing_nodes(key, notes));
        let before = {
            let mut published = self.published.lock();
            if current.is_empty() && !published.contains_key(key) {
                return;
            }
            let known = published.remove(key).unwrap_or_default();
            let kept = known.iter().filter(|(part, _)| !part.is_in(parts)).cloned();
            let new = current.iter().map(|news| (news.part, news.edge.clone()));
            let now: Vec<(Part, String)> = kept.chain(new).collect();
            if !now.is_empty() {
                published.insert(key.clone(), now);
            }
            known
        };
        for News { part, edge, type_, reason, note } in current {
            if before.contains(&(part, edge)) {
                continue;
            }
            let regarding = match part {
                Part::Mirror => Regarding::Endpoints(uids.endpoints.clone()),
                Part::Endpoints | Part::Slices => Regarding::Service(uids.service.clone()),
            };
            self.publish(part, key, regarding, (type_, reason, note));
        }
    }

    /// Nothing is known of a Service any more.
    pub fn forget(&self, key: &ServiceKey) {
        self.published.lock().remove(key);
    }
}

/// Something that a plan noted and that is worth an Event.
struct News {
    part: Part,
    /// What must differ from the last plan's for it to be published.
    edge: String,
    type_: EventType,
    reason: &'static str,
    note: String,
}

impl News {
    /// `None` if upstream has no Event for that note.
    fn of(note: &Note) -> Option<Self> {
        let (part, edge) = match &note.kind {
            NoteKind::InvalidAddresses(_) | NoteKind::TooManyAddresses { .. } => {
                (Part::Mirror, note.to_string())
            }
            NoteKind::TopologyHintsEnabled(_) => (Part::Slices, note.to_string()),
            // Upstream says so on each sync. The counts in the sentence change with every Pod; the kind of reason does not.
            NoteKind::TopologyHintsDisabled { family, why } => {
                let why = match why {
                    Unhinted::NotRequested => "not requested",
                    Unhinted::InsufficientNodes => "nodes",
                    Unhinted::InsufficientEndpoints { .. } => "endpoints",
                    Unhinted::MinimumsExceedTotal { .. } => "minimums",
                    Unhinted::EndpointWithoutZone => "zone",
                };
                (Part::Slices, format!("{} {family} {why}", note.reason()))
            }
            _ => return None,
        };
        let type_ = match note.kind {
            NoteKind::TopologyHintsEnabled(_) => EventType::Normal,
            _ => EventType::Warning,
        };
        Some(Self { part, edge, type_, reason: note.reason(), note: note.to_string() })
    }

    /// Pods wait for Nodes that are not known: upstream's sync fails then, and says so each time. Here it is told once for
    /// each set of Nodes, with the first Pod of each.
    fn of_missing_nodes(key: &ServiceKey, notes: &[Note]) -> Option<Self> {
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        for note in notes {
            if let (NoteKind::NodeUnknown(node), Subject::Pod { name, .. }) = (&note.kind, &note.subject) {
                first.entry(node).or_insert(name);
            }
        }
        let skipped = |(node, pod): (&&str, &&str)| {
            format!("skipping Pod {pod} for Service {key}: Node {node} Not Found")
        };
        let skipped: Vec<String> = first.iter().map(skipped).collect();
        let what = match &skipped[..] {
            [] => return None,
            [only] => only.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        Some(Self {
            part: Part::Slices,
            edge: format!("unknown Nodes {:?}", first.keys()),
            type_: EventType::Warning,
            reason: "FailedToUpdateEndpointSlices",
            note: format!("Error updating Endpoint Slices for Service {key}: {what}"),
        })
    }
}

/// A sentence that is not longer than the API server takes.
fn shortened(mut note: String) -> String {
    const DOTS: &str = "...";
    if note.len() > LONGEST {
        note.truncate(note.floor_char_boundary(LONGEST - DOTS.len()));
        note.push_str(DOTS);
    }
    note
}

impl Publisher {
    /// Publishes until all [`Events`] are gone. `instance` tells this process from others of its kind.
    pub async fn run(mut self, client: Client, instance: String) {
        let recorder = |part: Part| {
            let reporter =
                Reporter { controller: part.reporter().to_owned(), instance: Some(instance.clone()) };
            Recorder::new(client.clone(), reporter)
        };
        // A recorder counts Events of one reason as a series with the words of the first. Other words are another Event here,
        // hence a recorder for each; they are few, and forgetting them only begins another series.
        let mut recorders: FxHashMap<(Part, String), Recorder> = FxHashMap::default();
        let mut failing = false;
        while let Some(Message { part, reference, reason, note, type_ }) = self.receiver.recv().await {
            if recorders.len() >= WAITING {
                recorders.clear();
            }
            let recorder = recorders.entry((part, note.clone())).or_insert_with(|| recorder(part));
            let event = Event {
                type_,
                reason: reason.to_owned(),
                note: Some(note),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            let published = recorder.publish(&event, &reference);
            let trouble = match tokio::time::timeout(PATIENCE, published).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(failure::sentence(&error)),
                Err(_elapsed) => Some("no answer in time".to_owned()),
            };
            match trouble {
                None => failing = false,
                // One line per series of failures: Events are a courtesy.
                Some(trouble) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(reason, "cannot publish Events: {trouble}");
                }
                Some(trouble) => tracing::debug!(reason, "cannot publish an Event: {trouble}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_daemon::metrics::Metrics as Exposition;
    use fairlead_objects::Family;
    use fairlead_planner::{Scope, Subject};

    use super::*;
    use crate::part;

    fn events() -> (Events, Publisher) {
        Events::new(Arc::new(Metrics::new(&Exposition::new())))
    }

    fn note(count: usize) -> Note {
        let subject = Subject::Endpoints(ServiceKey::new("default", "web"));
        Note { subject, scope: Scope::Mirror, kind: NoteKind::InvalidAddresses(count) }
    }

    #[test]
    fn notes_are_published_when_they_appear_and_not_again() {
        let (events, mut publisher) = events();
        let key = ServiceKey::new("default", "web");
        for notes in [&[note(1)][..], &[note(1)], &[], &[note(1)], &[note(2)]] {
            events.noted(&key, Parts::default(), notes, &Uids::default());
        }
        let mut sentences = Vec::new();
        while let Ok(message) = publisher.receiver.try_recv() {
            sentences.push(message.note);
        }
        assert_eq!(sentences.len(), 3, "{sentences:?}");
        assert!(sentences[2].contains("2 invalid"), "{sentences:?}");
    }

    fn topology(kind: NoteKind) -> Note {
        let subject = Subject::Service(ServiceKey::new("default", "web"));
        Note { subject, scope: Scope::Slices(Family::V4), kind }
    }

    fn disabled(endpoints: usize) -> Note {
        let why = Unhinted::InsufficientEndpoints { endpoints, zones: 3 };
        topology(NoteKind::TopologyHintsDisabled { family: Family::V4, why })
    }

    fn reasons(publisher: &mut Publisher) -> Vec<(&'static str, EventType)> {
        std::iter::from_fn(|| publisher.receiver.try_recv().ok()).map(|m| (m.reason, m.type_)).collect()
    }

    #[test]
    fn hints_are_announced_on_edges_only_whatever_else_is_planned_in_between() {
        let (events, mut publisher) = events();
        let key = ServiceKey::new("default", "web");
        let enabled = topology(NoteKind::TopologyHintsEnabled(Family::V4));
        let slices = part::set([Part::Slices]);
        let endpoints = part::set([Part::Endpoints]);
        let uids = Uids::default();
        events.noted(&key, slices, &[disabled(1)], &uids);
        events.noted(&key, endpoints, &[], &uids);
        events.noted(&key, slices, &[disabled(2)], &uids);
        events.noted(&key, slices, &[enabled], &uids);
        events.noted(&key, slices, &[], &uids);
        events.noted(&key, slices, &[disabled(1)], &uids);
        let expected = [
            ("TopologyAwareHintsDisabled", EventType::Warning),
            ("TopologyAwareHintsEnabled", EventType::Normal),
            ("TopologyAwareHintsDisabled", EventType::Warning),
        ];
        assert_eq!(reasons(&mut publisher), expected);
    }

    fn waiting(pod: &str, node: &str, family: Family) -> Note {
        let subject = Subject::Pod { namespace: "default".into(), name: pod.into() };
        Note { subject, scope: Scope::Slices(family), kind: NoteKind::NodeUnknown(node.into()) }
    }

    #[test]
    fn unknown_nodes_are_told_in_upstreams_words_once_for_all_pods_and_families() {
        let (events, mut publisher) = events();
        let key = ServiceKey::new("default", "web");
        let both =
            [waiting("a", "n9", Family::V4), waiting("b", "n9", Family::V4), waiting("a", "n9", Family::V6)];
        let more = [waiting("a", "n9", Family::V4), waiting("c", "n8", Family::V4)];
        for notes in [&both[..], &both[1..], &more, &[], &both] {
            events.noted(&key, Parts::default(), notes, &Uids::default());
        }
        let said: Vec<Message> = std::iter::from_fn(|| publisher.receiver.try_recv().ok()).collect();
        let prefix = "Error updating Endpoint Slices for Service default/web: ";
        let of = |pod: &str, node: &str| {
            format!("skipping Pod {pod} for Service default/web: Node {node} Not Found")
        };
        let expected = [
            format!("{prefix}{}", of("a", "n9")),
            format!("{prefix}[{}, {}]", of("c", "n8"), of("a", "n9")),
            format!("{prefix}{}", of("a", "n9")),
        ];
        assert_eq!(said.iter().map(|message| message.note.clone()).collect::<Vec<_>>(), expected);
        assert!(said.iter().all(|message| message.reason == "FailedToUpdateEndpointSlices"));
        assert!(said.iter().all(|message| message.reference.kind.as_deref() == Some("Service")));
    }

    /// Upstream's Event about Endpoints that could not be created is in the namespace `default`.
    #[test]
    fn events_are_filed_where_their_object_would_be() {
        let (events, mut publisher) = events();
        let key = ServiceKey::new("shop", "web");
        let nothing = Regarding::Endpoints(None);
        events.warn(Part::Endpoints, &key, nothing, "FailedToCreateEndpoint", String::new());
        let reference = publisher.receiver.try_recv().unwrap().reference;
        assert_eq!(
            (reference.namespace.as_deref(), reference.kind.as_deref()),
            (Some("shop"), Some("Endpoints"))
        );
    }

    #[test]
    fn sentences_are_cut_to_what_the_api_server_takes() {
        assert_eq!(shortened("short".to_owned()), "short");
        let cut = shortened("\u{20ac}".repeat(1000));
        assert!(cut.len() <= LONGEST && cut.ends_with("\u{20ac}..."), "{cut}");
    }

    #[test]
    fn events_beyond_the_limit_are_dropped_not_waited_for() {
        let (events, _publisher) = events();
        let key = ServiceKey::new("default", "web");
        for _ in 0..WAITING * 2 {
            events.warn(
                Part::Slices,
                &key,
                Regarding::Service(None),
                "FailedToUpdateEndpointSlices",
                String::new(),
            );
        }
    }
}
