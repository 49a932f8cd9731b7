//! What a cluster of real kubelets is made of: programs, Debian's packages unpacked, images. `e2e/cluster/build.sh` makes
//! them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::tools;

/// Where the parts are.
#[derive(Clone, Debug)]
pub struct Parts {
    folders: BTreeMap<String, PathBuf>,
}

impl Parts {
    /// Finds them; does not build them.
    pub fn find() -> Result<Self> {
        let script = script("build.sh");
        let output = Command::new(&script).arg("--print-dirs").stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("running {}", script.display()))?;
        ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8_lossy(&output.stdout);
        let lines = printed.lines().filter_map(|line| line.split_once(' '));
        let folders: BTreeMap<_, _> =
            lines.map(|(name, folder)| (name.to_owned(), PathBuf::from(folder))).collect();
        let parts = Self { folders };
        ["programs", "coredns", "node", "images"].into_iter().try_for_each(|name| parts.check(name))?;
        Ok(parts)
    }

    /// Fails when a folder has not been built.
    fn check(&self, name: &str) -> Result<()> {
        let (folder, script) = (self.folder(name), script("build.sh"));
        ensure!(folder.is_dir(), "{} is not there: run {}", folder.display(), script.display());
        Ok(())
    }

    /// kind, and the folder with Docker and a node's file system.
    pub(super) fn kind(&self) -> Result<(PathBuf, &Path)> {
        self.check("kind").and_then(|()| self.check("kind-program")).context("with the argument --kind")?;
        Ok((self.folder("kind-program").join("kind"), self.folder("kind")))
    }

    /// One of Kubernetes' programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder("programs").join(name)
    }

    /// containerd, runc and CNI plugins, as below `/`.
    pub fn node(&self) -> &Path {
        self.folder("node")
    }

    /// The containerd store that nodes begin with.
    pub fn store(&self) -> PathBuf {
        self.folder("images").join("store")
    }

    /// The names of the images in the store.
    pub fn images(&self) -> Result<Vec<String>> {
        let list = self.folder("images").join("images.txt");
        let text = std::fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The full name of the newest image in the store with this name.
    pub fn image(&self, name: &str) -> Result<String> {
        let found = self.images()?.into_iter().rfind(|image| image.contains(&format!("/{name}:")));
        found.with_context(|| format!("no image {name}"))
    }

    /// A folder outside the clone, on the store's disk, for the data of nodes.
    pub fn scratch(&self) -> PathBuf {
        self.folder("images").with_file_name("cluster-nodes")
    }

    fn folder(&self, name: &str) -> &Path {
        self.folders.get(name).map_or_else(|| Path::new("/nonexistent"), PathBuf::as_path)
    }
}

/// A script of `e2e/cluster`.
pub(super) fn script(name: &str) -> PathBuf {
    tools::repository().join("e2e/cluster").join(name)
}
