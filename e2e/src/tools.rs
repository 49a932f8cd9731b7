//! Where the programs are: the genuine ones that `make tools` builds, and ours that cargo builds.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// The root of the repository.
pub fn repository() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_owned()
}

/// The genuine Kubernetes programs.
#[derive(Clone, Debug)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Finds them; does not build them.
    pub fn find() -> Result<Self> {
        let script = repository().join("e2e/tools/build.sh");
        let output = Command::new(&script)
            .arg("--print-dir")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {}", script.display()))?;
        ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
        let tools = Self { dir: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) };
        ensure!(
            tools.dir.is_dir(),
            "the Kubernetes programs are not built ({}): run `make tools`",
            tools.dir.display()
        );
        Ok(tools)
    }

    /// One of them.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// One of the binaries of this workspace, from the cargo profile that this program was built with.
pub fn own_program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here.parent().context("no folder")?;
    // Test binaries are one level below the other programs.
    let folder = if folder.ends_with("deps") { folder.parent().context("no folder")? } else { folder };
    let program = folder.join(name);
    ensure!(program.is_file(), "{} is not built: run `cargo build --workspace --bins`", program.display());
    Ok(program)
}
