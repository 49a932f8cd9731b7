//! `fairlead render rules` prints what `iptables-restore --noflush` takes on a fresh node, `fairlead trace --rules` reads what
//! `iptables-save` then prints, and `fairlead trace --live` reads it by itself: real iptables and a real kernel say so.
//!
//! Rules are loaded only inside a network namespace that `unshare` makes and that ends with the command.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

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

/// A file of this process and of one call alone: tests run at the same time.
fn temporary(case: &str, what: &str) -> PathBuf {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    env::temp_dir().join(format!("fairlead-{}-{call}-{case}.{what}", std::process::id()))
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

/// What `fairlead trace --live` answers in a new network namespace that `prepare`, a shell script, has set up. The document of
/// the case is `$document`.
fn live(case: &str, family: &str, prepare: &str) -> Output {
    let folder = cases().join(case);
    let arguments = arguments(&folder);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let packet = arguments.iter().position(|argument| *argument == "--from").unwrap();
    let document = temporary(case, "live");
    let render = [&["render", "rules"], &arguments[1..packet], &["--family", family]].concat();
    fs::write(&document, fairlead(&folder, &render)).unwrap();
    let program = env!("CARGO_BIN_EXE_fairlead");
    let script = format!("set -e; document={}; {prepare}\n\"$@\"", document.display());
    let command = ["--net", "sh", "-c", &script, "sh", program, "trace", "--live"];
    let output = Command::new("unshare")
        .args(command)
        .args(&arguments[packet..])
        .args(["-o", "json"])
        .output()
        .unwrap();
    fs::remove_file(&document).unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn live_rules_of_either_variant_are_found_and_traced_with_their_counters() {
    if !can_run("rules in the kernel were not traced") {
        return;
    }
    for (variant, other) in [("nft", "legacy"), ("legacy", "nft")] {
        let output =
            live("trace-rejected", "ipv4", &format!("iptables-{variant}-restore --noflush < $document"));
        assert_eq!(output.status.code(), Some(1), "{variant}: {output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["verdict"], "rejected");
        let deciding: Vec<&Value> =
            report["path"].as_array().unwrap().iter().filter(|rule| rule["decides"] == true).collect();
        assert_eq!(deciding.len(), 1, "{report}");
        assert_eq!(deciding[0]["counter"], json!({"packets": 0, "bytes": 0}));
        assert!(!text(&output.stderr).contains("warning"), "{output:?}");

        // Nobody would think of looking there.
        let both = format!(
            "iptables-{variant}-restore --noflush < $document; iptables-{other} -A INPUT -s 192.0.2.1 -j DROP"
        );
        let output = live("trace-rejected", "ipv4", &both);
        let warning = format!(
            "warning: rules of iptables-{other} are applied, too, and are not looked at: there are 1"
        );
        assert!(text(&output.stderr).contains(&warning), "{output:?}");
    }
}

/// A packet from one of them starts in OUTPUT, and one to them may be for a node port.
#[test]
fn live_addresses_of_the_node_are_those_of_its_interfaces() {
    if !can_run("rules in the kernel were not traced") {
        return;
    }
    let report = |case: &str, family: &str, prepare: &str| -> Value {
        let output = live(case, family, prepare);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    };
    let load = "iptables-nft-restore --noflush < $document";
    let address = "ip link set lo up; ip address add 10.244.1.2/32 dev lo;";
    for (prepare, hook) in [("", "PREROUTING"), (address, "OUTPUT")] {
        let report = report("trace-config", "ipv4", &format!("{prepare} {load}"));
        assert_eq!(report["path"][0]["chain"], hook, "{report}");
    }
    let load = "ip6tables-nft-restore --noflush < $document";
    let address = "ip link set lo up; ip address add 2001:db8::11/128 dev lo;";
    for (prepare, verdict) in [("", "no match"), (address, "accepted")] {
        let report = report("trace-ipv6", "ipv6", &format!("{prepare} {load}"));
        assert_eq!(report["verdict"], verdict, "{report}");
    }
}

#[test]
fn live_rules_that_cannot_be_read_or_are_none_are_told() {
    if !can_run("rules in the kernel were not traced") {
        return;
    }
    let empty = live("trace-rejected", "ipv4", ":");
    assert_eq!(empty.status.code(), Some(0), "{empty:?}");
    assert!(text(&empty.stderr).contains("has no chain KUBE-SERVICES here"), "{empty:?}");

    let without = live(
        "trace-rejected",
        "ipv4",
        "set -- setpriv --bounding-set=-net_admin --inh-caps=-net_admin \"$@\"",
    );
    assert_eq!(without.status.code(), Some(2), "{without:?}");
    assert!(text(&without.stderr).contains("CAP_NET_ADMIN is missing"), "{without:?}");

    let missing = live("trace-rejected", "ipv4", "export PATH=/nonexistent");
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    assert!(text(&missing.stderr).contains("install the iptables package"), "{missing:?}");
}
