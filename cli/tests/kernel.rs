//! `fairlead render rules` prints what `iptables-restore --noflush` takes on a fresh node, and `fairlead trace --rules` reads what
//! `iptables-save` then prints: real iptables and a real kernel say so.
//!
//! Rules are loaded only inside a network namespace that `unshare` makes and that ends with the command.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
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

/// A file of this process and of one case alone: tests run at the same time.
fn temporary(case: &str, what: &str) -> PathBuf {
    env::temp_dir().join(format!("fairlead-{}-{case}.{what}", std::process::id()))
}

/// The rules in the kernel after `document` was loaded into a new network namespace.
fn loaded(case: &str, base: &str, document: &str) -> String {
    let file = temporary(case, "rules");
    fs::write(&file, document).unwrap();
    let script = format!("{base}-nft-restore --noflush < {} && {base}-nft-save", file.display());
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap();
    fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether these tests can run; where they must, a reason against it is a failure.
fn can_run(what: &str) -> bool {
    let Some(missing) = missing() else { return true };
    assert!(env::var_os("CI").is_none(), "cannot run without {missing}");
    eprintln!("NOT RUN: {what}, for want of {missing}");
    false
}

fn fairlead(folder: &Path, args: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_fairlead")).args(args).current_dir(folder).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The arguments of a case.
fn arguments(folder: &Path) -> Vec<String> {
    let command = fs::read_to_string(folder.join("command")).unwrap();
    command.split_whitespace().map(str::to_owned).collect()
}

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases")
}

#[test]
fn rendered_rules_load_completely_into_an_empty_kernel() {
    if !can_run("rendered rules were not loaded into a kernel") {
        return;
    }
    for (case, base) in
        [("rules-planned", "iptables"), ("rules-config", "iptables"), ("rules-ipv6", "ip6tables")]
    {
        let folder = cases().join(case);
        let arguments = arguments(&folder);
        let document = fairlead(&folder, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let saved = loaded(case, base, &document);
        let rules = |text: &str| {
            text.lines().filter(|line| line.starts_with("-A ") || line.starts_with("-I ")).count()
        };
        assert_eq!(rules(&saved), rules(&document), "{case}\n{saved}");
    }
}

/// The way that a packet takes by rules that were never installed, and by the same rules as the kernel gives them back.
#[test]
fn traces_of_installed_rules_equal_those_of_compiled_ones() {
    if !can_run("installed rules were not traced") {
        return;
    }
    for (case, base, addresses) in [
        ("trace-hairpin", "iptables", "192.0.2.11"),
        ("trace-node-port", "iptables", "192.0.2.11"),
        ("trace-rejected", "iptables", "192.0.2.11"),
        ("trace-config", "iptables", "198.51.100.1"),
        ("trace-local-policy", "iptables", "192.0.2.11"),
        ("trace-local-policy-elsewhere", "iptables", "192.0.2.12"),
        ("trace-source-range", "iptables", "192.0.2.11"),
        ("trace-health-check", "iptables", "192.0.2.11"),
        ("trace-ipv6", "ip6tables", "2001:db8::11"),
    ] {
        let folder = cases().join(case);
        let arguments = arguments(&folder);
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(["-o", "json"]);
        let compiled = fairlead(&folder, &arguments);

        let packet = arguments.iter().position(|argument| *argument == "--from").unwrap();
        let family = if base == "iptables" { "ipv4" } else { "ipv6" };
        let render = [&["render", "rules"], &arguments[1..packet], &["--family", family]].concat();
        let saved = temporary(case, "save");
        fs::write(&saved, loaded(case, base, &fairlead(&folder, &render))).unwrap();
        let rules = ["trace", "--rules", saved.to_str().unwrap(), "--node-ip", addresses];
        let installed = fairlead(&folder, &[&rules, &arguments[packet..]].concat());
        fs::remove_file(&saved).unwrap();
        assert_eq!(installed, compiled, "{case}");
    }
}
