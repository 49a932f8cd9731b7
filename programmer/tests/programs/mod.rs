//! iptables programs that fail when a test wants them to, put before the real ones in `PATH`.
//!
//! What they should do is told by files beside them, so it may change at any time.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each test uses a part of it")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::namespace::{in_namespace_with_path, shell};

/// The folder of the programs.
#[derive(Debug)]
pub struct Programs(PathBuf);

/// What every program begins with: it notes that it was called, and may meet a taken lock.
const BUSY: &str = "#!/bin/sh\ncd HERE\necho NAME >> calls\n\
    [ ! -e busy ] || { echo 'Another app is currently holding the xtables lock.' >&2; exit 4; }\n";

/// Refuses the whole document, or the line that holds a text, as it would a match that the kernel lacks.
const RESTORE: &str = "[ ! -e broken ] || { echo 'iptables-restore: cannot' >&2; exit 1; }\n\
    document=$(cat)\n\
    line=; [ ! -e refused ] || line=$(printf '%s\\n' \"$document\" | grep -nFf refused | head -n 1 | cut -d: -f1)\n\
    [ ! -e nameless ] || [ -z \"$line\" ] || line=$(printf '%s\\n' \"$document\" | wc -l)\n\
    [ -z \"$line\" ] || { echo \"iptables-restore: line $line failed\" >&2; exit 1; }\n\
    printf '%s\\n' \"$document\" | exec REAL \"$@\"\n";

/// Runs `body` in a network namespace of its own, as `in_namespace` does, with such programs.
pub fn with_programs(test: &str, body: impl AsyncFnOnce(&Programs)) {
    let path = env::var("PATH").unwrap_or_default();
    let first = env::split_paths(&path).next().unwrap_or_default();
    // The run in the namespace finds those of the run outside.
    if first.join("calls").exists() {
        return in_namespace_with_path(test, &path, async || body(&Programs(first)).await);
    }
    let programs = Folder(env::temp_dir().join(format!("fairlead-{test}-{}", std::process::id())));
    fs::create_dir_all(&programs.0).unwrap();
    fs::write(programs.0.join("calls"), "").unwrap();
    for base in ["iptables", "ip6tables"] {
        for variant in ["nft", "legacy"] {
            put(&programs.0, &format!("{base}-{variant}-save"), "exec REAL \"$@\"\n");
            put(&programs.0, &format!("{base}-{variant}-restore"), RESTORE);
        }
    }
    in_namespace_with_path(test, &format!("{}:{path}", programs.0.display()), async || {});
}

fn put(folder: &Path, name: &str, script: &str) {
    let real = shell(&format!("command -v {name} || true"));
    let script = format!("{BUSY}{script}").replace("HERE", folder.to_str().unwrap());
    let script = script.replace("NAME", name).replace("REAL", real.trim());
    let path = folder.join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Goes when it goes out of scope.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

impl Programs {
    fn set(&self, switch: &str, on: bool) {
        let path = self.0.join(switch);
        if on {
            fs::write(path, "").unwrap();
        } else if path.exists() {
            fs::remove_file(path).unwrap();
        }
    }

    /// Whether nothing is accepted, for no reason that concerns the document.
    pub fn broken(&self, broken: bool) {
        self.set("broken", broken);
    }

    /// Whether all of them say that another program holds the lock.
    pub fn busy(&self, busy: bool) {
        self.set("busy", busy);
    }

    /// Refuses documents with one of these texts from now on.
    pub fn refuse(&self, texts: &[String], names_line: bool) {
        fs::write(self.0.join("refused"), texts.join("\n") + "\n").unwrap();
        self.set("nameless", !names_line);
    }

    /// How often the program of that name was called.
    pub fn calls(&self, name: &str) -> usize {
        let calls = fs::read_to_string(self.0.join("calls")).unwrap();
        calls.lines().filter(|call| *call == name).count()
    }
}
