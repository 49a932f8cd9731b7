//! Differential runs: the genuine programs and ours on the same random objects, and what they make of them compared.
//!
//! A run follows from a seed, which a failure names; `FAIRLEAD_SEED` repeats it, `FAIRLEAD_STATES` makes it longer.

pub mod controller;
pub mod proxy;
