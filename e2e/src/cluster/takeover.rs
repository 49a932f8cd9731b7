//! From kube-controller-manager's controllers and kube-proxy to the chart and back, on kind, by the commands of
//! `docs/migration.md` as they stand there.
//!
//! Invariants: every block of commands of its sections 1, 2, 3, 4 and 6 is carried out, or the run fails; requests go on
//! all the while, and not one fails.

mod operator;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    document::{self, Document},
    install::{NAMESPACE, RELEASE},
    judge::Judged,
    kind::{CONTROL_PLANE, Kind, WORKER},
    requests::Load,
    running::Running,
};
use crate::{tools, wait};

use operator::Operator;

/// How long a change may take to be done everywhere.
const SETTLE: Duration = Duration::from_mins(2);

/// Sections of the document.
const BEGIN: &str = "1. Before you begin";
const SHADOW: &str = "2. Look on, as a shadow";
const AT_ONCE: &str = "All at once";
const BY_NODE: &str = "Node by node";
const SWITCH_OFF: &str = "Switching the endpoint controllers off";
const CHECK: &str = "4. Check";
const BACK: &str = "6. Back";

/// The blocks of the last of them that are about all nodes.
const ALL_NODES_BACK: [&str; 6] = [
    "kubectl delete daemonset",
    "kubectl create",
    "kubectl patch",
    "kubectl rollout",
    "cp /etc/kubernetes",
    "helm uninstall",
];

/// Carries it out on a cluster that kind has made with the genuine programs: all at once and back, half-way node by node
/// and back, node by node to its end and back.
pub fn run(kind: &mut Kind) -> Result<()> {
    let carried_out = carry_out(kind);
    if carried_out.is_err() {
        println!("{}", tell(kind));
    }
    carried_out.and_then(|()| kind.check())
}

fn carry_out(kind: &Kind) -> Result<()> {
    let takeover = Takeover::begin(kind)?;
    takeover.load.check()?;

    kind.say("all at once");
    takeover.look_on()?;
    takeover.change_all_at_once()?;
    takeover.check(&[CONTROL_PLANE, WORKER], 3)?;
    takeover.go_back(2)?;

    kind.say("node by node, half-way");
    takeover.look_on()?;
    takeover.begin_by_node()?;
    takeover.change_node(WORKER)?;
    takeover.check(&[WORKER], 3)?;
    takeover.give_back_node(WORKER)?;
    takeover.load.follow_a_change(2)?;
    takeover.change_node(WORKER)?;
    takeover.go_back(3)?;

    kind.say("node by node");
    takeover.look_on()?;
    takeover.begin_by_node()?;
    takeover.change_node(WORKER)?;
    takeover.change_node(CONTROL_PLANE)?;
    takeover.end_by_node()?;
    takeover.check(&[CONTROL_PLANE, WORKER], 2)?;
    takeover.go_back(3)?;

    let requests = takeover.load.end()?;
    kind.say(&format!("{requests} requests, all answered"));
    Ok(())
}

struct Takeover<'a> {
    kind: &'a Kind,
    document: Document,
    operator: Operator<'a>,
    load: Load<'a>,
}

impl<'a> Takeover<'a> {
    /// Section 1, with requests that go on from now on.
    fn begin(kind: &'a Kind) -> Result<Self> {
        let document = Document::read(&tools::repository().join("docs/migration.md"))?;
        let operator = Operator::new(kind)?;
        let load = Load::start_on(kind, WORKER)?;
        kind.say("requests go on");
        let mut commands = document.commands(BEGIN)?;
        let files = document::lines(commands.next("kubectl get configmap")?);
        let [configuration, kubeconfig] = &files[..] else { anyhow::bail!("{files:?}") };
        let (configuration, kubeconfig) = (operator.run(configuration)?, operator.run(kubeconfig)?);
        operator.write_values(document.file(BEGIN, "values.yaml")?, &configuration, &kubeconfig)?;
        operator.run(commands.next("kubectl get daemonset kube-proxy")?)?;
        commands.end()?;
        Ok(Self { kind, document, operator, load })
    }

    /// Section 2: nothing diverges, before and after a change.
    fn look_on(&self) -> Result<()> {
        let mut commands = self.document.commands(SHADOW)?;
        self.operator.run(commands.next("helm install fairlead")?)?;
        let before = self.await_comparisons(None)?;
        self.load.follow_a_change(4)?;
        self.await_comparisons(Some(before.as_slice()))?;
        self.load.follow_a_change(2)?;
        let log = commands.next("kubectl logs")?.trim();
        // grep finds nothing.
        let found = self.operator.run(&format!("{log} || test $? = 1"))?;
        ensure!(found.is_empty(), "divergences were logged: {found}");
        commands.end()
    }

    /// Waits until both nodes' programmers and the controller have compared all there is, more often than `before`, and
    /// fails when anything diverges. Returns how often.
    fn await_comparisons(&self, before: Option<&[u64]>) -> Result<Vec<u64>> {
        let curl =
            self.document.quoted(SHADOW, "curl localhost:10349")?.replace("curl", "curl --silent --fail");
        wait::until_ok("the shadows to have compared everything", SETTLE, || {
            let mut reports: Vec<Value> = Vec::new();
            for node in [CONTROL_PLANE, WORKER] {
                reports.push(serde_json::from_str(&self.kind.on_node(node, &curl)?)?);
            }
            for pod in self.pods("controller")? {
                reports.push(serde_json::from_str(&self.ask_controller(&pod, "debug/divergence")?)?);
            }
            ensure!(reports.len() == 3, "{} shadows", reports.len());
            for (number, report) in reports.iter().enumerate() {
                let least = before.and_then(|before| before.get(number)).copied().unwrap_or_default();
                let settled = report["waiting"] == 0 && report["pending"] != true;
                ensure!(settled && report["comparisons"].as_u64() > Some(least), "{report}");
                ensure!(report["divergences"].as_array().is_some_and(Vec::is_empty), "{report}");
            }
            Ok(reports.iter().filter_map(|report| report["comparisons"].as_u64()).collect())
        })
    }

    /// Section 3, the first way.
    fn change_all_at_once(&self) -> Result<()> {
        let mut commands = self.document.commands(AT_ONCE)?;
        self.operator.run(commands.next("helm uninstall fairlead")?)?;
        let list = commands.next("kubectl get pods")?;
        wait::until_ok("the Pods of the release to run", SETTLE, || {
            let pods = rows(&self.operator.ask(list)?);
            let running =
                pods.iter().filter(|pod| pod.get(2).is_some_and(|phase| phase == "Running")).count();
            ensure!(running == 4 && pods.len() == 4, "{pods:?}");
            Ok(())
        })?;
        let said = self.document.quoted(AT_ONCE, "kube-proxy or another fairlead-programmer")?;
        for pod in self.pods("programmer")? {
            wait::until_ok("a programmer to say why it waits", SETTLE, || {
                let log = self.kind.kubectl(&["logs", "--namespace", NAMESPACE, &pod])?;
                ensure!(log.contains(&said), "{log}");
                Ok(())
            })?;
        }
        self.switch_off()?;
        self.operator.run(commands.next("kubectl delete daemonset kube-proxy")?)?;
        commands.end()
    }

    /// The controllers of kube-controller-manager, in its static Pod.
    fn switch_off(&self) -> Result<()> {
        let mut commands = self.document.commands(SWITCH_OFF)?;
        let flag = commands.next("--controllers=")?;
        let edit = commands.next("manifest=")?;
        let lease = commands.next("kubectl get lease")?;
        commands.end()?;
        self.restart_manager(edit, lease)?;
        let running = self.manager()?;
        for off in flag.trim().split(',').filter(|name| name.starts_with('-') && !name.contains('=')) {
            ensure!(running.contains(off), "kube-controller-manager runs without {off}: {running}");
        }
        Ok(())
    }

    /// Changes its manifest, and waits until it is another process that leads.
    fn restart_manager(&self, edit: &str, lease: &str) -> Result<()> {
        let holder = || -> Result<String> {
            let found = rows(&self.operator.ask(lease)?);
            found.first().and_then(|row| row.get(1)).cloned().context("no holder")
        };
        let before = holder()?;
        self.operator.run_on(CONTROL_PLANE, edit)?;
        wait::until_ok("kube-controller-manager to lead again", SETTLE, || {
            ensure!(holder()? != before, "still {before}");
            Ok(())
        })?;
        self.kind.say("    kube-controller-manager leads again");
        Ok(())
    }

    /// The command of kube-controller-manager.
    fn manager(&self) -> Result<String> {
        let command = "--output=jsonpath={.items[*].spec.containers[*].command}";
        let labels = "component=kube-controller-manager";
        self.kind.kubectl(&["get", "pods", "--namespace", NAMESPACE, "--selector", labels, command])
    }

    /// Section 3, the second way, until the first node's turn.
    fn begin_by_node(&self) -> Result<()> {
        let mut commands = self.document.commands(BY_NODE)?;
        self.operator.run(commands.next("kubectl patch daemonset kube-proxy")?)?;
        self.operator.run(commands.next("helm upgrade fairlead")?)?;
        self.switch_off()
    }

    /// Its fourth step, for one node.
    fn change_node(&self, node: &str) -> Result<()> {
        let mut commands = self.document.commands(BY_NODE)?;
        commands.pass(&["kubectl patch", "helm upgrade"])?;
        let block = commands.next("kubectl label node NODE")?.replace("NODE", node);
        let lines = document::lines(&block);
        let [label, list] = &lines[..] else { anyhow::bail!("{lines:?}") };
        self.operator.run(label)?;
        self.await_pods(list, "fairlead-programmer-", "kube-proxy-")
    }

    /// Its end, when all nodes have the label.
    fn end_by_node(&self) -> Result<()> {
        let mut commands = self.document.commands(BY_NODE)?;
        commands.pass(&["kubectl patch", "helm upgrade", "kubectl label"])?;
        self.operator.run(commands.next("helm upgrade fairlead")?)?;
        commands.end()
    }

    /// Section 4, as far as it is about these nodes.
    fn check(&self, nodes: &[&str], replicas: usize) -> Result<()> {
        let command = |begins: &str| self.document.quoted(CHECK, begins);
        self.operator.run(&command("kubectl rollout status deployment")?)?;
        self.operator.run(&command("kubectl rollout status daemonset")?)?;
        let tested = self.operator.run(&command("helm test")?)?;
        ensure!(tested.contains("Succeeded"), "{tested}");
        let holder = self.operator.run(&command("kubectl get lease")?)?;
        let controllers = self.pods("controller")?;
        ensure!(controllers.iter().any(|pod| holder.contains(&**pod)), "{holder} is none of {controllers:?}");
        self.load.follow_a_change(replicas)?;
        let explain = command("fairlead explain")?.replace("NAMESPACE/NAME", "default/my-service");
        let explained = self.operator.run(&explain)?;
        ensure!(!explained.contains("differs from"), "{explained}");
        for pod in controllers {
            wait::until_ok("nobody else to write", SETTLE, || {
                all_zero(&self.ask_controller(&pod, "metrics")?, &command("fairlead_contested")?)
            })?;
        }
        for node in nodes {
            let metrics = self.kind.on_node(node, "curl --silent --fail localhost:10249/metrics")?;
            all_zero(&metrics, &command("fairlead_quarantined")?)?;
        }
        Ok(())
    }

    /// Section 6, all nodes; then kube-controller-manager and kube-proxy put a change into effect.
    fn go_back(&self, replicas: usize) -> Result<()> {
        let mut commands = self.document.commands(BACK)?;
        self.operator.run(commands.next("kubectl delete daemonset fairlead-programmer")?)?;
        let (create, patch) = (commands.next("kubectl create")?, commands.next("kubectl patch")?);
        let there = self.kind.kubernetes().get::<Value>("DaemonSet", NAMESPACE, "kube-proxy")?.is_some();
        self.operator.run(if there { patch } else { create })?;
        self.operator.run(commands.next("kubectl rollout status daemonset/kube-proxy")?)?;
        let mut switching = self.document.commands(SWITCH_OFF)?;
        switching.pass(&["--controllers=", "manifest="])?;
        self.restart_manager(commands.next("cp /etc/kubernetes")?, switching.next("kubectl get lease")?)?;
        let running = self.manager()?;
        ensure!(!running.contains("-endpoint"), "{running}");
        self.operator.run(commands.next("helm uninstall fairlead")?)?;
        commands.pass(&["kubectl label node NODE"])?;
        commands.end()?;
        self.load.follow_a_change(replicas)?;
        self.load.check().map(drop)
    }

    /// Section 6, one node.
    fn give_back_node(&self, node: &str) -> Result<()> {
        let mut commands = self.document.commands(BACK)?;
        commands.pass(&ALL_NODES_BACK)?;
        let block = commands.next("kubectl label node NODE")?.replace("NODE", node);
        let lines = document::lines(&block);
        let [label, list, restart] = &lines[..] else { anyhow::bail!("{lines:?}") };
        self.operator.run(label)?;
        wait::until_ok("the programmer to be gone", SETTLE, || {
            let pods = self.operator.ask(list)?;
            ensure!(!pods.contains("fairlead-programmer-"), "{pods}");
            Ok(())
        })?;
        self.operator.run(restart)?;
        self.await_pods(list, "kube-proxy-", "fairlead-programmer-")
    }

    /// Waits until a list of Pods has a ready one whose name begins so, and none whose name begins otherwise.
    fn await_pods(&self, list: &str, ready: &str, gone: &str) -> Result<()> {
        wait::until_ok(&format!("{ready} in the place of {gone}"), SETTLE, || {
            let pods = rows(&self.operator.ask(list)?);
            let names = |start| {
                pods.iter().filter(move |pod| pod.first().is_some_and(|name| name.starts_with(start)))
            };
            let is_ready = names(ready).any(|pod| pod.get(1).is_some_and(|ready| ready == "1/1"));
            ensure!(is_ready && names(gone).next().is_none(), "{pods:?}");
            Ok(())
        })
    }

    /// The Pods of a component that are not about to end, by name.
    fn pods(&self, component: &str) -> Result<Vec<String>> {
        let labels = format!("app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}");
        let pods: Vec<Value> = self.kind.kubernetes().list("Pod", NAMESPACE, &labels)?;
        let pods = pods.iter().map(|pod| &pod["metadata"]).filter(|pod| pod["deletionTimestamp"].is_null());
        Ok(pods.filter_map(|pod| Some(pod["name"].as_str()?.to_owned())).collect())
    }

    /// Asks a controller by way of the API server.
    fn ask_controller(&self, pod: &str, path: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/{path}");
        self.kind.kubectl(&["get", "--raw", &path])
    }
}

/// The words of a table of kubectl's, without its heading.
fn rows(table: &str) -> Vec<Vec<String>> {
    table.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// Fails unless a gauge is there and is 0, whatever its labels.
fn all_zero(metrics: &str, name: &str) -> Result<()> {
    let mut values = metrics.lines().filter(|line| line.starts_with(name)).peekable();
    ensure!(values.peek().is_some(), "{name} is not there");
    let others: Vec<_> = values.filter(|line| !line.ends_with(" 0")).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}

/// What is to know when it went wrong.
fn tell(kind: &Kind) -> String {
    let all: [&[&str]; 3] = [
        &["get", "pods", "--all-namespaces", "--output=wide"],
        &[
            "logs",
            "--namespace",
            NAMESPACE,
            "--selector",
            "app.kubernetes.io/name=fairlead",
            "--prefix",
            "--tail=30",
        ],
        &["logs", "--namespace", NAMESPACE, "--selector", "k8s-app=kube-proxy", "--prefix", "--tail=15"],
    ];
    let told = all.map(|args| kind.kubectl(args).unwrap_or_else(|error| format!("{error:#}")));
    told.join("\n")
}
