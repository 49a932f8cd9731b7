//! A layer: the files of an image.
//!
//! Invariants: every file has its folders; paths are relative and below `usr` where Debian has merged folders into that
//! one; files belong to root and are as old as the epoch.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::fs::{OpenOptionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use tar::{Builder, EntryType, Header};

/// Folders that are links to those below `usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file.
    File {
        /// What is in it.
        content: Vec<u8>,
        /// Whether it is a program.
        executable: bool,
    },
    /// A link to this path.
    Link(PathBuf),
}

/// Files by path.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Layer {
    /// With the links that merged folders leave.
    pub fn merged() -> Self {
        let mut layer = Self::default();
        for folder in MERGED {
            layer.nodes.insert(folder.into(), Node::Link(Path::new("usr").join(folder)));
            layer.folder(&Path::new("usr").join(folder));
        }
        layer
    }

    /// Adds what is to be at `path`, and its folders. Replaces what was there.
    pub fn add(&mut self, path: impl AsRef<Path>, node: Node) -> Result<()> {
        let path = settled(path.as_ref())?;
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Adds a text file.
    pub fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.add(path, Node::File { content: text.into(), executable: false })
    }

    fn folder(&mut self, path: &Path) {
        for folder in path.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
            self.nodes.entry(folder.to_owned()).or_insert(Node::Folder);
        }
    }

    /// Adds those files and links of a tar archive that `wanted` wants, by their settled paths.
    pub fn unpack(&mut self, archive: impl Read, wanted: impl Fn(&Path) -> bool) -> Result<()> {
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let path = settled(&entry.path()?)?;
            if !wanted(&path) {
                continue;
            }
            let node = match entry.header().entry_type() {
                EntryType::Regular => {
                    let executable = entry.header().mode()? & 0o100 != 0;
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Node::File { content, executable }
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name()?.context("a link to nowhere")?;
                    Node::Link(target.into_owned())
                }
                _ => continue,
            };
            self.add(&path, node)?;
        }
        Ok(())
    }

    /// The layer as a tar archive.
    pub fn tar(&self, into: impl Write) -> Result<()> {
        let mut builder = Builder::new(into);
        for (path, node) in &self.nodes {
            let mut header = Header::new_gnu();
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_mode(0o755);
            header.set_size(0);
            match node {
                Node::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    builder.append_data(&mut header, path.join(""), std::io::empty())?;
                }
                Node::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    builder.append_link(&mut header, path, target)?;
                }
                Node::File { content, executable } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(mode(*executable));
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_slice())?;
                }
            }
        }
        builder.into_inner()?.flush()?;
        Ok(())
    }

    /// The layer as a folder, which must not exist.
    pub fn lay_out(&self, root: &Path) -> Result<()> {
        ensure!(!root.exists(), "{} exists", root.display());
        fs::create_dir_all(root)?;
        for (path, node) in &self.nodes {
            let place = root.join(path);
            match node {
                Node::Folder => fs::create_dir(&place),
                Node::Link(target) => symlink(target, &place),
                Node::File { content, executable } => fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode(*executable))
                    .open(&place)
                    .and_then(|mut file| file.write_all(content)),
            }
            .with_context(|| format!("making {}", place.display()))?;
        }
        Ok(())
    }
}

fn mode(executable: bool) -> u32 {
    if executable { 0o755 } else { 0o644 }
}

/// The path without `.`, and below `usr` where folders are merged.
fn settled(path: &Path) -> Result<PathBuf> {
    let mut settled = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => settled.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                anyhow::bail!("{} leaves the image", path.display())
            }
        }
    }
    let merged = settled.iter().next().is_some_and(|first| MERGED.iter().any(|folder| first == *folder));
    Ok(if merged { Path::new("usr").join(settled) } else { settled })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar_of(layer: &Layer) -> Vec<u8> {
        let mut bytes = Vec::new();
        layer.tar(&mut bytes).unwrap();
        bytes
    }

    fn file(content: &str) -> Node {
        Node::File { content: content.into(), executable: false }
    }

    #[test]
    fn order_of_additions_does_not_matter() {
        let mut one = Layer::merged();
        one.add("etc/a", file("1")).unwrap();
        one.add("lib/b", file("2")).unwrap();
        let mut other = Layer::default();
        other.add("usr/lib/b", file("2")).unwrap();
        other.nodes.append(&mut Layer::merged().nodes);
        other.add("./etc/a", file("1")).unwrap();
        assert_eq!(tar_of(&one), tar_of(&other));
    }

    #[test]
    fn owners_and_times_of_an_archive_do_not_get_in() {
        let packed = |mtime, uid| {
            let mut builder = Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o755);
            header.set_mtime(mtime);
            header.set_uid(uid);
            builder.append_data(&mut header, "./sbin/x", b"x".as_slice()).unwrap();
            builder.append_data(&mut header, "./etc/unwanted", b"x".as_slice()).unwrap();
            let mut layer = Layer::default();
            layer.unpack(builder.into_inner().unwrap().as_slice(), |path| path.starts_with("usr")).unwrap();
            layer
        };
        let (one, other) = (packed(1, 1), packed(2, 2));
        assert_eq!(tar_of(&one), tar_of(&other));
        assert_eq!(
            one.nodes.keys().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            ["usr", "usr/sbin", "usr/sbin/x"]
        );
        assert!(matches!(one.nodes[Path::new("usr/sbin/x")], Node::File { executable: true, .. }));
    }

    #[test]
    fn paths_do_not_leave_the_image() {
        assert!(Layer::default().add("../x", file("")).is_err());
    }
}
