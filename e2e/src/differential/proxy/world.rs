//! The world: what exists in the cluster at one moment, and random steps from one moment to the next.
//!
//! A step removes, replaces and adds a few Services and slices. Everything that the API server would choose by itself
//! (cluster IPs, node ports) is chosen here, so that a seed repeats a run.
//!
//! Invariant: no two Services of a world have the same cluster IP or the same node port, because the API server
//! refuses that; everything else may be claimed twice.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    services::{self, Frame},
    slices,
};
use crate::differential::controller::random::Random;

/// How many Services there may be at once.
pub(super) const SLOTS: usize = 24;

/// The namespaces that Services live in.
pub(super) const NAMESPACES: [&str; 2] = ["default", "other"];

/// An object to delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Doomed {
    /// Its kind.
    pub(super) kind: &'static str,
    /// Its namespace.
    pub(super) namespace: String,
    /// Its name.
    pub(super) name: String,
}

/// What a step changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Step {
    /// To be deleted first.
    pub(super) delete: BTreeSet<Doomed>,
    /// To be applied then.
    pub(super) apply: Vec<Value>,
    /// Namespace and name of the Services that the step is about.
    pub(super) touched: BTreeSet<(String, String)>,
}

/// The place of one Service.
#[derive(Debug, Default)]
struct Slot {
    frame: Option<Frame>,
    service: Option<Value>,
    slices: BTreeMap<String, Value>,
}

/// All Services and slices, and where the next ones come from.
#[derive(Debug)]
pub(super) struct World {
    random: Random,
    /// Counts frames, so that a new one has a cluster IP that nobody had before.
    frames: usize,
    slots: Vec<Slot>,
}

impl World {
    /// An empty world.
    pub(super) fn new(seed: u64) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(SLOTS).collect();
        Self { random: Random::new(seed), frames: 0, slots }
    }

    /// Goes on to the next moment.
    pub(super) fn step(&mut self) -> Step {
        let mut step = Step::default();
        let empty = self.slots.iter().all(|slot| slot.service.is_none());
        let changes = if empty { SLOTS } else { 3 + self.random.below(6) };
        for change in 0..changes {
            let number = if empty { change } else { self.random.below(SLOTS) };
            self.change(number, &mut step);
        }
        // A slot that was changed twice is in the lists twice: the last word counts.
        step.apply = self.present(&step);
        step
    }

    /// The objects of all touched slots, as they are now.
    fn present(&self, step: &Step) -> Vec<Value> {
        let touched = (0..SLOTS).filter(|number| step.touched.contains(&identity(*number)));
        let slots = touched.filter_map(|number| self.slots.get(number));
        slots.flat_map(|slot| slot.service.iter().chain(slot.slices.values())).cloned().collect()
    }

    fn change(&mut self, number: usize, step: &mut Step) {
        step.touched.insert(identity(number));
        let kind = self.random.below(100);
        let Some(slot) = self.slots.get_mut(number) else { return };
        match kind {
            0..12 => slot.remove_service(number, step),
            12..18 => slot.remove_slices(number, step),
            18..50 => slot.replace_slices(number, &mut self.random, step),
            _ => {
                slot.replace_service(number, &mut self.random, &mut self.frames, step);
                if self.random.chance(60) {
                    slot.replace_slices(number, &mut self.random, step);
                }
            }
        }
    }
}

impl Slot {
    fn remove_service(&mut self, number: usize, step: &mut Step) {
        self.frame = None;
        if self.service.take().is_some() {
            let (namespace, name) = identity(number);
            step.delete.insert(Doomed { kind: "Service", namespace, name });
        }
    }

    fn remove_slices(&mut self, number: usize, step: &mut Step) {
        let (namespace, _) = identity(number);
        for (name, _) in std::mem::take(&mut self.slices) {
            step.delete.insert(Doomed { kind: "EndpointSlice", namespace: namespace.clone(), name });
        }
    }

    /// Slices are for the ports that the Service has, or would have.
    fn replace_slices(&mut self, number: usize, random: &mut Random, step: &mut Step) {
        self.remove_slices(number, step);
        let (namespace, name) = identity(number);
        let ports =
            self.service.as_ref().and_then(|service| service.pointer("/spec/ports")?.as_array().cloned());
        let ports = ports.unwrap_or_else(|| services::ports(number, false, random));
        for slice in slices::slices(&namespace, &name, &ports, random) {
            let name = slice.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            self.slices.insert(name, slice);
        }
    }

    /// What cannot be changed on a Service is its frame; for another one it is deleted first.
    fn replace_service(&mut self, number: usize, random: &mut Random, frames: &mut usize, step: &mut Step) {
        let frame = match self.frame.take() {
            Some(frame) if random.chance(70) => frame,
            _ => {
                self.remove_service(number, step);
                *frames += 1;
                Frame::random(*frames, random)
            }
        };
        let (namespace, name) = identity(number);
        self.service = Some(services::service(&namespace, &name, number, &frame, random));
        self.frame = Some(frame);
    }
}

/// Namespace and name of the Service of a slot. Names repeat across namespaces.
pub(super) fn identity(number: usize) -> (String, String) {
    let namespace = NAMESPACES[number % NAMESPACES.len()];
    (namespace.to_owned(), format!("s{}", number / NAMESPACES.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_a_series_of_steps() {
        let run = |seed| {
            let mut world = World::new(seed);
            (0..20).map(|_| format!("{:?}", world.step())).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn node_ports_and_cluster_ips_are_nobody_elses() {
        let mut world = World::new(1);
        for _ in 0..50 {
            world.step();
            let mut seen = BTreeSet::new();
            for service in world.slots.iter().filter_map(|slot| slot.service.as_ref()) {
                for ip in service.pointer("/spec/clusterIPs").and_then(Value::as_array).into_iter().flatten()
                {
                    assert!(ip == "None" || seen.insert(ip.to_string()), "{ip} twice");
                }
                for port in service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten() {
                    let Some(number) = port.get("nodePort") else { continue };
                    let protocol = port.get("protocol").unwrap_or(&Value::Null);
                    assert!(seen.insert(format!("{number}/{protocol}")), "{number}/{protocol} twice");
                }
            }
        }
    }
}
