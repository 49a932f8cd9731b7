//! Taking in changes: into the state, what is dirty, and when it happened.

use fairlead_objects::{EndpointSlice, Timestamp, labels};

use super::Lane;
use crate::{
    conntrack::FlowTable,
    feed::{Change, Kind},
    netfilter::Netfilter,
};

impl<N: Netfilter, F: FlowTable> Lane<N, F> {
    /// Takes in a change, and all others that wait already.
    pub(super) fn take_in(&mut self, first: Change) {
        self.apply(first);
        while let Ok(change) = self.wiring.changes.try_recv() {
            self.apply(change);
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Service(service) => {
                self.wiring.metrics.count_service_change();
                self.state.set_service(&service);
            }
            Change::ServiceGone(key) => {
                self.wiring.metrics.count_service_change();
                self.state.remove_service(&key);
            }
            Change::Slice(slice) => {
                self.wiring.metrics.count_endpoint_change();
                self.note_trigger(&slice);
                self.state.set_slice(&slice);
            }
            Change::SliceGone(key) => {
                self.wiring.metrics.count_endpoint_change();
                self.state.remove_slice(&key.namespace, &key.name);
            }
            Change::Listed(Kind::Services) => self.services_listed = true,
            Change::Listed(Kind::EndpointSlices) => self.slices_listed = true,
        }
        let dirty = self.state.take_dirty();
        if self.full.is_some() || !dirty.is_empty() {
            self.dirty.extend(dirty);
            self.request();
        }
    }

    /// When the change happened that this version of the slice shows; nothing from before our start.
    fn note_trigger(&mut self, slice: &EndpointSlice) {
        let annotations = slice.metadata.annotations.as_ref();
        let time = annotations.and_then(|all| all.get(labels::TRIGGER_TIME)?.parse::<Timestamp>().ok());
        let Some((key, time)) = slice.service_key().zip(time.filter(|time| *time > self.started)) else {
            return;
        };
        let times = self.triggers.entry(key).or_default();
        if times.last() != Some(&time) {
            times.push(time);
        }
    }
}
