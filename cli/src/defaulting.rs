//! Defaulting: the IP families that an API server would have filled into a Service before the controller sees it.
//!
//! To the controller, a headless Service without `ipFamilies` is of both families; but an API server never hands one out:
//! it fills in the family of the cluster, or both where `ipFamilyPolicy` asks for them.
//!
//! Invariant: families that are written are never changed.

use std::borrow::Cow;

use fairlead_objects::{ClusterIp, Family, Pod, Service, ServiceType};

/// `service` as an API server would have stored it. `dual_stack` says that its `ipFamilyPolicy` asks for both families;
/// `pods` are those that it selects, whose primary addresses tell the family of the cluster.
pub(crate) fn defaulted<'a>(service: &'a Service, dual_stack: bool, pods: &[&Pod]) -> Cow<'a, Service> {
    let filled_in = service.ip_families.is_empty()
        && service.kind != ServiceType::ExternalName
        && !matches!(service.cluster_ip, ClusterIp::Ip(_));
    if !filled_in {
        return Cow::Borrowed(service);
    }
    Cow::Owned(Service { ip_families: families(service, dual_stack, pods), ..service.clone() })
}

fn families(service: &Service, dual_stack: bool, pods: &[&Pod]) -> Vec<Family> {
    let first = pods.iter().find_map(|pod| pod.ip).map_or(Family::V4, Family::of);
    // Nothing tells the family of a headless Service without selector: the API server prepares for either.
    let undecided = service.cluster_ip == ClusterIp::None && service.selector.is_none();
    if dual_stack || undecided {
        let second = if first == Family::V4 { Family::V6 } else { Family::V4 };
        return vec![first, second];
    }
    vec![first]
}
