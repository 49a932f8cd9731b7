//! The control-plane half of Fairlead.
//!
//! ```text
//!  API server ──watch──> Index ──dirty keys──> Queue ──> kube-runtime Controller ──> reconcile ──> API server
//!             (watches)  (index)               (queue)   (primary)                   snapshot, plan, execute (leader only)
//! ```
//!
//! The library exists for `fairlead-controller`, its tests and the benches; nothing else should depend on it. What should exist is
//! decided in `fairlead-planner`; this crate knows the cluster, the clock and the client.
//!
//! Invariants: data flows one way, as drawn. Only [`execute`] writes to the API server, and only while this process holds
//! the lease.

pub mod backoff;
mod contest;
pub mod events;
pub mod execute;
pub mod flags;
pub mod index;
pub mod leadership;
pub mod metrics;
pub mod part;
pub mod preflight;
pub mod primary;
pub mod queue;
pub mod reconcile;
pub mod rights;
pub mod run;
pub mod shadow;
pub mod watches;
mod wire;
