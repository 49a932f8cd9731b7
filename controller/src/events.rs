//! Events: upstream's reasons, off the path of the work.
//!
//! Invariants: publishing never delays a reconcile; when too many Events wait, new ones are dropped and counted. Notes that
//! come with every plan are published when they appear, not on every sync.

use std::{sync::Arc, time::Duration};

use fairlead_daemon::failure;
use fairlead_objects::ServiceKey;
use fairlead_planner::{Note, NoteKind};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

use crate::{metrics::Metrics, part::Part};

/// How many Events may wait.
const WAITING: usize = 256;
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
}

/// Takes Events and publishes them in the background.
#[derive(Debug)]
pub struct Events {
    sender: mpsc::Sender<Message>,
    metrics: Arc<Metrics>,
    /// Sentences that were published for a Service's newest plan.
    published: Mutex<FxHashMap<ServiceKey, Vec<String>>>,
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
        if self.sender.try_send(Message { part, reference, reason, note }).is_err() {
            self.metrics.event_dropped();
        }
    }

    /// Publishes those notes of a plan that upstream publishes, if the last plan did not have them.
    pub fn noted(&self, key: &ServiceKey, notes: &[Note], endpoints_uid: Option<&str>) {
        let upstream_s = |note: &&Note| {
            matches!(note.kind, NoteKind::InvalidAddresses(_) | NoteKind::TooManyAddresses { .. })
        };
        let current: Vec<(&Note, String)> =
            notes.iter().filter(upstream_s).map(|note| (note, note.to_string())).collect();
        let sentences: Vec<String> = current.iter().map(|(_, sentence)| sentence.clone()).collect();
        let before = {
            let mut published = self.published.lock();
            if sentences.is_empty() {
                published.remove(key)
            } else {
                published.insert(key.clone(), sentences)
            }
        }
        .unwrap_or_default();
        for (note, sentence) in current.into_iter().filter(|(_, sentence)| !before.contains(sentence)) {
            let regarding = Regarding::Endpoints(endpoints_uid.map(str::to_owned));
            self.warn(Part::Mirror, key, regarding, note.reason(), sentence);
        }
    }

    /// Nothing is known of a Service any more.
    pub fn forget(&self, key: &ServiceKey) {
        self.published.lock().remove(key);
    }
}

impl Publisher {
    /// Publishes until all [`Events`] are gone. `instance` tells this process from others of its kind.
    pub async fn run(mut self, client: Client, instance: String) {
        let recorder = |part: Part| {
            let reporter =
                Reporter { controller: part.reporter().to_owned(), instance: Some(instance.clone()) };
            Recorder::new(client.clone(), reporter)
        };
        let recorders = Part::ALL.map(recorder);
        let mut failing = false;
        while let Some(Message { part, reference, reason, note }) = self.receiver.recv().await {
            let event = Event {
                type_: EventType::Warning,
                reason: reason.to_owned(),
                note: Some(note),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            let published = recorders[part.index()].publish(&event, &reference);
            let trouble = match tokio::time::timeout(PATIENCE, published).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(failure::sentence(&error)),
                Err(_elapsed) => Some("no answer in time".to_owned()),
            };
            match trouble {
                None => failing = false,
                // One line per series of failures: Events are a courtesy.
                Some(trouble) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(
                        reason,
                        "cannot publish Events: {trouble}; allow create and patch of events (RBAC)"
                    );
                }
                Some(trouble) => tracing::debug!(reason, "cannot publish an Event: {trouble}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fairlead_daemon::metrics::Metrics as Exposition;
    use fairlead_planner::{Scope, Subject};

    use super::*;

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
            events.noted(&key, notes, None);
        }
        let mut sentences = Vec::new();
        while let Ok(message) = publisher.receiver.try_recv() {
            sentences.push(message.note);
        }
        assert_eq!(sentences.len(), 3, "{sentences:?}");
        assert!(sentences[2].contains("2 invalid"), "{sentences:?}");
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
