//! What a release tells its operator: by `helm test`, by the status of a Pod whose values were wrong, by the log of one that
//! cannot reach the API server.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{CLIENT, SETTLE, pods, report};
use crate::{
    cluster::{
        Cluster,
        install::{self, NAMESPACE, RELEASE, helm},
        requests::Load,
        running::Running,
    },
    wait,
};

/// The Pod of `helm test`.
const TEST: &str = "fairlead-test";
/// Known to be wrong only by the program, which compares the two.
const WRONG: [&str; 2] =
    ["programmer.config.iptables.syncPeriod=1s", "programmer.config.iptables.minSyncPeriod=2s"];

fn of_release<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&[words[0], RELEASE], &words[1..], &["--namespace", NAMESPACE]].concat()
}

/// All objects that a release left or has, of the Pod of `helm test`.
fn objects_of_test(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = "pods,serviceaccounts,roles,rolebindings";
    let found = cluster.kubectl(&["get", kinds, "--all-namespaces", "--output=name"])?;
    Ok(found.lines().filter(|name| name.contains(TEST)).map(str::to_owned).collect())
}

pub(super) fn test(cluster: &mut Cluster) -> Result<()> {
    let told = helm(cluster, &of_release(&["test", "--logs"]))?;
    ensure!(told.contains("Succeeded") && told.contains("default/kubernetes"), "{told}");
    let left = objects_of_test(cluster)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Begins and ends when nothing is installed, and no rule is on any node.
pub(super) fn fail_the_test(cluster: &mut Cluster) -> Result<()> {
    let folder = install::chart_folder()?;
    let settings = "programmer.enabled=false,controller.replicas=1,image.pullPolicy=Never";
    helm(cluster, &of_release(&["install", &folder, "--set", settings]))?;
    // The controller was told of no address of the API server but the cluster IP, too.
    wait::until_ok("the controller to say that it cannot reach the API server", SETTLE, || {
        let log = cluster.kubectl(&["logs", "deployment/fairlead-controller", "--namespace", NAMESPACE])?;
        ensure!(log.contains("check that the API server runs and can be reached from here"), "{log}");
        let found: Vec<Value> =
            cluster.kubernetes().list("Pod", NAMESPACE, "app.kubernetes.io/component=controller")?;
        let status = &found.first().context("no Pod")?["status"]["containerStatuses"][0];
        ensure!(status["ready"] == false && status["restartCount"] == 0, "{status}");
        Ok(())
    })?;
    let test = helm(cluster, &of_release(&["test", "--logs"]));
    let refusal = test.err().context("the test succeeded")?.to_string();
    let words = "the API server at https://10.96.0.1/ cannot be reached";
    ensure!(refusal.contains("pod fairlead-test failed") && refusal.contains(words), "{refusal}");
    helm(cluster, &of_release(&["uninstall", "--wait"]))?;
    // It stays, for somebody to read its log, until the next test.
    let left = objects_of_test(cluster)?;
    ensure!(left == [format!("pod/{TEST}")], "{left:?}");
    cluster.kubectl(&["delete", "pod", TEST, "--namespace", NAMESPACE])?;
    Ok(())
}

/// What the program of a Pod last said before it ended.
fn last_words(pod: &Value) -> Vec<&str> {
    let of = |kind: &str| pod["status"][kind].as_array().into_iter().flatten();
    of("initContainerStatuses")
        .chain(of("containerStatuses"))
        .flat_map(|status| {
            ["/state/terminated/message", "/lastState/terminated/message"].map(|path| status.pointer(path))
        })
        .filter_map(|message| message?.as_str())
        .collect()
}

/// One node's Pod ends, and says why in its status. The other nodes keep theirs, and all keep their rules.
pub(super) fn refuse_values(cluster: &mut Cluster) -> Result<()> {
    let load = Load::start_on(cluster, CLIENT)?;
    let folder = install::chart_folder()?;
    helm(cluster, &of_release(&["upgrade", &folder, "--reuse-values", "--set", &WRONG.join(",")]))?;
    wait::until_ok("a Pod's status to name the value", SETTLE, || {
        let labels = "app.kubernetes.io/component=programmer";
        let found: Vec<Value> = cluster.kubernetes().list("Pod", NAMESPACE, labels)?;
        let told =
            |pod: &&Value| last_words(pod).iter().any(|words| words.contains("iptables.minSyncPeriod"));
        ensure!(
            found.iter().filter(told).count() == 1,
            "{:?}",
            found.iter().map(last_words).collect::<Vec<_>>()
        );
        Ok(())
    })?;
    load.await_more()?;
    helm(cluster, &of_release(&["rollback"]))?;
    install::await_programs(cluster)?;
    ensure!(pods(cluster)?.len() == usize::from(cluster.options.nodes) + 2);
    report(cluster, load.end()?);
    Ok(())
}
