//! The objects, their changes, and what is seen of the answers.

use std::{
    collections::HashMap,
    future::Future,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fairlead_e2e::netns::Netns;
use fairlead_objects::EndpointSlice;
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client, Config,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

use super::usage::Written;
use crate::report::Samples;

/// Requests under way at once while objects are made.
const PARALLEL: usize = 16;
const DEADLINE: Duration = Duration::from_mins(3);
const NAMESPACE: &str = "default";

/// A client of the cluster.
pub(crate) struct Load {
    namespace: Arc<Netns>,
    kubeconfig: String,
}

impl Load {
    pub(crate) fn connect(namespace: &Arc<Netns>, kubeconfig: &str) -> Self {
        Self { namespace: Arc::clone(namespace), kubeconfig: kubeconfig.to_owned() }
    }

    /// Makes Nodes, and Services with ready Pods.
    pub(crate) fn fill(&self, nodes: usize, services: usize, pods_each: usize) -> Result<()> {
        self.run(|client| async move {
            let made = (0..nodes).map(|n| make(client.clone(), "Node", node(n)));
            stream::iter(made).buffer_unordered(PARALLEL).try_collect::<()>().await?;
            let made = (0..services).map(|i| make(client.clone(), "Service", service(&app(i))));
            stream::iter(made).buffer_unordered(PARALLEL).try_collect::<()>().await?;
            let pods = (0..services).flat_map(|i| (0..pods_each).map(move |n| (i, n)));
            let made = pods.map(|(i, n)| {
                let ip = Ipv4Addr::from(0x0A40_0000 + u32::try_from(i * pods_each + n).unwrap_or_default());
                add_pod(client.clone(), pod_name(&app(i), n), app(i), n % nodes.max(1), ip)
            });
            stream::iter(made).buffer_unordered(PARALLEL).try_collect::<()>().await
        })
    }

    /// Makes one Service with many ready Pods.
    pub(crate) fn fill_one(&self, name: &str, nodes: usize, pods: usize) -> Result<()> {
        let name = name.to_owned();
        self.run(move |client| async move {
            make(client.clone(), "Service", service(&name)).await?;
            let made = (0..pods).map(|n| {
                add_pod(
                    client.clone(),
                    pod_name(&name, n),
                    name.clone(),
                    n % nodes.max(1),
                    rolled_address(0, n),
                )
            });
            stream::iter(made).buffer_unordered(PARALLEL).try_collect::<()>().await
        })
    }

    /// Waits until slices hold so many ready endpoints, and says how long that took.
    pub(crate) fn await_slices(&self, endpoints: usize) -> Result<Duration> {
        let began = Instant::now();
        self.run(move |client| async move {
            let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
            loop {
                let list = slices.list(&ListParams::default()).await?;
                let ready = list.items.iter().map(ready_endpoints).sum::<usize>();
                // The API server's own slice has one more.
                if ready > endpoints {
                    return Ok(began.elapsed());
                }
                if began.elapsed() > DEADLINE {
                    bail!("only {ready} of {endpoints} endpoints are in slices");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// Flips the readiness of one Pod after the other at a steady pace.
    pub(crate) fn churn(
        &self,
        services: usize,
        pods_each: usize,
        a_second: u32,
        time: Duration,
    ) -> Result<(Duration, Samples)> {
        self.run(move |client| async move {
            let (expected, seen) = tokio::sync::mpsc::unbounded_channel();
            let watching = tokio::task::spawn_local(watch(client.clone(), seen));
            let began = Instant::now();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / a_second);
            let mut requests = tokio::task::JoinSet::new();
            let mut flips = 0;
            while began.elapsed() < time {
                ticks.tick().await;
                // Each Service in turn, so that no slice changes twice within a second.
                let pod = pod_name(&app(flips % services), flips / services % pods_each);
                flips += 1;
                expected.send((pod.clone(), Instant::now()))?;
                requests.spawn_local(set_ready(client.clone(), pod, false));
            }
            while let Some(done) = requests.join_next().await {
                done??;
            }
            drop(expected);
            let samples = tokio::time::timeout(DEADLINE, watching)
                .await
                .context("slices do not show every flip")???;
            Ok((began.elapsed(), samples))
        })
    }

    /// Replaces every Pod of a Service, one after the other, and waits until slices show only new ones.
    pub(crate) fn roll(&self, name: &str, nodes: usize, pods: usize) -> Result<Duration> {
        let name = name.to_owned();
        let began = Instant::now();
        self.run(move |client| async move {
            for n in 0..pods {
                let new = format!("{name}-new-{n}");
                add_pod(client.clone(), new, name.clone(), n % nodes.max(1), rolled_address(1, n)).await?;
                let api = api(client.clone(), "Pod");
                let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
                drop(api.delete(&pod_name(&name, n), &now).await?);
            }
            let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
            let selected = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
            loop {
                let list = slices.list(&selected).await?;
                let endpoints = list.items.iter().flat_map(|slice| &slice.endpoints);
                let targets: Vec<&str> =
                    endpoints.filter_map(|e| Some(&*e.target_ref.as_ref()?.name)).collect();
                if targets.len() == pods && targets.iter().all(|target| target.contains("-new-")) {
                    return Ok(began.elapsed());
                }
                if began.elapsed() > DEADLINE {
                    bail!("the slices of {name} do not show the new Pods");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// What was written to Endpoints and EndpointSlices so far, by anybody.
    pub(crate) fn written(&self) -> Result<Written> {
        self.run(|client| async move {
            let request = http::Request::get("/metrics").body(Vec::new())?;
            Ok(count_writes(&client.request_text(request).await?))
        })
    }

    /// Runs a job with a client on a thread inside the control plane's namespace.
    fn run<T: Send, F: Future<Output = Result<T>>>(&self, job: impl FnOnce(Client) -> F + Send) -> Result<T> {
        self.namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig)?;
                let config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                job(Client::try_from(config)?).await
            })
        })?
    }
}

/// Watches slices and takes the time from each expected flip to the slice that shows it.
async fn watch(
    client: Client,
    mut expected: tokio::sync::mpsc::UnboundedReceiver<(String, Instant)>,
) -> Result<Samples> {
    let slices = Api::<EndpointSlice>::namespaced(client, NAMESPACE);
    let version =
        slices.list(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
    let mut events = slices.watch(&WatchParams::default(), &version).await?.boxed();
    let mut pending = HashMap::<String, Instant>::new();
    let mut samples = Samples::default();
    let mut more = true;
    while more || !pending.is_empty() {
        tokio::select! {
            biased;
            flip = expected.recv(), if more => match flip {
                Some((pod, sent)) => drop(pending.insert(pod, sent)),
                None => more = false,
            },
            event = events.try_next() => {
                let Some(WatchEvent::Added(slice) | WatchEvent::Modified(slice)) = event? else { continue };
                let not_ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready == Some(false));
                for pod in not_ready.filter_map(|endpoint| Some(&endpoint.target_ref.as_ref()?.name)) {
                    if let Some(sent) = pending.remove(pod) {
                        samples.push(sent.elapsed());
                    }
                }
            }
        }
    }
    Ok(samples)
}

fn ready_endpoints(slice: &EndpointSlice) -> usize {
    slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready == Some(true)).count()
}

fn app(i: usize) -> String {
    format!("app-{i}")
}

fn pod_name(app: &str, n: usize) -> String {
    format!("{app}-{n}")
}

fn rolled_address(generation: u32, n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0AC8_0000 + (generation << 12) + u32::try_from(n).unwrap_or_default())
}

fn node(n: usize) -> Value {
    json!({"metadata": {"name": format!("node-{n}"), "labels": {"topology.kubernetes.io/zone": format!("zone-{}", n % 3)}}})
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name},
           "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

async fn make(client: Client, kind: &'static str, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    api(client, kind).create(&PostParams::default(), &object).await.map(drop).context(kind)
}

async fn add_pod(client: Client, name: String, app: String, node: usize, ip: Ipv4Addr) -> Result<()> {
    let pod = json!({"metadata": {"name": name, "labels": {"app": app}},
                     "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "main", "image": "main"}]}});
    make(client.clone(), "Pod", pod).await?;
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                                   "conditions": [{"type": "Ready", "status": "True"}]}});
    patch_status(client, &name, &status).await
}

async fn set_ready(client: Client, name: String, ready: bool) -> Result<()> {
    let word = if ready { "True" } else { "False" };
    patch_status(client, &name, &json!({"status": {"conditions": [{"type": "Ready", "status": word}]}})).await
}

async fn patch_status(client: Client, name: &str, status: &Value) -> Result<()> {
    let patch = Patch::Merge(status);
    api(client, "Pod")
        .patch_status(name, &PatchParams::default(), &patch)
        .await
        .map(drop)
        .context("Pod status")
}

fn api(client: Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind));
    if kind == "Node" {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, NAMESPACE, &resource)
    }
}

/// Sums up the API server's counters of requests that wrote our two kinds, and of the sizes of their bodies.
fn count_writes(metrics: &str) -> Written {
    let mut written = Written::default();
    for line in metrics.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let ours =
            series.contains("resource=\"endpointslices\"") || series.contains("resource=\"endpoints\"");
        let writes = ["POST", "PUT", "PATCH", "DELETE"]
            .iter()
            .any(|verb| series.contains(&format!("verb=\"{verb}\"")));
        let sizes = series.starts_with("apiserver_request_body_size_bytes_sum");
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole and positive"
        )]
        let value = value.parse::<f64>().unwrap_or_default() as u64;
        if ours && writes && series.starts_with("apiserver_request_total") {
            written.requests += value;
        } else if ours && sizes {
            written.bytes += value;
        }
    }
    written
}
