//! Writes what is generated from the Helm chart (`make chart`): `manifests/rendered`, and the table in the chart's README.

use std::fs;

use anyhow::Result;
use fairlead_e2e::chart::{Helm, generated};

fn main() -> Result<()> {
    for (path, text) in generated(&Helm::find()?)? {
        if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            fs::write(&path, text)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(())
}
