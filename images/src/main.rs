//! Writes images of the programs that were built, as archives or as folders.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use fairlead_images::{Image, Packages, Recipe, write};

/// Puts container images of Fairlead's programs together, from release binaries and Debian packages, without a container
/// engine
#[derive(Debug, Parser)]
#[command(name = "image")]
struct Arguments {
    /// Folder with the programs
    #[arg(long, value_name = "FOLDER")]
    programs: PathBuf,
    /// Folder that downloaded packages are kept in
    #[arg(long, value_name = "FOLDER")]
    packages: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Registry in front of the names, such as registry.example:5000
    #[arg(long, value_name = "REGISTRY", default_value = "")]
    registry: String,
    /// Write plain folders, for a Dockerfile to copy, instead of archives
    #[arg(long)]
    folders: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let packages = Packages::find(&arguments.packages, &Recipe::packages(&Image::ALL))?;
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("making {}", arguments.out.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    for image in Image::ALL {
        let recipe = Recipe::prepare(image, &arguments.programs, &packages, version)?;
        if arguments.folders {
            recipe.layer.lay_out(&arguments.out.join(image.name()))?;
            continue;
        }
        let slash = if arguments.registry.is_empty() { "" } else { "/" };
        let reference = format!("{}{slash}fairlead/{}:{version}", arguments.registry, image.name());
        let path = arguments.out.join(format!("{}.tar", image.name()));
        let archived = write(&path, &reference, &recipe.layer, &recipe.config)?;
        println!("{reference} {} {} {} KiB", archived.image, path.display(), archived.bytes / 1024);
    }
    Ok(())
}
