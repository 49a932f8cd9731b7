//! Notes: every refusal has a reason. They feed Events, metrics and explanations; none of them stops a plan.
//!
//! Invariant: [`Note::reason`] has few, fixed values, fit for a metric label or an Event reason.

use std::{fmt, net::IpAddr, sync::Arc};

use fairlead_objects::{Family, Phase, Protocol, ServiceKey, TargetPort};

use crate::Unhinted;

/// One thing that was left out or looks wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub subject: Subject,
    /// Which part of the plan it concerns.
    pub scope: Scope,
    /// What is the matter.
    pub kind: NoteKind,
}

/// What a note is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The Service.
    Service(ServiceKey),
    /// The Endpoints of that namespace and name.
    Endpoints(ServiceKey),
    /// A Pod.
    Pod {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

/// Which part of a plan a note concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Endpoints and slices alike.
    All,
    /// The Endpoints.
    Endpoints,
    /// The slices of one family.
    Slices(Family),
    /// Mirrored slices.
    Mirror,
}

/// How much a note should worry its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Part of normal life.
    Info,
    /// Somebody may have to act.
    Warning,
}

/// Why an existing Service gets neither Endpoints nor slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gap {
    /// It is an alias for a DNS name.
    ExternalName,
    /// It has no selector.
    NoSelector,
}

/// What is the matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// The Service is not for us to fill; what exists stays untouched.
    Unmanaged(Gap),
    /// The Service is being deleted, so nothing new is created for it.
    ServiceTerminating,
    /// The Service has no ports and is not headless, so its Endpoints stay empty.
    NoServicePorts,
    /// The Pod has ended.
    PodEnded(Phase),
    /// The Pod has no address yet.
    PodWithoutAddress,
    /// The Pod has an address that cannot be published: unspecified, loopback or link-local.
    SpecialAddress(IpAddr),
    /// The Pod has no address of the family in question.
    WrongFamily(Family),
    /// The Pod is being deleted.
    PodTerminating,
    /// The Pod is in, but gets no traffic: it is not ready.
    PodNotReady,
    /// A named target port is not among the Pod's container ports.
    PortNotFound {
        /// Name of the Service port; may be empty.
        port: Arc<str>,
        /// What was looked for.
        target: TargetPort,
        /// With which protocol.
        protocol: Protocol,
    },
    /// No port of the Service could be resolved for the Pod: its endpoints carry no port.
    NoPortResolved,
    /// The Pod has an address but no Node, so it is left out of the slices.
    PodUnscheduled,
    /// The Pod's Node is not known, so the Pod is left out of the slices until it is.
    NodeUnknown(Arc<str>),
    /// The Pod's Node is not known; the Pod is published regardless, without a zone.
    ZoneUnknown(Arc<str>),
    /// Addresses were left out of the Endpoints because there are too many.
    OverCapacity {
        /// Addresses written.
        kept: usize,
        /// Addresses left out.
        left_out: usize,
    },
    /// Addresses of hand-made Endpoints are no IP addresses.
    InvalidAddresses(usize),
    /// Hand-made Endpoints hold more addresses than are mirrored.
    TooManyAddresses {
        /// The limit per subset.
        max: usize,
        /// How many were skipped, invalid ones included.
        skipped: usize,
    },
    /// The endpoints of this family are hinted by topology mode `Auto`, and were not by the last plan.
    TopologyHintsEnabled(Family),
    /// The endpoints of this family carry no hints of topology mode `Auto`. Every plan says so as long as the Service asks
    /// for them; once it does not ask any more, only the plan that removes them.
    TopologyHintsDisabled {
        /// The family.
        family: Family,
        /// Why there are none.
        why: Unhinted,
    },
}

impl Note {
    /// A fixed word for metrics and Events; upstream's where upstream has one.
    pub fn reason(&self) -> &'static str {
        match &self.kind {
            NoteKind::Unmanaged(Gap::ExternalName) => "ExternalName",
            NoteKind::Unmanaged(Gap::NoSelector) => "NoSelector",
            NoteKind::ServiceTerminating => "ServiceTerminating",
            NoteKind::NoServicePorts => "NoServicePorts",
            NoteKind::PodEnded(_) => "PodEnded",
            NoteKind::PodWithoutAddress => "PodWithoutAddress",
            NoteKind::SpecialAddress(_) => "SpecialAddress",
            NoteKind::WrongFamily(_) => "WrongFamily",
            NoteKind::PodTerminating => "PodTerminating",
            NoteKind::PodNotReady => "PodNotReady",
            NoteKind::PortNotFound { .. } => "PortNotFound",
            NoteKind::NoPortResolved => "NoPortResolved",
            NoteKind::PodUnscheduled => "PodUnscheduled",
            NoteKind::NodeUnknown(_) => "NodeUnknown",
            NoteKind::ZoneUnknown(_) => "ZoneUnknown",
            NoteKind::OverCapacity { .. } => "OverCapacity",
            NoteKind::InvalidAddresses(_) => "InvalidIPAddress",
            NoteKind::TooManyAddresses { .. } => "TooManyAddressesToMirror",
            NoteKind::TopologyHintsEnabled(_) => "TopologyAwareHintsEnabled",
            NoteKind::TopologyHintsDisabled { .. } => "TopologyAwareHintsDisabled",
        }
    }

    /// How much it should worry its reader.
    pub fn level(&self) -> Level {
        match &self.kind {
            NoteKind::Unmanaged(_)
            | NoteKind::ServiceTerminating
            | NoteKind::PodEnded(_)
            | NoteKind::PodWithoutAddress
            | NoteKind::PodTerminating
            | NoteKind::PodNotReady
            | NoteKind::ZoneUnknown(_)
            | NoteKind::TopologyHintsEnabled(_) => Level::Info,
            NoteKind::NoServicePorts
            | NoteKind::SpecialAddress(_)
            | NoteKind::WrongFamily(_)
            | NoteKind::PortNotFound { .. }
            | NoteKind::NoPortResolved
            | NoteKind::PodUnscheduled
            | NoteKind::NodeUnknown(_)
            | NoteKind::OverCapacity { .. }
            | NoteKind::InvalidAddresses(_)
            | NoteKind::TooManyAddresses { .. }
            | NoteKind::TopologyHintsDisabled { .. } => Level::Warning,
        }
    }

    /// Whether the Service must be planned again later even if none of its own objects change: a Pod waits for a Node.
    pub fn needs_retry(&self) -> bool {
        matches!(self.kind, NoteKind::NodeUnknown(_))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, scope, kind } = self;
        match kind {
            NoteKind::Unmanaged(Gap::ExternalName) => {
                write!(f, "{subject} is of type ExternalName: its {scope} are left as they are")
            }
            NoteKind::Unmanaged(Gap::NoSelector) => {
                write!(f, "{subject} has no selector: only hand-made Endpoints can give it endpoints")
            }
            NoteKind::ServiceTerminating => {
                write!(f, "{subject} is being deleted: nothing new is created for it")
            }
            NoteKind::NoServicePorts => {
                write!(f, "{subject} has no ports and a cluster IP: its Endpoints stay empty")
            }
            NoteKind::PodEnded(phase) => write!(f, "{subject} is left out: it has ended ({phase:?})"),
            NoteKind::PodWithoutAddress => write!(f, "{subject} is left out: it has no IP address yet"),
            NoteKind::SpecialAddress(ip) => {
                write!(
                    f,
                    "{subject} is not published as {ip}: such an address means another thing on every host"
                )
            }
            NoteKind::WrongFamily(family) => {
                write!(f, "{subject} is left out of the {scope}: it has no {family} address")
            }
            NoteKind::PodTerminating => {
                write!(f, "{subject} is left out of the {scope}: it is being deleted")
            }
            NoteKind::PodNotReady => write!(f, "{subject} gets no traffic: it is not ready"),
            NoteKind::PortNotFound { port, target, protocol } => {
                let port = if port.is_empty() { "the port".to_owned() } else { format!("port {port:?}") };
                match target {
                    TargetPort::Name(name) => {
                        write!(
                            f,
                            "{subject} does not serve {port}: none of its containers has a {protocol} port named {name:?}"
                        )
                    }
                    TargetPort::Number(number) => {
                        write!(f, "{subject} does not serve {port} on {protocol} {number}")
                    }
                }
            }
            NoteKind::NoPortResolved => {
                write!(
                    f,
                    "{subject} serves none of the Service's ports: Endpoints leave it out, slices list it without ports"
                )
            }
            NoteKind::PodUnscheduled => write!(f, "{subject} is left out of the {scope}: it has no Node"),
            NoteKind::NodeUnknown(node) => {
                write!(f, "{subject} is left out of the {scope}: Node {node} is not known")
            }
            NoteKind::ZoneUnknown(node) => {
                write!(f, "{subject} has no zone in the {scope}: Node {node} is not known")
            }
            NoteKind::OverCapacity { kept, left_out } => {
                write!(f, "{subject} holds only {kept} addresses; {left_out} more did not fit")
            }
            NoteKind::InvalidAddresses(count) => {
                write!(f, "Skipped {count} invalid IP addresses when mirroring to EndpointSlices")
            }
            NoteKind::TooManyAddresses { max, skipped } => write!(
                f,
                "A max of {max} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            ),
            NoteKind::TopologyHintsEnabled(family) => {
                write!(f, "Topology Aware Hints has been enabled, addressType: {family}")
            }
            NoteKind::TopologyHintsDisabled { family, why } => write!(f, "{why}, addressType: {family}"),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "Service {key}"),
            Self::Endpoints(key) => write!(f, "Endpoints {key}"),
            Self::Pod { namespace, name } => write!(f, "Pod {namespace}/{name}"),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("Endpoints and EndpointSlices"),
            Self::Endpoints => f.write_str("Endpoints"),
            Self::Slices(family) => write!(f, "{family} EndpointSlices"),
            Self::Mirror => f.write_str("mirrored EndpointSlices"),
        }
    }
}
