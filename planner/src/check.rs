//! An independent checker of plans: it knows what must hold, not how plans are made.
//!
//! It works out afresh who should be reachable where, straight from Pods and Service, and compares that with what the plan
//! leaves behind. Invariant: no finding for any plan that [`crate::plan()`] returns, whatever the input.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use fairlead_objects::{
    EndpointSlice, EndpointSubset, Endpoints, Family, ObjectMeta, Phase, Pod, Protocol, Service, SlicePort,
    TargetPort, labels, parse_address,
};

use crate::{
    EndpointsPlan, MAX_ADDRESSES, NodeLookup, ObjectRef, Outcome, Plan, PlanInput, SlicePlan, ZoneCounts,
    is_topology_auto, membership, mirror, outcome,
};

/// Something that must hold for every plan, but does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What should hold.
    pub invariant: Invariant,
    /// Name of the object in question.
    pub object: String,
    /// What was found.
    pub detail: String,
}

/// What must hold for every plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// Parts that are switched off plan nothing.
    OnlyPartsThatAreOn,
    /// New slices have a name of their own.
    NewNames,
    /// Updates and deletions concern only existing objects that the part manages, each once.
    OnlyOurs,
    /// Updates and deletions refer to the version that was read.
    VersionsKept,
    /// What cannot be changed is not changed.
    ImmutableKept,
    /// No slice grows beyond its maximum, and no Endpoints is larger than its capacity.
    SizeLimit,
    /// A slice holds addresses of its own type only.
    OneAddressType,
    /// An API server takes what is written: no special addresses, no two ports of one name, no subset without addresses.
    Acceptable,
    /// Slices are labelled with their Service and their manager.
    Labelled,
    /// What is left behind holds exactly the endpoints that it should, each once.
    Coverage,
    /// A Service with a selector has a slice per address type.
    Placeholder,
    /// Nothing is created for a Service that is being deleted.
    NoCreationWhileTerminating,
    /// With topology mode `Auto`, all ready endpoints of a family are hinted, as the plan remembers, or none is.
    HintedWhole,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} violated by {:?}: {}", self.invariant, self.object, self.detail)
    }
}

/// Verifies a plan against its input. An empty list is the only good answer.
pub fn check(plan: &Plan, input: &PlanInput<'_>) -> Vec<Finding> {
    let left = outcome(input, plan);
    let mut checker = Checker { input, left: &left, findings: Vec::new() };
    checker.parts(plan);
    checker.names(plan);
    for (part, manager, max) in [
        (&plan.slices, labels::SLICE_CONTROLLER, input.limits.endpoints_per_slice.max(1)),
        (&plan.mirror, labels::MIRRORING_CONTROLLER, input.limits.mirrored_per_subset.max(1)),
    ] {
        checker.references(part, manager);
        checker.contents(part, manager, max);
    }
    checker.endpoints(&plan.endpoints);
    checker.creation(plan);
    checker.coverage();
    checker.topology(plan);
    checker.findings
}

struct Checker<'a> {
    input: &'a PlanInput<'a>,
    left: &'a Outcome,
    findings: Vec<Finding>,
}

/// A port as everything that consumers see of it.
type PortFact = (String, i32, &'static str, Option<String>);
/// Family, ports, address, Pod, ready, serving, terminating.
type EndpointFact = (Family, Vec<PortFact>, String, String, [bool; 3]);

impl<'a> Checker<'a> {
    fn report(&mut self, invariant: Invariant, object: impl Into<String>, detail: impl Into<String>) {
        self.findings.push(Finding { invariant, object: object.into(), detail: detail.into() });
    }

    fn expect(&mut self, holds: bool, invariant: Invariant, object: &str, detail: &str) {
        if !holds {
            self.report(invariant, object, detail);
        }
    }

    fn parts(&mut self, plan: &Plan) {
        let parts = self.input.parts;
        let idle = [
            ("endpoints", parts.endpoints || plan.endpoints == EndpointsPlan::Keep),
            ("slices", parts.slices || plan.slices.is_empty()),
            ("mirror", parts.mirror || plan.mirror.is_empty()),
        ];
        for (part, holds) in idle {
            self.expect(holds, Invariant::OnlyPartsThatAreOn, part, "writes although it is off");
        }
    }

    fn names(&mut self, plan: &Plan) {
        let mut taken: BTreeSet<String> = self.input.taken_names.iter().cloned().collect();
        taken.extend(self.input.slices.iter().map(|slice| name(&slice.metadata)));
        for slice in plan.slices.create.iter().chain(&plan.mirror.create) {
            let name = name(&slice.metadata);
            self.expect(
                !name.is_empty() && name.len() <= 63,
                Invariant::NewNames,
                &name,
                "is empty or too long",
            );
            self.expect(taken.insert(name.clone()), Invariant::NewNames, &name, "is taken");
        }
    }

    fn existing(&self, name: &str, manager: &str) -> Option<&EndpointSlice> {
        let found =
            self.input.slices.iter().copied().find(|slice| slice.metadata.name.as_deref() == Some(name));
        found.filter(|slice| slice.label(labels::SLICE_MANAGED_BY) == Some(manager))
    }

    fn references(&mut self, part: &SlicePlan, manager: &str) {
        let mut touched = BTreeSet::new();
        let updates = part.update.iter().map(|slice| ObjectRef::from(&slice.metadata));
        for reference in updates.chain(part.delete.iter().cloned()) {
            let name = &reference.name;
            self.expect(touched.insert(name.clone()), Invariant::OnlyOurs, name, "is touched twice");
            match self.existing(name, manager).map(|slice| ObjectRef::from(&slice.metadata)) {
                None => self.report(Invariant::OnlyOurs, name, format!("is no existing slice of {manager}")),
                Some(read) => {
                    self.expect(
                        read == reference,
                        Invariant::VersionsKept,
                        name,
                        "is not the object that was read",
                    );
                }
            }
        }
    }

    fn contents(&mut self, part: &SlicePlan, manager: &str, max: usize) {
        for slice in part.create.iter().chain(&part.update) {
            let name = name(&slice.metadata);
            let before = self.existing(&name, manager);
            let allowed = before.map_or(max, |before| before.endpoints.len().max(max));
            let same_type = before.is_none_or(|before| before.address_type == slice.address_type);
            let labelled = slice.service_key().as_ref() == Some(self.input.key)
                && slice.label(labels::SLICE_MANAGED_BY) == Some(manager);
            let family = slice.address_type.family();
            let fits =
                |address: &String| parse_address(address).is_ok_and(|ip| Some(Family::of(ip)) == family);
            let one_type = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).all(fits);
            self.expect(slice.endpoints.len() <= allowed, Invariant::SizeLimit, &name, "has grown too large");
            self.expect(same_type, Invariant::ImmutableKept, &name, "has changed its address type");
            self.expect(labelled, Invariant::Labelled, &name, "lacks its Service or its manager");
            self.expect(one_type, Invariant::OneAddressType, &name, "holds an address of another type");
            let names: BTreeSet<_> = slice.ports.iter().map(|port| port.name.as_deref()).collect();
            let unique = names.len() == slice.ports.len();
            self.expect(unique, Invariant::Acceptable, &name, "holds two ports of one name");
            let ips: Vec<&String> = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).collect();
            self.publishable(&name, &ips);
        }
    }

    fn endpoints(&mut self, plan: &EndpointsPlan) {
        let name = self.input.key.name.to_string();
        let read = self.input.endpoints.map(|endpoints| ObjectRef::from(&endpoints.metadata));
        let referred = match plan {
            EndpointsPlan::Keep => return,
            EndpointsPlan::Create(_) => None,
            EndpointsPlan::Update(endpoints) => Some(ObjectRef::from(&endpoints.metadata)),
            EndpointsPlan::Delete(reference) => Some(reference.clone()),
        };
        self.expect(read == referred, Invariant::VersionsKept, &name, "is not the object that was read");
        if let EndpointsPlan::Delete(_) = plan {
            let stored = self.input.endpoints.and_then(|endpoints| endpoints.metadata.labels.as_ref());
            let manager = stored.and_then(|labels| labels.get(labels::ENDPOINTS_MANAGED_BY));
            let ours = manager.is_some_and(|manager| manager == labels::ENDPOINTS_CONTROLLER);
            self.expect(ours, Invariant::OnlyOurs, &name, "was made by somebody else, yet is deleted");
        }
        if let EndpointsPlan::Create(written) | EndpointsPlan::Update(written) = plan {
            let size: usize = written.subsets.iter().map(subset_size).sum();
            self.expect(size <= MAX_ADDRESSES, Invariant::SizeLimit, &name, "holds too many addresses");
            let filled = written.subsets.iter().all(|subset| subset_size(subset) > 0);
            self.expect(filled, Invariant::Acceptable, &name, "holds a subset without addresses");
            let subsets = written.subsets.iter();
            let addresses = subsets.flat_map(|s| s.addresses.iter().chain(&s.not_ready_addresses));
            self.publishable(&name, &addresses.map(|address| &address.ip).collect::<Vec<_>>());
        }
    }

    fn publishable(&mut self, name: &str, ips: &[&String]) {
        let special = ips.iter().find(|ip| parse_address(ip).is_ok_and(membership::is_special));
        let detail = format!("holds {special:?}");
        self.expect(special.is_none(), Invariant::Acceptable, name, &detail);
    }

    fn creation(&mut self, plan: &Plan) {
        let creates = !plan.slices.create.is_empty() || matches!(plan.endpoints, EndpointsPlan::Create(_));
        let terminating = self.input.service.is_some_and(|service| service.terminating);
        let name = self.input.key.name.to_string();
        self.expect(
            !(terminating && creates),
            Invariant::NoCreationWhileTerminating,
            &name,
            "gets a new object although it is being deleted",
        );
    }

    fn coverage(&mut self) {
        match self.input.service {
            Some(service) if membership::selecting(self.input).is_ok() => {
                self.slice_coverage(service);
                self.endpoints_coverage(service);
            }
            Some(service) if service.selector.is_none() => self.mirror_coverage(),
            _ => {}
        }
    }

    fn slice_coverage(&mut self, service: &Service) {
        if !self.input.parts.slices {
            return;
        }
        let families = membership::families(service, self.input.pods);
        let expected = expected_endpoints(self.input, service, &families);
        let left = self.left_slices(labels::SLICE_CONTROLLER);
        let mut found: Vec<EndpointFact> = left.iter().flat_map(|slice| facts(slice)).collect();
        found.sort();
        let name = service.key.name.to_string();
        if service.terminating {
            let within = found.iter().all(|fact| expected.binary_search(fact).is_ok());
            self.expect(within, Invariant::Coverage, &name, "keeps an endpoint that should be gone");
            return;
        }
        if found != expected {
            let detail = format!("slices hold {found:?} instead of {expected:?}");
            self.report(Invariant::Coverage, &name, detail);
        }
        for family in families {
            let any = left.iter().any(|slice| slice.address_type.family() == Some(family));
            self.expect(any, Invariant::Placeholder, &name, "has no slice for one of its families");
        }
    }

    fn topology(&mut self, plan: &Plan) {
        let requested = membership::selecting(self.input).is_ok_and(is_topology_auto);
        if !self.input.parts.slices || !requested {
            return;
        }
        let left = self.left_slices(labels::SLICE_CONTROLLER);
        for family in Family::ALL {
            let of_family = left.iter().filter(|slice| slice.address_type.family() == Some(family));
            let endpoints = of_family.flat_map(|slice| &slice.endpoints);
            let remembered = plan.topology.hinted.get(&family);
            // Those of endpoints that are not ready do not matter, but are not worth a write either.
            let counted = endpoints.filter(|e| remembered.is_none() || e.conditions.ready == Some(true));
            let (mut counts, mut unhinted) = (ZoneCounts::new(), 0);
            for endpoint in counted {
                let zones = endpoint.hints.as_ref().map(|hints| &*hints.for_zones).unwrap_or_default();
                unhinted += usize::from(zones.is_empty());
                for zone in zones {
                    *counts.entry(zone.name.as_str().into()).or_default() += 1;
                }
            }
            let whole = remembered.map_or(counts.is_empty(), |known| *known == counts && unhinted == 0);
            self.expect(whole, Invariant::HintedWhole, family.as_str(), "is hinted in part");
        }
    }

    fn left_slices(&self, manager: &str) -> Vec<&'a EndpointSlice> {
        let ours = |slice: &&EndpointSlice| {
            slice.label(labels::SLICE_MANAGED_BY) == Some(manager)
                && slice.label(labels::SERVICE_NAME) == Some(&*self.input.key.name)
                && slice.metadata.deletion_timestamp.is_none()
        };
        self.left.slices.iter().filter(ours).collect()
    }

    fn endpoints_coverage(&mut self, service: &Service) {
        if !self.input.parts.endpoints || (service.terminating && self.left.endpoints.is_none()) {
            return;
        }
        let expected = expected_addresses(self.input, service);
        let found = self.left.endpoints.as_ref().map(address_facts).unwrap_or_default();
        let truncated = self.left.endpoints.iter().any(|endpoints| {
            endpoints.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(labels::OVER_CAPACITY))
        });
        let right = if truncated { is_within(&found, &expected) } else { found == expected };
        let detail = format!("Endpoints hold {found:?} instead of {expected:?}");
        self.expect(right, Invariant::Coverage, &service.key.name, &detail);
    }

    fn mirror_coverage(&mut self) {
        if !self.input.parts.mirror {
            return;
        }
        let source = self.input.endpoints.filter(|endpoints| mirror::is_mirrorable(endpoints));
        let expected = source.map(mirrored_addresses).unwrap_or_default();
        let mut found: BTreeMap<(IpAddr, PortFact), bool> = BTreeMap::new();
        for (_, ports, ip, _, [ready, ..]) in
            self.left_slices(labels::MIRRORING_CONTROLLER).into_iter().flat_map(facts)
        {
            for (port, ip) in ports.into_iter().filter_map(|port| Some((port, ip.parse().ok()?))) {
                found.entry((ip, port)).and_modify(|known| *known &= ready).or_insert(ready);
            }
        }
        let size = source.map_or(0, |endpoints| endpoints.subsets.iter().map(subset_size).sum());
        let terminating = source.is_some_and(|endpoints| endpoints.metadata.deletion_timestamp.is_some());
        let partial = terminating || size > self.input.limits.mirrored_per_subset;
        // Ports with an `appProtocol` in several subsets are as many ports: the last one's word counts.
        for (key, ready) in expected.iter().filter(|(key, _)| key.1.3.is_some()) {
            found.entry(key.clone()).and_modify(|known| *known = *ready);
        }
        let right = if partial { is_within(&found, &expected) } else { found == expected };
        let detail = format!("mirrored slices hold {found:?} instead of {expected:?}");
        self.expect(right, Invariant::Coverage, &self.input.key.name, &detail);
    }
}

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn subset_size(subset: &EndpointSubset) -> usize {
    subset.addresses.len() + subset.not_ready_addresses.len()
}

fn is_within<K: Ord>(found: &BTreeMap<K, bool>, expected: &BTreeMap<K, bool>) -> bool {
    found.iter().all(|(key, _)| expected.contains_key(key))
}

/// What consumers see of one slice.
fn facts(slice: &EndpointSlice) -> Vec<EndpointFact> {
    let fact = |port: &SlicePort| {
        let protocol = port.protocol.map_or("TCP", Protocol::as_str);
        (port.name.clone().unwrap_or_default(), port.port.unwrap_or(0), protocol, port.app_protocol.clone())
    };
    let mut ports: Vec<PortFact> = slice.ports.iter().map(fact).collect();
    ports.sort();
    let Some(family) = slice.address_type.family() else { return Vec::new() };
    slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let pod = endpoint.target_ref.as_ref().map(|target| target.name.clone()).unwrap_or_default();
            let conditions = endpoint.conditions;
            let state = [conditions.ready, conditions.serving, conditions.terminating];
            let state = state.map(|condition| condition == Some(true));
            (family, ports.clone(), endpoint.addresses.join(","), pod, state)
        })
        .collect()
}

/// The ports that a Pod serves, sorted.
fn served(pod: &Pod, service: &Service) -> Vec<PortFact> {
    let mut served: Vec<PortFact> = Vec::new();
    for port in &service.ports {
        let number = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                let mut candidates = pod.ports.iter().filter(|candidate| candidate.name == *name);
                candidates
                    .find(|candidate| candidate.protocol == port.protocol)
                    .map(|candidate| candidate.number)
            }
        };
        let app_protocol = port.app_protocol.as_ref().map(ToString::to_string);
        served.extend(
            number.map(|number| (port.name.to_string(), number, port.protocol.as_str(), app_protocol)),
        );
    }
    served.sort();
    served
}

fn is_alive(pod: &Pod) -> bool {
    !matches!(pod.phase, Phase::Failed | Phase::Succeeded)
}

/// Who should be in the slices, sorted.
fn expected_endpoints(input: &PlanInput<'_>, service: &Service, families: &[Family]) -> Vec<EndpointFact> {
    let publish = service.publish_not_ready_addresses;
    let mut expected = Vec::new();
    for pod in input.pods.iter().filter(|pod| is_alive(pod)) {
        let lookup = input.nodes.node(pod.node.as_deref().unwrap_or_default());
        if lookup == NodeLookup::Missing && !publish {
            continue;
        }
        for family in families {
            let ips: Vec<String> = membership::addresses_of(pod, *family).map(|ip| ip.to_string()).collect();
            if !ips.is_empty() {
                let state = [publish || (pod.ready && !pod.terminating), pod.ready, pod.terminating];
                expected.push((*family, served(pod, service), ips.join(","), pod.name.to_string(), state));
            }
        }
    }
    expected.sort();
    expected
}

/// Which address with which uid should serve which port in the Endpoints, and whether it is ready.
type AddressFacts = BTreeMap<(String, String, PortFact), bool>;

fn expected_addresses(input: &PlanInput<'_>, service: &Service) -> AddressFacts {
    let publish = service.publish_not_ready_addresses;
    let family = membership::endpoints_family(service, input.pods);
    let mut expected = AddressFacts::new();
    for pod in input.pods.iter().filter(|pod| is_alive(pod) && (publish || !pod.terminating)) {
        let Ok(ip) = membership::endpoints_address(pod, family) else { continue };
        for port in served(pod, service).into_iter().filter(|(_, number, ..)| *number > 0) {
            let ready = publish || pod.ready;
            let fact = expected.entry((ip.to_string(), pod.uid.to_string(), port)).or_insert(ready);
            *fact &= ready;
        }
    }
    expected
}

fn address_facts(endpoints: &Endpoints) -> AddressFacts {
    let mut found = AddressFacts::new();
    for subset in &endpoints.subsets {
        for port in &subset.ports {
            let port = (port.name.clone(), port.port, port.protocol.as_str(), port.app_protocol.clone());
            for (addresses, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
                for address in addresses {
                    let uid =
                        address.target_ref.as_ref().map(|target| target.uid.clone()).unwrap_or_default();
                    let fact = found.entry((address.ip.clone(), uid, port.clone())).or_insert(ready);
                    *fact &= ready;
                }
            }
        }
    }
    found
}

/// Which address should serve which port once hand-made Endpoints are mirrored.
fn mirrored_addresses(endpoints: &Endpoints) -> BTreeMap<(IpAddr, PortFact), bool> {
    let mut expected = BTreeMap::new();
    for ((ip, _, port), ready) in address_facts(endpoints) {
        if let Ok(ip) = parse_address(&ip)
            && !membership::is_special(ip)
            && port.1 > 0
        {
            expected.entry((ip, port)).and_modify(|known| *known &= ready).or_insert(ready);
        }
    }
    expected
}
