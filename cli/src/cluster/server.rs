//! The API server: gets and lists.
//!
//! Invariant: of a long list, one page at most is held as it came in; what is kept are views.

use fairlead_daemon::{
    client,
    failure::{Class, chain},
};
use kube::{
    Client, Resource,
    api::{GetParams, ListParams},
    core::{ApiResource, DynamicObject, GroupVersionKind, Request},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{ClusterError, access};
use crate::{
    args::Access,
    objects::{Kind, Objects},
};

/// Objects of one answer; more come in the next.
const PAGE: u32 = 500;

/// A client, and how to call the server.
pub(super) struct Server {
    client: Client,
    name: String,
}

/// What is asked for: objects of one kind, of a namespace or of all.
#[derive(Clone, Debug)]
pub(super) struct Query {
    kind: Kind,
    namespace: Option<String>,
    labels: Option<String>,
    fields: Option<String>,
}

/// What came of it.
pub(super) type Answer = Result<Objects, ClusterError>;

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    items: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct PageMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

impl Server {
    /// No request is made yet.
    pub(super) async fn connect(access: &Access) -> Result<Self, ClusterError> {
        let config = access::config(access).await?;
        let name = format!("the API server at {}", client::place(&config));
        let unusable = |error: kube::Error| ClusterError::NoCluster { reason: chain(&error) };
        Ok(Self { client: client::client(config).map_err(unusable)?, name })
    }

    /// The object of that name, if there is one.
    pub(super) async fn get(&self, query: Query, name: &str) -> Answer {
        let request = Request::new(query.path()).get(name, &GetParams::default());
        let mut objects = Objects::default();
        match self.send::<Value>(request).await {
            Ok(object) => query.read(object, &mut objects)?,
            Err(error) if Class::of(&error) == Class::NotFound => {}
            Err(error) => return Err(ClusterError::of(&self.name, "get", &query, &error)),
        }
        Ok(objects)
    }

    /// All objects.
    pub(super) async fn list(&self, query: Query) -> Answer {
        let mut answer = self.pages(&query, Some(PAGE)).await;
        if answer.as_ref().is_err_and(|error| Class::of(error) == Class::Gone) {
            // The list changed too much while it was read in pages.
            answer = self.pages(&query, None).await;
        }
        answer.unwrap_or_else(|error| Err(ClusterError::of(&self.name, "list", &query, &error)))
    }

    async fn pages(&self, query: &Query, limit: Option<u32>) -> kube::Result<Answer> {
        let mut objects = Objects::default();
        let mut params = ListParams {
            label_selector: query.labels.clone(),
            field_selector: query.fields.clone(),
            limit,
            ..ListParams::default()
        };
        loop {
            let page: Page = self.send(Request::new(query.path()).list(&params)).await?;
            for object in page.items.into_iter().flatten() {
                if let Err(unreadable) = query.read(object, &mut objects) {
                    return Ok(Err(unreadable));
                }
            }
            params.continue_token = page.metadata.next.filter(|next| !next.is_empty());
            if params.continue_token.is_none() {
                return Ok(Ok(objects));
            }
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> kube::Result<T> {
        self.client.request(request.map_err(kube::Error::BuildRequest)?).await
    }
}

impl Query {
    /// All objects of a kind.
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, namespace: None, labels: None, fields: None }
    }

    pub(super) fn of(self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self }
    }

    pub(super) fn labelled(self, labels: String) -> Self {
        Self { labels: Some(labels), ..self }
    }

    pub(super) fn with_field(self, fields: String) -> Self {
        Self { fields: Some(fields), ..self }
    }

    pub(super) fn resource(&self) -> &'static str {
        match self.kind {
            Kind::Service => "services",
            Kind::Pod => "pods",
            Kind::Node => "nodes",
            Kind::Endpoints => "endpoints",
            Kind::EndpointSlice => "endpointslices",
        }
    }

    /// Where it asks, for people.
    pub(super) fn place(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "in the whole cluster".to_owned(),
        }
    }

    /// What gives the right to ask it.
    pub(super) fn grant(&self, verb: &str) -> String {
        let role = if self.namespace.is_some() { "a Role of that namespace" } else { "a ClusterRole" };
        let (group, _) = self.group_and_version();
        format!("{role} with apiGroups {group:?}, resources {:?}, verbs {verb:?}", self.resource())
    }

    /// Adds an object of an answer.
    fn read(&self, object: Value, objects: &mut Objects) -> Result<(), ClusterError> {
        let name = full_name(&object);
        objects.add(self.kind, object).map_err(|error| ClusterError::unreadable(self.kind, name, &error))
    }

    fn group_and_version(&self) -> (&'static str, &'static str) {
        let api_version = self.kind.api_version();
        api_version.split_once('/').unwrap_or(("", api_version))
    }

    fn path(&self) -> String {
        let (group, version) = self.group_and_version();
        let kind = GroupVersionKind::gvk(group, version, self.kind.as_str());
        let resource = ApiResource::from_gvk_with_plural(&kind, self.resource());
        DynamicObject::url_path(&resource, self.namespace.as_deref())
    }
}

/// `namespace/name`, or `name`.
fn full_name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let name = text("/metadata/name").unwrap_or("(no name)");
    text("/metadata/namespace").map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use http::{Request as HttpRequest, Response};
    use kube::client::Body;
    use serde_json::json;
    use tower::{BoxError, service_fn};

    use super::*;

    /// A server with these answers, one after the other; and what it was asked for.
    fn server(answers: Vec<(u16, Value)>) -> (Server, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answers) = (Arc::clone(&asked), Arc::new(Mutex::new(answers.into_iter())));
        let answer = move |request: HttpRequest<Body>| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.uri().to_string());
            let (status, body) = answers.lock().unwrap().next().unwrap();
            let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
            async move { Ok::<_, BoxError>(response?) }
        };
        (Server { client: Client::new(service_fn(answer), "default"), name: "the server".to_owned() }, asked)
    }

    fn page(names: &[&str], next: &str) -> (u16, Value) {
        let object =
            |name: &&str| json!({"metadata": {"name": name, "namespace": "shop"}, "addressType": "IPv4"});
        let items: Vec<Value> = names.iter().map(object).collect();
        (200, json!({"metadata": {"continue": next}, "items": items}))
    }

    fn failure(code: u16, reason: &str) -> (u16, Value) {
        (
            code,
            json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code, "message": reason}),
        )
    }

    fn names(answer: Answer) -> Vec<String> {
        let objects = answer.unwrap();
        objects.slices.keys().chain(objects.pods.keys()).map(|(_, name)| name.to_string()).collect()
    }

    #[tokio::test]
    async fn lists_are_read_page_by_page_to_the_end() {
        let (server, asked) = server(vec![page(&["a", "b"], "more"), page(&["c"], "")]);
        let answer = server.list(Query::new(Kind::EndpointSlice).of("shop").labelled("x=y".to_owned())).await;
        assert_eq!(names(answer), ["a", "b", "c"]);
        let asked = asked.lock().unwrap();
        assert!(
            asked.iter().all(|uri| uri.contains("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?"))
        );
        assert!(asked[0].contains("limit=500") && asked[0].contains("labelSelector=x%3Dy"), "{asked:?}");
        assert!(asked[1].contains("continue=more"), "{asked:?}");
    }

    #[tokio::test]
    async fn list_that_expires_between_pages_is_read_anew_at_once() {
        let answers = vec![page(&["old"], "more"), failure(410, "Expired"), page(&["a", "b"], "")];
        let (server, asked) = server(answers);
        assert_eq!(names(server.list(Query::new(Kind::Pod)).await), ["a", "b"]);
        let last = asked.lock().unwrap().last().cloned().unwrap();
        assert!(!last.contains("limit") && !last.contains("continue"), "{last}");
    }

    #[tokio::test]
    async fn object_that_is_not_there_is_no_failure_and_others_are_classed() {
        let answers =
            vec![failure(404, "NotFound"), failure(401, "Unauthorized"), failure(500, "InternalError")];
        let (server, _) = server(answers);
        let query = || Query::new(Kind::Service).of("shop");
        assert!(server.get(query(), "cart").await.unwrap().services.is_empty());
        let mut failures = Vec::new();
        for _ in 0..2 {
            failures.push(server.get(query(), "cart").await.unwrap_err().to_string());
        }
        assert!(failures[0].contains("does not accept who is asking"), "{failures:?}");
        assert!(failures[1].contains("failed to get services: InternalError"), "{failures:?}");
    }
}
