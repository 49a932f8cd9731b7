//! What the documentation lists is what there is: the table of flags in docs/configuration.md is what `--help` says (with
//! `UPDATE_DOCS=1` the test writes it anew), docs/metrics.md names every metric, the alerts ask for no others, and
//! docs/operations.md says what to do about each. The version is the same wherever it stands, docs/README.md names every page,
//! and links lead to files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::Path};

use clap::CommandFactory as _;
use fairlead_daemon::metrics::Metrics as Registry;
use fairlead_programmer::{command::Command, metrics::Metrics, netfilter};
use serde::Deserialize;

#[path = "../../controller/tests/flag_table/mod.rs"]
mod flag_table;

/// A file of Prometheus' rules, as far as there is something to compare.
#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// Labels that Prometheus and kube-state-metrics give.
const FOREIGN_LABELS: [&str; 4] = ["instance", "job", "le", "daemonset"];
/// Metrics of others.
const FOREIGN_METRICS: [&str; 2] = ["up", "kube_daemonset_status_number_unavailable"];
/// What PromQL itself means by a word.
const WORDS: [&str; 12] = [
    "absent",
    "and",
    "by",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "or",
    "rate",
    "sum",
    "time",
    "unless",
];

fn page(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

fn is_of_a_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// The words of an expression, without what is quoted, numbers and durations.
fn words(expression: &str) -> Vec<String> {
    let unquoted: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = unquoted.split(|char| !is_of_a_word(char));
    words
        .filter(|word| word.starts_with(|char: char| char.is_ascii_alphabetic()))
        .map(str::to_owned)
        .collect()
}

/// The row of docs/metrics.md about a metric; of a histogram, also by the names of its series.
fn row<'a>(metrics: &'a str, word: &str) -> Option<&'a str> {
    let find = |name: &str| metrics.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
    let series = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| word.strip_suffix(end));
    find(word).or_else(|| find(series?).filter(|row| row.contains("| histogram")))
}

#[test]
fn alerts_ask_for_metrics_and_labels_that_there_are_and_are_explained() {
    let rules: Rules = serde_saphyr::from_str(&page("manifests/alerts/fairlead.rules.yaml")).unwrap();
    let (metrics, operations) = (page("docs/metrics.md"), page("docs/operations.md"));
    for Rule { alert, expr, labels, annotations } in rules.groups.into_iter().flat_map(|group| group.rules) {
        assert!(operations.contains(&format!("| `{alert}` |")), "{alert} is not in docs/operations.md");
        assert!(labels.contains_key("severity") && annotations.contains_key("summary"), "{alert}");
        let rest = words(&expr).into_iter().filter(|word| {
            !WORDS.contains(&&**word)
                && !FOREIGN_LABELS.contains(&&**word)
                && !FOREIGN_METRICS.contains(&&**word)
        });
        let (known, labels): (Vec<_>, Vec<_>) = rest.partition(|word| row(&metrics, word).is_some());
        let rows: Vec<_> = known.iter().filter_map(|word| row(&metrics, word)).collect();
        for label in labels {
            let is_label = !rows.is_empty() && rows.iter().all(|row| row.contains(&format!("`{label}`")));
            assert!(
                is_label,
                "{alert}: {label} is neither a metric of docs/metrics.md nor a label of {known:?}"
            );
        }
    }
}

#[test]
fn flags_are_documented_as_help_says() {
    flag_table::check("fairlead-programmer", &Command::command());
}

#[test]
fn metrics_are_documented_by_name_and_type() {
    let registry = Registry::new();
    registry.register(Metrics::register);
    registry.register(|registry| netfilter::metrics::register(registry, &[]));
    let page = page("docs/metrics.md");
    let (_, page) = page.split_once("## Programmer\n").unwrap();
    let exposition = registry.encode().unwrap();
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for line in types.filter(|line| !line.starts_with("process_")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(
            page.contains(&format!("| `{name}` | {kind} |")),
            "{name} ({kind}) is not in docs/metrics.md"
        );
    }
}

#[test]
fn version_is_the_same_in_chart_images_and_docs() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = page("manifests/chart/Chart.yaml");
    for field in ["version", "appVersion"] {
        assert!(
            chart.lines().any(|line| line == format!("{field}: {version}")),
            "{field} of the chart: {chart}"
        );
    }
    for path in ["images/Dockerfile", "docs/operations.md"] {
        let page = page(path);
        let tags: Vec<_> = page
            .split("fairlead/")
            .filter_map(|text| text.split_whitespace().next()?.split_once(':'))
            .collect();
        assert!(!tags.is_empty(), "{path}");
        for (image, tag) in tags {
            assert_eq!(tag, version, "fairlead/{image} in {path}");
        }
    }
}

#[test]
fn every_page_is_in_the_index_and_links_lead_to_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let index = page("docs/README.md");
    let folders = ["docs", "docs/decisions"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let pages =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|end| end == "md"));
    for path in pages.chain([root.join("README.md"), root.join("manifests/chart/README.md")]) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            name == "README.md" || index.contains(&format!("{name})")),
            "{name} is not in docs/README.md"
        );
        let text = fs::read_to_string(&path).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link);
        for file in links.filter_map(|link| link.split('#').next()) {
            let is_there = file.contains("://") || path.parent().unwrap().join(file).exists();
            assert!(is_there, "{name} links to {file}");
        }
    }
}
