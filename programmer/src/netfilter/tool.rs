//! The iptables programs: found in `PATH`, run with a deadline, their errors turned into one clear line.
//!
//! Invariants: the document goes in through stdin, never through arguments or files; both output pipes are drained
//! while the document is written, so that neither side can block the other; a program that outlives its deadline is
//! killed.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fairlead_objects::Family;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::{Netfilter, Refusal, Variant, counters};

/// Seconds to wait for the xtables lock, as kube-proxy waits.
const LOCK_SECONDS: &str = "5";
/// A program that takes longer than this hangs; upstream gives its slowest call the same time.
const DEADLINE: Duration = Duration::from_mins(5);
/// Exit code of the programs when another process holds the xtables lock for too long.
const RESOURCE_PROBLEM: i32 = 4;

/// Why an iptables program could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Not installed.
    #[error("{program} is not in PATH: install the iptables package")]
    Missing {
        /// Its name.
        program: String,
    },
    /// Not allowed to change the packet filter.
    #[error(
        "CAP_NET_ADMIN is missing: {program} needs it to change the packet filter; run as root, or add NET_ADMIN to \
         the container's capabilities"
    )]
    Capability {
        /// Name of the program.
        program: String,
    },
    /// It could not be started.
    #[error("starting {program}")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It did not end.
    #[error("{program} did not end within {} s and was killed", DEADLINE.as_secs())]
    Deadline {
        /// Its name.
        program: String,
    },
    /// Another process kept the xtables lock.
    #[error("{program}: another process holds the xtables lock")]
    Busy {
        /// Its name.
        program: String,
    },
    /// It said no.
    #[error("{program}: {refusal}")]
    Refused {
        /// Its name.
        program: String,
        /// What it said.
        refusal: Refusal,
    },
    /// It printed what is no text.
    #[error("{program} printed bytes that are not UTF-8")]
    Encoding {
        /// Its name.
        program: String,
    },
}

impl ToolError {
    /// A short, constant word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Capability { .. } => "capability",
            Self::Start { .. } => "start",
            Self::Deadline { .. } => "deadline",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::Encoding { .. } => "encoding",
        }
    }
}

/// The programs of one family and one variant.
#[derive(Clone, Debug)]
pub struct Tool {
    variant: Variant,
    restore: PathBuf,
    save: PathBuf,
    /// `iptables` itself, if it is there: it can list a single chain.
    list: Option<PathBuf>,
}

impl Tool {
    /// Finds the programs of `family` and `variant`: by their full names, or by the plain ones if these are of that
    /// variant.
    pub async fn find(family: Family, variant: Variant) -> Result<Self, ToolError> {
        let base = base_name(family);
        let full = |what: &str| format!("{base}-{}-{what}", variant.infix());
        if let (Some(restore), Some(save)) = (in_path(&full("restore")), in_path(&full("save"))) {
            let list = in_path(&format!("{base}-{}", variant.infix()));
            return Ok(Self { variant, restore, save, list });
        }
        let find = |what: &str| {
            let program = format!("{base}-{what}");
            in_path(&program).ok_or(ToolError::Missing { program })
        };
        let (restore, save) = (find("restore")?, find("save")?);
        if plain_variant(&restore).await? == variant {
            let list = in_path(base);
            return Ok(Self { variant, restore, save, list });
        }
        Err(ToolError::Missing { program: full("restore") })
    }

    /// Everything in the tables that exist. (Naming a table would make legacy create it.)
    pub async fn save_all(&self) -> Result<String, ToolError> {
        self.run(&self.save, &[], "").await
    }

    /// As [`Self::save_all`], with the counters of every rule.
    pub async fn save_counted(&self) -> Result<String, ToolError> {
        self.run(&self.save, &["--counters"], "").await
    }

    async fn run(&self, program: &Path, arguments: &[&str], input: &str) -> Result<String, ToolError> {
        run(program, arguments, input).await
    }
}

impl Netfilter for Tool {
    fn variant(&self) -> Variant {
        self.variant
    }

    async fn save(&self, table: &str) -> Result<String, ToolError> {
        match self.run(&self.save, &["-t", table], "").await {
            // Most of what it cannot print, it says in a comment, and succeeds.
            Err(ToolError::Refused { refusal, .. }) if refusal.message.contains(UNPRINTABLE) => {
                Ok(format!("# Table `{table}' is incompatible, use 'nft' tool.\n"))
            }
            result => result,
        }
    }

    async fn chain(&self, table: &str, chain: &str) -> Result<Option<Vec<String>>, ToolError> {
        let Some(list) = self.list.as_ref().filter(|_| self.variant == Variant::Nft) else {
            return Ok(crate::drift::lines_of(&self.save(table).await?, chain));
        };
        match self.run(list, &["-w", LOCK_SECONDS, "-t", table, "-S", chain], "").await {
            Ok(text) => {
                Ok(Some(text.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect()))
            }
            Err(ToolError::Refused { refusal, .. }) if is_absence(&refusal.message) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn restore(&self, document: &str) -> Result<(), ToolError> {
        let arguments = ["-w", LOCK_SECONDS, "--noflush", "--counters"];
        let restored = self.run(&self.restore, &arguments, document).await;
        // After a flush of all rules another program may have deleted the counters that they used.
        let again = matches!(restored, Err(ToolError::Refused { .. }))
            && document.contains(" --nfacct-name ")
            && counters::ensure().is_ok_and(|made| made);
        let restored = if again { self.run(&self.restore, &arguments, document).await } else { restored };
        restored.map(drop)
    }
}

/// What the programs say of a rule that they have no words for.
const UNPRINTABLE: &str = "Parsing nftables rule failed";

/// What the programs say of a chain or a table that does not exist, or of one whose content they cannot print, because nft
/// wrote it: both are to be written anew. (iptables-nft 1.8.9 calls a chain that does not exist incompatible.)
fn is_absence(message: &str) -> bool {
    let said = |text| message.contains(text);
    said("No chain/target/match by that name")
        || said("does not exist")
        || said("is incompatible, use 'nft' tool")
        || said(UNPRINTABLE)
}

/// `iptables` or `ip6tables`.
pub fn base_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The variant of a program whose name does not tell: `--version` prints `(nf_tables)` or `(legacy)`; programs from
/// before there were two print neither and are legacy.
pub(super) async fn plain_variant(program: &Path) -> Result<Variant, ToolError> {
    let version = run(program, &["--version"], "").await?;
    Ok(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

/// The executable file of that name in the first directory of `PATH` that has one.
pub fn in_path(program: &str) -> Option<PathBuf> {
    search(program, &env::var_os("PATH")?)
}

fn search(program: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let executable =
        |file: &PathBuf| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file();
    env::split_paths(path).map(|directory| directory.join(program)).find(executable)
}

pub(super) async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let name = || program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let start = |source| ToolError::Start { program: name(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that refuses the document early closes its input; its exit code and message tell why.
            drop(stdin.write_all(input.as_bytes()).await);
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output =
        timeout(DEADLINE, both).await.map_err(|_| ToolError::Deadline { program: name() })?.map_err(start)?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(|_| ToolError::Encoding { program: name() });
    }
    Err(failure(name(), output.status.code(), &String::from_utf8_lossy(&output.stderr), input))
}

fn failure(program: String, code: Option<i32>, stderr: &str, document: &str) -> ToolError {
    if stderr.contains("you must be root") {
        return ToolError::Capability { program };
    }
    if code == Some(RESOURCE_PROBLEM) && stderr.contains("xtables lock") {
        return ToolError::Busy { program };
    }
    ToolError::Refused { program, refusal: Refusal::parse(stderr, document) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Runs a shell script as the program.
    async fn shell(script: &str, input: &str) -> Result<String, ToolError> {
        run(Path::new("/bin/sh"), &["-c", script], input).await
    }

    #[tokio::test]
    async fn output_is_returned_and_input_of_any_size_is_fed() {
        let input = "line\n".repeat(200_000);
        assert_eq!(shell("wc -c", &input).await.unwrap().trim(), "1000000");
    }

    #[tokio::test]
    async fn program_that_refuses_before_reading_all_input_reports_its_reason() {
        let input = "line\n".repeat(200_000);
        let error = shell("exec <&-; echo 'line 2 failed' >&2; exit 1", &input).await.unwrap_err();
        let ToolError::Refused { refusal, .. } = error else { panic!("{error}") };
        assert_eq!(refusal.line, Some(2));
    }

    #[tokio::test]
    async fn missing_permission_and_taken_lock_are_told_apart() {
        let denied =
            shell("echo 'Could not fetch: Permission denied (you must be root)' >&2; exit 4", "").await;
        assert!(matches!(denied, Err(ToolError::Capability { .. })));
        let busy = shell("echo 'Another app is currently holding the xtables lock.' >&2; exit 4", "").await;
        assert!(matches!(busy, Err(ToolError::Busy { .. })));
    }

    #[test]
    fn programs_are_found_in_the_first_directory_that_can_run_them() {
        let root = env::temp_dir().join(format!("fairlead-path-{}", std::process::id()));
        for (directory, mode) in [("a", 0o644), ("b", 0o755)] {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).unwrap();
            let file = directory.join("iptables-restore");
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        let path = env::join_paths([root.join("a"), root.join("b")]).unwrap();
        assert_eq!(search("iptables-restore", &path), Some(root.join("b/iptables-restore")));
        assert_eq!(search("iptables-save", &path), None);
        fs::remove_dir_all(root).unwrap();
    }
}
