//! `fairlead render rules` prints what `iptables-restore --noflush` takes on a fresh node: real iptables and a real kernel say so.
//!
//! Rules are loaded only inside a network namespace that `unshare` makes and that ends with the command.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

/// What is missing to run this test, if anything.
fn missing() -> Option<&'static str> {
    let works = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !works("iptables-nft-save", &["--version"]) {
        Some("iptables-nft-save and -restore (Debian: apt install iptables)")
    } else if !works("unshare", &["--net", "true"]) {
        Some("the right to make a network namespace (run as root)")
    } else {
        None
    }
}

/// The rules in the kernel after `document` was loaded into a new network namespace.
fn loaded(base: &str, document: &str) -> String {
    let file = env::temp_dir().join(format!("fairlead-{}-{base}", std::process::id()));
    fs::write(&file, document).unwrap();
    let script = format!("{base}-nft-restore --noflush < {} && {base}-nft-save", file.display());
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap();
    fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rendered_rules_load_completely_into_an_empty_kernel() {
    if let Some(missing) = missing() {
        assert!(env::var_os("CI").is_none(), "cannot run without {missing}");
        eprintln!("NOT RUN: rendered rules were not loaded into a kernel, for want of {missing}");
        return;
    }
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    for (case, base) in
        [("rules-planned", "iptables"), ("rules-config", "iptables"), ("rules-ipv6", "ip6tables")]
    {
        let folder = cases.join(case);
        let command = fs::read_to_string(folder.join("command")).unwrap();
        let mut fairlead = Command::new(env!("CARGO_BIN_EXE_fairlead"));
        let output = fairlead.args(command.split_whitespace()).current_dir(&folder).output().unwrap();
        let document = String::from_utf8(output.stdout).unwrap();
        let saved = loaded(base, &document);
        let rules = |text: &str| {
            text.lines().filter(|line| line.starts_with("-A ") || line.starts_with("-I ")).count()
        };
        assert_eq!(rules(&saved), rules(&document), "{case}\n{saved}");
    }
}
