//! The rights that the controller needs: the same list as in the chart, `manifests/chart`.

use fairlead_daemon::rights::Right;
use fairlead_planner::Parts;

use crate::{index::Kind, watches};

const ENDPOINTS: (&str, &str) = ("", "endpoints");
const SLICES: (&str, &str) = ("discovery.k8s.io", "endpointslices");
const LEASES: (&str, &str) = ("coordination.k8s.io", "leases");

/// What these parts need. `writes` is false in shadow mode; `lease` is the namespace and the name of the lease, if there is
/// one to hold.
pub fn needed(parts: Parts, writes: bool, lease: Option<(&str, &str)>) -> Vec<Right> {
    let mut rights: Vec<Right> =
        watches::needed(parts).into_iter().flat_map(|kind| Right::to_watch(of(kind))).collect();
    if writes {
        rights.extend(to_write(parts));
    }
    if let Some((namespace, name)) = lease {
        for (verb, name) in [("create", ""), ("get", name), ("update", name)] {
            rights.push(Right::new(verb, LEASES).within(namespace, name));
        }
    }
    rights
}

fn of(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Services => ("", "services"),
        Kind::Pods => ("", "pods"),
        Kind::Nodes => ("", "nodes"),
        Kind::Endpoints => ENDPOINTS,
        Kind::EndpointSlices => SLICES,
    }
}

fn to_write(parts: Parts) -> Vec<Right> {
    const WRITE: [&str; 3] = ["create", "update", "delete"];
    const OWNERS: &str = "needed where OwnerReferencesPermissionEnforcement is on";
    // A doubtful write is looked at afresh, whatever it was.
    let mut rights = vec![Right::new("get", ENDPOINTS)];
    if parts.endpoints {
        rights.extend(WRITE.map(|verb| Right::new(verb, ENDPOINTS)));
        rights.push(
            Right::new("create", ("", "endpoints/restricted"))
                .only_for("needed where addresses are restricted"),
        );
    }
    if parts.slices || parts.mirror {
        rights.extend(WRITE.map(|verb| Right::new(verb, SLICES)));
    }
    if parts.slices {
        rights.push(Right::new("update", ("", "services/finalizers")).only_for(OWNERS));
    }
    if parts.mirror {
        rights.push(Right::new("update", ("", "endpoints/finalizers")).only_for(OWNERS));
    }
    rights.extend(Right::to_tell());
    rights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(parts: Parts, writes: bool, lease: Option<(&str, &str)>) -> Vec<String> {
        needed(parts, writes, lease).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_shadow_needs_to_look_only() {
        let rights = words(Parts::default(), false, None);
        assert!(
            rights.iter().all(|right| right.starts_with("list ") || right.starts_with("watch ")),
            "{rights:?}"
        );
        assert_eq!(rights.len(), 10);
    }

    #[test]
    fn parts_that_are_off_need_no_rights_to_write() {
        let rights = words(Parts { endpoints: true, slices: false, mirror: false }, true, None).join("; ");
        assert!(rights.contains("update endpoints;") && !rights.contains("endpointslices"), "{rights}");
    }

    #[test]
    fn rights_are_named_as_kubectl_names_them() {
        let rights = words(Parts::default(), true, Some(("kube-system", "fairlead-controller")));
        for right in [
            "watch pods",
            "create endpointslices.discovery.k8s.io",
            "update services/finalizers (needed where OwnerReferencesPermissionEnforcement is on)",
            "create leases.coordination.k8s.io in namespace kube-system",
            "update leases.coordination.k8s.io fairlead-controller in namespace kube-system",
        ] {
            assert!(rights.iter().any(|found| found == right), "{right} in {rights:?}");
        }
    }
}
