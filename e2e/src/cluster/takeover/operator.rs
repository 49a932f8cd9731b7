//! Who carries out a document on a cluster of kind: copies its commands, and puts in what it leaves open.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    chart::{self, Helm},
    cluster::{document, judge::Judged, kind::Kind},
    tools,
};

/// No command takes longer.
const PATIENCE: Duration = Duration::from_mins(5);

/// Somebody with all rights, kubectl, Helm, fairlead, and the chart in `manifests/chart`.
#[derive(Debug)]
pub(super) struct Operator<'a> {
    kind: &'a Kind,
    helm: Helm,
    folder: PathBuf,
    path: String,
}

impl<'a> Operator<'a> {
    pub(super) fn new(kind: &'a Kind) -> Result<Self> {
        let helm = Helm::find()?;
        let folder = kind.court().record.dir().join("operator");
        fs::create_dir(&folder)?;
        symlink(tools::repository().join("manifests"), folder.join("manifests"))?;
        let programs = [
            PathBuf::from(helm.command(&[]).get_program()),
            kind.court().kubectl,
            tools::own_program("fairlead")?,
        ];
        let mut path: Vec<String> =
            programs.iter().filter_map(|program| Some(program.parent()?.display().to_string())).collect();
        path.extend(std::env::var("PATH"));
        Ok(Self { kind, helm, folder, path: path.join(":") })
    }

    /// Carries out the commands of a block one by one, and returns what they print.
    pub(super) fn run(&self, block: &str) -> Result<String> {
        let mut printed = String::new();
        for line in document::lines(block) {
            let start: String = line.chars().take(110).collect();
            self.kind.say(&format!("    $ {start}"));
            printed += &self.ask(&line)?;
        }
        Ok(printed)
    }

    /// As [`Operator::run`] of one command, without a word: to look again and again.
    pub(super) fn ask(&self, line: &str) -> Result<String> {
        let court = self.kind.court();
        let mut command = Command::new("timeout");
        for (name, value) in self.helm.command(&[]).get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .arg(PATIENCE.as_secs().to_string())
            .args(["bash", "-euo", "pipefail", "-c", line])
            .env("PATH", &self.path)
            .env("KUBECONFIG", &court.kubeconfig)
            .env("HOME", &self.folder)
            .current_dir(&self.folder);
        court.host.output(&mut command)
    }

    /// Carries out a block on a node, as one script.
    pub(super) fn run_on(&self, node: &str, block: &str) -> Result<String> {
        self.kind.say(&format!("    {node}# {}", block.lines().next().unwrap_or_default()));
        self.kind.on_node(node, block)
    }

    /// Writes `values.yaml` as the document shows it, for a kube-proxy with this configuration and kubeconfig.
    pub(super) fn write_values(&self, shown: &str, configuration: &str, kubeconfig: &str) -> Result<()> {
        let mut values: Value = serde_saphyr::from_str(shown)?;
        let kubeconfig: Value = serde_saphyr::from_str(kubeconfig)?;
        let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().context("no server")?;
        let server: http::Uri = server.parse()?;
        let configuration: Value = serde_saphyr::from_str(configuration)?;
        for (place, value) in [
            ("/apiServer/host", json!(server.host())),
            ("/apiServer/port", json!(server.port_u16().unwrap_or(443))),
            (
                "/programmer/config",
                taken(&configuration, &fields(&chart::folder())?).context("nothing is set")?,
            ),
        ] {
            *values.pointer_mut(place).with_context(|| format!("values.yaml without {place}"))? = value;
        }
        self.kind.say(&format!("    values.yaml: {values}"));
        // JSON is YAML.
        Ok(fs::write(self.folder.join("values.yaml"), values.to_string())?)
    }
}

/// The fields of a configuration that the chart takes, as a schema.
fn fields(chart: &Path) -> Result<Value> {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart.join("values.schema.json"))?)?;
    let fields =
        schema.pointer("/properties/programmer/properties/config").context("no schema of the fields")?;
    ensure!(fields["properties"].is_object(), "the schema of the fields has none");
    Ok(fields.clone())
}

/// What of a configuration goes to the values: what the schema knows, and is not null or empty.
fn taken(value: &Value, schema: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::String(text) => (!text.is_empty()).then(|| value.clone()),
        Value::Array(list) => (!list.is_empty()).then(|| value.clone()),
        Value::Object(all) => {
            let known = |(name, value): (&String, &Value)| {
                Some((name.clone(), taken(value, schema["properties"].get(name)?)?))
            };
            let kept: BTreeMap<String, Value> = all.iter().filter_map(known).collect();
            (!kept.is_empty()).then(|| json!(kept))
        }
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_what_the_chart_takes_and_keep_what_is_zero() {
        let configuration = json!({
            "kind": "KubeProxyConfiguration", "bindAddress": "0.0.0.0", "clusterCIDR": "10.244.0.0/16", "detectLocalMode": "",
            "nodePortAddresses": null, "conntrack": {"maxPerCore": 0, "min": null, "tcpBeLiberal": false},
            "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf", "contentType": "", "qps": 0},
            "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""}, "winkernel": {"networkName": "x"},
        });
        assert_eq!(
            taken(&configuration, &fields(&chart::folder()).unwrap()),
            Some(json!({
                "bindAddress": "0.0.0.0", "clusterCIDR": "10.244.0.0/16",
                "conntrack": {"maxPerCore": 0, "tcpBeLiberal": false}, "clientConnection": {"qps": 0},
            }))
        );
    }
}
