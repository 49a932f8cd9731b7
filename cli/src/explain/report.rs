//! The report: everything that is known of a Service's endpoints, in the order in which a reader asks.
//!
//! Invariant: counts are those of the slices that the planner leaves behind.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_objects::{
    AddressType, ClusterIp, Endpoint, EndpointAddress, EndpointSlice, Endpoints, Family, Protocol, Service,
    ServicePort, ServiceType, SlicePort, TargetPort, TrafficPolicy, labels,
};
use fairlead_planner::{EndpointsPlan, Level, Note, NoteKind, Plan, Subject};
use serde::Serialize;

use super::{
    divergence::{self, Divergence},
    gates::PodReport,
    nearness::{self, NearMiss, Others},
};
use crate::{
    objects::{Objects, Origin},
    snapshot::{Decision, Snapshot},
};

/// What becomes of an endpoint; the best comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Standing {
    /// It gets traffic.
    Serves,
    /// It gets traffic as long as nothing is ready: it is terminating, but still serving.
    LastResort,
    /// It is listed, and gets no traffic.
    NoTraffic,
    /// It is not listed.
    Out,
}

impl Standing {
    /// Of an endpoint in a slice. Unknown conditions count as ready, as they do for every proxy.
    pub(super) fn of(service: &Service, slice: &EndpointSlice, endpoint: &Endpoint) -> Self {
        let conditions = endpoint.conditions;
        if slice.ports.is_empty() && !service.ports.is_empty() {
            Self::NoTraffic
        } else if conditions.ready != Some(false) {
            Self::Serves
        } else if conditions.terminating == Some(true) && conditions.serving != Some(false) {
            Self::LastResort
        } else {
            Self::NoTraffic
        }
    }
}

/// Why a Service has the endpoints that it has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) service: ServiceReport,
    /// Whether there is an endpoint that gets traffic, if only as a last resort.
    pub(super) has_endpoint: bool,
    /// Endpoints in slices by what becomes of them; a dual-stack Pod counts once per family.
    pub(super) counts: BTreeMap<Standing, usize>,
    pub(super) ports: Vec<PortReport>,
    /// Pods that the Service selects, by name.
    pub(super) pods: Vec<PodReport>,
    /// Pods that it nearly selects, the nearest first.
    pub(super) near_misses: Vec<NearMiss>,
    /// Other Pods of the namespace.
    pub(super) other_pods: usize,
    /// What those and the near misses have for the labels of the selector, with the number of Pods.
    pub(super) label_values: BTreeMap<String, BTreeMap<String, usize>>,
    pub(super) slices: Vec<SliceReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoints: Option<EndpointsReport>,
    /// Whether slices and Endpoints were planned; else they count as they are.
    pub(super) planned: bool,
    /// Where what is there differs from what the controller would leave.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) divergences: Vec<Divergence>,
    /// Where it is there.
    #[serde(skip)]
    pub(super) place: &'static str,
    /// Whether it is certain that there is nothing else.
    #[serde(skip)]
    pub(super) complete: bool,
    /// Everything that the planner noted.
    pub(super) notes: Vec<NoteReport>,
    /// What the planner's checker objects to; anything here is a bug.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) findings: Vec<String>,
}

/// The Service in question.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceReport {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// `None` for a headless one; empty if it is not known.
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Vec<String>,
    pub(super) families: Vec<Family>,
    pub(super) selector: Option<BTreeMap<String, String>>,
    /// What changes the meaning of the gates or of the endpoints.
    pub(super) settings: Vec<String>,
}

/// One port of the Service, and what it comes to at the endpoints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortReport {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) target_port: String,
    /// 0 if there is none.
    pub(super) node_port: u16,
    /// Numbers at the endpoints, with the endpoints that get traffic there: the ready ones, or else those of last resort.
    pub(super) numbers: BTreeMap<i32, usize>,
    /// Pods that do not have it.
    pub(super) missing: usize,
}

/// One slice.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceReport {
    pub(super) name: String,
    pub(super) address_type: String,
    /// `name:number/protocol`
    pub(super) ports: Vec<String>,
    pub(super) endpoints: usize,
    /// Of these, those that get traffic.
    pub(super) ready: usize,
    pub(super) managed_by: String,
    pub(super) change: Change,
}

/// The Endpoints of the Service, by distinct addresses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointsReport {
    /// Ready for all or some ports.
    pub(super) ready: usize,
    pub(super) not_ready: usize,
    pub(super) change: Change,
}

/// What the controller would do with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Change {
    Create,
    Update,
    Delete,
    Keep,
}

impl Change {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Keep => "keep",
        }
    }
}

/// A note of the planner.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NoteReport {
    pub(super) reason: &'static str,
    pub(super) warning: bool,
    pub(super) text: String,
    /// Whether it is about a Pod, whose gates say the same.
    #[serde(skip)]
    pub(super) of_pod: bool,
}

impl Report {
    /// Everything about `service`.
    pub(super) fn new(objects: &Objects, snapshot: &Snapshot<'_>, service: &Service) -> Self {
        let decision = snapshot.decision(service);
        let planned = service.kind == ServiceType::ExternalName || snapshot.is_planned(service);
        let left: Vec<&EndpointSlice> = if planned {
            decision.outcome.slices.iter().collect()
        } else {
            snapshot.slices(&service.key).to_vec()
        };
        let service = &decision.service;
        let mut counts = BTreeMap::new();
        for standing in left.iter().flat_map(|slice| standings(service, slice)) {
            *counts.entry(standing).or_default() += 1;
        }
        let Others { near_misses, far, values } = nearness::others(objects, service);
        let mut pods: Vec<PodReport> =
            decision.pods.iter().map(|pod| PodReport::new(pod, &decision, objects)).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        let given = snapshot.slices(&service.key);
        Self {
            has_endpoint: service.kind != ServiceType::ExternalName
                && (counts.contains_key(&Standing::Serves) || counts.contains_key(&Standing::LastResort)),
            counts,
            ports: service
                .ports
                .iter()
                .map(|port| PortReport::new(service, port, &left, &decision.plan))
                .collect(),
            pods,
            near_misses,
            other_pods: far,
            label_values: values,
            slices: slices(&decision, service, &left, given, planned),
            endpoints: endpoints(&decision, objects, planned),
            planned,
            divergences: if planned {
                divergence::divergences(objects, &decision, given)
            } else {
                Vec::new()
            },
            place: objects.origin.place(),
            complete: objects.origin != Origin::Files,
            notes: if planned {
                decision.plan.notes.iter().map(NoteReport::from).collect()
            } else {
                Vec::new()
            },
            findings: decision.findings.iter().map(ToString::to_string).collect(),
            service: ServiceReport::from(service),
        }
    }

    /// How many endpoints stand so.
    pub(super) fn count(&self, standing: Standing) -> usize {
        self.counts.get(&standing).copied().unwrap_or(0)
    }
}

fn standings<'s>(service: &'s Service, slice: &'s EndpointSlice) -> impl Iterator<Item = Standing> + 's {
    slice.endpoints.iter().map(move |endpoint| Standing::of(service, slice, endpoint))
}

/// The slices that are left, and those that go.
fn slices(
    decision: &Decision<'_>,
    service: &Service,
    left: &[&EndpointSlice],
    given: &[&EndpointSlice],
    planned: bool,
) -> Vec<SliceReport> {
    let plan = &decision.plan;
    let among = |slices: &[EndpointSlice], name: &Option<String>| {
        slices.iter().any(|slice| slice.metadata.name == *name)
    };
    let change = |slice: &EndpointSlice| {
        let name = &slice.metadata.name;
        if !planned {
            Change::Keep
        } else if among(&plan.slices.create, name) || among(&plan.mirror.create, name) {
            Change::Create
        } else if among(&plan.slices.update, name) || among(&plan.mirror.update, name) {
            Change::Update
        } else {
            Change::Keep
        }
    };
    let mut reports: Vec<SliceReport> =
        left.iter().map(|slice| SliceReport::new(service, slice, change(slice))).collect();
    if planned {
        let goes =
            |slice: &&&EndpointSlice| !left.iter().any(|kept| kept.metadata.name == slice.metadata.name);
        reports
            .extend(given.iter().filter(goes).map(|slice| SliceReport::new(service, slice, Change::Delete)));
    }
    reports.sort_by(|a, b| (&a.address_type, &a.name).cmp(&(&b.address_type, &b.name)));
    reports
}

fn endpoints(decision: &Decision<'_>, objects: &Objects, planned: bool) -> Option<EndpointsReport> {
    let given = objects.endpoints.get(&decision.service.key);
    let report = |endpoints: &Endpoints, change| {
        let ready = distinct(endpoints.subsets.iter().flat_map(|subset| &subset.addresses));
        let not_ready = distinct(endpoints.subsets.iter().flat_map(|subset| &subset.not_ready_addresses));
        EndpointsReport { ready: ready.len(), not_ready: not_ready.difference(&ready).count(), change }
    };
    match &decision.plan.endpoints {
        _ if !planned => given.map(|endpoints| report(endpoints, Change::Keep)),
        EndpointsPlan::Keep => given.map(|endpoints| report(endpoints, Change::Keep)),
        EndpointsPlan::Create(endpoints) => Some(report(endpoints, Change::Create)),
        EndpointsPlan::Update(endpoints) => Some(report(endpoints, Change::Update)),
        EndpointsPlan::Delete(_) => given.map(|endpoints| report(endpoints, Change::Delete)),
    }
}

/// An address stands in a subset for each set of ports.
fn distinct<'e>(addresses: impl Iterator<Item = &'e EndpointAddress>) -> BTreeSet<&'e str> {
    addresses.map(|address| address.ip.as_str()).collect()
}

impl From<&Service> for ServiceReport {
    fn from(service: &Service) -> Self {
        let kind = match service.kind {
            ServiceType::ClusterIp => "ClusterIP",
            ServiceType::NodePort => "NodePort",
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::ExternalName => "ExternalName",
        };
        let cluster_ips = match service.cluster_ip {
            ClusterIp::None => vec!["None".to_owned()],
            ClusterIp::Unset => Vec::new(),
            ClusterIp::Ip(first) if service.cluster_ips.is_empty() => vec![first.to_string()],
            ClusterIp::Ip(_) => service.cluster_ips.iter().flatten().map(ToString::to_string).collect(),
        };
        let families = match service.cluster_ip {
            ClusterIp::Ip(first) if service.ip_families.is_empty() => vec![Family::of(first)],
            _ => service.ip_families.clone(),
        };
        let selector = service.selector.as_ref();
        let text =
            |(key, value): (&std::sync::Arc<str>, &std::sync::Arc<str>)| (key.to_string(), value.to_string());
        Self {
            namespace: service.key.namespace.to_string(),
            name: service.key.name.to_string(),
            kind,
            cluster_ips,
            families,
            selector: selector.map(|selector| selector.iter().map(text).collect()),
            settings: settings(service),
        }
    }
}

fn settings(service: &Service) -> Vec<String> {
    let mut settings = Vec::new();
    let mut say = |applies: bool, text: &str| {
        if applies {
            settings.push(text.to_owned());
        }
    };
    say(service.publish_not_ready_addresses, "publishNotReadyAddresses");
    say(service.internal_policy == TrafficPolicy::Local, "internalTrafficPolicy Local");
    say(service.external_policy == TrafficPolicy::Local, "externalTrafficPolicy Local");
    say(service.terminating, "terminating");
    if let Some(distribution) = &service.traffic_distribution {
        settings.push(format!("trafficDistribution {distribution}"));
    }
    settings
}

impl PortReport {
    fn new(service: &Service, port: &ServicePort, left: &[&EndpointSlice], plan: &Plan) -> Self {
        let numbers =
            [Standing::Serves, Standing::LastResort].map(|standing| numbers(service, port, left, standing));
        let [ready, last_resort] = numbers;
        let numbers = if ready.values().any(|count| *count > 0) { ready } else { last_resort };
        let is_missing = |note: &&Note| match &note.kind {
            NoteKind::PortNotFound { port: name, protocol, .. } => {
                *name == port.name && *protocol == port.protocol
            }
            _ => false,
        };
        Self {
            name: port.name.to_string(),
            port: port.port,
            protocol: port.protocol,
            target_port: match &port.target {
                TargetPort::Number(number) => number.to_string(),
                TargetPort::Name(name) => name.to_string(),
            },
            node_port: port.node_port,
            numbers,
            missing: plan.notes.iter().filter(is_missing).count(),
        }
    }
}

/// The numbers of a Service port, and how many endpoints stand so at each.
fn numbers(
    service: &Service,
    port: &ServicePort,
    left: &[&EndpointSlice],
    standing: Standing,
) -> BTreeMap<i32, usize> {
    let mut numbers = BTreeMap::new();
    for slice in left {
        let count = standings(service, slice).filter(|other| *other == standing).count();
        let same = |other: &&SlicePort| {
            other.name.as_deref().unwrap_or_default() == &*port.name
                && other.protocol.unwrap_or_default() == port.protocol
        };
        for number in slice.ports.iter().filter(same).filter_map(|port| port.port) {
            *numbers.entry(number).or_default() += count;
        }
    }
    numbers
}

impl SliceReport {
    fn new(service: &Service, slice: &EndpointSlice, change: Change) -> Self {
        let port = |port: &SlicePort| {
            let number = port.port.map_or_else(|| "all".to_owned(), |number| number.to_string());
            let name = port.name.as_deref().filter(|name| !name.is_empty());
            let name = name.map(|name| format!("{name}:")).unwrap_or_default();
            format!("{name}{number}/{}", port.protocol.unwrap_or_default())
        };
        let address_type = match &slice.address_type {
            AddressType::IPv4 => "IPv4",
            AddressType::IPv6 => "IPv6",
            AddressType::Fqdn => "FQDN",
            AddressType::Other(other) => other,
        };
        Self {
            name: slice.metadata.name.clone().unwrap_or_default(),
            address_type: address_type.to_owned(),
            ports: slice.ports.iter().map(port).collect(),
            endpoints: slice.endpoints.len(),
            ready: standings(service, slice).filter(|standing| *standing == Standing::Serves).count(),
            managed_by: slice.label(labels::SLICE_MANAGED_BY).unwrap_or_default().to_owned(),
            change,
        }
    }
}

impl From<&Note> for NoteReport {
    fn from(note: &Note) -> Self {
        Self {
            reason: note.reason(),
            warning: note.level() == Level::Warning,
            text: note.to_string(),
            of_pod: matches!(note.subject, Subject::Pod { .. }),
        }
    }
}
