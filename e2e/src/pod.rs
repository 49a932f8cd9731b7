//! Pods: an object on the API server whose status the bed writes, and a namespace with a server per container port.
//!
//! Invariant: the bed is scheduler and kubelet at once. A Pod that is ready in the API has its servers listening before
//! anybody can hear of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    netns::Netns,
    plan::{Addresses, Families, Node},
    servers::{Protocol, Server},
};

/// A container port and the server behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, or empty.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl Port {
    /// A nameless TCP port.
    pub fn tcp(number: u16) -> Self {
        Self { name: String::new(), number, protocol: Protocol::Tcp }
    }

    /// A nameless UDP port.
    pub fn udp(number: u16) -> Self {
        Self { protocol: Protocol::Udp, ..Self::tcp(number) }
    }

    /// With a name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

/// A Pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its container's ports. A server listens on each.
    pub ports: Vec<Port>,
    /// The number of its node, from 1.
    pub node: u8,
    /// Whether it starts ready.
    pub ready: bool,
}

impl PodSpec {
    /// A ready Pod without ports, labelled `app: <app>`, in the namespace `default` on the first node.
    pub fn new(name: &str, app: &str) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ports: Vec::new(),
            node: 1,
            ready: true,
        }
    }

    /// On the n-th node, from 1.
    #[must_use]
    pub fn on(mut self, node: u8) -> Self {
        self.node = node;
        self
    }

    /// With one more port.
    #[must_use]
    pub fn port(mut self, port: Port) -> Self {
        self.ports.push(port);
        self
    }

    /// Not ready at first.
    #[must_use]
    pub fn not_ready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// In this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// What the Pod is called in a bed, and calls itself in answers: its name, outside `default` as `namespace/name`.
    pub fn reference(&self) -> String {
        if self.namespace == "default" {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }

    /// From a Deployment's template: the n-th of its Pods, from 1, on this node.
    pub fn from_deployment(deployment: &Value, n: u64, node: u8) -> Result<Self> {
        let text = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_str);
        let template = deployment.pointer("/spec/template").context("a Deployment without template")?;
        let labels = template.pointer("/metadata/labels").cloned().unwrap_or_default();
        let containers =
            template.pointer("/spec/containers").and_then(Value::as_array).context("no containers")?;
        let ports = containers.iter().filter_map(|container| container.get("ports")?.as_array()).flatten();
        Ok(Self {
            namespace: text("/metadata/namespace").unwrap_or("default").to_owned(),
            name: format!("{}-{n}", text("/metadata/name").context("a Deployment without name")?),
            labels: serde_json::from_value(labels).context("labels")?,
            ports: ports.map(port).collect::<Result<_>>()?,
            node,
            ready: true,
        })
    }

    /// The object to create.
    pub(crate) fn object(&self, node: &Node) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(port_object).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels},
            "spec": {
                "nodeName": node.name,
                "containers": [{"name": "server", "image": "server", "ports": ports}],
            },
        })
    }
}

fn port(object: &Value) -> Result<Port> {
    let number = object.get("containerPort").and_then(Value::as_u64).context("containerPort")?;
    let udp = object.get("protocol").and_then(Value::as_str) == Some("UDP");
    Ok(Port {
        name: object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
        number: u16::try_from(number)?,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
    })
}

fn port_object(port: &Port) -> Value {
    let mut object = json!({"containerPort": port.number, "protocol": port.protocol.to_string()});
    if let (false, Some(fields)) = (port.name.is_empty(), object.as_object_mut()) {
        fields.insert("name".to_owned(), json!(port.name));
    }
    object
}

/// The status of a running Pod.
pub(crate) fn status(addresses: &[IpAddr], host: &[IpAddr], is_ready: bool) -> Value {
    let ready = if is_ready { "True" } else { "False" };
    let list = |addresses: &[IpAddr]| addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    json!({
        "phase": "Running",
        "podIP": addresses.first(),
        "podIPs": list(addresses),
        "hostIP": host.first(),
        "hostIPs": list(host),
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": "True"},
            {"type": "ContainersReady", "status": ready},
            {"type": "Ready", "status": ready},
        ],
        "containerStatuses": [{
            "name": "server", "image": "server", "imageID": "server", "ready": is_ready, "started": true, "restartCount": 0,
            "state": {"running": {}},
        }],
    })
}

/// Namespace and name of an object that a test calls `name` (in `default`) or `namespace/name`.
pub(crate) fn split(reference: &str) -> (&str, &str) {
    reference.split_once('/').unwrap_or(("default", reference))
}

/// A Pod of the bed.
#[derive(Debug)]
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    /// Its node.
    pub node: Node,
    /// Its addresses.
    pub addresses: Addresses,
    /// Its namespace.
    pub netns: Arc<Netns>,
    /// The last byte of its addresses.
    pub(crate) number: u8,
    pub(crate) servers: Vec<Server>,
}

impl Pod {
    /// Starts a server for each port, on each address that the cluster knows.
    pub(crate) fn serve(&mut self, families: Families) -> Result<()> {
        for port in &self.spec.ports {
            for ip in self.addresses.known(families) {
                let address = SocketAddr::new(ip, port.number);
                let name = self.spec.reference();
                self.servers.push(Server::start(&self.netns, &name, port.protocol, address)?);
            }
        }
        Ok(())
    }
}
