//! Supply: objects from files, or else from the cluster.

use crate::{
    args::Supply,
    cluster::{self, Scope},
    input,
    objects::Objects,
};

/// The objects of the files that are given, all of them, or else those of the cluster that `scope` asks for; and what the
/// user should know about them, as whole lines.
pub(crate) fn objects(supply: &Supply, scope: Scope<'_>) -> anyhow::Result<(Objects, Vec<String>)> {
    if supply.files.is_empty() {
        Ok(cluster::read(&supply.access, scope)?)
    } else {
        Ok(input::read(&supply.files)?)
    }
}
