//! Limits of the kernel that a node with many connections needs: size and timeouts of connection tracking, and how
//! reluctant the kernel is to kill us.
//!
//! Where kube-proxy ends if one cannot be set, we warn and go on: a node whose `/sys` is read-only forwards traffic with
//! the limits it has.
//!
//! Invariant: what is right already is not written.

use std::{fs, io, thread};

use tracing::{debug, info, warn};

use crate::{settings::ConntrackSettings, sysctl};

/// Upper end of what the number of CPUs leads to, as in kube-proxy.
const MOST: u64 = 1_048_576;
/// Connections per bucket of the hash table.
const PER_BUCKET: u64 = 4;
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Sets what `settings` say, as far as this host lets us.
pub fn apply(settings: &ConntrackSettings) {
    if let Some(max) = maximum(settings, cpus()) {
        let set = set("nf_conntrack_max", max);
        if set {
            grow_hash_table(max.div_ceil(PER_BUCKET));
        }
    }
    let timeouts = [
        ("nf_conntrack_tcp_timeout_established", settings.tcp_established),
        ("nf_conntrack_tcp_timeout_close_wait", settings.tcp_close_wait),
        ("nf_conntrack_udp_timeout", settings.udp),
        ("nf_conntrack_udp_timeout_stream", settings.udp_stream),
    ];
    for (name, timeout) in timeouts {
        if let Some(timeout) = timeout {
            set(name, timeout.as_secs());
        }
    }
    if settings.tcp_be_liberal {
        set("nf_conntrack_tcp_be_liberal", 1);
    }
}

/// `None`: leave it as it is. The number of CPUs leads to at most [`MOST`]; so does the least value, unlike in
/// kube-proxy, where it may exceed that.
fn maximum(settings: &ConntrackSettings, cpus: u64) -> Option<u64> {
    (settings.max_per_core > 0).then(|| {
        let scaled = u64::from(settings.max_per_core).saturating_mul(cpus);
        scaled.max(settings.min.into()).min(MOST)
    })
}

/// CPUs of the machine. (A quota on our process limits us, not the connections of the node.)
fn cpus() -> u64 {
    let entries = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let numbered = |name: &str| name.strip_prefix("cpu").is_some_and(|rest| rest.parse::<u32>().is_ok());
    let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(numbered)).count();
    let available = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    found.max(available) as u64
}

/// Whether the setting now has that value.
fn set(name: &str, value: u64) -> bool {
    match sysctl::set_conntrack(name, value) {
        Ok(changed) => {
            if changed {
                info!("set net.netfilter.{name}={value}");
            }
            true
        }
        Err(error) => {
            warn!("cannot set net.netfilter.{name}={value} ({error}): going on with the value that is there");
            false
        }
    }
}

fn grow_hash_table(least: u64) {
    if let Err(error) = grow(HASH_SIZE, least) {
        warn!("cannot set {HASH_SIZE} to {least} ({error}): looking up connections may be slower");
    }
}

fn grow(file: &str, least: u64) -> io::Result<()> {
    let current: u64 = fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)?;
    if current >= least { Ok(()) } else { fs::write(file, least.to_string()) }
}

/// Tells the kernel how reluctant to be. Not being allowed to is normal in a container.
pub fn set_oom_score(score: i16) {
    let current = fs::read_to_string(OOM_SCORE).unwrap_or_default();
    if current.trim() == score.to_string() {
        return;
    }
    if let Err(error) = fs::write(OOM_SCORE, score.to_string()) {
        debug!(%error, score, "cannot set {OOM_SCORE}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(max_per_core: u32, min: u32) -> ConntrackSettings {
        ConntrackSettings { max_per_core, min, ..ConntrackSettings::default() }
    }

    #[test]
    fn limit_grows_with_cpus_between_the_least_and_the_most() {
        assert_eq!(maximum(&settings(32_768, 131_072), 2), Some(131_072));
        assert_eq!(maximum(&settings(32_768, 131_072), 8), Some(262_144));
        assert_eq!(maximum(&settings(32_768, 131_072), 512), Some(1_048_576));
        assert_eq!(maximum(&settings(1, 4_000_000), 1), Some(1_048_576));
        assert_eq!(maximum(&settings(0, 131_072), 8), None);
    }

    #[test]
    fn hash_table_is_never_made_smaller() {
        let file = std::env::temp_dir().join(format!("fairlead-hashsize-{}", std::process::id()));
        let path = file.to_str().unwrap();
        fs::write(&file, "1000\n").unwrap();
        grow(path, 500).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1000\n");
        grow(path, 2000).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "2000");
        fs::remove_file(file).unwrap();
    }
}
