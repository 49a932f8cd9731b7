//! What the Fairlead daemons share: the edge between them and the world.
//!
//! ```text
//!  flags ──> client ──> watch ──> events, by value ──> the daemon's own index
//!    │                    └─────> readiness ──┐
//!    └─────> logging      metrics registry ───┴─> admin: /healthz /livez /readyz /metrics
//!  signals ─> shutdown token ──> everything above
//! ```
//!
//! `fairlead-controller` and `fairlead-programmer` depend on this crate, and the cli for [`failure`] and [`client`]; it depends on nothing of
//! ours.
//!
//! Invariants: nothing here decides what Kubernetes means, no error ends in a busy loop or a panic, and every error that a
//! human may have to act on is one line that says what failed, where, and what to do.

pub mod admin;
pub mod client;
pub mod duration;
pub mod failure;
pub mod logging;
pub mod metrics;
mod pace;
mod process;
pub mod readiness;
pub mod rights;
pub mod shutdown;
pub mod throttle;
pub mod watch;
