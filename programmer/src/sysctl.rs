//! Kernel settings of the network namespace we run in, read and written below `/proc/sys`.
//!
//! Invariant: a setting is written only if it differs, so that a read-only `/proc/sys` is no problem where there is
//! nothing to change.

use std::{fs, io, path::Path};

const ROOT: &str = "/proc/sys";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";
const TCP_BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const DISABLE_IPV6: &str = "net/ipv6/conf/all/disable_ipv6";

/// Lets packets from 127.0.0.1 leave through other interfaces, which node ports on localhost need. Returns whether
/// it had to be switched on.
pub fn enable_route_localnet() -> io::Result<bool> {
    set(Path::new(ROOT), ROUTE_LOCALNET, "1")
}

/// Whether conntrack accepts TCP packets outside the window. Then packets that it calls invalid must not be dropped.
pub fn conntrack_is_liberal() -> bool {
    get(Path::new(ROOT), TCP_BE_LIBERAL).is_ok_and(|value| value != "0")
}

/// Sets `net.netfilter.NAME`; whether that changed anything.
pub fn set_conntrack(name: &str, value: u64) -> io::Result<bool> {
    set(&Path::new(ROOT).join("net/netfilter"), name, &value.to_string())
}

/// Whether this network namespace has IPv6.
pub fn ipv6_is_enabled() -> bool {
    Path::new("/proc/net/if_inet6").exists()
        && get(Path::new(ROOT), DISABLE_IPV6).is_ok_and(|value| value != "1")
}

fn get(root: &Path, name: &str) -> io::Result<String> {
    fs::read_to_string(root.join(name)).map(|text| text.trim().to_owned())
}

fn set(root: &Path, name: &str, value: &str) -> io::Result<bool> {
    if get(root, name)? == value {
        return Ok(false);
    }
    fs::write(root.join(name), value)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn setting_is_written_only_when_it_differs() {
        let root = std::env::temp_dir().join(format!("fairlead-sysctl-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let file = root.join("flag");
        fs::write(&file, "0\n").unwrap();
        assert!(set(&root, "flag", "1").unwrap());
        let written = fs::metadata(&file).unwrap();
        assert!(!set(&root, "flag", "1").unwrap());
        let after = fs::metadata(&file).unwrap();
        assert_eq!((written.mtime(), written.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
        assert!(set(&root, "missing", "1").is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
