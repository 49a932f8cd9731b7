//! What operators do to a cluster while it is in use: upgrade and roll back with Helm, restart the API server, drain a
//! node, go over from kube-controller-manager's controllers and kube-proxy and back, uninstall.
//!
//! Invariant: requests to a Service go on all the while, and not one of them fails.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Cluster,
    cases::{self, Case},
    install::{self, helm},
};
use crate::{
    programs::{Make, Programmer},
    wait,
};

/// How long a change may take to be done everywhere.
const SETTLE: Duration = Duration::from_mins(2);

/// Chains that kubelet makes.
const KUBELETS: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "KUBE-FIREWALL"];

/// On a cluster where the chart is installed, in this order.
pub const ALL: &[Case] = &[
    ("helm upgrade and rollback under load", upgrade_and_roll_back),
    ("restart of the API server under load", restart_api_server),
    ("drain of a node under load", drain),
    ("loss of a node, and its return", lose_node),
    ("uninstall leaves no object and no rule", uninstall),
    ("from the genuine programs to the chart and back under load", take_over),
];

/// Requests that go on in a Pod on node1: a new connection each, to the ClusterIP of `my-service`.
struct Load<'a> {
    cluster: &'a Cluster,
}

/// A line per answer: its status, 000 when there was none.
const ASK: &str = "nohup sh -c 'while [ ! -e /tmp/stop ]; do \
     curl -s -m 3 -o /dev/null -w \"%{http_code}\\n\" http://$MY_SERVICE_SERVICE_HOST/hostname; sleep 0.02; \
     done > /tmp/answers; touch /tmp/stopped' > /dev/null 2>&1 &";

impl<'a> Load<'a> {
    fn start(cluster: &'a Cluster) -> Result<Self> {
        cases::apply(cluster, "my-service.yaml")?;
        cases::await_client(cluster, Some("node1"))?;
        cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", 2)?;
        cases::shell(cluster, ASK)?;
        let load = Self { cluster };
        load.await_more()?;
        Ok(load)
    }

    /// Waits until requests have gone through the state of things as it is now.
    fn await_more(&self) -> Result<()> {
        let before = self.count()?;
        wait::until_ok("more requests to be answered", SETTLE, || {
            let now = self.count()?;
            ensure!(now >= before + 20, "{before}, now {now}");
            Ok(())
        })
    }

    fn count(&self) -> Result<usize> {
        Ok(cases::shell(self.cluster, "wc -l < /tmp/answers")?.trim().parse()?)
    }

    /// Ends it, and fails when a request did.
    fn end(self) -> Result<usize> {
        self.await_more()?;
        cases::shell(self.cluster, "touch /tmp/stop")?;
        wait::until_ok("the requests to end", SETTLE, || cases::shell(self.cluster, "cat /tmp/stopped"))?;
        let answers = cases::shell(self.cluster, "sort /tmp/answers | uniq -c")?;
        let all = self.count()?;
        ensure!(
            answers.trim() == format!("{all} 200"),
            "requests failed; answers by status: {}",
            answers.trim()
        );
        Ok(all)
    }
}

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
    let load = Load::start(cluster)?;
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
    Load::start(cluster)?;
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
    let load = Load::start(cluster)?;
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
    // Rules stay for whoever takes them over, until they are told to go.
    for (node, host) in cluster.nodes() {
        Programmer::clean_up(install::place(cluster), host, node, Make::Ours)?;
        for save in ["iptables-save", "ip6tables-save"] {
            let rules = host.output(&mut Command::new(save))?;
            let left: Vec<&str> = rules
                .lines()
                .filter(|line| line.contains("KUBE-") && !KUBELETS.iter().any(|own| line.contains(own)))
                .collect();
            ensure!(left.is_empty(), "left on {}: {left:?}", node.name);
        }
    }
    Ok(())
}

/// Begins when nothing is installed.
fn take_over(cluster: &mut Cluster) -> Result<()> {
    start_genuine(cluster)?;
    Load::start(cluster)?;
    // Both controllers and both programmers are there for a while: ours wait, or leave alone what is right.
    install::install_chart(cluster, install::Await::Running)?;
    cluster.controller.take().context("no controller runs")?.stop()?;
    for programmer in std::mem::take(&mut cluster.programmers) {
        programmer.stop()?;
    }
    install::await_programs(cluster)?;
    follow_a_change(cluster, 3)?;
    // And back.
    cluster.kubectl(&["delete", "daemonset", "fairlead-programmer", "--namespace", install::NAMESPACE])?;
    wait::until_ok("the programmers to be gone", SETTLE, || {
        let left = pods(cluster)?;
        ensure!(!left.iter().any(|pod| pod.contains("programmer")), "{left:?}");
        Ok(())
    })?;
    start_genuine(cluster)?;
    helm(cluster, &["uninstall", install::RELEASE, "--namespace", install::NAMESPACE, "--wait"])?;
    follow_a_change(cluster, 2)?;
    report(cluster, Load { cluster }.end()?);
    Ok(())
}

/// Those who are in charge now put a change into effect.
fn follow_a_change(cluster: &Cluster, replicas: usize) -> Result<()> {
    cluster.kubectl(&["scale", "deployment", "my-app", &format!("--replicas={replicas}")])?;
    cases::await_servers(cluster, "http://$MY_SERVICE_SERVICE_HOST/hostname", replicas)?;
    Load { cluster }.await_more()
}

fn start_genuine(cluster: &mut Cluster) -> Result<()> {
    install::start_as(cluster, Make::Genuine, Make::Genuine)
}

fn report(cluster: &Cluster, requests: usize) {
    cluster.say(&format!("        {requests} requests, all answered"));
}
