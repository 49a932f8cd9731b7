//! Events: what a user of `kubectl describe service` or `kubectl describe node` should know, told to the API server.
//!
//! Invariant: telling never holds up programming. Notices wait in a short queue; what does not fit, or cannot be
//! delivered, is in the log anyway.

use std::time::Duration;

use fairlead_objects::ServiceKey;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{sync::mpsc, time::timeout};
use tracing::debug;

/// Who reports, as far as others know: kube-proxy's name would be a lie.
const REPORTER: &str = "fairlead-programmer";
/// Notices that may wait.
const QUEUE: usize = 256;
/// How long one delivery may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A Service that something is wrong with.
    Service(ServiceKey),
    /// This node, that all is well with.
    Node,
}

/// Something worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub subject: Subject,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// What was tried, in one CamelCase word.
    pub action: &'static str,
    /// The whole story in one sentence; empty if the reason says it all.
    pub note: String,
}

impl Notice {
    /// That the program has started, in kube-proxy's words.
    pub fn started() -> Self {
        Self { subject: Subject::Node, reason: "Starting", action: "StartKubeProxy", note: String::new() }
    }
}

/// Where notices are left. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Notice>);

impl Events {
    /// A queue, and its other end for [`deliver`].
    pub fn new() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Leaves a notice.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            debug!(%error, "Event is not sent");
        }
    }
}

/// Delivers notices from `node`, until their senders are gone.
pub async fn deliver(mut notices: mpsc::Receiver<Notice>, client: Client, node: String) {
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client, reporter);
    while let Some(notice) = notices.recv().await {
        let Notice { subject, reason, action, note } = notice;
        let (type_, reference) = match &subject {
            Subject::Service(key) => (EventType::Warning, service(key)),
            Subject::Node => (EventType::Normal, this_node(&node)),
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note).filter(|note| !note.is_empty()),
            action: action.to_owned(),
            secondary: None,
        };
        match timeout(PATIENCE, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(?subject, reason, %error, "Event is refused"),
            Err(_) => debug!(?subject, reason, "Event is not accepted in time"),
        }
    }
}

/// As kube-proxy refers to Services: it does not know their uid either, and puts the name in its place.
fn service(key: &ServiceKey) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(key.namespace.to_string()),
        name: Some(key.name.to_string()),
        uid: Some(key.to_string()),
        ..Default::default()
    }
}

/// As kube-proxy and kubelet refer to their node: `kubectl describe node` looks for its name as the uid.
fn this_node(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..Default::default()
    }
}
