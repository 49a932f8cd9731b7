//! Output: objects as YAML documents or as a JSON List; accounts as JSON or YAML.
//!
//! Invariant: every object starts with its apiVersion and kind, so that `kubectl` and `fairlead` read the output again.

use fairlead_objects::{EndpointSlice, Endpoints};
use serde::Serialize;

use crate::args::OutputFormat;

/// An object with its type.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    body: Body,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Body {
    Endpoints(Endpoints),
    Slice(EndpointSlice),
}

impl From<Endpoints> for Manifest {
    fn from(endpoints: Endpoints) -> Self {
        Self { api_version: "v1", kind: "Endpoints", body: Body::Endpoints(endpoints) }
    }
}

impl From<EndpointSlice> for Manifest {
    fn from(slice: EndpointSlice) -> Self {
        Self { api_version: "discovery.k8s.io/v1", kind: "EndpointSlice", body: Body::Slice(slice) }
    }
}

/// A v1 List, as `kubectl get -o json` prints several objects.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    api_version: &'static str,
    kind: &'static str,
    items: &'a [Manifest],
}

/// The objects in `format`, with a line break at the end.
pub(crate) fn manifests(objects: &[Manifest], format: OutputFormat) -> anyhow::Result<String> {
    match format {
        OutputFormat::Yaml => {
            let documents: Vec<String> =
                objects.iter().map(serde_saphyr::to_string).collect::<Result<_, _>>()?;
            Ok(documents.join("---\n"))
        }
        OutputFormat::Json => json(&List { api_version: "v1", kind: "List", items: objects }),
    }
}

/// Any value as indented JSON, with a line break at the end.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Any value as a YAML document.
pub(crate) fn yaml(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}
