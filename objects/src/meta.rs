//! Metadata, cut down while it is being read.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

/// Labels or annotations of a view. Ordered, so that output is deterministic.
pub type LabelMap = BTreeMap<Arc<str>, Arc<str>>;

/// The namespace that a namespaced object without one belongs to.
const DEFAULT_NAMESPACE: &str = "default";

/// What a view keeps of `metadata`; anything else is skipped without being allocated.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

impl From<LeanMeta> for ObjectMeta {
    fn from(lean: LeanMeta) -> Self {
        Self {
            name: lean.name,
            namespace: lean.namespace,
            uid: lean.uid,
            resource_version: lean.resource_version,
            labels: lean.labels,
            creation_timestamp: lean.creation_timestamp,
            deletion_timestamp: lean.deletion_timestamp,
            ..Self::default()
        }
    }
}

/// Reads metadata without annotations, owners, finalizers and managed fields.
pub(crate) fn lean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    LeanMeta::deserialize(deserializer).map(Into::into)
}

/// As [`lean`], keeping the annotations too.
pub(crate) fn lean_annotated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(flatten)]
        meta: LeanMeta,
        annotations: Option<BTreeMap<String, String>>,
    }
    let Annotated { meta, annotations } = Annotated::deserialize(deserializer)?;
    Ok(ObjectMeta { annotations, ..meta.into() })
}

/// Reads everything but managed fields: for objects that we also write.
pub(crate) fn unmanaged<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let mut meta = ObjectMeta::deserialize(deserializer)?;
    meta.managed_fields = None;
    Ok(meta)
}

/// Reads `null` as the default value, as Go does.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

pub(crate) fn text(value: Option<String>) -> Arc<str> {
    value.unwrap_or_default().into()
}

/// Empty text means "not set" throughout the Kubernetes API.
pub(crate) fn non_empty(value: Option<String>) -> Option<Arc<str>> {
    value.filter(|text| !text.is_empty()).map(Into::into)
}

pub(crate) fn namespace(value: Option<String>) -> Arc<str> {
    non_empty(value).unwrap_or_else(|| DEFAULT_NAMESPACE.into())
}

pub(crate) fn label_map(value: Option<BTreeMap<String, String>>) -> LabelMap {
    value.unwrap_or_default().into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}
