//! The network of a bed: a switch that joins the hosts (control plane, nodes, a client outside, servers outside), and
//! Pods joined to their node.
//!
//! ```text
//!   control-plane .10   node1 .11   node2 .12   outside .100   external .200 ...
//!          |               |  \         |  \         |              |
//!          |               |  pod      |  pod       |              |  (a veth pair and two /32 routes each)
//!          +---------------+-----------+------------+--------------+   switch: one bridge
//! ```
//!
//! Invariants: every link is made inside these namespaces, none touches the machine's own network, and none has a
//! route to it. Pods are joined by routed veths, as a point-to-point CNI plugin does it, so a packet that a Pod sends
//! to itself by way of a Service goes through its node like any other.

use std::{fmt::Write, net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result};

use crate::{
    netns::Netns,
    plan::{self, Addresses, Node},
    record::Record,
};

/// Forwarding on, no waiting for duplicate addresses, no redirects (a Pod's packet to itself leaves by the link it came
/// in by), and none of the bridge's packets through iptables.
const NODE: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // A test is refused more often in a second than the kernel says so by itself.
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_msgs_per_sec", "100000"),
    ("ipv4/icmp_msgs_burst", "10000"),
    ("ipv6/icmp/ratelimit", "0"),
];
const HOST: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    // A packet sent before a rule is there must not teach its sender another way for those that come after.
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
];
const SWITCH: &[(&str, &str)] = &[
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];

/// The network.
#[derive(Debug)]
pub struct Network {
    /// Where etcd, the API server and the controllers run.
    pub control_plane: Arc<Netns>,
    /// Per node, in the order of the plan.
    pub nodes: Vec<Arc<Netns>>,
    /// The client outside.
    pub outside: Arc<Netns>,
    switch: Netns,
    plan: Vec<Node>,
}

impl Network {
    /// Builds it.
    pub fn build(record: &Record, plan: &[Node]) -> Result<Self> {
        let switch = Netns::create(record, "switch")?;
        switch.ip("link add br0 type bridge\nlink set br0 up\n")?;
        switch.sysctl(SWITCH)?;
        let control_plane = join(record, &switch, "control-plane", plan::control_plane())?;
        control_plane.ip(&routes_to_pods(plan, None))?;
        let outside = join(record, &switch, "outside", plan::outside())?;
        let mut nodes = Vec::new();
        for node in plan {
            let namespace = join(record, &switch, &node.name, node.addresses)?;
            namespace.sysctl(NODE)?;
            let gateway = plan::control_plane();
            let mut routes = routes_to_pods(plan, Some(node.number));
            writeln!(routes, "route add default via {}", gateway.v4)?;
            writeln!(routes, "route add ::/0 via {}", gateway.v6)?;
            namespace.ip(&routes)?;
            nodes.push(Arc::new(namespace));
        }
        Ok(Self {
            control_plane: Arc::new(control_plane),
            nodes,
            outside: Arc::new(outside),
            switch,
            plan: plan.to_vec(),
        })
    }

    /// Adds a host outside the cluster that has `address` beside its own; nodes, and Pods through them, reach it there.
    pub fn add_external(&self, record: &Record, number: u8, address: Ipv4Addr) -> Result<Arc<Netns>> {
        let own = plan::external(number);
        let host = join(record, &self.switch, &format!("external{number}"), own)?;
        host.ip(&format!("addr add {address}/32 dev lo\n{}", routes_to_pods(&self.plan, None)))?;
        for node in self.nodes.iter().chain([&self.control_plane]) {
            node.ip(&format!("route add {address}/32 via {}\n", own.v4))?;
        }
        Ok(Arc::new(host))
    }

    /// Adds a Pod's namespace, with the n-th address of the node's Pod network, joined to its node.
    pub fn add_pod(&self, record: &Record, node: &Node, n: u8, name: &str) -> Result<Arc<Netns>> {
        let namespace = Netns::create(record, name)?;
        namespace.sysctl(HOST)?;
        let on = self.node(node)?;
        let (own, gateway, link) = (node.pod(n), node.pod(1), pod_link(n));
        on.ip(&format!(
            "link add {link} type veth peer name eth0 netns {}\n\
             addr add {}/32 dev {link}\n\
             addr add {}/128 dev {link} nodad\n\
             link set {link} up\n\
             route add {}/32 dev {link}\n\
             route add {}/128 dev {link}\n",
            namespace.path().display(),
            gateway.v4,
            gateway.v6,
            own.v4,
            own.v6,
        ))?;
        namespace.ip(&format!(
            "link set eth0 up\n\
             addr add {}/32 dev eth0\n\
             addr add {}/128 dev eth0 nodad\n\
             route add default via {} dev eth0 onlink\n\
             route add ::/0 via {} dev eth0 onlink\n",
            own.v4, own.v6, gateway.v4, gateway.v6,
        ))?;
        Ok(Arc::new(namespace))
    }

    /// Cuts a Pod off: its link goes, and with it the routes to it.
    pub fn remove_pod(&self, node: &Node, n: u8) -> Result<()> {
        self.node(node)?.ip(&format!("link del {}\n", pod_link(n)))
    }

    fn node(&self, node: &Node) -> Result<&Arc<Netns>> {
        self.nodes.get(usize::from(node.number) - 1).with_context(|| format!("no {}", node.name))
    }
}

/// The node's end of the link to the Pod with the n-th address.
pub(crate) fn pod_link(n: u8) -> String {
    format!("pod{n}")
}

fn join(record: &Record, switch: &Netns, name: &str, addresses: Addresses) -> Result<Netns> {
    let namespace = Netns::create(record, name)?;
    namespace.sysctl(HOST)?;
    switch.ip(&format!(
        "link add p-{name} type veth peer name eth0 netns {}\nlink set p-{name} master br0 up\n",
        namespace.path().display()
    ))?;
    namespace.ip(&format!(
        "link set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
        addresses.v4, addresses.v6
    ))?;
    Ok(namespace)
}

/// Lines for `ip`: the ways to the Pods of all nodes, or of all others for a node.
fn routes_to_pods(plan: &[Node], except: Option<u8>) -> String {
    let others = plan.iter().filter(|node| Some(node.number) != except);
    let routes = others.flat_map(|node| {
        let (v4, v6) = node.pod_networks();
        let Addresses { v4: via4, v6: via6 } = node.addresses;
        [format!("route add {v4} via {via4}\n"), format!("route add {v6} via {via6}\n")]
    });
    routes.collect()
}
