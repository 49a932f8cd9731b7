//! Topology mode `Auto`: the shares of the zones, and what plans want remembered of the hints that they dealt.
//!
//! Invariant: the shares are those of the Nodes that are known; they are added up when they are asked for, so that a list of
//! many Nodes does not add them up as often.

use std::{cell::OnceCell, sync::Arc};

use fairlead_objects::{Node, ServiceKey, labels};
use fairlead_planner::{Remembered, ZoneShares};
use rustc_hash::FxHashMap;

use super::{Cause, Dirty, Index};

/// What the index knows of topology.
#[derive(Debug, Default)]
pub(super) struct Topology {
    /// Empty until somebody asks after a change.
    shares: OnceCell<Option<Arc<ZoneShares>>>,
    remembered: FxHashMap<ServiceKey, Arc<Remembered>>,
}

impl Topology {
    pub(super) fn remembered(&self, key: &ServiceKey) -> Option<Arc<Remembered>> {
        self.remembered.get(key).cloned()
    }
}

/// Whether the shares depend on what differs between these states of a Node.
pub(super) fn concerns_shares(old: Option<&Node>, new: &Node) -> bool {
    let role = |node: &Node| {
        [labels::NODE_ROLE_CONTROL_PLANE, labels::NODE_ROLE_MASTER].map(|role| node.labels.contains_key(role))
    };
    old.is_none_or(|old| {
        old.ready != new.ready
            || old.zone() != new.zone()
            || old.allocatable_cpu != new.allocatable_cpu
            || role(old) != role(new)
    })
}

impl Index {
    /// The shares of the zones, if they can be told.
    pub(super) fn zone_shares(&self) -> Option<Arc<ZoneShares>> {
        let shares = || {
            let nodes = self.nodes.values().filter_map(|entry| entry.node.as_deref());
            if self.nodes_watched { ZoneShares::of(nodes).map(Arc::new) } else { None }
        };
        self.topology.shares.get_or_init(shares).clone()
    }

    /// Keeps what the newest plan of a Service wants the next one to know.
    pub fn remember(&mut self, key: &ServiceKey, remembered: Remembered) {
        if remembered.is_empty() {
            self.topology.remembered.remove(key);
        } else {
            self.topology.remembered.insert(key.clone(), Arc::new(remembered));
        }
    }

    /// Forgets what all plans wanted remembered: they are another's business from now on.
    pub fn forget_plans(&mut self) {
        self.topology.remembered.clear();
    }

    /// The Nodes have changed: Services whose hints would overload a zone now, or that can be hinted now.
    pub(super) fn shares_changed(&mut self) -> Dirty {
        self.topology.shares.take();
        if self.topology.remembered.is_empty() {
            return Dirty::default();
        }
        let shares = self.zone_shares();
        let outdated = self
            .topology
            .remembered
            .iter()
            .filter(|(_, remembered)| remembered.is_outdated(shares.as_deref()));
        outdated.map(|(key, _)| (key.clone(), Cause::Node)).collect()
    }
}
