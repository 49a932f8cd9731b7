//! The examples of `manifests/examples/` in real Pods: by DNS name, by environment variable, headless, as an alias,
//! from a node and from outside, and with kubectl's `expose`, `exec` and `port-forward`.
//!
//! Invariant: every case begins and ends with an empty namespace `default`.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Cluster,
    running::{AnyCluster, Asker, Running},
};
use crate::{
    examples, probe,
    processes::{Process, Start},
    wait,
};

/// How long a change may take to be seen everywhere.
const SETTLE: Duration = Duration::from_mins(1);

/// A case, on a certain kind of cluster.
pub type Case<C = Cluster> = (&'static str, fn(&mut C) -> Result<()>);

/// The examples, on any.
pub const EXAMPLES: &[Case<AnyCluster>] = &[
    ("my-service: a Pod's DNS name query leads to the ClusterIP, and that to both Pods", by_name),
    ("kubia: the environment of a Pod made later leads to the Service, both ports by name", by_environment),
    ("headless: DNS gives the addresses of the ready Pods", headless),
    ("external-name: DNS gives an alias", external_name),
    ("nodeport: every node answers a client outside, and its own host a ClusterIP", node_port),
    ("kubernetes: a Pod asks the API server by its ClusterIP", api_server),
    ("kubectl expose, exec and port-forward", kubectl_ways),
    ("deleted Pods leave the Service while it goes on answering", deleted_pods),
];

/// Runs those cases whose names contain `filter` one by one, and fails with all that failed.
pub fn run<C>(cluster: &mut C, what: &str, cases: &[Case<C>], filter: &str) -> Result<()>
where
    C: Running + ?Sized,
{
    let mut failed = Vec::new();
    let chosen: Vec<_> = cases.iter().filter(|(name, _)| name.contains(filter)).collect();
    for (name, case) in &chosen {
        let began = Instant::now();
        let result = case(cluster).and_then(|()| cluster.check());
        let result = result.and_then(|()| empty(cluster));
        match result {
            Ok(()) => cluster.say(&format!("ok      {name} ({:.1}s)", began.elapsed().as_secs_f64())),
            Err(error) => {
                cluster.say(&format!("FAILED  {name}: {error:#}"));
                failed.push(*name);
                empty(cluster)?;
            }
        }
    }
    println!("{what}: {} of {} passed", chosen.len() - failed.len(), chosen.len());
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    Ok(())
}

fn by_name(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "my-service.yaml")?;
    let ip = cluster_ip(cluster, "my-service")?;
    await_client(cluster, None)?;
    let found = shell(cluster, "dig +short my-service.default.svc.cluster.local")?;
    ensure!(found.trim() == ip, "DNS says {found:?}, the Service has {ip}");
    await_servers(cluster, "http://my-service/hostname", 2)
}

fn by_environment(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "kubia.yaml")?;
    let ip = cluster_ip(cluster, "kubia")?;
    await_client(cluster, None)?;
    let found = shell(cluster, "echo $KUBIA_SERVICE_HOST $KUBIA_SERVICE_PORT $KUBIA_SERVICE_PORT_HTTPS")?;
    ensure!(found.trim() == format!("{ip} 80 443"), "the environment says {found:?}, the Service has {ip}");
    for port in ["", "_HTTPS"] {
        await_servers(cluster, &format!("http://$KUBIA_SERVICE_HOST:$KUBIA_SERVICE_PORT{port}/hostname"), 3)?;
    }
    Ok(())
}

fn headless(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "my-service.yaml")?;
    apply(cluster, "headless.yaml")?;
    await_client(cluster, None)?;
    let pods: Vec<Value> = cluster.kubernetes().list("Pod", "default", "app=my-app")?;
    let pods: BTreeSet<String> =
        pods.iter().filter_map(|pod| Some(pod["status"]["podIP"].as_str()?.to_owned())).collect();
    wait::until_ok("DNS to name the Pods", SETTLE, || {
        let found = shell(cluster, "dig +short my-service-headless.default.svc.cluster.local")?;
        let found: BTreeSet<String> = found.lines().map(str::to_owned).collect();
        ensure!(found == pods, "DNS says {found:?}, the Pods have {pods:?}");
        Ok(())
    })
}

fn external_name(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "my-service.yaml")?;
    apply(cluster, "external-name.yaml")?;
    await_client(cluster, None)?;
    wait::until_ok("DNS to know the alias", SETTLE, || {
        let found = shell(cluster, "dig +short my-alias.default.svc.cluster.local CNAME")?;
        ensure!(found.trim() == "my-service.default.svc.cluster.local.", "DNS says {found:?}");
        Ok(())
    })?;
    await_servers(cluster, "http://my-alias/hostname", 2)
}

fn node_port(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "my-service.yaml")?;
    cluster.kubernetes().merge("Service", "default", "my-service", json!({"spec": {"type": "NodePort"}}))?;
    let service: Value =
        cluster.kubernetes().get("Service", "default", "my-service")?.context("no Service")?;
    let port = u16::try_from(service["spec"]["ports"][0]["nodePort"].as_u64().context("no node port")?)?;
    let ip = cluster_ip(cluster, "my-service")?.parse()?;
    for (node, address) in cluster.addresses()? {
        let doors =
            [(Asker::Outside, SocketAddr::new(address, port)), (Asker::Node(&node), SocketAddr::new(ip, 80))];
        for (from, target) in doors {
            wait::until_ok(&format!("an answer from {target}"), SETTLE, || {
                let body = cluster.fetch(from, target, "/hostname")?;
                ensure!(body.contains("my-app-"), "{body}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn api_server(cluster: &mut AnyCluster) -> Result<()> {
    await_client(cluster, None)?;
    wait::until_ok("the API server to answer a Pod", SETTLE, || {
        let found = shell(cluster, "curl -sk -m 3 https://kubernetes/version")?;
        ensure!(found.contains("gitVersion"), "{found}");
        Ok(())
    })
}

fn kubectl_ways(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "my-service.yaml")?;
    cluster.kubectl(&[
        "expose",
        "deployment",
        "my-app",
        "--name=exposed",
        "--port=8000",
        "--target-port=8080",
    ])?;
    await_client(cluster, None)?;
    await_servers(cluster, "http://exposed:8000/hostname", 2)?;
    let kubeconfig = cluster.kubectl_environment();
    let args = ["port-forward", "service/my-service", "18080:80"].map(str::to_owned);
    let court = cluster.court();
    let start = Start { name: "port-forward", program: &court.kubectl, args: &args, env: &kubeconfig };
    let mut forward = Process::start(court.record, court.host, &start)?;
    wait::until("an answer through the forwarded port", SETTLE, || {
        forward.check()?;
        let answer = probe::http_get(court.host, ([127, 0, 0, 1], 18080).into(), "/hostname");
        Ok(match answer {
            Ok((200, body)) if body.contains("my-app-") => wait::Look::Done(()),
            other => wait::Look::NotYet(format!("{other:?}")),
        })
    })
}

fn deleted_pods(cluster: &mut AnyCluster) -> Result<()> {
    apply(cluster, "my-service.yaml")?;
    await_client(cluster, None)?;
    await_servers(cluster, "http://my-service/hostname", 2)?;
    let pods: Vec<Value> = cluster.kubernetes().list("Pod", "default", "app=my-app")?;
    let first = pods.first().and_then(|pod| pod["metadata"]["name"].as_str()).context("no Pod")?.to_owned();
    // As in a rolling update: it is asked to end, and another one takes its place.
    cluster.kubernetes().delete("Pod", "default", &first, 5)?;
    let asked = shell(
        cluster,
        "for i in $(seq 60); do curl -s -m 3 -o /dev/null -w '%{http_code} ' http://my-service/hostname; sleep 0.1; done",
    )?;
    ensure!(asked.split_whitespace().all(|code| code == "200"), "answers while a Pod ended: {asked}");
    await_servers(cluster, "http://my-service/hostname", 2)?;
    let names = servers(cluster, "http://my-service/hostname")?;
    ensure!(!names.contains(&first), "{first} is deleted and still answers");
    Ok(())
}

/// Applies an example, and waits until its Deployments are available. There is no registry: agnhost, which every node
/// has, answers in the place of the image that the example names.
pub(super) fn apply(cluster: &dyn Running, example: &str) -> Result<()> {
    let image = cluster.court().parts.image("agnhost")?;
    for mut object in examples::objects(example)? {
        if let Some(containers) =
            object.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut)
        {
            containers.iter_mut().try_for_each(|container| stand_in(container, &image))?;
        }
        cluster.kubernetes().apply(&object)?;
        if object["kind"] == "Deployment" {
            let name = object["metadata"]["name"].as_str().context("no name")?;
            cluster.await_condition("Deployment", "default", name, "Available")?;
        }
    }
    Ok(())
}

fn stand_in(container: &mut Value, image: &str) -> Result<()> {
    let port = container["ports"][0]["containerPort"].as_u64().context("a container without port")?;
    container["image"] = image.into();
    container["args"] =
        json!(["netexec", format!("--http-port={port}"), format!("--udp-port={port}"), "--delay-shutdown=3"]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 1});
    Ok(())
}

/// A Pod to ask from, on a node if that matters, made only now: its environment has the Services that are there.
pub(super) fn await_client(cluster: &dyn Running, node: Option<&str>) -> Result<()> {
    let image = cluster.court().parts.image("agnhost")?;
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "client", "image": image, "args": ["pause"]}],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = node.into();
    }
    cluster.kubernetes().apply(&pod)?;
    cluster.await_condition("Pod", "default", "client", "Ready")
}

/// Runs a line of shell in the client's Pod, with `kubectl exec`.
pub(super) fn shell(cluster: &dyn Running, line: &str) -> Result<String> {
    cluster.kubectl(&["exec", "client", "--", "sh", "-c", line])
}

/// Which servers answer twenty requests.
fn servers(cluster: &dyn Running, url: &str) -> Result<BTreeSet<String>> {
    let line = format!("for i in $(seq 20); do curl -sf -m 3 {url} || exit 1; echo; done");
    Ok(shell(cluster, &line)?.lines().map(str::to_owned).collect())
}

/// Waits until so many servers answer, and nothing else.
pub(super) fn await_servers(cluster: &dyn Running, url: &str, count: usize) -> Result<()> {
    wait::until_ok(&format!("{count} servers at {url}"), SETTLE, || {
        let found = servers(cluster, url)?;
        ensure!(found.len() == count, "{found:?}");
        Ok(())
    })
}

fn cluster_ip(cluster: &dyn Running, service: &str) -> Result<String> {
    let found: Value = cluster.kubernetes().get("Service", "default", service)?.context("no Service")?;
    Ok(found["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_owned())
}

/// Removes everything from the namespace `default` but the API server's own.
fn empty<C: Running + ?Sized>(cluster: &C) -> Result<()> {
    wait::until_ok("the namespace to be empty", SETTLE, || {
        let mut left = Vec::new();
        for kind in ["Deployment", "Service", "Pod"] {
            let objects: Vec<Value> = cluster.kubernetes().list(kind, "default", "")?;
            for object in objects {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if name == "kubernetes" {
                    continue;
                }
                if object["metadata"]["deletionTimestamp"].is_null() {
                    cluster.kubernetes().delete(kind, "default", name, 1)?;
                }
                left.push(format!("{kind} {name}"));
            }
        }
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
