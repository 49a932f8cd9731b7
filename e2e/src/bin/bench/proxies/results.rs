//! Results as lines of JSON, for charts and comparisons.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What was measured of one contestant. In the file times are seconds, and memory bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) program: String,
    pub(crate) services: usize,
    #[serde(with = "seconds")]
    pub(crate) start: Duration,
    #[serde(with = "seconds")]
    pub(crate) one_change_p50: Duration,
    #[serde(with = "seconds")]
    pub(crate) one_change_p99: Duration,
    #[serde(with = "seconds")]
    pub(crate) burst: Duration,
    /// First packets to a Service.
    #[serde(with = "seconds")]
    pub(crate) service_p50: Duration,
    #[serde(with = "seconds")]
    pub(crate) service_p99: Duration,
    /// First packets to something that is no Service.
    #[serde(with = "seconds")]
    pub(crate) no_service_p50: Duration,
    #[serde(with = "seconds")]
    pub(crate) no_service_p99: Duration,
    /// Second packets to a Service, which no rule looks at: the floor.
    #[serde(with = "seconds")]
    pub(crate) next_p50: Duration,
    #[serde(with = "seconds")]
    pub(crate) next_p99: Duration,
    #[serde(with = "seconds")]
    pub(crate) cpu_to_start: Duration,
    #[serde(with = "seconds")]
    pub(crate) cpu_a_change: Duration,
    #[serde(with = "seconds")]
    pub(crate) cpu_of_burst: Duration,
    pub(crate) peak_rss: u64,
    #[serde(with = "seconds")]
    pub(crate) longest_hold: Duration,
    #[serde(with = "seconds")]
    pub(crate) held_in_burst: Duration,
}

/// Adds a line.
pub(crate) fn append(path: &Path, outcome: &Outcome) -> Result<()> {
    make_folder(path)?;
    let mut file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    let line = serde_json::to_string(outcome)? + "\n";
    file.write_all(line.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

/// All of them; of two of the same program with the same number of Services, the later one.
pub(crate) fn read(path: &Path) -> Result<Vec<Outcome>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for line in text.lines() {
        let new: Outcome = serde_json::from_str(line).with_context(|| format!("in {}", path.display()))?;
        outcomes.retain(|old| (&old.program, old.services) != (&new.program, new.services));
        outcomes.push(new);
    }
    outcomes.sort_by_key(|outcome| outcome.services);
    Ok(outcomes)
}

/// Makes the folder that a file is in.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), |folder| {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
    })
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
