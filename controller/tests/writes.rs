//! What is sent to the API server, and what is made of its answers. The API server is a script here: it answers what a real one
//! answers in moments that are hard to bring about.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use fairlead_controller::{execute::Writer, index::Index, metrics::Metrics, part::Part, rights::Rights};
use fairlead_daemon::{metrics::Metrics as Exposition, readiness::Readiness, throttle::Throttle};
use fairlead_objects::{
    EndpointSlice, ServiceKey,
    builders::{endpoints, slice},
};
use fairlead_planner::{EndpointsPlan, ObjectRef, SlicePlan};
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Method, last part of the path, body in whatever encoding.
type Sent = (String, String, String);

/// A writer, what it has sent, and what it tells of its writes.
struct Stage {
    writer: Writer,
    index: Arc<Mutex<Index>>,
    sent: Arc<Mutex<Vec<Sent>>>,
}

/// An API server that refuses some requests and is content with the others.
fn stage(refuse: fn(&Sent) -> Option<Value>) -> Stage {
    let sent: Arc<Mutex<Vec<Sent>>> = Arc::default();
    let log = Arc::clone(&sent);
    let answer = async move |request: Request| -> Response {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let path = parts.uri.path().rsplit('/').next().unwrap_or_default().to_owned();
        let sent = (parts.method.to_string(), path, String::from_utf8_lossy(&body).into_owned());
        log.lock().push(sent.clone());
        let (code, body) = match refuse(&sent) {
            Some(status) => (u16::try_from(status["code"].as_u64().unwrap()).unwrap(), status),
            None if sent.0 == "DELETE" => {
                (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
            }
            None => (200, serde_json::to_value(slice(&sent.1, "web", 80, &[])).unwrap()),
        };
        (StatusCode::from_u16(code).unwrap(), Body::from(body.to_string())).into_response()
    };
    let client = Client::new(Router::new().fallback(answer), "default");
    let index = Arc::new(Mutex::new(Index::new(true)));
    let metrics = Arc::new(Metrics::new(&Exposition::new()));
    let rights = Arc::new(Rights::new(Readiness::default().gate("rights")));
    let writer =
        Writer::new(client, Arc::default(), Throttle::new(0.0, 1), Arc::clone(&index), metrics, rights);
    Stage { writer, index, sent }
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": reason, "code": code})
}

fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn versioned(name: &str) -> EndpointSlice {
    let mut slice = slice(name, "web", 80, &[]);
    slice.metadata.resource_version = Some("7654321".to_owned());
    slice
}

/// Creates `new`, updates `old`, deletes `gone`.
fn every_kind_of_write() -> SlicePlan {
    let gone = ObjectRef {
        name: "gone".to_owned(),
        uid: Some("uid-gone".to_owned()),
        resource_version: Some("9".to_owned()),
    };
    SlicePlan {
        create: vec![slice("new", "web", 80, &[])],
        update: vec![versioned("old")],
        delete: vec![gone],
        ..SlicePlan::default()
    }
}

impl Stage {
    fn methods(&self) -> Vec<String> {
        self.sent.lock().iter().map(|(method, path, _)| format!("{method} {path}")).collect()
    }
}

#[tokio::test]
async fn additions_come_before_removals_and_each_write_says_what_it_is_based_on() {
    let stage = stage(|_| None);
    stage.writer.slices(&key(), Part::Slices, every_kind_of_write()).await.unwrap();
    assert_eq!(stage.methods(), ["POST endpointslices", "PUT old", "DELETE gone"]);
    let sent = stage.sent.lock();
    assert!(sent[1].2.contains("7654321"), "{}", sent[1].2);
    let deletion: Value = serde_json::from_str(&sent[2].2).unwrap();
    assert_eq!(deletion["preconditions"], json!({"uid": "uid-gone", "resourceVersion": "9"}));
}

#[tokio::test]
async fn what_was_to_be_deleted_and_is_gone_already_is_a_success() {
    let stage = stage(|(method, ..)| (method == "DELETE").then(|| status(404, "NotFound")));
    stage.writer.slices(&key(), Part::Slices, every_kind_of_write()).await.unwrap();
    let gone = ObjectRef { name: "web".to_owned(), ..ObjectRef::default() };
    stage.writer.endpoints(&key(), EndpointsPlan::Delete(gone)).await.unwrap();
    assert_eq!(stage.methods().len(), 4);
    assert!(!stage.index.lock().snapshot(&key()).suspect, "nothing is in doubt");
}

#[tokio::test]
async fn refused_creation_keeps_what_it_was_to_replace_and_is_looked_at_again() {
    let stage = stage(|(method, ..)| (method == "POST").then(|| status(409, "AlreadyExists")));
    let error = stage.writer.slices(&key(), Part::Slices, every_kind_of_write()).await.unwrap_err();
    assert!(error.is_stale());
    assert_eq!(stage.methods(), ["POST endpointslices"]);
    assert!(stage.index.lock().snapshot(&key()).suspect);
}

#[tokio::test]
async fn namespace_that_is_being_deleted_ends_the_writes_without_an_error() {
    let stage = stage(|(method, ..)| {
        let causes =
            json!([{"reason": "NamespaceTerminating", "message": "", "field": "metadata.namespace"}]);
        let mut terminating = status(403, "Forbidden");
        terminating["details"] = json!({"causes": causes});
        (method == "POST").then_some(terminating)
    });
    stage.writer.slices(&key(), Part::Slices, every_kind_of_write()).await.unwrap();
    stage.writer.endpoints(&key(), EndpointsPlan::Create(endpoints("web", json!([])))).await.unwrap();
    assert_eq!(stage.methods(), ["POST endpointslices", "POST endpoints"]);
}
