//! Upstream's tests, by name: what kube-controller-manager's own tests say of its three controllers holds for plans, too.
//!
//! `names.txt` lists them all; a test that is not here is the shell's business. Where we do better on purpose, a test expects
//! that and says "Deviation". Expectations are facts about behaviour; objects and code are ours.

#![allow(non_snake_case, reason = "tests that upstream has, too, keep upstream's names")]
#![allow(clippy::needless_pass_by_value, reason = "tests write `json!` in the call")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "fixtures of tests")]

#[path = "../world/chunks.rs"]
mod chunks;
#[path = "../world/mod.rs"]
mod world;

mod addresses;
mod endpoints;
mod hints;
mod mirror;
mod mirrored;
mod names;
mod objects;
mod packing;
mod reconciler;
mod repack;
mod slices;
mod topology;
mod trigger;

use names::{at_least, rows};
