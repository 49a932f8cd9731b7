//! The list of upstream's tests against the tests that there are.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

const NAMES: &str = include_str!("names.txt");
/// How many tests upstream has. The list may only grow, with upstream.
const TOTAL: usize = 150;

/// One line of the list.
struct Entry {
    name: &'static str,
    cases: usize,
    /// Why there is no such test.
    reason: Option<&'static str>,
}

fn entries() -> Vec<Entry> {
    let lines = NAMES.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    lines
        .map(|line| {
            let (test, reason) = line.split_once(": ").map_or((line, None), |(test, why)| (test, Some(why)));
            let (name, cases) = test.split_once(" x").unwrap_or((test, "1"));
            Entry { name, cases: cases.parse().expect("a number of cases"), reason }
        })
        .collect()
}

/// The rows of an upstream test: as many as upstream has, or more.
pub(crate) fn rows<T, const N: usize>(test: &str, rows: [T; N]) -> [T; N] {
    at_least(test, N);
    rows
}

/// Makes sure that a test has as many cases as upstream's (one of them, where two have the same name).
pub(crate) fn at_least(test: &str, cases: usize) {
    let all = entries();
    let known: Vec<usize> = all.iter().filter(|entry| entry.name == test).map(|entry| entry.cases).collect();
    assert!(known.iter().any(|known| cases >= *known), "{test}: {cases} of {known:?} cases");
}

/// All Rust sources below some folders.
fn sources(folders: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten() {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            found.extend(sources(&[path]));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(path).expect("a readable source"));
        }
    }
    found
}

/// How often there is a test of each name: a function marked as a test, or the name of a table row.
fn tests() -> BTreeMap<String, usize> {
    let planner = Path::new(env!("CARGO_MANIFEST_DIR"));
    let controller = planner.with_file_name("controller");
    let folders = [planner, &controller].map(|root| ["src", "tests"].map(|folder| root.join(folder)));
    let mut found = BTreeMap::new();
    for source in sources(folders.as_flattened()) {
        let mut lines = source.lines().map(str::trim).peekable();
        while let Some(line) = lines.next() {
            let marked = line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            while marked && lines.next_if(|next| next.starts_with("#[")).is_some() {}
            let function = lines.peek().filter(|_| marked).and_then(|next| {
                next.trim_start_matches("async ").strip_prefix("fn ")?.split_once('(').map(|(name, _)| name)
            });
            let row = line.split('"').nth(1).and_then(|text| text.split(['/', ' ']).next());
            let row = row.filter(|row| line.starts_with(['"', '(']) && row.starts_with("Test"));
            for name in function.into_iter().chain(row) {
                *found.entry(name.to_owned()).or_insert(0) += 1;
            }
        }
    }
    found
}

#[test]
fn every_upstream_test_has_its_like_or_a_reason_why_not() {
    let entries = entries();
    assert_eq!(entries.len(), TOTAL, "tests of upstream in names.txt");
    let mut missing = Vec::new();
    let tests = tests();
    let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.reason.is_none()) {
        *wanted.entry(entry.name).or_default() += 1;
    }
    for (name, count) in wanted {
        if tests.get(name).copied().unwrap_or(0) < count {
            missing.push(name);
        }
    }
    assert_eq!(missing, [""; 0], "names.txt gives no reason why there is no such test");
    let reasons = entries.iter().filter_map(|entry| entry.reason);
    for reason in reasons {
        let known = ["shell; ", "Go; ", "needs an API server"].iter().any(|kind| reason.starts_with(kind));
        assert!(known, "{reason:?} does not say whose business it is");
    }
}

#[test]
fn every_test_named_as_upstreams_is_in_the_list() {
    let entries = entries();
    let is_listed = |name: &str| entries.iter().any(|entry| entry.name == name);
    let strays: Vec<String> =
        tests().into_keys().filter(|name| name.starts_with("Test") && !is_listed(name)).collect();
    assert_eq!(strays, [""; 0]);
}
