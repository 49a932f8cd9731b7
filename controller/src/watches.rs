//! The watches: feed the index, and the queue with what became dirty by it.
//!
//! Services come first: Pods that arrive when their Services are known find them by their labels, while a Service that
//! arrives later has to look through all Pods of its namespace. Big lists come one after another for the same reason that
//! they are streamed: memory.
//!
//! Invariant: the lock of the index is released before the queue is told.

use std::{fmt::Debug, sync::Arc};

use fairlead_daemon::{
    readiness::{Gate, Readiness},
    watch::{Event, watch},
};
use fairlead_objects::{
    EndpointSlice, Endpoints, Node, NodeObject, Pod, PodObject, Service, ServiceKey, ServiceObject,
};
use fairlead_planner::Parts;
use futures::StreamExt;
use kube::{Api, Client, Resource};
use kube_runtime::watcher;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{
    index::{Dirty, Index, Kind},
    queue::Queue,
};

/// Pods that have ended are never endpoints. Not to see them makes their end arrive as a deletion.
const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// An object as a watch delivers it.
trait Watched: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    /// As the index wants it; made before its lock is taken.
    type View;
    const KIND: Kind;

    fn view(self) -> Self::View;
    fn apply(view: Self::View, index: &mut Index) -> Dirty;
    fn delete(view: &Self::View, index: &mut Index) -> Dirty;

    fn config() -> watcher::Config {
        watcher::Config::default()
    }
}

impl Watched for ServiceObject {
    type View = Service;
    const KIND: Kind = Kind::Services;

    fn view(self) -> Service {
        self.into()
    }

    fn apply(view: Service, index: &mut Index) -> Dirty {
        index.apply_service(view)
    }

    fn delete(view: &Service, index: &mut Index) -> Dirty {
        index.delete_service(&view.key)
    }
}

impl Watched for PodObject {
    type View = Pod;
    const KIND: Kind = Kind::Pods;

    fn view(self) -> Pod {
        self.into()
    }

    fn apply(view: Pod, index: &mut Index) -> Dirty {
        index.apply_pod(view)
    }

    fn delete(view: &Pod, index: &mut Index) -> Dirty {
        index.delete_pod(&view.namespace, &view.name)
    }

    fn config() -> watcher::Config {
        watcher::Config::default().fields(LIVE_PODS)
    }
}

impl Watched for NodeObject {
    type View = Node;
    const KIND: Kind = Kind::Nodes;

    fn view(self) -> Node {
        self.into()
    }

    fn apply(view: Node, index: &mut Index) -> Dirty {
        index.apply_node(view)
    }

    fn delete(view: &Node, index: &mut Index) -> Dirty {
        index.delete_node(&view.name)
    }
}

impl Watched for Endpoints {
    type View = Self;
    const KIND: Kind = Kind::Endpoints;

    fn view(self) -> Self {
        self
    }

    fn apply(view: Self, index: &mut Index) -> Dirty {
        index.apply_endpoints(view)
    }

    fn delete(view: &Self, index: &mut Index) -> Dirty {
        let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
        let key = ServiceKey { namespace: text(&view.metadata.namespace), name: text(&view.metadata.name) };
        index.delete_endpoints(&key, view)
    }
}

impl Watched for EndpointSlice {
    type View = Self;
    const KIND: Kind = Kind::EndpointSlices;

    fn view(self) -> Self {
        self
    }

    fn apply(view: Self, index: &mut Index) -> Dirty {
        index.apply_slice(view)
    }

    fn delete(view: &Self, index: &mut Index) -> Dirty {
        index.delete_slice(view)
    }
}

/// Kinds that these parts need to know, in the order in which their lists should come.
pub fn needed(parts: Parts) -> Vec<Kind> {
    let needs = |kind: &Kind| match kind {
        Kind::Services | Kind::Endpoints => true,
        Kind::Pods => parts.endpoints || parts.slices,
        Kind::Nodes => parts.slices,
        Kind::EndpointSlices => parts.slices || parts.mirror,
    };
    Kind::ALL.into_iter().filter(needs).collect()
}

/// Starts watches of these kinds, and opens the queue when the lists of all of them are complete.
#[derive(Clone)]
pub struct Watches {
    /// For requests.
    pub client: Client,
    /// To be fed.
    pub index: Arc<Mutex<Index>>,
    /// To be told.
    pub queue: Arc<Queue>,
}

impl Watches {
    /// Runs for ever.
    pub async fn run(self, kinds: Vec<Kind>, readiness: &Readiness) {
        let gates: Vec<(Kind, Gate)> =
            kinds.into_iter().map(|kind| (kind, readiness.gate(kind.as_str()))).collect();
        let opening = {
            let gates = gates.clone();
            let queue = Arc::clone(&self.queue);
            async move {
                for (_, gate) in gates {
                    gate.opened().await;
                }
                tracing::info!("all initial lists are complete");
                queue.open();
                std::future::pending::<()>().await;
            }
        };
        let mut running: Vec<futures::future::BoxFuture<'static, ()>> = vec![Box::pin(opening)];
        let mut before: Option<Gate> = None;
        for (kind, gate) in gates {
            let watches = self.clone();
            let after = before.replace(gate.clone());
            running.push(Box::pin(async move {
                if let Some(after) = after {
                    after.attempted().await;
                }
                watches.pump_kind(kind, gate).await;
            }));
        }
        futures::future::join_all(running.into_iter().map(tokio::spawn)).await;
    }

    async fn pump_kind(&self, kind: Kind, gate: Gate) {
        match kind {
            Kind::Services => self.pump::<ServiceObject>(gate).await,
            Kind::Pods => self.pump::<PodObject>(gate).await,
            Kind::Nodes => self.pump::<NodeObject>(gate).await,
            Kind::EndpointSlices => self.pump::<EndpointSlice>(gate).await,
            Kind::Endpoints => self.pump::<Endpoints>(gate).await,
        }
    }

    async fn pump<K: Watched>(&self, gate: Gate) {
        let events = watch::<K>(Api::all(self.client.clone()), K::config(), gate);
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let dirty = match event {
                Event::Init => {
                    self.index.lock().begin(K::KIND);
                    continue;
                }
                Event::InitDone => self.index.lock().sweep(K::KIND),
                Event::InitApply(object) | Event::Apply(object) => {
                    let view = object.view();
                    K::apply(view, &mut self.index.lock())
                }
                Event::Delete(object) => {
                    let view = object.view();
                    K::delete(&view, &mut self.index.lock())
                }
            };
            if !dirty.is_empty() {
                self.queue.mark(dirty, Instant::now());
            }
        }
    }
}
