//! The three parts of the work, each a controller of its own in kube-controller-manager.

use std::fmt;

use fairlead_planner::Parts;

/// One part. It has its own switch, due time, failures, Events and metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Endpoints of Services with a selector.
    Endpoints,
    /// EndpointSlices of Services with a selector.
    Slices,
    /// EndpointSlices mirrored from hand-made Endpoints.
    Mirror,
}

impl Part {
    /// All parts, in the order in which they are listed everywhere.
    pub const ALL: [Self; 3] = [Self::Endpoints, Self::Slices, Self::Mirror];

    /// Its name among kube-controller-manager's controllers.
    pub fn controller(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints-controller",
            Self::Slices => "endpointslice-controller",
            Self::Mirror => "endpointslice-mirroring-controller",
        }
    }

    /// An older name of it that kube-controller-manager still accepts.
    pub fn alias(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoint",
            Self::Slices => "endpointslice",
            Self::Mirror => "endpointslicemirroring",
        }
    }

    /// Who Events say that they come from, as upstream.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoint-controller",
            Self::Slices => "endpoint-slice-controller",
            Self::Mirror => "endpoint-slice-mirroring-controller",
        }
    }

    /// The word for it in metric labels and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Slices => "slices",
            Self::Mirror => "mirror",
        }
    }

    /// Its position in [`Self::ALL`].
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Endpoints => 0,
            Self::Slices => 1,
            Self::Mirror => 2,
        }
    }

    /// Whether it is among `parts`.
    pub fn is_in(self, parts: Parts) -> bool {
        match self {
            Self::Endpoints => parts.endpoints,
            Self::Slices => parts.slices,
            Self::Mirror => parts.mirror,
        }
    }
}

/// The word used in metric labels and logs.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The parts of a list, as a set.
pub fn set(parts: impl IntoIterator<Item = Part>) -> Parts {
    let mut all = Parts { endpoints: false, slices: false, mirror: false };
    for part in parts {
        match part {
            Part::Endpoints => all.endpoints = true,
            Part::Slices => all.slices = true,
            Part::Mirror => all.mirror = true,
        }
    }
    all
}
