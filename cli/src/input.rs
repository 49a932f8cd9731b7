//! Input: from files to views of Kubernetes objects.
//!
//! Text becomes documents ([`document`]), documents become objects of known kinds ([`collect`]), and what the lean views
//! would read leniently is checked first ([`fields`]), because a file has no API server in front of it.
//!
//! Invariants: an object is either read completely or named in a [`Problem`]; nothing is dropped in silence (kinds that
//! are not needed are reported as notices); the result does not depend on the order of the documents, except that of two
//! documents for one object the later one counts, as with `kubectl apply`.

mod collect;
mod document;
mod fields;
mod problem;
mod source;

use std::path::PathBuf;

use crate::objects::Objects;

pub(crate) use self::{
    document::{Document, Step},
    problem::{Problem, Problems},
    source::{ReadError, Source},
};

/// Why there is no input.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// A file, a directory or standard input could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Documents or objects are not what they should be.
    #[error(transparent)]
    Bad(#[from] Problems),
}

/// Reads every file, directory and `-` in `paths`. Returns the objects, and what the user should know about them as
/// whole lines.
pub(crate) fn read(paths: &[PathBuf]) -> Result<(Objects, Vec<String>), InputError> {
    let mut collection = collect::Collection::default();
    for source in source::read_all(paths)? {
        collection.add(&source);
    }
    Ok(collection.finish()?)
}
