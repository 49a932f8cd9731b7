//! The node agent: makes a node's packet filter do what the compiler says.
//!
//! ```text
//!                      ┌──────────── one lane per family ────────────┐
//!  Services ──┐        │                                             │
//!  Slices ────┼─ feed ─┼─> ProxyState ─> Rulebook ─> Delta ─> engine ┼─> netfilter ─> iptables-restore
//!             │        │       ▲              ▲                 │    │
//!  Node ── node_watch ─┼───────┴── basis ─────┘          schedule    │
//!             │        │   sentinel, quarantine ──────────────┘      ├─> conntrack ──> UDP flows
//!             │        │   census ──> health_ports, metrics          │
//!             │        └─────────────────────────────────────────────┘
//!             └──> health ──> servers <── metrics
//!
//!  flags, or configuration (a file) ──> validation ──> settings
//! ```
//!
//! With `--shadow`, shadow stands in the place of the lanes: it reads what another proxy programmed, and writes nothing.
//!
//! `fairlead-compiler` decides what the rules are; this crate watches, waits, reads and writes. Nothing depends on it
//! but its own program and tests, and the cli, which reads a node's rules as it does.
//!
//! Invariants:
//! * nothing is written before both initial lists are in;
//! * at most one job of a family touches the kernel at a time, and no job blocks a watch;
//! * no failure loses a change: what a failed sync left is compared and repaired by the next one;
//! * what others do to the rules is repaired, and only that is written again;
//! * one Service that is refused does not stop the others;
//! * rules outlive the process.

pub mod agent;
pub mod census;
pub mod cleanup;
pub mod command;
pub mod configuration;
mod configured;
pub mod conntrack;
pub mod drift;
pub mod engine;
pub mod events;
pub mod feed;
pub mod flags;
pub mod health;
pub mod health_ports;
pub mod interfaces;
pub mod lane;
pub mod leftovers;
pub mod limits;
pub mod metrics;
pub mod netfilter;
pub mod netlink;
pub mod node_watch;
pub mod own_node;
pub mod quarantine;
pub mod rival;
pub mod sanity;
pub mod schedule;
pub mod sentinel;
pub mod servers;
pub mod settings;
mod shadow;
pub mod sysctl;
pub mod validation;
