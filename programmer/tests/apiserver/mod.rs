//! An API server as far as the node agent needs one: it lists, watches, and takes Events. Selectors are not its business.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each test uses a part of it")]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{RawQuery, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::any,
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{broadcast, watch},
};

/// Kinds that are served: resource, version of the API, kind.
const KINDS: [(&str, &str, &str); 3] = [
    ("nodes", "v1", "Node"),
    ("services", "v1", "Service"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
];
/// Marks the end of a streamed list.
const END_OF_LIST: &str = "k8s.io/initial-events-end";
const PATIENCE: Duration = Duration::from_secs(30);

struct Content {
    version: u64,
    /// By kind and name.
    objects: BTreeMap<(String, String), Value>,
    events: Vec<Value>,
    changes: broadcast::Sender<(String, Value)>,
}

#[derive(Clone)]
struct Shared {
    content: Arc<Mutex<Content>>,
    answering: watch::Receiver<bool>,
}

/// The server. It ends with its runtime.
pub struct ApiServer {
    address: SocketAddr,
    shared: Shared,
    answering: watch::Sender<bool>,
}

impl ApiServer {
    /// Listens on loopback, empty, and answers when told to.
    pub async fn start() -> Self {
        let (answering, receiver) = watch::channel(false);
        let content = Content {
            version: 1,
            objects: BTreeMap::new(),
            events: Vec::new(),
            changes: broadcast::channel(1024).0,
        };
        let shared = Shared { content: Arc::new(Mutex::new(content)), answering: receiver };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().fallback(any(answer)).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, shared, answering }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on requests are answered, also those that wait.
    pub fn answer(&self) {
        self.answering.send_replace(true);
    }

    /// Creates or replaces an object.
    pub fn put(&self, mut object: Value) {
        let mut content = self.shared.content.lock();
        content.version += 1;
        object["metadata"]["resourceVersion"] = content.version.to_string().into();
        let key = key(&object);
        let old = content.objects.insert(key.clone(), object.clone());
        content.tell(key.0, if old.is_some() { "MODIFIED" } else { "ADDED" }, &object);
    }

    pub fn delete(&self, kind: &str, name: &str) {
        let mut content = self.shared.content.lock();
        content.version += 1;
        let mut object = content.objects.remove(&(kind.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = content.version.to_string().into();
        content.tell(kind.to_owned(), "DELETED", &object);
    }

    /// Waits for an Event with that reason.
    pub async fn event(&self, reason: &str) -> Value {
        let start = Instant::now();
        loop {
            let events = self.shared.content.lock().events.clone();
            if let Some(event) = events.iter().find(|event| event["reason"] == reason) {
                return event.clone();
            }
            assert!(start.elapsed() < PATIENCE, "no Event {reason}: {events:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Content {
    fn tell(&self, kind: String, change: &str, object: &Value) {
        drop(self.changes.send((kind, json!({"type": change, "object": object}))));
    }
}

fn key(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

async fn answer(
    State(mut shared): State<Shared>,
    uri: Uri,
    RawQuery(query): RawQuery,
    body: String,
) -> Response {
    // An error would be that the test is over.
    drop(shared.answering.wait_for(|answering| *answering).await);
    let resource = uri.path().rsplit('/').next().unwrap_or_default();
    if resource == "events" {
        let event: Value = serde_json::from_str(&body).unwrap();
        shared.content.lock().events.push(event.clone());
        return (StatusCode::CREATED, Json(event)).into_response();
    }
    let Some((_, version, kind)) = KINDS.into_iter().find(|(known, ..)| *known == resource) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let query = query.unwrap_or_default();
    if query.contains("watch=true") {
        watched(&shared.content.lock(), version, kind, query.contains("sendInitialEvents=true"))
    } else {
        let content = shared.content.lock();
        let items: Vec<_> = content.of(kind).collect();
        let metadata = json!({"resourceVersion": content.version.to_string()});
        Json(json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": metadata, "items": items}))
            .into_response()
    }
}

impl Content {
    fn of<'c>(&'c self, kind: &'c str) -> impl Iterator<Item = &'c Value> {
        self.objects.iter().filter(move |((of, _), _)| of == kind).map(|(_, object)| object)
    }
}

fn watched(content: &Content, version: &str, kind: &'static str, with_list: bool) -> Response {
    let mut first = Vec::new();
    if with_list {
        first.extend(content.of(kind).map(|object| json!({"type": "ADDED", "object": object})));
        let metadata = json!({
            "resourceVersion": content.version.to_string(), "annotations": {END_OF_LIST: "true"}});
        let end = json!({"apiVersion": version, "kind": kind, "metadata": metadata});
        first.push(json!({"type": "BOOKMARK", "object": end}));
    }
    let changes = stream::unfold(content.changes.subscribe(), |mut changes| async {
        Some((changes.recv().await.ok()?, changes))
    });
    let changes = changes.filter_map(move |(of, change)| std::future::ready((of == kind).then_some(change)));
    let lines = stream::iter(first).chain(changes).map(|change| Ok::<_, Infallible>(format!("{change}\n")));
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}
