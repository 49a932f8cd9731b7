//! The cgroups of a cluster: below one of its own in every hierarchy, one for each of its purposes.
//!
//! Invariant: each is in the record before it is made, so that it goes with the cluster, however that ends.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::record::Record;

/// Makes them, and returns the path of their common parent below every hierarchy, such as `fairlead-4711-0`.
pub(super) fn make(record: &Record, children: &[String]) -> Result<String> {
    let id = record.dir().file_name().context("a record without name")?.to_string_lossy().into_owned();
    let parent = format!("fairlead-{id}");
    let hierarchies = mounted("cgroup")?;
    ensure!(
        !hierarchies.is_empty(),
        "this machine has no cgroups of version 1, the only ones that nodes in namespaces are made for yet"
    );
    // Where there are both versions, the runtime makes its own of version 2, with nothing in it to limit.
    for hierarchy in mounted("cgroup2")? {
        record.note_cgroup(&hierarchy.join(&parent))?;
    }
    for hierarchy in hierarchies {
        let top = hierarchy.join(&parent);
        record.note_cgroup(&top)?;
        make_one(&top)?;
        children.iter().try_for_each(|child| make_one(&top.join(child)))?;
    }
    Ok(parent)
}

/// The folders where cgroups of a version are.
fn mounted(kind: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading the list of mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields.filter(|fields| fields.get(2) == Some(&kind)).map(|fields| fields[1].into()).collect())
}

/// A new cgroup of processors has none and no memory: it gets its parent's.
fn make_one(path: &PathBuf) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making the cgroup {}", path.display()))?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        if own.exists() {
            let parents = path.with_file_name(file);
            let value =
                fs::read_to_string(&parents).with_context(|| format!("reading {}", parents.display()))?;
            fs::write(&own, value).with_context(|| format!("writing {}", own.display()))?;
        }
    }
    Ok(())
}
