//! The cluster: what an API server has now, as far as a question needs it.
//!
//! Invariants: nothing is ever written; only what the question needs is asked for, so that no more rights are needed
//! either; a right that is missing is named.

mod access;
mod failure;
mod server;

use fairlead_objects::{ServiceKey, ServiceType, labels};

pub(crate) use failure::ClusterError;

use crate::{
    args::Access,
    objects::{Kind, Objects, Origin},
};
use server::{Answer, Query, Server};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope<'a> {
    /// One Service, and all that decides about its endpoints.
    Service(&'a ServiceKey),
    /// All that the controller plans from.
    Controller,
    /// What the programmer of this node makes rules from.
    Programmer(&'a str),
}

/// Reads the cluster. Returns the objects, and what the user should know about them as whole lines.
pub(crate) fn read(access: &Access, scope: Scope<'_>) -> Result<(Objects, Vec<String>), ClusterError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ClusterError::Runtime)?.block_on(async {
        let server = Server::connect(access).await?;
        let mut gathering = Gathering::default();
        match scope {
            Scope::Service(key) => gathering.service(&server, key).await?,
            Scope::Controller => gathering.all(&server).await,
            Scope::Programmer(node) => gathering.of_node(&server, node).await,
        }
        gathering.finish()
    })
}

/// Objects and failures, as they come in.
#[derive(Default)]
struct Gathering {
    objects: Objects,
    failures: Vec<ClusterError>,
    notices: Vec<String>,
}

impl Gathering {
    fn finish(mut self) -> Result<(Objects, Vec<String>), ClusterError> {
        match self.failures.pop() {
            None => Ok((self.objects, self.notices)),
            Some(only) if self.failures.is_empty() => Err(only),
            Some(last) => {
                self.failures.push(last);
                Err(ClusterError::Several(self.failures))
            }
        }
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Ok(objects) => self.objects.absorb(objects),
            Err(failure) => self.failures.push(failure),
        }
    }

    async fn service(&mut self, server: &Server, key: &ServiceKey) -> Result<(), ClusterError> {
        let of_namespace = |kind| Query::new(kind).of(&key.namespace);
        let found = server.get(of_namespace(Kind::Service), &key.name).await;
        let unknown = found.as_ref().is_ok_and(|found| found.services.is_empty());
        self.objects.origin = Origin::Controller { nodes: true };
        self.take(found);
        let Some(service) = self.objects.services.get(key) else {
            if unknown {
                self.neighbours(server, key).await;
            }
            return Ok(());
        };
        let selector = service.selector.as_ref().filter(|selector| !selector.is_empty());
        let selector: Option<Vec<String>> = selector
            .filter(|_| service.kind != ServiceType::ExternalName)
            .map(|selector| selector.iter().map(|(key, value)| format!("{key}={value}")).collect());
        let slices =
            of_namespace(Kind::EndpointSlice).labelled(format!("{}={}", labels::SERVICE_NAME, key.name));
        let (endpoints, slices) =
            tokio::join!(server.get(of_namespace(Kind::Endpoints), &key.name), server.list(slices));
        self.take(endpoints);
        self.take(slices);
        if let Some(selector) = selector {
            let elsewhere = Query::new(Kind::Pod).labelled(selector.join(","));
            let (pods, nodes, elsewhere) = tokio::join!(
                server.list(of_namespace(Kind::Pod)),
                server.list(Query::new(Kind::Node)),
                server.list(elsewhere)
            );
            self.take(pods);
            self.take_nodes(nodes);
            // Only to show Pods that are in the wrong namespace.
            if elsewhere.as_ref().err().is_none_or(|failure| !failure.is_forbidden()) {
                self.take(elsewhere);
            }
        }
        Ok(())
    }

    /// Users of one namespace may seldom read Nodes; nearly everything can be told without. Slices have to be there before.
    fn take_nodes(&mut self, nodes: Answer) {
        match nodes {
            Err(failure) if failure.is_forbidden() => {
                self.objects.origin = Origin::Controller { nodes: false };
                self.objects.infer_nodes();
                self.notices.push(format!(
                    "warning: {failure}; the Nodes of Pods are not checked, and zones are known as far as slices tell them"
                ));
            }
            nodes => self.take(nodes),
        }
    }

    /// Services that may be meant instead: those of the namespace, and those of the same name elsewhere. Who may not list
    /// them is told less.
    async fn neighbours(&mut self, server: &Server, key: &ServiceKey) {
        let named = Query::new(Kind::Service).with_field(format!("metadata.name={}", key.name));
        let (near, elsewhere) =
            tokio::join!(server.list(Query::new(Kind::Service).of(&key.namespace)), server.list(named));
        for answer in [near, elsewhere] {
            if answer.is_ok() {
                self.take(answer);
            }
        }
    }

    async fn all(&mut self, server: &Server) {
        self.objects.origin = Origin::Controller { nodes: true };
        let list = |kind| server.list(Query::new(kind));
        let (services, pods, nodes, endpoints, slices) = tokio::join!(
            list(Kind::Service),
            list(Kind::Pod),
            list(Kind::Node),
            list(Kind::Endpoints),
            list(Kind::EndpointSlice)
        );
        for answer in [services, pods, endpoints, slices] {
            self.take(answer);
        }
        self.take_nodes(nodes);
    }

    async fn of_node(&mut self, server: &Server, node: &str) {
        self.objects.origin = Origin::Programmer;
        let list = |kind| server.list(Query::new(kind));
        let (services, slices, node) = tokio::join!(
            list(Kind::Service),
            list(Kind::EndpointSlice),
            server.get(Query::new(Kind::Node), node)
        );
        let unknown = node.as_ref().is_ok_and(|found| found.nodes.is_empty());
        for answer in [services, slices, node] {
            self.take(answer);
        }
        if unknown {
            // To say which there are.
            self.take(list(Kind::Node).await);
        }
    }
}
