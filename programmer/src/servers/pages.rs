//! `/flagz` and `/statusz`: what this process is and was told, as text for people and in upstream's structured form.
//!
//! Invariant: an answer says nothing that `/configz` and the command line do not say.

use std::{fmt::Write as _, sync::Arc};

use axum::{
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use fairlead_objects::Timestamp;
use serde_json::{Value, json};

use super::{JSON, PLAIN};

/// Who answers, as far as scripts that ask know.
const COMPONENT: &str = "fairlead-programmer";
const GROUP: &str = "config.k8s.io";
/// The oldest is deprecated.
const VERSIONS: [&str; 2] = ["v1alpha1", "v1beta1"];
/// The Kubernetes version whose kube-proxy this is like.
const EMULATED: &str = "1.36";
const CAUTION: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// What a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// As the object of this version of the API; JSON, or what may be JSON.
    Object(&'static str, &'static str),
    Refused,
}

impl Form {
    /// The first form in the `Accept` header that there is, whatever its weight.
    fn of(headers: &HeaderMap, kind: &str) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accept.trim().is_empty() {
            return Self::Text;
        }
        let forms = accept.split(',').map(|range| Self::of_range(range, kind));
        forms.into_iter().find(|form| *form != Self::Refused).unwrap_or(Self::Refused)
    }

    fn of_range(range: &str, kind: &str) -> Self {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.collect();
        let has = |name: &str, value: &str| parameters.contains(&format!("{name}={value}").as_str());
        let wanted = has("g", GROUP) && has("as", kind);
        let version = VERSIONS.into_iter().find(|version| wanted && has("v", version));
        match (media, version) {
            ("*/*" | "text/*" | "text/plain", _) => Self::Text,
            ("application/json", Some(version)) => Self::Object(JSON, version),
            // JSON is YAML, too.
            ("application/yaml", Some(version)) => Self::Object("application/yaml", version),
            _ => Self::Refused,
        }
    }
}

/// The command line: every flag and its value.
#[derive(Clone, Debug)]
pub(super) struct Flagz(pub(super) Arc<[(String, String)]>);

impl Flagz {
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let mut text = heading("flagz");
        for (name, value) in self.0.iter() {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{name}={value}");
        }
        let flags: serde_json::Map<_, _> =
            self.0.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        page(headers, "Flagz", text, json!({"flags": flags}))
    }
}

/// The process.
#[derive(Clone, Debug)]
pub(super) struct Statusz {
    pub(super) started: Timestamp,
    pub(super) paths: Arc<[&'static str]>,
}

impl Statusz {
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let version = env!("CARGO_PKG_VERSION");
        let up = Timestamp::now().duration_since(self.started).as_secs().max(0);
        let mut text = heading("statusz");
        let _ = writeln!(
            text,
            "\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {version}\nEmulation version: {EMULATED}\n\
             Paths: {}",
            self.started,
            up / 3600,
            up / 60 % 60,
            up % 60,
            self.paths.join(" ")
        );
        let object = json!({
            "startTime": format!("{:.0}", self.started),
            "uptimeSeconds": up,
            // There is none.
            "goVersion": "",
            "binaryVersion": version,
            "emulationVersion": EMULATED,
            "paths": *self.paths,
        });
        page(headers, "Statusz", text, object)
    }
}

fn heading(page: &str) -> String {
    format!("\n{COMPONENT} {page}\n{CAUTION}\n")
}

fn page(headers: &HeaderMap, kind: &str, text: String, fields: Value) -> Response {
    let (media, version) = match Form::of(headers, kind) {
        Form::Text => return (StatusCode::OK, [(header::CONTENT_TYPE, PLAIN)], text).into_response(),
        Form::Refused => return refused(),
        Form::Object(media, version) => (media, version),
    };
    let mut object = json!({
        "kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": COMPONENT}});
    if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
        object.extend(fields);
    }
    let content_type = format!("{media};g={GROUP};v={version};as={kind}");
    let mut response =
        (StatusCode::OK, [(header::CONTENT_TYPE, content_type)], pretty(&object)).into_response();
    if version == VERSIONS[0] {
        let page = kind.to_lowercase();
        let warning = format!(
            "299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\""
        );
        if let Ok(warning) = warning.parse() {
            response.headers_mut().insert(HeaderName::from_static("warning"), warning);
        }
    }
    response
}

const REFUSED: &str = r#"{
  "kind": "Status",
  "apiVersion": "v1",
  "metadata": {},
  "status": "Failure",
  "message": "only the following media types are accepted: application/json, application/yaml, text/plain",
  "reason": "NotAcceptable",
  "code": 406
}"#;

fn refused() -> Response {
    (StatusCode::NOT_ACCEPTABLE, [(header::CONTENT_TYPE, JSON)], REFUSED).into_response()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(accept: &str) -> Form {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        Form::of(&headers, "Flagz")
    }

    #[test]
    fn objects_are_given_only_to_those_who_name_group_version_and_kind() {
        assert_eq!(Form::of(&HeaderMap::new(), "Flagz"), Form::Text);
        assert_eq!(form("*/*"), Form::Text);
        assert_eq!(form("text/html, text/plain;q=0.5"), Form::Text);
        assert_eq!(form("application/json"), Form::Refused);
        assert_eq!(form("application/json;v=v1beta1;g=config.k8s.io;as=Statusz"), Form::Refused);
        assert_eq!(form("application/json;v=v2;g=config.k8s.io;as=Flagz"), Form::Refused);
        let object = form("application/json; v=v1beta1; g=config.k8s.io; as=Flagz");
        assert_eq!(object, Form::Object(JSON, "v1beta1"));
    }
}
