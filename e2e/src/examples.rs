//! The YAML files of `manifests/examples/`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::tools;

/// The path of an example.
pub fn path(name: &str) -> PathBuf {
    tools::repository().join("manifests/examples").join(name)
}

/// The objects of an example, in order.
pub fn objects(name: &str) -> Result<Vec<Value>> {
    let path = path(name);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

/// The objects of a YAML text with one document per object.
pub fn parse(yaml: &str) -> Result<Vec<Value>> {
    Ok(serde_saphyr::from_multiple::<Value>(yaml)?)
}
