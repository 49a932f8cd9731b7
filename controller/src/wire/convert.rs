//! From objects to messages.

use fairlead_objects as objects;
use fairlead_objects::AddressType;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

use super::messages as wire;

impl From<&meta::Time> for wire::Time {
    fn from(time: &meta::Time) -> Self {
        Self { seconds: time.0.as_second() }
    }
}

impl From<&meta::ObjectMeta> for wire::ObjectMeta {
    fn from(meta: &meta::ObjectMeta) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            name: text(&meta.name),
            generate_name: text(&meta.generate_name),
            namespace: text(&meta.namespace),
            uid: text(&meta.uid),
            resource_version: text(&meta.resource_version),
            generation: meta.generation.unwrap_or_default(),
            creation_timestamp: meta.creation_timestamp.as_ref().map(Into::into),
            deletion_timestamp: meta.deletion_timestamp.as_ref().map(Into::into),
            deletion_grace_period_seconds: meta.deletion_grace_period_seconds,
            labels: meta.labels.clone().unwrap_or_default(),
            annotations: meta.annotations.clone().unwrap_or_default(),
            owner_references: meta.owner_references.iter().flatten().map(Into::into).collect(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        }
    }
}

impl From<&meta::OwnerReference> for wire::OwnerReference {
    fn from(owner: &meta::OwnerReference) -> Self {
        Self {
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            api_version: owner.api_version.clone(),
            controller: owner.controller,
            block_owner_deletion: owner.block_owner_deletion,
        }
    }
}

impl From<&objects::ObjectReference> for wire::ObjectReference {
    fn from(reference: &objects::ObjectReference) -> Self {
        Self {
            kind: reference.kind.clone(),
            namespace: reference.namespace.clone(),
            name: reference.name.clone(),
            uid: reference.uid.clone(),
            api_version: reference.api_version.clone(),
            resource_version: reference.resource_version.clone(),
            field_path: reference.field_path.clone(),
        }
    }
}

impl From<&objects::Endpoints> for wire::Endpoints {
    fn from(endpoints: &objects::Endpoints) -> Self {
        Self {
            metadata: Some((&endpoints.metadata).into()),
            subsets: endpoints.subsets.iter().map(Into::into).collect(),
        }
    }
}

impl From<&objects::EndpointSubset> for wire::EndpointSubset {
    fn from(subset: &objects::EndpointSubset) -> Self {
        Self {
            addresses: subset.addresses.iter().map(Into::into).collect(),
            not_ready_addresses: subset.not_ready_addresses.iter().map(Into::into).collect(),
            ports: subset.ports.iter().map(Into::into).collect(),
        }
    }
}

impl From<&objects::EndpointAddress> for wire::EndpointAddress {
    fn from(address: &objects::EndpointAddress) -> Self {
        Self {
            ip: address.ip.clone(),
            target_ref: address.target_ref.as_deref().map(Into::into),
            hostname: address.hostname.clone(),
            node_name: address.node_name.clone(),
        }
    }
}

impl From<&objects::EndpointPort> for wire::SubsetPort {
    fn from(port: &objects::EndpointPort) -> Self {
        Self {
            name: port.name.clone(),
            port: port.port,
            protocol: port.protocol.to_string(),
            app_protocol: port.app_protocol.clone(),
        }
    }
}

impl From<&objects::EndpointSlice> for wire::EndpointSlice {
    fn from(slice: &objects::EndpointSlice) -> Self {
        Self {
            metadata: Some((&slice.metadata).into()),
            endpoints: slice.endpoints.iter().map(Into::into).collect(),
            ports: slice.ports.iter().map(Into::into).collect(),
            address_type: address_type(&slice.address_type).to_owned(),
        }
    }
}

fn address_type(kind: &AddressType) -> &str {
    match kind {
        AddressType::IPv4 => "IPv4",
        AddressType::IPv6 => "IPv6",
        AddressType::Fqdn => "FQDN",
        AddressType::Other(name) => name,
    }
}

impl From<&objects::Endpoint> for wire::Endpoint {
    fn from(endpoint: &objects::Endpoint) -> Self {
        let objects::Conditions { ready, serving, terminating } = endpoint.conditions;
        Self {
            addresses: endpoint.addresses.clone(),
            conditions: Some(wire::Conditions { ready, serving, terminating }),
            hostname: endpoint.hostname.clone(),
            target_ref: endpoint.target_ref.as_deref().map(Into::into),
            node_name: endpoint.node_name.clone(),
            zone: endpoint.zone.clone(),
            hints: endpoint.hints.as_deref().map(Into::into),
        }
    }
}

impl From<&objects::Hints> for wire::Hints {
    fn from(hints: &objects::Hints) -> Self {
        let names = |list: &[objects::ForName]| {
            list.iter().map(|target| wire::ForName { name: target.name.clone() }).collect()
        };
        Self { for_zones: names(&hints.for_zones), for_nodes: names(&hints.for_nodes) }
    }
}

impl From<&objects::SlicePort> for wire::SlicePort {
    fn from(port: &objects::SlicePort) -> Self {
        Self {
            name: port.name.clone(),
            protocol: port.protocol.map(|protocol| protocol.to_string()),
            port: port.port,
            app_protocol: port.app_protocol.clone(),
        }
    }
}
