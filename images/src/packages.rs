//! Debian packages: asked for by apt, kept in a folder, and only ever unpacked.
//!
//! Invariant: the versions are those that apt would install now, whatever was downloaded before.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::Layer;

/// Where packages come from, and the folder that they are kept in.
#[derive(Clone, Debug)]
pub struct Packages {
    folder: PathBuf,
    versions: BTreeMap<String, String>,
}

impl Packages {
    /// Finds out the versions of these packages; downloads nothing.
    pub fn find(folder: &Path, names: &[&str]) -> Result<Self> {
        let mut versions = candidates(names)?;
        if versions.len() < names.len() {
            // A new machine knows no packages yet.
            run(Command::new("apt-get").args(["update", "-qq"]))?;
            versions = candidates(names)?;
        }
        for name in names {
            ensure!(versions.contains_key(*name), "apt knows no package {name}");
        }
        fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), versions })
    }

    /// `name=version` of one of them.
    pub fn version(&self, name: &str) -> Result<String> {
        let version = self.versions.get(name).with_context(|| format!("{name} was not asked for"))?;
        Ok(format!("{name}={version}"))
    }

    /// Adds those files of a package that `wanted` wants, and what it says about copyright.
    pub fn unpack(&self, name: &str, layer: &mut Layer, wanted: impl Fn(&Path) -> bool) -> Result<()> {
        let file = self.file(name)?;
        let output = run(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(&file))?;
        let copyright = Path::new("usr/share/doc").join(name).join("copyright");
        layer.unpack(output.stdout.as_slice(), |path| path == copyright || wanted(path))
    }

    /// The package's file, downloaded if it is not there.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let version = self.version(name)?;
        if let Some(file) = self.kept(name)? {
            return Ok(file);
        }
        run(Command::new("apt-get").args(["download", "-qq", &version]).current_dir(&self.folder))?;
        self.kept(name)?.with_context(|| format!("apt-get left no file of {version}"))
    }

    fn kept(&self, name: &str) -> Result<Option<PathBuf>> {
        let version = self.versions.get(name).context("a package that was not asked for")?;
        // An epoch's colon is written so.
        let start = format!("{name}_{}_", version.replace(':', "%3a"));
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let found = entry.file_name();
            let found = found.to_string_lossy();
            if found.starts_with(&start) && Path::new(&*found).extension().is_some_and(|end| end == "deb") {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }
}

/// The versions that apt would install, of the packages that it knows.
fn candidates(names: &[&str]) -> Result<BTreeMap<String, String>> {
    let output = run(Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C"))?;
    Ok(parse_candidates(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_candidates(policy: &str) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let mut name = "";
    for line in policy.lines() {
        if let Some(package) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            // With the architecture, where it is not this machine's own.
            name = package.split(':').next().unwrap_or(package);
        } else if let Some(version) =
            line.trim().strip_prefix("Candidate: ").filter(|version| *version != "(none)")
        {
            versions.insert(name.to_owned(), version.to_owned());
        }
    }
    versions
}

fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| {
        format!("running {program}: images are put together from Debian packages here; elsewhere use images/Dockerfile")
    })?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {}", complaint.trim());
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_that_would_be_installed() {
        let policy = "libc6:\n  Installed: 2.36-9+deb12u13\n  Candidate: 2.36-9+deb12u14\n  Version table:\n\
                      gone:\n  Installed: (none)\n  Candidate: (none)\n";
        let expected = BTreeMap::from([("libc6".to_owned(), "2.36-9+deb12u14".to_owned())]);
        assert_eq!(parse_candidates(policy), expected);
    }
}
