//! `--config`: reads a `KubeProxyConfiguration`, as kube-proxy reads it.
//!
//! Decoding is strict: a file with unknown or repeated fields does not decode. It is then decoded again without that, so
//! that a typo does not take a node down, but with a warning for every such field.
//!
//! Invariant: no field is without effect in silence. What does not apply here is warned about by name, if it is set to
//! anything but its default.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fairlead_objects::{
    KubeProxyConfiguration,
    proxy_configuration::{API_VERSION, KIND},
};
use serde_json::Value;
use serde_saphyr::{Options, options::DuplicateKeyPolicy};

/// Fields that do not apply: about other modes, other platforms, or kube-proxy's own internals.
const INAPPLICABLE: &[&str] = &[
    "clientConnection.acceptContentTypes",
    "clientConnection.contentType",
    "configSyncPeriod",
    "enableProfiling",
    "featureGates",
    "ipvs",
    "logging.flushFrequency",
    "logging.options",
    "logging.vmodule",
    "nftables",
    "portRange",
    "showHiddenMetricsForVersion",
    "winkernel",
    "windowsRunAsService",
];
/// Feature gates that apply: whether `/flagz` and `/statusz` are served.
pub const GATES: [&str; 2] = ["ComponentFlagz", "ComponentStatusz"];
/// Fields of another mode's block that apply if that mode is chosen.
const TAKEN_OVER: &[&str] = &["masqueradeAll", "masqueradeBit", "minSyncPeriod", "syncPeriod"];
/// How often to look whether the file changed.
const POLL: Duration = Duration::from_secs(5);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no YAML or JSON, or a field has a value of the wrong type.
    #[error("cannot decode the configuration {}: {reason}", path.display())]
    Decode {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// It is something else.
    #[error("{}: {field} is {found:?}; expected {expected}", path.display())]
    Type {
        /// Which file.
        path: PathBuf,
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
}

/// A file that was read.
#[derive(Clone, Debug)]
pub struct ConfigurationFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub configuration: KubeProxyConfiguration,
    /// What its author should know, one sentence each.
    pub warnings: Vec<String>,
    text: String,
}

impl ConfigurationFile {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
        Self::parse(path, text)
    }

    fn parse(path: &Path, text: String) -> Result<Self, ConfigurationError> {
        let decode = |reason: String| ConfigurationError::Decode { path: path.to_owned(), reason };
        let mut warnings = Vec::new();
        let value: Value = match serde_saphyr::from_str_with_options(&text, options(false)) {
            Ok(value) => value,
            Err(strict) => {
                let value = serde_saphyr::from_str_with_options(&text, options(true))
                    .map_err(|error| decode(error.to_string()))?;
                warnings.push(format!("using lenient decoding: {}", first_line(&strict.to_string())));
                value
            }
        };
        for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
            let found = value.get(field).and_then(Value::as_str).unwrap_or_default();
            if found != expected {
                let (path, found) = (path.to_owned(), found.to_owned());
                return Err(ConfigurationError::Type { path, field, found, expected });
            }
        }
        let unknown = KubeProxyConfiguration::unknown_fields(&value).into_iter();
        warnings.extend(unknown.map(|field| {
            let meant = like(&field).map(|known| format!(" (did you mean {known}?)")).unwrap_or_default();
            format!("using lenient decoding: unknown field {field}{meant}")
        }));
        warnings.extend(inapplicable(&value));
        let configuration =
            serde_path_to_error::deserialize(value).map_err(|error| decode(error.to_string()))?;
        Ok(Self { path: path.to_owned(), configuration, warnings, text })
    }

    /// Waits until the file says something else. (A mounted ConfigMap changes by a switch of links, so the content is
    /// what counts.) A file that is gone for a moment is being replaced.
    pub async fn changed(&self) {
        loop {
            tokio::time::sleep(POLL).await;
            let now = tokio::fs::read_to_string(&self.path).await;
            if now.is_ok_and(|now| now != self.text) {
                return;
            }
        }
    }
}

fn options(lenient: bool) -> Options {
    let duplicate_keys = if lenient { DuplicateKeyPolicy::LastWins } else { DuplicateKeyPolicy::Error };
    serde_saphyr::options! { with_snippet: false, duplicate_keys: duplicate_keys }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.replace(", set DuplicateKeyPolicy in Options if acceptable", "")
}

/// Warnings for fields that do not apply, and are set to something that kube-proxy would not assume anyway.
fn inapplicable(file: &Value) -> Vec<String> {
    let defaults =
        serde_json::to_value(KubeProxyConfiguration::default().with_defaults()).unwrap_or_default();
    let mode = file.get("mode").and_then(Value::as_str).unwrap_or_default();
    let mut fields = Vec::new();
    for path in INAPPLICABLE {
        add_changed(at(file, path), at(&defaults, path), path, &mut fields);
    }
    // Of the chosen mode.
    fields.retain(|field| !TAKEN_OVER.iter().any(|taken| *field == format!("{mode}.{taken}")));
    fields.retain(|field| !GATES.iter().any(|gate| *field == format!("featureGates.{gate}")));
    let mut warnings = Vec::new();
    if !fields.is_empty() {
        warnings.push(format!("these fields do not apply and have no effect: {}", fields.join(", ")));
    }
    if matches!(mode, "ipvs" | "nftables") {
        warnings.push(format!("mode {mode} is not implemented: running iptables"));
    }
    warnings
}

fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    path.split('.').try_fold(value, |value, name| value.get(name)).unwrap_or(&Value::Null)
}

/// The field that somebody may have meant who wrote `unknown`: one of a similar path, or of a similar name elsewhere.
fn like(unknown: &str) -> Option<String> {
    let known = serde_json::to_value(KubeProxyConfiguration::default().with_defaults()).ok()?;
    let mut paths = Vec::new();
    add_paths(&known, "", &mut paths);
    let name = |path: &str| path.rsplit('.').next().unwrap_or_default().to_lowercase();
    let likeness = |path: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&path.to_lowercase(), &unknown.to_lowercase());
        whole.max(0.99 * strsim::normalized_damerau_levenshtein(&name(path), &name(unknown)))
    };
    let alike = paths.into_iter().map(|path| (likeness(&path), path)).filter(|(likeness, _)| *likeness > 0.7);
    alike.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, path)| path)
}

fn add_paths(known: &Value, path: &str, paths: &mut Vec<String>) {
    let Value::Object(fields) = known else { return };
    for (name, value) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        add_paths(value, &path, paths);
        paths.push(path);
    }
}

fn add_changed(file: &Value, default: &Value, path: &str, fields: &mut Vec<String>) {
    match file {
        Value::Object(file) => {
            for (name, value) in file {
                let default = default.get(name).unwrap_or(&Value::Null);
                add_changed(value, default, &format!("{path}.{name}"), fields);
            }
        }
        value if value == default || is_nothing(value) => {}
        _ => fields.push(path.to_owned()),
    }
}

/// kubeadm writes every field, most of them as nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Object(_) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
    }
}

#[cfg(test)]
mod tests;
