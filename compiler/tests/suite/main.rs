//! Behaviour of the compiler as a whole: flows through rules, incremental updates, what real tools print.

mod cluster;
mod dispatch;
mod fixtures;
mod flows;
mod golden;
mod kernel;
mod names;
mod policies;
mod properties;
mod tracker;
