//! Tests that run themselves again in a network namespace of their own (`unshare --net`), which dies with them: nothing
//! outside is ever touched, and nothing is left behind.
//!
//! Needs root, `unshare` and the iptables programs. Without them a test says so and passes, except with `CI=true`.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "helpers of tests are tests, too")]

use std::{
    env, fs,
    process::{Command, Stdio},
};

/// Tells the inner run which namespace the outer one was in, so that it cannot mistake that for its own.
const OUTER: &str = "FAIRLEAD_OUTER_NETNS";

fn namespace() -> String {
    fs::read_link("/proc/self/ns/net").unwrap().display().to_string()
}

/// Runs `body` in a network namespace of its own. `test` is the name of the calling test.
pub fn in_namespace(test: &str, body: impl AsyncFnOnce()) {
    in_namespace_with_path(test, &env::var("PATH").unwrap_or_default(), body);
}

/// As [`in_namespace`], finding programs in `path`.
pub fn in_namespace_with_path(test: &str, path: &str, body: impl AsyncFnOnce()) {
    if let Ok(outer) = env::var(OUTER) {
        assert_ne!(outer, namespace(), "this would change the packet filter of the host");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(body());
    }
    if let Some(missing) = missing() {
        assert_ne!(env::var("CI").as_deref(), Ok("true"), "{test} cannot run: {missing}");
        eprintln!("SKIPPED {test}: {missing}");
        return;
    }
    let lock = env::temp_dir().join(format!("fairlead-xtables-{test}-{}.lock", std::process::id()));
    let status = Command::new("unshare")
        .args(["--net", "--"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(OUTER, namespace())
        .env("XTABLES_LOCKFILE", &lock)
        .env("PATH", path)
        .status()
        .unwrap();
    drop(fs::remove_file(lock));
    assert!(status.success(), "{test} failed in its namespace");
}

fn missing() -> Option<&'static str> {
    let works = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        output.is_ok_and(|status| status.success())
    };
    if !works("unshare", &["--net", "--", "true"]) {
        Some("no right to make a network namespace (root is needed)")
    } else if !works("iptables-nft-save", &["--version"]) || !works("iptables-legacy-save", &["--version"]) {
        Some("iptables is not installed in both variants")
    } else {
        None
    }
}

pub fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
