//! The sync loop's part in quarantine: whom to blame for a refusal, and who is told.

use tokio::time::Instant;
use tracing::error;

use super::Lane;
use crate::{
    conntrack::FlowTable,
    engine::{Engine, SyncError},
    events::{Notice, Subject},
    netfilter::Netfilter,
    quarantine::{Advice, Verdict},
};

impl<N: Netfilter, F: FlowTable> Lane<N, F> {
    /// Services that changed since their rules were refused may be fine now.
    pub(super) fn retry_held(&mut self) {
        self.quarantine.release(Instant::now(), false);
        self.request();
    }

    /// Leaves out Services whose rules are refused, so that all others are programmed.
    pub(super) fn blame(&mut self, error: &SyncError, engine: &Engine<N>) {
        let Some(refusal) = error.refusal() else { return };
        let everyone = || self.state.services().map(|(key, _)| key.clone()).collect();
        let owners = engine.owners(refusal);
        let advice = self.quarantine.refused(&refusal.to_string(), owners, everyone, Instant::now());
        self.tell_verdicts();
        if advice == Advice::Again {
            self.schedule.hasten();
        }
    }

    pub(super) fn tell_verdicts(&mut self) {
        let family = self.wiring.family;
        for Verdict { service, reason } in self.quarantine.take_verdicts() {
            error!(%family, %service, "the packet filter refuses the rules of a Service; it is left out: {reason}");
            self.wiring.metrics.count_quarantine(family);
            let note = format!(
                "the packet filter refuses the {family} rules of this Service, so it is left out: {reason}"
            );
            let subject = Subject::Service(service);
            self.wiring.events.tell(Notice { subject, reason: "FailedToProgram", action: "Program", note });
        }
        self.wiring.metrics.observe_quarantine(family, self.quarantine.held().count());
    }

    /// Says in readiness which Services are left out, though everything else is there.
    pub(super) fn report_held(&self) {
        let held: Vec<_> = self.quarantine.held().map(|(key, _)| key.to_string()).take(5).collect();
        if !held.is_empty() {
            let count = self.quarantine.held().count();
            self.wiring
                .gate
                .trouble(format!("{count} Services are left out, among them {}", held.join(", ")));
        }
    }
}
