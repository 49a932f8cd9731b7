//! Which Pods are in, and with which addresses.
//!
//! Invariant: every Pod that is left out is named in a note, once per part that leaves it out.

use std::net::IpAddr;

use fairlead_objects::{ClusterIp, Family, Phase, Pod, Service, ServiceType};

use crate::{Gap, Note, NoteKind, PlanInput, Scope, Subject, port};

/// The Service of an input, if it is one whose endpoints are found by selector.
pub(crate) fn selecting<'a>(input: &PlanInput<'a>) -> Result<&'a Service, Option<Gap>> {
    let Some(service) = input.service else { return Err(None) };
    match (service.kind, &service.selector) {
        (ServiceType::ExternalName, _) => Err(Some(Gap::ExternalName)),
        (_, None) => Err(Some(Gap::NoSelector)),
        (_, Some(_)) => Ok(service),
    }
}

/// Whether the Service counts as headless. One that has neither an address nor says `None` was never seen by an API
/// server, which would have given it an address: it does not count.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.cluster_ip == ClusterIp::None
}

/// The families of the Service: what it says; else that of its cluster IP; else both if it is headless. A Service that
/// no API server has seen gets the family of its Pods, as a single-stack cluster would give it.
pub(crate) fn families(service: &Service, pods: &[&Pod]) -> Vec<Family> {
    let mut families = match service.cluster_ip {
        _ if !service.ip_families.is_empty() => service.ip_families.clone(),
        ClusterIp::Ip(ip) => vec![Family::of(ip)],
        ClusterIp::None => Family::ALL.to_vec(),
        ClusterIp::Unset => vec![usual_family(pods)],
    };
    families.sort_unstable();
    families.dedup();
    families
}

fn usual_family(pods: &[&Pod]) -> Family {
    let first = pods.iter().filter(|pod| !addresses(pod).is_empty()).min_by_key(|pod| &pod.name);
    first.and_then(|pod| own_family(pod)).unwrap_or(Family::V4)
}

fn own_family(pod: &Pod) -> Option<Family> {
    pod.ip.or_else(|| pod.ips.first().copied()).map(Family::of)
}

/// The family of the Endpoints, which know only one per Service; `None` if every Pod counts with its own.
pub(crate) fn endpoints_family(service: &Service, pods: &[&Pod]) -> Option<Family> {
    match service.cluster_ip {
        _ if !service.ip_families.is_empty() => service.ip_families.first().copied(),
        ClusterIp::Ip(ip) => Some(Family::of(ip)),
        ClusterIp::None => None,
        ClusterIp::Unset => Some(usual_family(pods)),
    }
}

/// The address that a Pod has in the Endpoints of such a family; or the family that it lacks.
pub(crate) fn endpoints_address(pod: &Pod, family: Option<Family>) -> Result<IpAddr, Family> {
    let family = family.or_else(|| own_family(pod)).unwrap_or(Family::V4);
    addresses_of(pod, family).next().ok_or(family)
}

/// The addresses of a Pod, in order. The API server sees to it that `podIPs` holds `podIP`; a file may have only that.
pub(crate) fn addresses(pod: &Pod) -> &[IpAddr] {
    if pod.ips.is_empty() { pod.ip.as_slice() } else { &pod.ips }
}

/// The addresses of one family that can be published, in order.
pub(crate) fn addresses_of(pod: &Pod, family: Family) -> impl Iterator<Item = IpAddr> {
    addresses(pod).iter().copied().filter(move |ip| Family::of(*ip) == family && !is_special(*ip))
}

/// Whether an address means something else on every host. A Pod may have such a one, but the API server takes no Endpoints and
/// no slice that holds it, not for the sake of all others in it.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    let elsewhere_too = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || matches!(ip.octets(), [224, 0, 0, _]),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.segments()[0] & 0xff0f == 0xff02,
    };
    ip.is_unspecified() || ip.is_loopback() || elsewhere_too
}

/// Why a Pod is in neither Endpoints nor slices.
pub(crate) fn exclusion(pod: &Pod) -> Option<NoteKind> {
    if matches!(pod.phase, Phase::Succeeded | Phase::Failed) {
        return Some(NoteKind::PodEnded(pod.phase));
    }
    match addresses(pod) {
        [] => Some(NoteKind::PodWithoutAddress),
        [first, ..] if addresses(pod).iter().all(|ip| is_special(*ip)) => {
            Some(NoteKind::SpecialAddress(*first))
        }
        _ => None,
    }
}

/// The host name that a Pod has below the Service: its own, if it is in the Service's subdomain.
pub(crate) fn hostname<'a>(pod: &'a Pod, service: &Service) -> Option<&'a str> {
    let below =
        pod.subdomain.as_deref() == Some(&*service.key.name) && pod.namespace == service.key.namespace;
    pod.hostname.as_deref().filter(|_| below)
}

/// Pods in the order in which everything is decided.
pub(crate) fn in_order<'a>(pods: &[&'a Pod]) -> Vec<&'a Pod> {
    let mut pods = pods.to_vec();
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    pods
}

/// Notes that concern Endpoints and slices alike.
pub(crate) fn notes(input: &PlanInput<'_>, notes: &mut Vec<Note>) {
    let of_service = |scope, kind| Note { subject: Subject::Service(input.key.clone()), scope, kind };
    let service = match selecting(input) {
        Ok(service) => service,
        Err(gap) => {
            notes.extend(gap.map(|gap| of_service(Scope::All, NoteKind::Unmanaged(gap))));
            return;
        }
    };
    if service.ports.is_empty() && !is_headless(service) {
        notes.push(of_service(Scope::Endpoints, NoteKind::NoServicePorts));
    }
    for pod in in_order(input.pods) {
        notes.extend(pod_notes(service, pod).into_iter().map(|kind| note(pod, Scope::All, kind)));
    }
}

fn pod_notes(service: &Service, pod: &Pod) -> Vec<NoteKind> {
    if let Some(kind) = exclusion(pod) {
        return vec![kind];
    }
    let special = addresses(pod).iter().copied().filter(|ip| is_special(*ip));
    let mut kinds: Vec<NoteKind> = special.map(NoteKind::SpecialAddress).collect();
    let missing = service.ports.iter().filter(|port| port::number(pod, port).is_none());
    let before = kinds.len();
    kinds.extend(missing.map(|port| NoteKind::PortNotFound {
        port: port.name.clone(),
        target: port.target.clone(),
        protocol: port.protocol,
    }));
    let lost = kinds.len() - before;
    if lost > 0 && lost == service.ports.len() {
        kinds.push(NoteKind::NoPortResolved);
    }
    if !pod.ready && !pod.terminating && !service.publish_not_ready_addresses {
        kinds.push(NoteKind::PodNotReady);
    }
    kinds
}

/// A note on a Pod.
pub(crate) fn note(pod: &Pod, scope: Scope, kind: NoteKind) -> Note {
    Note { subject: Subject::Pod { namespace: pod.namespace.clone(), name: pod.name.clone() }, scope, kind }
}

#[cfg(test)]
mod tests {
    use fairlead_objects::builders::{pod, pod_with, service};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn families_are_declared_or_follow_from_the_address() {
        let headless = json!({"clusterIP": "None", "clusterIPs": null, "ipFamilies": null});
        let cases: [(Value, &[Family]); 6] = [
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), &Family::ALL),
            (json!({"ipFamilies": ["IPv6"], "clusterIP": "10.0.0.1"}), &[Family::V6]),
            (json!({"ipFamilies": null}), &[Family::V4]),
            (json!({"ipFamilies": null, "clusterIP": "fd00::1", "clusterIPs": null}), &[Family::V6]),
            (headless.clone(), &Family::ALL),
            (json!({"ipFamilies": null, "clusterIP": null, "clusterIPs": null}), &[Family::V4]),
        ];
        for (spec, expected) in cases {
            assert_eq!(families(&service("web", spec.clone()), &[]), expected, "{spec}");
        }
        let bare = service("web", json!({"ipFamilies": null, "clusterIP": null, "clusterIPs": null}));
        assert_eq!(families(&bare, &[&pod("a", "web", "n", "fd00::a")]), [Family::V6]);
    }

    #[test]
    fn addresses_that_no_api_server_publishes_are_special() {
        let special = |ip: &str| is_special(ip.parse().unwrap());
        for ip in [
            "0.0.0.0",
            "127.9.9.9",
            "169.254.0.1",
            "224.0.0.251",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "ff12::1",
        ] {
            assert!(special(ip), "{ip}");
        }
        for ip in [
            "10.0.0.1",
            "128.0.0.1",
            "169.253.0.1",
            "224.0.1.1",
            "255.255.255.255",
            "fd00::1",
            "fec0::1",
            "ff05::1",
        ] {
            assert!(!special(ip), "{ip}");
        }
    }

    #[test]
    fn hostname_counts_only_in_the_services_subdomain() {
        let web = service("web", json!({}));
        let named = |spec: Value| pod_with("a", "web", "n", "10.0.0.1", json!({"spec": spec}));
        assert_eq!(hostname(&named(json!({"hostname": "h", "subdomain": "web"})), &web), Some("h"));
        assert_eq!(hostname(&named(json!({"hostname": "h", "subdomain": "other"})), &web), None);
        assert_eq!(hostname(&named(json!({"hostname": "h"})), &web), None);
        assert_eq!(hostname(&named(json!({"subdomain": "web"})), &web), None);
        let elsewhere = pod_with(
            "a",
            "web",
            "n",
            "10.0.0.1",
            json!({"metadata": {"namespace": "x"},
            "spec": {"hostname": "h", "subdomain": "web"}}),
        );
        assert_eq!(hostname(&elsewhere, &web), None);
    }
}
