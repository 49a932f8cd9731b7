//! `fairlead` on a living cluster: what it reads from the API server and from a node's kernel, and what it says when it may not.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed, From, Outcome, PodSpec, Port, Protocol, bed::SETTLE, cases, netns::Netns, suite, tools, wait,
};
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["my-app-1", "my-app-2"];

fn main() -> ExitCode {
    suite::run(
        Bed::start_programs,
        cases![
            explaining_a_service_shows_its_pods_and_slices_as_they_are,
            what_the_cluster_has_otherwise_than_planned_is_told,
            a_service_without_any_pod_is_explained_by_pods_that_nearly_match,
            an_unknown_service_is_answered_with_those_that_may_be_meant,
            missing_rights_are_named_and_those_of_a_namespace_are_enough,
            a_cluster_that_does_not_answer_is_told_from_none_at_all,
            the_plugin_of_kubectl_speaks_under_its_name,
            rendered_endpoints_are_those_that_the_controller_wrote,
            rules_of_the_cluster_lead_where_those_in_the_kernel_lead,
            counters_of_the_deciding_rules_tell_what_was_sent,
            a_refusal_is_traced_to_its_rule,
        ],
    )
}

/// What a command said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("no JSON: {self:?}"))
    }
}

/// Runs a command somewhere, with `input` as its standard input.
fn run(netns: &Netns, command: &mut Command, input: &str) -> Result<Said> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = netns.run(|| -> std::io::Result<_> {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// `fairlead` where the API server can be reached; it finds that by `kubeconfig`.
fn fairlead(bed: &Bed, kubeconfig: &Path, args: &[&str]) -> Result<Said> {
    let mut command = Command::new(tools::own_program("fairlead")?);
    command.args(args).env("KUBECONFIG", kubeconfig).env_remove("KUBERNETES_SERVICE_HOST");
    run(bed.client(From::ControlPlane)?.namespace(), &mut command, "")
}

fn explain(bed: &Bed, more: &[&str]) -> Result<Said> {
    let args = [&["explain", "service", "default/my-service"], more].concat();
    fairlead(bed, &bed.kubeconfig(), &args)
}

/// `fairlead trace --live` on the n-th node.
fn trace_live(bed: &Bed, node: u8, from: &str, to: SocketAddr, more: &[&str]) -> Result<Said> {
    let to = format!("{to}/TCP");
    let mut command = Command::new(tools::own_program("fairlead")?);
    command.args(["trace", "--live", "--from", from, "--to", &to]).args(more);
    run(bed.node_netns(node)?, &mut command, "")
}

fn up(bed: &mut Bed) -> Result<SocketAddr> {
    bed.apply_example("my-service.yaml")?;
    bed.add_pod(PodSpec::new("client", "client").on(1))?;
    let target = SocketAddr::new(bed.cluster_ip("my-service")?, 80);
    bed.await_servers(From::Node(1), Protocol::Tcp, target, &BOTH)?;
    bed.await_endpoints("my-service", &BOTH)?;
    Ok(target)
}

fn explaining_a_service_shows_its_pods_and_slices_as_they_are(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let report = wait::until_ok("nothing to be left for the controller to do", SETTLE, || {
        let said = explain(bed, &["-o", "json"])?;
        ensure!(said.code == Some(0), "{said:?}");
        let report = said.json()?;
        ensure!(
            report["slices"][0]["change"] == "keep" && report["endpoints"]["change"] == "keep",
            "{report}"
        );
        Ok(report)
    })?;
    assert_eq!(report["counts"], json!({"serves": 2}));
    assert_eq!(report.get("divergences"), None, "{report}");
    let slice: Vec<Value> =
        bed.kubernetes().list("EndpointSlice", "default", "kubernetes.io/service-name=my-service")?;
    assert_eq!(report["slices"][0]["name"], slice[0]["metadata"]["name"]);
    for pod in BOTH {
        let told = report["pods"].as_array().into_iter().flatten().find(|told| told["name"] == pod);
        let told = told.with_context(|| format!("{pod} is not in {report}"))?;
        let found = |gate: &str| {
            let gates = told["gates"].as_array().into_iter().flatten();
            gates.clone().find(|other| other["gate"] == gate).map(|gate| gate["found"].clone())
        };
        assert_eq!(found("node"), Some(json!(format!("node{}", bed.pod(pod)?.node.number))));
        assert_eq!(found("address"), Some(json!(bed.pod(pod)?.addresses.v4)));
    }
    Ok(())
}

fn what_the_cluster_has_otherwise_than_planned_is_told(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    bed.stop_controller()?;
    bed.set_ready("my-app-1", false)?;
    bed.add_pod(PodSpec::new("my-app-3", "my-app").on(2).port(Port::tcp(8080)))?;
    let address = |bed: &Bed, pod: &str| Ok::<_, anyhow::Error>(bed.pod(pod)?.addresses.v4.to_string());
    let (first, third) = (address(bed, "my-app-1")?, address(bed, "my-app-3")?);
    let said = explain(bed, &["-o", "json"])?;
    let report = said.json()?;
    let divergence = |object: &str, address: &str| {
        let all = report["divergences"].as_array().into_iter().flatten();
        let mut found = all.filter(|one| one["object"] == object && one["address"] == address);
        found.next().map(|one| (one["present"].clone(), one["planned"].clone()))
    };
    for object in ["EndpointSlice", "Endpoints"] {
        assert_eq!(divergence(object, &first), Some((json!(["ready"]), json!(["not ready"]))), "{report}");
        assert_eq!(divergence(object, &third), Some((json!([]), json!(["ready"]))), "{report}");
        assert_eq!(divergence(object, &address(bed, "my-app-2")?), None, "{report}");
    }
    let text = explain(bed, &[])?.stdout;
    ensure!(text.contains("Where the cluster differs from what the controller would leave"), "{text}");
    ensure!(text.contains("my-app-1, readiness") && text.contains("update"), "{text}");

    bed.start_controller(&[])?;
    wait::until_ok("the controller to have done it", SETTLE, || {
        let text = explain(bed, &[])?.stdout;
        ensure!(!text.contains("Where the cluster differs"), "{text}");
        Ok(())
    })
}

/// Pods of other namespaces count as near, too: who may do everything may see them.
fn a_service_without_any_pod_is_explained_by_pods_that_nearly_match(bed: &mut Bed) -> Result<()> {
    bed.kubernetes()
        .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "my-service"},
        "spec": {"selector": {"app": "my-app"}, "ports": [{"port": 80}]}}))?;
    bed.kubernetes().apply(&fairlead_e2e::kubernetes::namespace("elsewhere"))?;
    bed.add_pod(PodSpec::new("wrong", "my-apps"))?;
    bed.add_pod(PodSpec::new("strayed", "my-app").namespace("elsewhere"))?;
    let said = explain(bed, &[])?;
    assert_eq!(said.code, Some(1), "{said:?}");
    for line in [
        "It has no endpoint that gets traffic.",
        "label app=my-apps, wanted app=my-app",
        "elsewhere/strayed",
        "namespace elsewhere, wanted default",
    ] {
        ensure!(said.stdout.contains(line), "no {line:?}: {said:?}");
    }
    Ok(())
}

fn an_unknown_service_is_answered_with_those_that_may_be_meant(bed: &mut Bed) -> Result<()> {
    bed.apply_example("my-service.yaml")?;
    let ask = |name: &str| fairlead(bed, &bed.kubeconfig(), &["explain", "service", name]);
    for (asked, answer) in [
        ("default/my-sevice", "is not in the cluster; namespace default has my-service and 1 more"),
        ("elsewhere/my-service", "is not in the cluster; there is default/my-service"),
        ("nowhere/at-all", "is not in the cluster; there is no Service in namespace nowhere"),
    ] {
        let said = ask(asked)?;
        assert_eq!((said.code, &*said.stdout), (Some(2), ""), "{said:?}");
        ensure!(said.stderr.contains(answer), "no {answer:?}: {said:?}");
    }
    Ok(())
}

/// A kubeconfig of somebody who may do what RBAC grants to `user`, and nothing else.
fn kubeconfig_as(bed: &Bed, user: &str) -> Result<PathBuf> {
    let mut kubeconfig: Value = serde_json::from_str(&fs::read_to_string(bed.kubeconfig())?)?;
    kubeconfig["users"][0]["user"]["as"] = json!(user);
    let path = bed.dir().join(format!("{user}.kubeconfig"));
    fs::write(&path, kubeconfig.to_string())?;
    Ok(path)
}

fn missing_rights_are_named_and_those_of_a_namespace_are_enough(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let reader = kubeconfig_as(bed, "reader")?;
    let ask = |bed: &Bed| fairlead(bed, &reader, &["explain", "service", "default/my-service"]);
    let said = ask(bed)?;
    assert_eq!((said.code, &*said.stdout), (Some(2), ""), "{said:?}");
    ensure!(said.stderr.contains("the right to get services in namespace default is missing"), "{said:?}");
    ensure!(said.stderr.contains("User \"reader\" cannot get resource \"services\""), "{said:?}");

    bed.kubectl(&["create", "role", "services", "--verb=get,list", "--resource=services"])?;
    bed.kubectl(&["create", "rolebinding", "services", "--role=services", "--user=reader"])?;
    let named = wait::until_ok("the first right to be in force", SETTLE, || {
        let said = ask(bed)?;
        ensure!(!said.stderr.contains("get services"), "{said:?}");
        Ok(said)
    })?;
    assert_eq!(named.code, Some(2), "{named:?}");
    for right in ["get endpoints", "list endpointslices", "list pods"] {
        ensure!(
            named.stderr.contains(&format!("the right to {right} in namespace default is missing")),
            "{named:?}"
        );
    }
    ensure!(
        named.stderr.contains("apiGroups \"discovery.k8s.io\", resources \"endpointslices\", verbs \"list\""),
        "{named:?}"
    );

    let resources = "--resource=endpoints,pods,endpointslices.discovery.k8s.io";
    bed.kubectl(&["create", "role", "rest", "--verb=get,list", resources])?;
    bed.kubectl(&["create", "rolebinding", "rest", "--role=rest", "--user=reader"])?;
    let told = wait::until_ok("the other rights to be in force", SETTLE, || {
        let said = ask(bed)?;
        ensure!(said.code == Some(0), "{said:?}");
        Ok(said)
    })?;
    ensure!(
        told.stderr.contains("warning: the right to list nodes in the whole cluster is missing"),
        "{told:?}"
    );
    ensure!(told.stdout.contains("It has 2 endpoints that get traffic."), "{told:?}");
    ensure!(told.stdout.contains("not checked"), "{told:?}");
    // Not even for the zones, which slices tell.
    ensure!(!told.stdout.contains("Where the cluster differs"), "{told:?}");
    bed.kubectl(&["delete", "rolebinding,role", "--all"]).map(drop)
}

fn a_cluster_that_does_not_answer_is_told_from_none_at_all(bed: &mut Bed) -> Result<()> {
    let mut kubeconfig: Value = serde_json::from_str(&fs::read_to_string(bed.kubeconfig())?)?;
    kubeconfig["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    let dead = bed.dir().join("dead.kubeconfig");
    fs::write(&dead, kubeconfig.to_string())?;
    let (dead, alive) = (dead.display().to_string(), bed.kubeconfig().display().to_string());
    for (args, answer) in [
        (vec!["--kubeconfig", &dead], "the API server at https://127.0.0.1:1/ cannot be reached"),
        (vec!["--kubeconfig", "/nonexistent"], "there is no cluster to ask"),
        (vec!["--kubeconfig", &alive, "--context", "other"], "there is no cluster to ask"),
        (vec![], "there is no cluster to ask"),
    ] {
        let args = [&["explain", "service", "default/my-service"], &*args].concat();
        let said = fairlead(bed, Path::new("/nonexistent"), &args)?;
        assert_eq!((said.code, &*said.stdout), (Some(2), ""), "{said:?}");
        ensure!(said.stderr.contains(answer), "no {answer:?}: {said:?}");
    }
    let args = ["explain", "service", "default/kubernetes", "--kubeconfig", &alive, "--context", "bed"];
    let said = fairlead(bed, Path::new("/nonexistent"), &args)?;
    assert_eq!(said.code, Some(0), "{said:?}");
    Ok(())
}

fn the_plugin_of_kubectl_speaks_under_its_name(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    let dir = bed.dir().join("plugins");
    fs::create_dir(&dir)?;
    symlink(tools::own_program("fairlead")?, dir.join("kubectl-fairlead"))?;
    let kubectl = |args: &[&str]| {
        let mut command = Command::new(bed.tools().program("kubectl"));
        let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
        command
            .arg("fairlead")
            .args(args)
            .env("PATH", path)
            .env("HOME", bed.dir())
            .env("KUBECONFIG", bed.kubeconfig());
        run(bed.client(From::ControlPlane)?.namespace(), &mut command, "")
    };
    let said = kubectl(&["explain", "service", "default/my-service"])?;
    assert_eq!(said.stdout, explain(bed, &[])?.stdout, "{said:?}");
    let help = kubectl(&["explain", "service", "--help"])?;
    ensure!(help.stdout.contains("Usage: kubectl fairlead explain service"), "{help:?}");
    Ok(())
}

fn rendered_endpoints_are_those_that_the_controller_wrote(bed: &mut Bed) -> Result<()> {
    up(bed)?;
    wait::until_ok("the controller to have written what is rendered", SETTLE, || {
        let said = fairlead(bed, &bed.kubeconfig(), &["render", "endpoints", "-o", "json"])?;
        ensure!(said.code == Some(0), "{said:?}");
        let rendered = said.json()?;
        let items = rendered["items"].as_array().context("no items")?;
        ensure!(items.len() == 4, "not those of my-service and of kubernetes: {rendered}");
        items.iter().try_for_each(|object| check_stored(bed, object))
    })
}

fn check_stored(bed: &Bed, object: &Value) -> Result<()> {
    let kind = object["kind"].as_str().context("no kind")?;
    let name = object["metadata"]["name"].as_str().context("no name")?;
    let stored: Option<Value> = bed.kubernetes().get(kind, "default", name)?;
    let stored = stored.with_context(|| format!("{kind} {name} is rendered and not there"))?;
    for part in ["endpoints", "subsets", "ports"] {
        ensure!(object.get(part) == stored.get(part), "{part} of {kind} {name}: {object} {stored}");
    }
    Ok(())
}

fn rules_of_the_cluster_lead_where_those_in_the_kernel_lead(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let (from, to) = (bed.pod("client")?.addresses.v4.to_string(), format!("{target}/TCP"));
    let compiled = wait::until_ok("the tracer to reach both Pods", SETTLE, || {
        let args = ["trace", "--node", "node1", "--from", &from, "--to", &to, "-o", "json"];
        let report = fairlead(bed, &bed.kubeconfig(), &args)?.json()?;
        ensure!(report["targets"].as_array().is_some_and(|targets| targets.len() == 2), "{report}");
        Ok(report)
    })?;
    let installed = trace_live(bed, 1, &from, target, &["-o", "json"])?.json()?;
    for part in ["verdict", "targets"] {
        assert_eq!(installed[part], compiled[part]);
    }

    let args = ["render", "rules", "--node", "nobody", "--family", "ipv4"];
    let said = fairlead(bed, &bed.kubeconfig(), &args)?;
    assert_eq!(said.code, Some(2), "{said:?}");
    ensure!(
        said.stderr.contains("no Node object of that name in the cluster (there is node1, node2)"),
        "{said:?}"
    );
    Ok(())
}

fn counters_of_the_deciding_rules_tell_what_was_sent(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    let from = bed.pod("client")?.addresses.v4.to_string();
    let met = |bed: &Bed| {
        let report = trace_live(bed, 1, &from, target, &["-o", "json"])?.json()?;
        ensure!(report["verdict"] == "accepted", "{report}");
        let deciding = report["path"].as_array().into_iter().flatten().filter(|rule| rule["decides"] == true);
        let counted: Option<Vec<u64>> = deciding.map(|rule| rule["counter"]["packets"].as_u64()).collect();
        counted.with_context(|| format!("a rule without counter: {report}"))
    };
    let before = met(bed)?;
    assert_eq!(before.len(), 2, "one rule for each Pod");
    let requests = 40;
    bed.client(From::Pod("client"))?.ask_many(Protocol::Tcp, target, requests)?.check_answered()?;
    let after = met(bed)?;
    let sent = after.iter().sum::<u64>() - before.iter().sum::<u64>();
    assert_eq!(sent, requests as u64, "{before:?} {after:?}");
    ensure!(after.iter().zip(&before).all(|(after, before)| after > before), "{before:?} {after:?}");

    let text = trace_live(bed, 1, &from, target, &[])?.stdout;
    ensure!(
        text.contains("decided by (with what met it before; nat counts first packets only)\n  nat KUBE-"),
        "{text}"
    );
    Ok(())
}

fn a_refusal_is_traced_to_its_rule(bed: &mut Bed) -> Result<()> {
    let target = up(bed)?;
    for pod in BOTH {
        bed.set_ready(pod, false)?;
    }
    bed.await_outcome(From::Pod("client"), Protocol::Tcp, target, &Outcome::Refused)?;
    let from = bed.pod("client")?.addresses.v4.to_string();
    let said = trace_live(bed, 1, &from, target, &["-o", "json"])?;
    assert_eq!(said.code, Some(1), "{said:?}");
    let report = said.json()?;
    let deciding: Vec<&Value> =
        report["path"].as_array().into_iter().flatten().filter(|rule| rule["decides"] == true).collect();
    assert_eq!(deciding.len(), 1, "{report}");
    assert!(
        deciding[0]["rule"].as_str().is_some_and(|rule| rule.contains("my-service has no endpoints")),
        "{report}"
    );
    assert!(deciding[0]["counter"]["packets"].as_u64() > Some(0), "{report}");
    Ok(())
}
