//! Events: what a user of `kubectl describe service` should know, told to the API server.
//!
//! Invariant: telling never holds up programming. Notices wait in a short queue; what does not fit, or cannot be
//! delivered, is in the log anyway.

use std::time::Duration;

use fairlead_objects::ServiceKey;
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

/// Something worth an Event about a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which Service.
    pub service: ServiceKey,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// What was tried, in one CamelCase word.
    pub action: &'static str,
    /// The whole story in one sentence.
    pub note: String,
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

/// Delivers notices as warnings from `node`, until their senders are gone.
pub async fn deliver(mut notices: mpsc::Receiver<Notice>, client: Client, node: String) {
    let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(node) };
    let recorder = Recorder::new(client, reporter);
    while let Some(notice) = notices.recv().await {
        let Notice { service, reason, action, note } = notice;
        let reference = reference(&service);
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        match timeout(PATIENCE, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%service, reason, %error, "Event is refused"),
            Err(_) => debug!(%service, reason, "Event is not accepted in time"),
        }
    }
}

/// As kube-proxy refers to Services: it does not know their uid either, and puts the name in its place.
fn reference(service: &ServiceKey) -> k8s_openapi::api::core::v1::ObjectReference {
    k8s_openapi::api::core::v1::ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        namespace: Some(service.namespace.to_string()),
        name: Some(service.name.to_string()),
        uid: Some(service.to_string()),
        ..Default::default()
    }
}
