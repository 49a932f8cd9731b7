//! What another proxy has installed against what we would install, by what becomes of the packets that can tell.
//!
//! ```text
//!  installed ──────────────────────────┬─> Tracer ─┐
//!      └─ with our rules in the place of ─> Tracer ─┴─> Fate, Fate ─> Difference
//!  state ──> frontends ─┐ the other's                    ^
//!  installed ─> traces ─┴─> clients ──> packets ─────────┘
//! ```
//!
//! Rules are never compared, so it does not matter how a proxy arranges them. What others than the proxy have installed
//! (firewalls, network plugins) stands on both sides.
//!
//! Invariant: the answer follows from the arguments alone; a place that several Services claim, and a Service whose slices
//! contradict each other, differ by right, and are told as such.

mod clients;
mod frontends;
mod takeover;
mod traces;

use std::{fmt, sync::Arc};

use fairlead_objects::ServiceKey;

pub use clients::{Client, ClientKind};
use clients::{Clients, packet};
use frontends::{Claim, claims};
pub use frontends::{Frontend, FrontendKind};
use traces::Traces;

use crate::{
    config::Config,
    dump::Dump,
    facts::NodeFacts,
    ruleset::Ruleset,
    state::ProxyState,
    trace::{Discord, Fate, Host, Tracer},
};

/// What is compared: two sets of rules for one family of one node.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What is installed, by another proxy and by everybody else.
    pub installed: &'a Dump,
    /// What we would install.
    pub desired: &'a Ruleset,
    /// What both should be made from.
    pub state: &'a ProxyState,
    /// The settings that `desired` was made with.
    pub config: &'a Config,
    /// The node, with all of its interface addresses.
    pub facts: &'a NodeFacts,
}

/// A frontend that clients fare differently at.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The Service that it belongs to; `None` if no Service has it and the rules do not say whose it was.
    pub service: Option<ServiceKey>,
    /// Name of the Service's port; empty if it has none.
    pub port: Arc<str>,
    /// Where packets go.
    pub frontend: Frontend,
    /// Who sends them: all clients that see just this difference.
    pub clients: Vec<Client>,
    /// In what it differs.
    pub discord: Discord,
    /// What is installed does this.
    pub theirs: Fate,
    /// Our rules would do this.
    pub ours: Fate,
    /// Why it is no divergence, if it is none.
    pub excuse: Option<Excuse>,
}

/// Why a difference was to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Excuse {
    /// Several Services claim one address, protocol and port: kube-proxy lets any of them win.
    Disputed,
    /// An endpoint is listed in several slices, in differing conditions: kube-proxy goes by any of them.
    Contradiction,
}

impl Excuse {
    /// A constant word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disputed => "disputed",
            Self::Contradiction => "contradiction",
        }
    }
}

impl Difference {
    /// The Service port as kube-proxy writes it, `namespace/name:port`, or that there is none.
    pub fn owner(&self) -> String {
        match (&self.service, self.port.is_empty()) {
            (Some(service), true) => service.to_string(),
            (Some(service), false) => format!("{service}:{}", self.port),
            (None, _) => "no Service".to_owned(),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, from ", self.owner(), self.frontend)?;
        for (number, client) in self.clients.iter().enumerate() {
            write!(f, "{}{client}", if number == 0 { "" } else { " and " })?;
        }
        write!(f, ": installed: {}; ours: {}", self.theirs, self.ours)
    }
}

/// What was compared, and what differs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Services in the state.
    pub services: usize,
    /// Frontends that were looked at.
    pub frontends: usize,
    /// Packets that were followed, through both sets of rules.
    pub packets: usize,
    /// By frontend.
    pub differences: Vec<Difference>,
}

/// Compares what becomes of the packets to every frontend, from every kind of client.
pub fn compare(subject: Subject<'_>) -> Comparison {
    let Subject { installed, desired, state, config, facts } = subject;
    let traces = Traces::of(installed);
    let ours = takeover::taken_over(installed, desired);
    let bench = Bench {
        theirs: Tracer::new(installed),
        ours: Tracer::new(&ours),
        host: Host::from(facts),
        clients: Clients::new(subject, &traces),
    };
    let claims = claims(state, config, facts, &traces);
    let mut comparison =
        Comparison { services: state.services().count(), frontends: claims.len(), ..Comparison::default() };
    for claim in claims {
        bench.compare(&claim, &mut comparison);
    }
    for difference in &mut comparison.differences {
        let contradicts =
            || difference.service.as_ref().is_some_and(|service| state.has_contradicting_slices(service));
        if difference.excuse.is_none() && contradicts() {
            difference.excuse = Some(Excuse::Contradiction);
        }
    }
    comparison
}

/// Both sides, and who asks them.
struct Bench<'a> {
    theirs: Tracer<'a>,
    ours: Tracer<'a>,
    host: Host,
    clients: Clients<'a>,
}

impl Bench<'_> {
    fn compare(&self, claim: &Claim, comparison: &mut Comparison) {
        let mut found: Vec<Difference> = Vec::new();
        let mut asked = self.clients.general(claim, &self.host);
        let mut targets = Vec::new();
        let general = asked.len();
        let mut position = 0;
        while let Some(client) = asked.get(position).cloned() {
            let packet = packet(&client, &claim.frontend);
            let (theirs, ours) = (self.theirs.fate(&packet, &self.host), self.ours.fate(&packet, &self.host));
            comparison.packets += 1;
            position += 1;
            if position <= general {
                targets.extend(clients::callers(&ours, &theirs));
            }
            if position == general {
                asked.extend(self.clients.endpoints(&targets, &claim.frontend, &self.host));
            }
            let Some(discord) = ours.discord(&theirs) else { continue };
            match found.iter_mut().find(|known| known.theirs == theirs && known.ours == ours) {
                Some(known) => known.clients.push(client),
                None => found.push(claim.difference(client, discord, theirs, ours)),
            }
        }
        comparison.differences.extend(found);
    }
}

impl Claim {
    fn difference(&self, client: Client, discord: Discord, theirs: Fate, ours: Fate) -> Difference {
        let (service, port) = match self.owners.first() {
            Some(owner) => (Some(owner.service.clone()), Arc::clone(&owner.port.name)),
            None => (self.former.as_ref().map(|(key, _)| key.clone()), self.former_port()),
        };
        Difference {
            service,
            port,
            frontend: self.frontend,
            clients: vec![client],
            discord,
            theirs,
            ours,
            excuse: (self.disputed).then_some(Excuse::Disputed),
        }
    }

    fn former_port(&self) -> Arc<str> {
        self.former.as_ref().map_or_else(|| "".into(), |(_, port)| Arc::clone(port))
    }
}
