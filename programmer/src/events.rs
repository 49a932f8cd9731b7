//! Events: what a user of `kubectl describe service` or `kubectl describe node` should know, told to the API server.
//!
//! Invariant: telling never holds up programming. Notices wait in a short queue; what does not fit, or cannot be
//! delivered, is in the log anyway.

use std::{fmt, sync::Arc, time::Duration};

use fairlead_daemon::{admin::ListenError, throttle::Throttle};
use fairlead_objects::ServiceKey;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{self, Event, EventType, Reporter};
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
    /// This node, that something is wrong with.
    NodeInTrouble,
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

    /// That the process ends because an address is taken.
    pub fn not_listening(reason: &'static str, error: &ListenError) -> Self {
        let note = error.to_string();
        Self { subject: Subject::NodeInTrouble, reason, action: "StartKubeProxy", note }
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

/// Who tells the API server, on behalf of one node.
#[derive(Clone)]
pub struct Recorder {
    api: events::Recorder,
    node: String,
    throttle: Arc<Throttle>,
}

impl Recorder {
    /// For `node`, at the pace of `throttle`.
    pub fn new(client: Client, node: &str, throttle: Throttle) -> Self {
        let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node.to_owned()) };
        let api = events::Recorder::new(client, reporter);
        Self { api, node: node.to_owned(), throttle: Arc::new(throttle) }
    }

    /// Tells one notice, or gives up.
    pub async fn publish(&self, notice: Notice) {
        let Notice { subject, reason, action, note } = notice;
        let (type_, reference) = match &subject {
            Subject::Service(key) => (EventType::Warning, service(key)),
            Subject::Node => (EventType::Normal, this_node(&self.node)),
            Subject::NodeInTrouble => (EventType::Warning, this_node(&self.node)),
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note).filter(|note| !note.is_empty()),
            action: action.to_owned(),
            secondary: None,
        };
        self.throttle.acquire().await;
        match timeout(PATIENCE, self.api.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(?subject, reason, %error, "Event is refused"),
            Err(_) => debug!(?subject, reason, "Event is not accepted in time"),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Delivers notices until their senders are gone.
pub async fn deliver(mut notices: mpsc::Receiver<Notice>, recorder: Recorder) {
    while let Some(notice) = notices.recv().await {
        recorder.publish(notice).await;
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
