//! What operators do to a cluster while it is in use: upgrade and roll back with Helm, restart the API server, drain a
//! node, go over from kube-controller-manager's controllers and kube-proxy and back, uninstall.
//!
//! Invariant: requests to a Service go on all the while, and not one of them fails.

mod other_mode;
mod release;

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    Cluster,
    cases::{self, Case},
    install::{self, helm},
    requests::Load,
    running::Running,
};
use crate::{
    programs::{Make, Programmer, Variant},
    wait,
};

/// How long a change may take to be done everywhere.
const SETTLE: Duration = Duration::from_mins(2);

/// The node that requests come from.
const CLIENT: &str = "node1";

/// Chains that kubelet makes.
const KUBELETS: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL"];

/// On a cluster where the chart is installed, in this order.
pub const ALL: &[Case] = &[
    ("rules are of the variant of iptables that kubelet has", follow_kubelet),
    ("helm test succeeds", release::test),
    (
        "values that the program refuses are named by the Pod's status, and rolled back under load",
        release::refuse_values,
    ),
    ("helm upgrade and rollback under load", upgrade_and_roll_back),
    ("restart of the API server under load", restart_api_server),
    ("drain of a node under load", drain),
    ("loss of a node, and its return", lose_node),
    ("uninstall leaves no object and no rule", uninstall),
    ("helm test fails where no programmer is", release::fail_the_test),
    ("from kube-proxy in mode nftables to the chart under load", other_mode::take_over_from_nftables),
    ("from the genuine programs to the chart and back under load", take_over),
];

/// The programs' Pods by name, oldest first.
fn pods(cluster: &Cluster) -> Result<Vec<String>> {
    let labels = format!("app.kubernetes.io/instance={}", install::RELEASE);
    let pods: Vec<Value> = cluster.kubernetes().list("Pod", install::NAMESPACE, &labels)?;
    let mut names: Vec<_> =
        pods.iter().filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn upgrade_and_roll_back(cluster: &mut Cluster) -> Result<()> {
    let load = Load::start_on(cluster, CLIENT)?;
    let folder = install::chart_folder()?;
    let steps: [&[&str]; 2] = [
        &[
            "upgrade",
            install::RELEASE,
            &folder,
            "--namespace",
            install::NAMESPACE,
            "--reuse-values",
            "--set",
            "programmer.podLabels.revision=two,controller.podLabels.revision=two",
        ],
        &["rollback", install::RELEASE, "1", "--namespace", install::NAMESPACE],
    ];
    for step in steps {
        let before = pods(cluster)?;
        helm(cluster, step)?;
        wait::until_ok("all Pods of the release to be new ones", SETTLE, || {
            let now = pods(cluster)?;
            ensure!(
                now.len() == before.len() && !now.iter().any(|pod| before.contains(pod)),
                "{before:?}, now {now:?}"
            );
            Ok(())
        })?;
        install::await_programs(cluster)?;
        load.await_more()?;
    }
    report(cluster, load.end()?);
    Ok(())
}

fn restart_api_server(cluster: &mut Cluster) -> Result<()> {
    Load::start_on(cluster, CLIENT)?;
    let Cluster { control, record, network, tools, .. } = cluster;
    control.restart_api_server(record, &network.control_plane, tools)?;
    let load = Load { cluster };
    // What changes afterwards is seen again.
    cluster.kubectl(&["scale", "deployment", "my-app", "--replicas=4"])?;
    cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", 4)?;
    report(cluster, load.end()?);
    Ok(())
}

fn drain(cluster: &mut Cluster) -> Result<()> {
    let load = Load::start_on(cluster, CLIENT)?;
    let last = format!("node{}", cluster.options.nodes);
    cluster.kubectl(&[
        "drain",
        &last,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=120s",
    ])?;
    wait::until_ok("the Pods to be elsewhere", SETTLE, || {
        let pods: Vec<Value> = cluster.kubernetes().list("Pod", "default", "app=my-app")?;
        ensure!(
            pods.len() == 2 && pods.iter().all(|pod| pod["spec"]["nodeName"] != *last),
            "{} Pods",
            pods.len()
        );
        Ok(())
    })?;
    cluster.await_condition("Deployment", "default", "my-app", "Available")?;
    let asked = load.end();
    cluster.kubectl(&["uncordon", &last])?;
    cluster.await_condition("Deployment", "kube-system", "coredns", "Available")?;
    report(cluster, asked?);
    Ok(())
}

/// Until the cluster notices, requests may go to the node that is not there: here they need not all be answered.
fn lose_node(cluster: &mut Cluster) -> Result<()> {
    cases::apply(cluster, "my-service.yaml")?;
    cases::await_client(cluster, Some("node1"))?;
    cluster.kubectl(&["scale", "deployment", "my-app", "--replicas=4"])?;
    cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", 4)?;
    let last = usize::from(cluster.options.nodes) - 1;
    let name = format!("node{}", last + 1);
    let there: Vec<Value> = cluster.kubernetes().list("Pod", "default", "app=my-app")?;
    let there = there.iter().filter(|pod| pod["spec"]["nodeName"] != *name).count();
    ensure!((1..4).contains(&there), "{there} of 4 Pods are not on {name}");
    cluster.kubelets[last].lose()?;
    cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", there)?;
    cluster.say(&format!("        {name} is lost, {there} of 4 Pods answer all requests"));
    cluster.kubelets[last].restart(&cluster.record, &cluster.network.nodes[last])?;
    cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", 4)?;
    install::await_programs(cluster)
}

fn uninstall(cluster: &mut Cluster) -> Result<()> {
    helm(cluster, &["uninstall", install::RELEASE, "--namespace", install::NAMESPACE, "--wait"])?;
    wait::until_ok("the Pods of the release to be gone", SETTLE, || {
        let left = pods(cluster)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    let kinds = "all,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,leases,\
                 poddisruptionbudgets,networkpolicies,endpointslices";
    let left = cluster.kubectl(&["get", kinds, "--all-namespaces", "--output=name"])?;
    let left: Vec<&str> = left.lines().filter(|name| name.contains("fairlead")).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    clean_up(cluster)
}

/// Rules stay for whoever takes them over, until they are told to go. Then none is left, of either variant.
fn clean_up(cluster: &Cluster) -> Result<()> {
    for (node, host) in cluster.nodes() {
        Programmer::clean_up(install::place(cluster), host, node, Make::Ours)?;
        for variant in [Variant::Nft, Variant::Legacy] {
            for save in ["iptables-save", "ip6tables-save"] {
                let rules = host.output(&mut Command::new(variant.program(save)))?;
                let left: Vec<&str> = rules
                    .lines()
                    .filter(|line| line.contains("KUBE-") && !KUBELETS.iter().any(|own| line.contains(own)))
                    .collect();
                ensure!(left.is_empty(), "left on {}: {left:?}", node.name);
            }
        }
    }
    Ok(())
}

/// Both variants are in the programmer's image, and in the kernel: kubelet's chains alone tell which one the node has.
fn follow_kubelet(cluster: &mut Cluster) -> Result<()> {
    for (node, host) in cluster.nodes() {
        for variant in [Variant::Nft, Variant::Legacy] {
            let rules = host.output(&mut Command::new(variant.program("iptables-save")))?;
            let here = cluster.options.variant == variant;
            for chain in ["KUBE-IPTABLES-HINT", "KUBE-SERVICES"] {
                let found = rules.contains(&format!(":{chain} "));
                ensure!(found == here, "{chain} on {}, {variant:?}: {found}\n{rules}", node.name);
            }
        }
    }
    Ok(())
}

/// Begins when nothing is installed.
fn take_over(cluster: &mut Cluster) -> Result<()> {
    start_genuine(cluster)?;
    Load::start_on(cluster, CLIENT)?;
    // Both controllers and both programmers are there for a while: ours wait, or leave alone what is right.
    install::install_chart(cluster, install::Await::Running, &[])?;
    install::stop_processes(cluster)?;
    install::await_programs(cluster)?;
    Load { cluster }.follow_a_change(3)?;
    // And back.
    cluster.kubectl(&["delete", "daemonset", "fairlead-programmer", "--namespace", install::NAMESPACE])?;
    wait::until_ok("the programmers to be gone", SETTLE, || {
        let left = pods(cluster)?;
        ensure!(!left.iter().any(|pod| pod.contains("programmer")), "{left:?}");
        Ok(())
    })?;
    start_genuine(cluster)?;
    helm(cluster, &["uninstall", install::RELEASE, "--namespace", install::NAMESPACE, "--wait"])?;
    Load { cluster }.follow_a_change(2)?;
    report(cluster, Load { cluster }.end()?);
    Ok(())
}

fn start_genuine(cluster: &mut Cluster) -> Result<()> {
    install::start_as(cluster, Make::Genuine, Make::Genuine, &[])
}

fn report(cluster: &Cluster, requests: usize) {
    cluster.say(&format!("        {requests} requests, all answered"));
}
