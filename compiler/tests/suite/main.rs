//! Behaviour of the compiler as a whole: flows through rules, incremental updates, what real tools print.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test, that is the assertion")]
#![allow(
    clippy::struct_excessive_bools,
    clippy::fn_params_excessive_bools,
    reason = "cases are tables of switches"
)]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals are made for the call")]

mod cluster;
mod comparison;
mod dispatch;
mod features;
mod fixtures;
mod flows;
mod golden;
mod hostile_strings;
mod kernel;
mod names;
mod odd_shapes;
mod policies;
mod properties;
mod tracker;
