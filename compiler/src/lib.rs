//! The compiler: Services, EndpointSlices and facts about one node in, packet-filter rules out.
//!
//! ```text
//!  Service ────────┐                                   ┌─> Delta ── render() ──> iptables-restore document
//!  EndpointSlice ──┴─> ProxyState ──> Rulebook ──> Ruleset                        │
//!  NodeFacts, Config ───────────────────┘              └───── diff() <── Dump <── parse() <── iptables-save text
//!                                                                          ├────> trace() ──> Trace
//!                                                                          └────> compare() ──> Difference
//! ```
//!
//! One family per [`ProxyState`] and [`Rulebook`]; a dual-stack node has two of each, which know nothing of each other.
//!
//! Pure: no client, runtime, clock, randomness, process or file. The programmer and the cli depend on this crate; it
//! depends on `fairlead-objects` alone.
//!
//! Invariants:
//! * the [`Ruleset`] is a function of state, config and facts: whatever the order of the changes that led there, partial
//!   updates end at what [`compile`] would build afresh;
//! * user data never becomes syntax: every match and target is a type, comments are cleaned when they are made;
//! * a [`Delta`] holds only chains whose content really changed;
//! * comparison with what is installed is between typed rules, never between texts.

mod categorize;
mod chains;
mod cleanup;
mod compare;
mod config;
pub mod counters;
mod delta;
mod diff;
mod dispatch;
mod document;
mod dump;
mod endpoint;
mod facts;
mod frontends;
mod groups;
mod hairpin;
mod matches;
mod names;
mod parse;
mod probability;
mod rule;
mod rulebook;
mod rules;
mod ruleset;
mod service_port;
mod state;
mod statics;
mod substitutes;
mod text;
mod trace;

pub use categorize::{Choice, categorize};
pub use cleanup::{cleanup, cleanup_ipvs};
pub use compare::{
    Client, ClientKind, Comparison, Difference, Excuse, Frontend, FrontendKind, Subject, compare,
};
pub use config::{Config, Detector};
pub use delta::{ChainRef, Delta};
pub use diff::diff;
pub use document::render;
pub use dump::{Dump, InstalledChain, Policy};
pub use endpoint::{Endpoint, EndpointHints, Endpoints, PortKey};
pub use facts::NodeFacts;
pub use hairpin::Bytecode;
pub use matches::{AddressSide, Affinity, ConnStates, InterfaceName, IpProtocol, Match, Opaque, PortRange};
pub use names::{is_service_chain, service_chain_prefixes};
pub use parse::{ParseError, parse};
pub use probability::{Probability, Share};
pub use rule::{Comment, Mark, Rule, Target};
pub use rulebook::{Rulebook, compile};
pub use rules::Rules;
pub use ruleset::{Chain, ChainName, Jump, Ruleset, Table, wellknown};
pub use service_port::{ServicePort, ServicePortName};
pub use state::ProxyState;
pub use trace::{Destination, Discord, Fate, Host, Origin, Outcome, Packet, Step, Trace, Tracer, trace};
