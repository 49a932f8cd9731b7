//! Services that ask for session affinity where the kernel cannot remember clients: they are served without, and their
//! owners are told, once each.

use std::collections::BTreeSet;

use fairlead_objects::ServiceKey;
use tracing::warn;

use super::Lane;
use crate::{
    conntrack::FlowTable,
    events::{Notice, Subject},
    netfilter::Netfilter,
};

const NOTE: &str = "the kernel of this node has no xt_recent, so sessionAffinity has no effect here: connections of a \
                    client may go to different endpoints";

impl<N: Netfilter, F: FlowTable> Lane<N, F> {
    /// Tells about those of the changed Services that nobody was told about.
    pub(super) fn tell_lost_affinity(&mut self, dirty: &BTreeSet<ServiceKey>) {
        if self.current.as_ref().is_none_or(|basis| basis.config.recent) {
            return;
        }
        let mut news = 0;
        for service in dirty {
            let asked = self.state.ports(service).iter().any(|port| port.affinity.is_some());
            if !asked {
                self.without_affinity.remove(service);
            } else if self.without_affinity.insert(service.clone()) {
                news += 1;
                let subject = Subject::Service(service.clone());
                let note = NOTE.to_owned();
                self.wiring.events.tell(Notice {
                    subject,
                    reason: "SessionAffinityIgnored",
                    action: "Program",
                    note,
                });
            }
        }
        if news > 0 {
            let services = self.without_affinity.len();
            warn!(family = %self.wiring.family, services, "Services ask for sessionAffinity: {NOTE}");
        }
    }
}
