//! Where the two sides may differ, and why.
//!
//! Invariant: each of them only ever excuses the genuine controllers, and stands in `docs/differences.md` under its
//! subject; that page says of no other subject that the differential test excepts it.

/// Where the two sides may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exception {
    /// Endpoints with a Pod that has an address and no node.
    PodWithoutNode,
    /// The field `generateName` of mirrored slices.
    MirroredGenerateName,
    /// An empty slice beside others.
    EmptySlice,
    /// Mirrored slices of both families.
    MirrorRecycling,
    /// More addresses than fit into a mirrored slice.
    MirrorCut,
    /// A genuine controller that takes its own view for outdated, for good.
    StuckTracker,
    /// Slices that say that they belong to a Service that is not there.
    GoneService,
    /// Hints of topology mode `Auto` that do not fit.
    HintsDealtAgain,
}

impl Exception {
    /// All.
    pub const ALL: [Self; 8] = [
        Self::PodWithoutNode,
        Self::MirroredGenerateName,
        Self::EmptySlice,
        Self::MirrorRecycling,
        Self::MirrorCut,
        Self::StuckTracker,
        Self::GoneService,
        Self::HintsDealtAgain,
    ];

    /// What `docs/differences.md` calls it.
    pub fn subject(self) -> &'static str {
        match self {
            Self::PodWithoutNode => "Pod with an address and no `nodeName`",
            Self::MirroredGenerateName => "Mirrored slice that is written again",
            Self::EmptySlice => "Slice without endpoints beside others",
            Self::MirrorRecycling => "Mirrored slices of both families that are recycled",
            Self::MirrorCut => "Mirrored slice of several subsets that hold more than the limit together",
            Self::StuckTracker => "Slice that is relabelled, or waits for a finalizer",
            Self::GoneService => "Slices of a Service that is gone",
            Self::HintsDealtAgain => {
                "Hints of topology mode `Auto`, where a zone has more than it may and none can take them"
            }
        }
    }

    /// Why it is right that the sides differ.
    pub fn reason(self) -> &'static str {
        match self {
            Self::PodWithoutNode => {
                "kube-controller-manager sends an empty nodeName for a Pod that has an address and no node; the API server \
                 refuses the Endpoints, which stay as they were until the Pod goes. Fairlead leaves nodeName out."
            }
            Self::MirroredGenerateName => {
                "kube-controller-manager sends a mirrored slice without generateName when it writes it again; Fairlead \
                 keeps the field, as both do for slices of Services with a selector."
            }
            Self::EmptySlice => {
                "a slice without endpoints is left alone as long as some Pod, even one that is not published, has its port \
                 set; whether there is one depends on what a controller saw between two changes. Fairlead may have one \
                 only where there is such a Pod."
            }
            Self::MirrorRecycling => {
                "with new slices of both families and an old one to recycle, kube-controller-manager takes the wrong one for \
                 recycled, and creates one that exists until a retry draws another order."
            }
            Self::MirrorCut => {
                "kube-controller-manager draws the addresses that it leaves out, anew at each sync; Fairlead leaves out the \
                 last."
            }
            Self::StuckTracker => {
                "kube-controller-manager remembers a slice that it will never see again, and waits for it until it is \
                 restarted; a deletion that it hears of before the answer to its own write is enough."
            }
            Self::GoneService => {
                "kube-controller-manager leaves the slices of a Service that is not there to the garbage collector, which \
                 leaves those alone whose label names another Service than their owner."
            }
            Self::HintsDealtAgain => {
                "kube-controller-manager deals such hints anew at each sync, and draws which endpoints they are of; Fairlead \
                 deals them once, in one fixed way."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Rows of the table of exceptions hold the subject in their first cell.
    #[test]
    fn the_exceptions_are_those_that_are_documented() {
        let page = std::fs::read_to_string(crate::tools::repository().join("docs/differences.md")).unwrap();
        let (_, after) = page.split_once("### Exceptions of the differential test").unwrap();
        let section = after.split("\n## ").next().unwrap();
        let listed: BTreeSet<&str> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
            .filter(|cell| !cell.starts_with("---") && *cell != "Subject")
            .collect();
        assert_eq!(listed, Exception::ALL.map(Exception::subject).into_iter().collect());
        let differences = page.split("### Exceptions of the differential test").next().unwrap();
        for exception in Exception::ALL {
            assert!(differences.contains(&format!("| {} |", exception.subject())), "{exception:?}");
            assert!(!exception.reason().is_empty());
        }
    }
}
