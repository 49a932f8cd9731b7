//! The resource that kube-runtime's `Controller` believes to reconcile: nothing but the key of a Service.
//!
//! A `Controller` over real Services would never call us for one that was deleted, and what is left of it has to be
//! cleaned up. The key of a Service exists for as long as there is work to do for it, whether or not the Service does.
//!
//! Invariant: no object of this kind is ever sent to or read from an API server.

use std::{borrow::Cow, sync::Arc};

use fairlead_objects::{ObjectMeta, ServiceKey};
use kube::core::{NamespaceResourceScope, Resource};
use kube_runtime::reflector::ObjectRef;
use serde::Deserialize;

/// The key of a Service, in the shape of a resource.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Primary {
    metadata: ObjectMeta,
}

impl Primary {
    /// The Service that it stands for.
    pub fn key(&self) -> ServiceKey {
        let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
        ServiceKey { namespace: text(&self.metadata.namespace), name: text(&self.metadata.name) }
    }

    /// How the `Controller` refers to it.
    pub fn reference(key: &ServiceKey) -> ObjectRef<Self> {
        ObjectRef::new(&key.name).within(&key.namespace)
    }
}

impl From<&ServiceKey> for Primary {
    fn from(key: &ServiceKey) -> Self {
        let (namespace, name) = (Some(key.namespace.to_string()), Some(key.name.to_string()));
        Self { metadata: ObjectMeta { namespace, name, ..ObjectMeta::default() } }
    }
}

impl Resource for Primary {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ServiceKey".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "internal.fairlead".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "servicekeys".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
