//! `fairlead render`: what the controller would write and the programmer would load.

pub(crate) mod endpoints;
pub(crate) mod rules;
