//! The bed's access to its API server.
//!
//! Invariant: all requests are made by one thread that lives inside the control plane's namespace, each with a
//! deadline; callers block until the answer is there.

use std::{future::Future, pin::Pin, sync::mpsc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::LocalSet,
};

use crate::netns::Netns;

const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// Requests that are under way at once where there are many objects.
const PARALLEL: usize = 8;

/// The kinds the bed handles: API version, kind, plural, namespaced.
const KINDS: &[(&str, &str, &str, bool)] = &[
    ("v1", "Namespace", "namespaces", false),
    ("v1", "Node", "nodes", false),
    ("v1", "Pod", "pods", true),
    ("v1", "Service", "services", true),
    ("v1", "Endpoints", "endpoints", true),
    ("v1", "Event", "events", true),
    ("v1", "ConfigMap", "configmaps", true),
    ("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true),
    ("v1", "ServiceAccount", "serviceaccounts", true),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", true),
    ("coordination.k8s.io/v1", "Lease", "leases", true),
    ("apps/v1", "Deployment", "deployments", true),
    ("apps/v1", "DaemonSet", "daemonsets", true),
];

type Task = Box<dyn FnOnce(Client) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Client of the bed's API server.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    tasks: UnboundedSender<Task>,
}

impl Kubernetes {
    /// Makes a client from a kubeconfig (its text). No request is made yet.
    pub fn connect(namespace: &std::sync::Arc<Netns>, kubeconfig: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
        let namespace = std::sync::Arc::clone(namespace);
        let (tasks, mut orders) = unbounded_channel::<Task>();
        let (started, outcome) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let start = || -> Result<_> {
                namespace.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let options = KubeConfigOptions::default();
                let config = runtime.block_on(Config::from_custom_kubeconfig(kubeconfig, &options))?;
                let client = {
                    let _entered = runtime.enter();
                    Client::try_from(config)?
                };
                Ok((runtime, client))
            };
            let (runtime, client) = match start() {
                Ok(made) => made,
                Err(error) => return drop(started.send(Err(error))),
            };
            drop(started.send(Ok(())));
            LocalSet::new().block_on(&runtime, async move {
                while let Some(task) = orders.recv().await {
                    tokio::task::spawn_local(task(client.clone()));
                }
            });
        });
        outcome.recv().context("the client's thread ended")??;
        Ok(Self { tasks })
    }

    /// Runs anything that needs a client, on the client's thread.
    pub fn run<T, F>(&self, job: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + 'static,
    {
        let (answer, result) = mpsc::sync_channel(1);
        let task: Task = Box::new(move |client| {
            let work = job(client);
            Box::pin(async move {
                let result = tokio::time::timeout(REQUEST_DEADLINE, work).await;
                drop(
                    answer.send(result.unwrap_or_else(|_| Err(anyhow!("no answer in {REQUEST_DEADLINE:?}")))),
                );
            })
        });
        self.tasks.send(task).ok().context("the client's thread ended")?;
        result.recv().context("the client's thread ended")?
    }

    /// Creates an object, or changes it to have what is given (server-side apply). Its status is set too when given.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let target = Target::of(object)?;
        let mut object = object.clone();
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        self.run(move |client| async move {
            let params = PatchParams::apply("bed").force();
            let api = target.api(client);
            let what = || format!("applying {target}");
            let applied =
                api.patch(&target.name, &params, &Patch::Apply(&object)).await.with_context(what)?;
            let Some(status) = status else {
                return Ok(serde_json::to_value(applied)?);
            };
            // Not applied but merged: a dual-stack Node's addresses are no legal list to server-side apply.
            let status = Patch::Merge(json!({"status": status}));
            let merged = api.patch_status(&target.name, &PatchParams::default(), &status).await;
            Ok(serde_json::to_value(merged.with_context(what)?)?)
        })
    }

    /// Applies many objects, several at a time.
    pub fn apply_all(&self, objects: &[Value]) -> Result<()> {
        side_by_side(objects, |object| self.apply(object).map(drop))
    }

    /// Creates many objects, several at a time. It costs the API server half of what [`Self::apply_all`] does.
    pub fn create_all(&self, objects: &[Value]) -> Result<()> {
        side_by_side(objects, |object| self.create(object))
    }

    fn create(&self, object: &Value) -> Result<()> {
        let (target, object) = (Target::of(object)?, serde_json::from_value(object.clone())?);
        self.run(move |client| async move {
            let created = target.api(client).create(&PostParams::default(), &object).await;
            created.map(drop).with_context(|| format!("creating {target}"))
        })
    }

    /// Merges a patch into an object; `null` removes a field.
    pub fn merge(&self, kind: &str, namespace: &str, name: &str, patch: Value) -> Result<Value> {
        let target = Target::new(kind, namespace, name)?;
        self.run(move |client| async move {
            let params = PatchParams::default();
            let patched = target.api(client).patch(&target.name, &params, &Patch::Merge(&patch)).await;
            Ok(serde_json::to_value(patched.with_context(|| format!("patching {target}"))?)?)
        })
    }

    /// Merges a patch into an object's status.
    pub fn merge_status(&self, kind: &str, namespace: &str, name: &str, status: Value) -> Result<Value> {
        let target = Target::new(kind, namespace, name)?;
        self.run(move |client| async move {
            let patch = Patch::Merge(json!({"status": status}));
            let patched =
                target.api(client).patch_status(&target.name, &PatchParams::default(), &patch).await;
            Ok(serde_json::to_value(patched.with_context(|| format!("patching the status of {target}"))?)?)
        })
    }

    /// An object, if it is there.
    pub fn get<T: DeserializeOwned>(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<T>> {
        let target = Target::new(kind, namespace, name)?;
        let found = self.run(move |client| async move {
            let found = target.api(client).get_opt(&target.name).await;
            Ok(serde_json::to_value(found.with_context(|| format!("reading {target}"))?)?)
        })?;
        Ok(serde_json::from_value(found)?)
    }

    /// The objects of a kind that have these labels (`a=b,c=d`, or empty), in a namespace, or in all if that is empty.
    pub fn list<T: DeserializeOwned>(&self, kind: &str, namespace: &str, labels: &str) -> Result<Vec<T>> {
        let target = Target::new(kind, namespace, "")?;
        let params = ListParams::default().labels(labels);
        let found = self.run(move |client| async move {
            let list = target.api(client).list(&params).await.with_context(|| format!("listing {target}"))?;
            Ok(serde_json::to_value(list.items)?)
        })?;
        Ok(serde_json::from_value(found)?)
    }

    /// Deletes an object, if it is there. A Pod is only marked when it is given a grace period, because there is no
    /// kubelet to end it.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str, grace_seconds: u32) -> Result<()> {
        let target = Target::new(kind, namespace, name)?;
        self.run(move |client| async move {
            let params = DeleteParams {
                grace_period_seconds: Some(grace_seconds),
                propagation_policy: Some(PropagationPolicy::Background),
                ..DeleteParams::default()
            };
            match target.api(client).delete(&target.name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop).with_context(|| format!("deleting {target}")),
            }
        })
    }

    /// Sends an object that is not kept but answered, such as a review, and returns the answer.
    pub fn ask(&self, path: &str, question: &Value) -> Result<Value> {
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(question)?)?;
        let what = format!("asking {path}");
        self.run(move |client| async move { client.request(request).await.with_context(|| what) })
    }

    /// Fails until the API server says that it is ready.
    pub fn check_ready(&self) -> Result<()> {
        self.run(|client| async move {
            let request = http_request("/readyz")?;
            client.request_text(request).await?;
            Ok(())
        })
    }
}

/// Does a job for each of them, several at a time.
fn side_by_side(objects: &[Value], job: impl Fn(&Value) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let share = objects.len().div_ceil(PARALLEL).max(1);
        let parts = objects.chunks(share);
        let workers: Vec<_> = parts.map(|part| scope.spawn(|| part.iter().try_for_each(&job))).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

fn http_request(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

/// An object or a kind of objects.
#[derive(Clone, Debug)]
struct Target {
    resource: ApiResource,
    namespace: Option<String>,
    name: String,
}

impl Target {
    fn new(kind: &str, namespace: &str, name: &str) -> Result<Self> {
        let Some((version, kind, plural, namespaced)) = KINDS.iter().find(|known| known.1 == kind) else {
            bail!("the bed does not know the kind {kind:?}");
        };
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Ok(Self { resource, namespace: namespaced.then(|| namespace.to_owned()), name: name.to_owned() })
    }

    fn of(object: &Value) -> Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("an object without kind")?;
        let name = text("/metadata/name").context("an object without name")?;
        Self::new(kind, text("/metadata/namespace").unwrap_or("default"), name)
    }

    fn api(&self, client: Client) -> Api<DynamicObject> {
        match &self.namespace {
            Some(namespace) if !namespace.is_empty() => {
                Api::namespaced_with(client, namespace, &self.resource)
            }
            _ => Api::all_with(client, &self.resource),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        write!(f, "{} {namespace}/{}", self.resource.kind, self.name)
    }
}

/// A Namespace object.
pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}
