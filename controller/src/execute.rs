//! Execution: makes plans so. The only place that writes Endpoints and EndpointSlices.
//!
//! Invariants: every write carries what the plan was based on (resourceVersion in a PUT, uid and resourceVersion in a
//! DELETE), so that nothing another has changed meanwhile is overwritten. Creates come before updates before deletes, so
//! that an endpoint never disappears in between. Every request has a timeout. Every answer is applied to the index before
//! the next request is made. An error that casts doubt on what the index knows marks the Service as suspect.

use std::{fmt, sync::Arc, time::Duration};

use fairlead_daemon::{
    failure::{self, Class},
    throttle::Throttle,
};
use fairlead_objects::{EndpointSlice, Endpoints, ServiceKey, labels};
use fairlead_planner::{EndpointsPlan, ObjectRef, SlicePlan};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    core::Request,
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::{
    index::{Gone, Index, Kind},
    leadership::Leadership,
    metrics::Metrics,
    part::Part,
    rights::Rights,
    wire::{self, Body},
};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who managed fields say that we are.
pub(crate) const FIELD_MANAGER: &str = "fairlead-controller";

/// Writes to the API server.
pub struct Writer {
    client: Client,
    leadership: Arc<Leadership>,
    throttle: Throttle,
    index: Arc<Mutex<Index>>,
    metrics: Arc<Metrics>,
    rights: Arc<Rights>,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST.
    Create,
    /// PUT.
    Update,
    /// DELETE.
    Delete,
    /// GET and LIST, to learn what is really there.
    Read,
}

impl Operation {
    /// Its verb.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Read => "read",
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("failed to {} {object}: {message}", operation.as_str())]
pub struct WriteError {
    /// What was being done.
    pub operation: Operation,
    /// To what, in words.
    pub object: String,
    /// What kind of failure it was.
    pub class: Class,
    /// What the API server or the connection said.
    pub message: String,
    /// How long the API server wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl WriteError {
    /// Whether it only means that the index was behind: the next attempt starts from a fresh look.
    pub fn is_stale(&self) -> bool {
        matches!(self.class, Class::Conflict | Class::AlreadyExists)
            || (self.class == Class::NotFound && self.operation == Operation::Update)
    }

    /// Whether the index may now be wrong about the Service: either it was before, or nobody knows whether the write
    /// arrived.
    fn casts_doubt(&self) -> bool {
        !matches!(
            self.class,
            Class::Forbidden
                | Class::Unauthorized
                | Class::Invalid
                | Class::Throttled
                | Class::NamespaceTerminating
        )
    }

    fn new(operation: Operation, object: impl fmt::Display, error: &kube::Error) -> Self {
        let retry_after = match error {
            kube::Error::Api(status) => status.details.as_ref().map(|details| details.retry_after_seconds),
            _ => None,
        };
        Self {
            operation,
            object: object.to_string(),
            class: Class::of(error),
            message: failure::sentence(error),
            retry_after: retry_after.filter(|seconds| *seconds > 0).map(|s| Duration::from_secs(s.into())),
        }
    }

    fn timeout(operation: Operation, object: impl fmt::Display) -> Self {
        let message = format!("no answer within {} seconds", PATIENCE.as_secs());
        Self { operation, object: object.to_string(), class: Class::Timeout, message, retry_after: None }
    }
}

/// A kind that is written as a whole.
trait Writable: kube::Resource<DynamicType = ()> + DeserializeOwned {}

impl Writable for Endpoints {}
impl Writable for EndpointSlice {}

/// What a request is about, for messages and metrics.
#[derive(Clone, Copy)]
struct Target<'a> {
    part: Part,
    key: &'a ServiceKey,
    operation: Operation,
    name: &'a str,
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Endpoints => write!(f, "Endpoints {}", self.key),
            Part::Slices => write!(f, "EndpointSlice {} for Service {}", self.name, self.key),
            Part::Mirror => write!(f, "EndpointSlice {} for Endpoints {}", self.name, self.key),
        }
    }
}

impl Writer {
    /// A writer that tells `index` what it did.
    pub fn new(
        client: Client,
        leadership: Arc<Leadership>,
        throttle: Throttle,
        index: Arc<Mutex<Index>>,
        metrics: Arc<Metrics>,
        rights: Arc<Rights>,
    ) -> Self {
        Self { client, leadership, throttle, index, metrics, rights }
    }

    /// Does what a plan says about Endpoints.
    pub async fn endpoints(&self, key: &ServiceKey, plan: EndpointsPlan) -> Result<(), WriteError> {
        let api = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let target = |operation| Target { part: Part::Endpoints, key, operation, name: &key.name };
        match plan {
            EndpointsPlan::Keep => {}
            EndpointsPlan::Create(endpoints) => {
                let _sent =
                    self.sending(Kind::Endpoints, key, |index| index.sending_endpoints(key, &endpoints));
                let request = self.post(&key.namespace, &endpoints);
                if let Some(created) = self.create(target(Operation::Create), request).await? {
                    self.index.lock().wrote_endpoints(created);
                }
            }
            EndpointsPlan::Update(endpoints) => {
                let _sent =
                    self.sending(Kind::Endpoints, key, |index| index.sending_endpoints(key, &endpoints));
                let request = self.put(&key.namespace, &key.name, &endpoints);
                let updated = self.request(target(Operation::Update), request).await?;
                self.index.lock().wrote_endpoints(updated);
            }
            EndpointsPlan::Delete(gone) => {
                let _sent = self.sending(Kind::Endpoints, key, |index| {
                    index.sending_deletion(Kind::Endpoints, key, gone.uid.clone());
                });
                match self.delete(target(Operation::Delete), &api, &gone).await? {
                    Some(lingering) => self.index.lock().wrote_endpoints(lingering),
                    None => self.index.lock().deleted_endpoints(key, Gone { name: gone.name, uid: gone.uid }),
                }
            }
        }
        Ok(())
    }

    /// Does what a plan says about slices; the first error ends it.
    pub async fn slices(&self, key: &ServiceKey, part: Part, plan: SlicePlan) -> Result<(), WriteError> {
        let api = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        for slice in &plan.create {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let target = Target { part, key, operation: Operation::Create, name };
            let _sent = self.sending_slice(key, slice);
            let Some(created) = self.create(target, self.post(&key.namespace, slice)).await? else {
                // The namespace is being deleted: everything in it will be.
                return Ok(());
            };
            self.index.lock().wrote_slice(created);
        }
        for slice in &plan.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            let target = Target { part, key, operation: Operation::Update, name };
            let _sent = self.sending_slice(key, slice);
            let updated = self.request(target, self.put(&key.namespace, name, slice)).await?;
            self.index.lock().wrote_slice(updated);
        }
        for gone in plan.delete {
            let target = Target { part, key, operation: Operation::Delete, name: &gone.name };
            let object = ServiceKey::new(Arc::clone(&key.namespace), gone.name.as_str());
            let _sent = self.sending(Kind::EndpointSlices, &object, |index| {
                index.sending_deletion(Kind::EndpointSlices, &object, gone.uid.clone());
            });
            if let Some(lingering) = self.delete(target, &api, &gone).await? {
                self.index.lock().wrote_slice(lingering);
            } else {
                let gone = Gone { name: gone.name, uid: gone.uid };
                self.index.lock().deleted_slice(&key.namespace, gone);
            }
        }
        Ok(())
    }

    /// Reads the Endpoints and slices of a Service afresh, and applies them to the index.
    pub async fn repair(&self, key: &ServiceKey) -> Result<(), WriteError> {
        self.metrics.repaired();
        let endpoints = Api::<Endpoints>::namespaced(self.client.clone(), &key.namespace);
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), &key.namespace);
        let selector = ListParams::default().labels(&format!("{}={}", labels::SERVICE_NAME, key.name));
        let read = async { tokio::try_join!(endpoints.get_opt(&key.name), slices.list(&selector)) };
        let object = format!("the objects of Service {key}");
        match tokio::time::timeout(PATIENCE, read).await {
            Err(_elapsed) => Err(WriteError::timeout(Operation::Read, object)),
            Ok(Err(error)) => Err(WriteError::new(Operation::Read, object, &error)),
            Ok(Ok((endpoints, list))) => {
                let version = list.metadata.resource_version.clone();
                self.index.lock().replace(key, endpoints, list.items, version.as_deref());
                Ok(())
            }
        }
    }

    async fn post<K: Body + Writable>(&self, namespace: &str, object: &K) -> kube::Result<K> {
        let url = Request::new(K::url_path(&(), Some(namespace)));
        self.send(url.create(&parameters(), object.encode())).await
    }

    async fn put<K: Body + Writable>(&self, namespace: &str, name: &str, object: &K) -> kube::Result<K> {
        let url = Request::new(K::url_path(&(), Some(namespace)));
        self.send(url.replace(name, &parameters(), object.encode())).await
    }

    async fn send<K: Writable>(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> kube::Result<K> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        let format = http::HeaderValue::from_static(wire::CONTENT_TYPE);
        request.headers_mut().insert(http::header::CONTENT_TYPE, format);
        self.client.request(request).await
    }

    /// Tells the index what is about to be sent, and when the result is dropped, that the answer is in.
    fn sending(&self, kind: Kind, object: &ServiceKey, tell: impl FnOnce(&mut Index)) -> InFlight<'_> {
        tell(&mut self.index.lock());
        InFlight { index: &self.index, kind, object: object.clone() }
    }

    fn sending_slice(&self, key: &ServiceKey, slice: &EndpointSlice) -> InFlight<'_> {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        let object = ServiceKey::new(Arc::clone(&key.namespace), name);
        self.sending(Kind::EndpointSlices, &object, |index| index.sending_slice(&object, slice))
    }

    /// `None` if the namespace is being deleted, which is no error.
    async fn create<K>(
        &self,
        target: Target<'_>,
        request: impl Future<Output = kube::Result<K>>,
    ) -> Result<Option<K>, WriteError> {
        match self.request(target, request).await {
            Ok(created) => Ok(Some(created)),
            Err(error) if error.class == Class::NamespaceTerminating => {
                tracing::debug!(service = %target.key, "nothing is created in a namespace that is being deleted");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the object if it lingers because of finalizers. That it is gone already is no error.
    async fn delete<K>(
        &self,
        target: Target<'_>,
        api: &Api<K>,
        gone: &ObjectRef,
    ) -> Result<Option<K>, WriteError>
    where
        K: kube::Resource + Clone + fmt::Debug + DeserializeOwned,
    {
        let preconditions =
            Preconditions { uid: gone.uid.clone(), resource_version: gone.resource_version.clone() };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match self.request(target, api.delete(&gone.name, &parameters)).await {
            Ok(answer) => Ok(answer.left().filter(|object| {
                object.meta().finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
            })),
            Err(error) if error.class == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn request<T>(
        &self,
        target: Target<'_>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        self.throttle.acquire().await;
        self.leadership.in_time().await;
        let error = match tokio::time::timeout(PATIENCE, request).await {
            Ok(Ok(answer)) => {
                self.metrics.wrote(target.part, target.operation.as_str());
                self.rights.allowed(target.part, target.operation);
                return Ok(answer);
            }
            Ok(Err(error)) => WriteError::new(target.operation, target, &error),
            Err(_elapsed) => WriteError::timeout(target.operation, target),
        };
        if error.class == Class::Forbidden {
            self.rights.refused(target.part, target.operation, &error.message);
        }
        let gone_already = error.class == Class::NotFound && target.operation == Operation::Delete;
        if !gone_already {
            self.metrics.write_failed(target.part, error.class);
            self.doubt(target, &error);
        }
        Err(error)
    }

    fn doubt(&self, target: Target<'_>, error: &WriteError) {
        if !error.casts_doubt() {
            return;
        }
        let mut index = self.index.lock();
        if error.class == Class::AlreadyExists && target.part != Part::Endpoints {
            index.suspect_name(target.key, target.name.to_owned());
        } else {
            index.suspect(target.key);
        }
    }
}

/// A request that nobody has answered yet. Dropped also when the term ends in the middle of it.
struct InFlight<'a> {
    index: &'a Mutex<Index>,
    kind: Kind,
    object: ServiceKey,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.index.lock().answered(self.kind, &self.object);
    }
}

fn parameters() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
