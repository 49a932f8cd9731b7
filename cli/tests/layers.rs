//! The layer rule: `objects`, `planner` and `compiler` decide and do nothing else.
//!
//! It lives with the command line because that is the crate whose promise depends on it: what it shows offline is what
//! the daemons do, as long as deciding needs nothing but its arguments.
//!
//! Two independent views: the dependency graph as cargo resolves it, and the sources, because the standard library can do
//! I/O without any dependency.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The pure crates and the crates of this workspace that each may use.
const PURE: &[(&str, &[&str])] =
    &[("objects", &[]), ("planner", &["fairlead-objects"]), ("compiler", &["fairlead-objects"])];

/// Crates that talk to the world, run tasks, read clocks or draw random numbers. Types alone (`http`, `kube-core`) are fine.
const FORBIDDEN: &[&str] = &[
    "async-std",
    "axum",
    "chrono",
    "fastrand",
    "futures-executor",
    "getrandom",
    "hickory-resolver",
    "hyper",
    "hyper-util",
    "kube",
    "kube-client",
    "kube-lease-manager",
    "kube-runtime",
    "mio",
    "nix",
    "parking_lot",
    "prometheus-client",
    "rand",
    "reqwest",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tokio",
    "tokio-util",
    "tower",
    "tracing-subscriber",
];

/// Modules and types of the standard library with the same powers.
const FORBIDDEN_STD: &[&str] = &[
    "env",
    "fs",
    "process",
    "thread",
    "Instant",
    "SystemTime",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
];

/// Other ways to a clock, a task or a terminal.
const FORBIDDEN_TEXT: &[&str] = &["Timestamp::now", "Zoned::now", "async fn", ".await", "println!", "print!"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Names of the packages that each package depends on, without tests and build scripts.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        // Without a platform, cargo asks for crates that this machine never builds and never downloaded.
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--filter-platform", &platform])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let names: BTreeMap<String, String> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    let mut dependencies = BTreeMap::<String, BTreeSet<String>>::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let of_node = dependencies.entry(names[&text(&node["id"])].clone()).or_default();
        for dependency in node["deps"].as_array().unwrap() {
            if dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null()) {
                of_node.insert(names[&text(&dependency["pkg"])].clone());
            }
        }
    }
    dependencies
}

/// Everything below `package`, with a way that leads there.
fn reachable(dependencies: &BTreeMap<String, BTreeSet<String>>, package: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![(package.to_owned(), package.to_owned())];
    while let Some((name, way)) = open.pop() {
        for next in &dependencies[&name] {
            if !found.contains_key(next) {
                let way = format!("{way} -> {next}");
                found.insert(next.clone(), way.clone());
                open.push((next.clone(), way));
            }
        }
    }
    found
}

#[test]
fn pure_crates_reach_no_client_runtime_clock_or_randomness() {
    let dependencies = dependencies();
    for (folder, _) in PURE {
        let found = reachable(&dependencies, &format!("fairlead-{folder}"));
        assert!(found.contains_key("serde"), "the graph of {folder} looks empty");
        let ways: Vec<&String> = FORBIDDEN.iter().filter_map(|name| found.get(*name)).collect();
        assert!(ways.is_empty(), "{folder} must be pure, but {ways:#?}");
    }
}

#[test]
fn pure_crates_know_nothing_above_them() {
    let dependencies = dependencies();
    for (folder, allowed) in PURE {
        let found = reachable(&dependencies, &format!("fairlead-{folder}"));
        let ours: Vec<&str> =
            found.keys().map(String::as_str).filter(|name| name.starts_with("fairlead-")).collect();
        assert!(
            ours.iter().all(|name| allowed.contains(name)),
            "{folder} may use {allowed:?} but uses {ours:?}"
        );
    }
}

/// The code of a file: without comments and without the tests at its end.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Names of the standard library in `code` that reach outside: `std::fs::read`, and `use std::{fs, net::TcpStream}`.
fn outside_names(code: &str) -> Vec<&str> {
    let part_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    for (start, _) in code.match_indices("std::") {
        let (before, path) = code.split_at(start);
        let end =
            if before.trim_end().ends_with("use") { path.find(';') } else { path.find(|c| !part_of_path(c)) };
        let names = path[..end.unwrap_or(path.len())].split(|c: char| !c.is_alphanumeric() && c != '_');
        found.extend(names.filter(|name| FORBIDDEN_STD.contains(name)));
    }
    found
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn sources_of_pure_crates_reach_nothing_outside() {
    for (folder, _) in PURE {
        let files = sources(&root().join(folder).join("src"));
        assert!(!files.is_empty(), "{folder} has no sources");
        for file in files {
            let code = code(&fs::read_to_string(&file).unwrap());
            let mut found = outside_names(&code);
            found.extend(FORBIDDEN_TEXT.iter().filter(|text| code.contains(**text)));
            assert!(found.is_empty(), "{} must be pure, but mentions {found:?}", file.display());
        }
    }
}

#[test]
fn imports_and_paths_that_reach_outside_are_seen() {
    let code = code(
        "use std::{\n    fmt,\n    net::{IpAddr, TcpStream},\n};\nlet x = std::fs::read(y); // std::env\n",
    );
    assert_eq!(outside_names(&code), ["TcpStream", "fs"]);
    assert!(outside_names("use std::{fmt, net::IpAddr}; fn process(thread: u8) {}").is_empty());
}
