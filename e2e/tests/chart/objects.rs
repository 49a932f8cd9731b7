//! What the chart renders: known to the API server, safe, and gone when it is uninstalled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use fairlead_e2e::{
    Bed,
    chart::{self, Helm, NAMESPACE, PROFILES, generated},
    examples, tools,
};
use serde_json::{Value, json};

/// Kinds that a release consists of.
const KINDS: &str = "daemonsets,deployments,configmaps,secrets,serviceaccounts,roles,rolebindings,clusterroles,\
    clusterrolebindings,poddisruptionbudgets,leases,pods";

/// Every value that is empty by default, filled in.
fn full() -> Value {
    json!({
        "apiServer": {"host": "fd00::1", "port": 8443},
        "image": {"registry": "registry.invalid:5000/mirror", "tag": "v9", "pullSecrets": ["one", "two"]},
        "controller": {
            "extraArgs": ["--kube-api-qps=50"],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}]}},
            "podLabels": {"team": "network"},
            "podAnnotations": {"prometheus.io/scrape": "true"},
            "resources": {"limits": {"cpu": 1, "memory": "512Mi"}},
        },
        "programmer": {
            "config": {
                "bindAddress": "::",
                "clusterCIDR": "10.244.0.0/16,fd00:10::/56",
                "conntrack": {"maxPerCore": 0, "udpTimeout": "30s"},
                "iptables": {"masqueradeAll": true, "minSyncPeriod": "0s"},
                "nodePortAddresses": ["primary"],
            },
            "iptablesVariant": "legacy",
            "metricsAddress": "::",
            "maxUnavailable": 3,
            "podLabels": {"team": "network"},
            "podAnnotations": {"prometheus.io/scrape": "true"},
        },
    })
}

/// All that a release with these values consists of, the Pod of `helm test` included.
pub(crate) fn rendered(bed: &Bed, helm: &Helm, profile: &str, values: &Value) -> Result<String> {
    let file = bed.dir().join("values.json");
    fs::write(&file, values.to_string())?;
    let folder = chart::folder();
    let (file, folder) = (
        file.to_str().context("a path that is no text")?,
        folder.to_str().context("a path that is no text")?,
    );
    let profile = format!("profile={profile}");
    helm.run(&["template", "fairlead", folder, "--namespace", NAMESPACE, "--values", file, "--set", &profile])
}

pub(crate) fn generated_files_are_in_step_with_the_chart(_: &mut Bed) -> Result<()> {
    for (path, text) in generated(&Helm::find()?)? {
        let found = fs::read_to_string(&path).unwrap_or_default();
        ensure!(found == text, "{} is not what `make chart` makes of the chart", path.display());
    }
    Ok(())
}

pub(crate) fn every_object_passes_a_server_side_dry_run(bed: &mut Bed) -> Result<()> {
    let helm = Helm::find()?;
    let mut texts = vec![rendered(bed, &helm, "beside", &full())?];
    for profile in PROFILES {
        texts.push(chart::rendered(profile)?);
    }
    for text in texts {
        let file = bed.dir().join("rendered.yaml");
        fs::write(&file, &text)?;
        let file = file.to_str().context("a path that is no text")?;
        let args = ["apply", "--dry-run=server", "--validate=strict", "--output=name", "--filename", file];
        let passed = bed.kubectl(&args)?.lines().count();
        ensure!(passed == examples::parse(&text)?.len(), "{passed} objects passed of {text}");
    }
    Ok(())
}

/// The template of the Pods of a workload.
fn pods_of<'a>(objects: &'a [Value], kind: &str) -> impl Iterator<Item = Value> + use<'a> {
    let kind = kind.to_owned();
    objects.iter().filter(move |object| object["kind"] == kind).map(|object| {
        let spec = object.pointer("/spec/template/spec").or_else(|| object.get("spec"));
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sample", "namespace": "restricted"}, "spec": spec})
    })
}

pub(crate) fn only_the_programmer_is_more_than_restricted(bed: &mut Bed) -> Result<()> {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    bed.kubernetes().apply(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "restricted", "labels": labels}}))?;
    let text = rendered(bed, &Helm::find()?, "replace", &json!({"apiServer": {"host": "10.0.0.1"}}))?;
    let objects = examples::parse(&text)?;
    let taken = |pod: &Value| {
        let file = bed.dir().join("pod.json");
        fs::write(&file, pod.to_string())?;
        let file = file.to_str().context("a path that is no text")?;
        bed.kubectl(&["create", "--dry-run=server", "--filename", file])
    };
    for kind in ["Deployment", "Pod"] {
        ensure!(pods_of(&objects, kind).count() == 1);
        for pod in pods_of(&objects, kind) {
            taken(&pod)?;
        }
    }
    let mut pod = pods_of(&objects, "DaemonSet").next().context("no DaemonSet")?;
    let refusal = taken(&pod).err().context("the programmer passes as restricted")?.to_string();
    ensure!(refusal.contains("hostNetwork=true"), "{refusal}");
    // Apart from the init container and the host's network, it asks for two capabilities, root and a file of the host.
    let spec = pod["spec"].as_object_mut().context("no spec")?;
    spec.remove("initContainers").context("no init container")?;
    spec.remove("hostNetwork").context("no hostNetwork")?;
    let refusal = taken(&pod).err().context("the programmer passes as restricted")?.to_string();
    for more in ["NET_ADMIN", "NET_RAW", "runAsNonRoot", "runAsUser=0", "hostPath"] {
        ensure!(refusal.contains(more), "{more}: {refusal}");
    }
    for no_more in ["privileged", "allowPrivilegeEscalation", "seccompProfile", "hostPID", "hostPort"] {
        ensure!(!refusal.contains(no_more), "{no_more}: {refusal}");
    }
    Ok(())
}

pub(crate) fn every_flag_of_the_chart_is_one_that_the_program_takes(bed: &mut Bed) -> Result<()> {
    let helm = Helm::find()?;
    for profile in PROFILES {
        for values in [json!({"apiServer": {"host": "10.0.0.1"}}), full()] {
            let objects = examples::parse(&rendered(bed, &helm, profile, &values)?)?;
            let file = configuration(bed, &objects)?;
            for container in objects.iter().flat_map(containers) {
                takes_its_flags(container, &file)
                    .with_context(|| format!("profile {profile}: {container}"))?;
            }
        }
    }
    Ok(())
}

/// A file with the programmer's configuration.
pub(crate) fn configuration(bed: &Bed, objects: &[Value]) -> Result<PathBuf> {
    let text = objects.iter().find_map(|object| object.pointer("/data/config.yaml")?.as_str());
    let file = bed.dir().join("config.yaml");
    fs::write(&file, text.context("no configuration")?)?;
    Ok(file)
}

fn containers(object: &Value) -> impl Iterator<Item = &Value> {
    let of = |kind: &str| object.pointer(&format!("/spec/template/spec/{kind}")).and_then(Value::as_array);
    of("initContainers").into_iter().chain(of("containers")).flatten()
}

fn takes_its_flags(container: &Value, configuration: &Path) -> Result<()> {
    let image = container["image"].as_str().context("no image")?;
    let name = image.rsplit('/').next().and_then(|name| name.split(':').next()).context("no name")?;
    let mut command = Command::new(tools::own_program(&format!("fairlead-{name}"))?);
    for arg in container["args"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let arg = arg.replace("$(NODE_NAME)", "node-1");
        command.arg(arg.replace("/etc/fairlead/config.yaml", &configuration.display().to_string()));
    }
    let output = command.arg("--dump-config").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    Ok(())
}

pub(crate) fn a_release_is_installed_upgraded_rolled_back_and_leaves_nothing(bed: &mut Bed) -> Result<()> {
    let helm = Helm::find()?;
    let folder = chart::folder();
    let folder = folder.to_str().context("a path that is no text")?;
    let namespace = bed.namespace(fairlead_e2e::From::ControlPlane)?;
    let kubeconfig = bed.kubeconfig();
    let run =
        |args: &[&str]| helm.run_on(namespace, &kubeconfig, &[args, &["--namespace", NAMESPACE]].concat());
    let found = |kinds: &str| {
        let about = "--selector=app.kubernetes.io/instance=other";
        bed.kubectl(&["get", kinds, "--all-namespaces", about, "--output=name"])
    };
    let notes = run(&["install", "other", folder, "--set", "profile=shadow"])?;
    ensure!(notes.contains("Nothing is written in this profile"), "{notes}");
    ensure!(found("poddisruptionbudgets")?.is_empty());
    let notes = run(&["upgrade", "other", folder, "--set", "apiServer.host=10.0.0.1"])?;
    ensure!(
        notes.contains("kube-proxy has to be off") && notes.contains("-endpointslice-controller"),
        "{notes}"
    );
    ensure!(found(KINDS)?.lines().count() == 13, "{}", found(KINDS)?);
    run(&["rollback", "other", "1"])?;
    ensure!(found("poddisruptionbudgets")?.is_empty());
    run(&["uninstall", "other"])?;
    let left = found(KINDS)?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}
