//! Kubernetes' own end-to-end tests, run against a cluster, and what they said.
//!
//! Invariant: a run passes only when every spec of its list was run and passed, and no other failed. The lists in
//! `e2e/cluster/specs/` hold what passes with the genuine programs, so a spec that is missing is a failure too.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{Parts, parts};
use crate::{
    netns::Netns,
    processes::{Process, Start, tail},
    record::Record,
    wait::{self, Look},
};

/// How long a run may take.
const DEADLINE: Duration = Duration::from_hours(1);
/// How often its progress is said.
const PROGRESS: Duration = Duration::from_secs(20);

/// Which specs are run, and which of them have to pass.
#[derive(Clone, Debug)]
pub struct Specs {
    /// Its name: of the report and in messages.
    pub name: String,
    /// Regular expression of the specs that are run.
    focus: String,
    /// Regular expression of those of them that are not run, if any.
    skip: String,
    /// Full names of those that have to pass; empty for all that are run.
    expected: Vec<String>,
}

impl Specs {
    /// A list of `e2e/cluster/specs/`: its specs are run, and no others.
    pub fn listed(name: &str) -> Result<Self> {
        let path = parts::script("specs").join(format!("{name}.txt"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let expected: Vec<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let focus = expected.iter().map(|spec| format!("{}$", escaped(spec))).collect::<Vec<_>>().join("|");
        Ok(Self { name: name.to_owned(), focus, skip: String::new(), expected })
    }

    /// All specs whose names match `focus` and not `skip`.
    pub fn matching(focus: &str, skip: &str) -> Self {
        Self {
            name: "focus".to_owned(),
            focus: focus.to_owned(),
            skip: skip.to_owned(),
            expected: Vec::new(),
        }
    }
}

/// What became of one spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// `passed`, `failed`, `skipped`, `timedout`, `panicked`, `interrupted`, `aborted`.
    pub state: String,
    /// How long it took.
    pub time: Duration,
    /// Why it failed or was skipped.
    pub why: String,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Report {
    name: String,
    took: Duration,
    outcomes: BTreeMap<String, Outcome>,
    /// Failures outside any spec.
    around: Vec<String>,
    expected: Vec<String>,
}

impl Report {
    /// Fails, naming what did not pass, unless all that has to pass did and nothing failed.
    pub fn check(&self) -> Result<()> {
        let bad = self.bad();
        ensure!(bad.is_empty(), "{}: {} did not pass:\n{}", self.name, bad.len(), bad.join("\n"));
        Ok(())
    }

    fn bad(&self) -> Vec<String> {
        let missing = self.expected.iter().filter(|spec| !self.outcomes.contains_key(*spec));
        let missing = missing.map(|spec| format!("not run: {spec}"));
        let failed = self.outcomes.iter().filter(|(spec, outcome)| match &*outcome.state {
            "passed" => false,
            "skipped" => self.expected.contains(spec),
            _ => true,
        });
        let failed = failed.map(|(spec, outcome)| format!("{}: {spec}: {}", outcome.state, outcome.why));
        missing.chain(failed).chain(self.around.iter().cloned()).collect()
    }

    /// `conformance: 47 of 47 passed in 94 s`.
    pub fn summary(&self) -> String {
        let passed = self.outcomes.values().filter(|outcome| outcome.state == "passed").count();
        let skipped = self.outcomes.values().filter(|outcome| outcome.state == "skipped").count();
        let all = if self.expected.is_empty() { self.outcomes.len() - skipped } else { self.expected.len() };
        let not_applicable = if skipped == 0 { String::new() } else { format!(", {skipped} not applicable") };
        format!("{}: {passed} of {all} passed{not_applicable} in {} s", self.name, self.took.as_secs())
    }

    /// A line per spec, and the summary.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for (spec, outcome) in &self.outcomes {
            let _ = writeln!(table, "{:8} {:6.1}s {spec}", outcome.state, outcome.time.as_secs_f64());
            if outcome.state != "passed" {
                let _ = writeln!(table, "         {}", outcome.why);
            }
        }
        for failure in &self.around {
            let _ = writeln!(table, "{failure}");
        }
        let _ = writeln!(table, "{}", self.summary());
        table
    }

    /// The full names of the specs that passed.
    pub fn passed(&self) -> impl Iterator<Item = &str> {
        self.outcomes.iter().filter(|(_, outcome)| outcome.state == "passed").map(|(spec, _)| &**spec)
    }

    /// Reads what ginkgo wrote.
    fn parse(text: &str, specs: &Specs) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_str(text)?;
        let mut report = Self {
            name: specs.name.clone(),
            took: Duration::ZERO,
            outcomes: BTreeMap::new(),
            around: Vec::new(),
            expected: specs.expected.clone(),
        };
        for suite in suites {
            report.took += Duration::from_nanos(suite.run_time);
            for spec in suite.spec_reports.unwrap_or_default() {
                report.add(spec);
            }
        }
        Ok(report)
    }

    fn add(&mut self, spec: Spec) {
        let why = one_line(&spec.failure.message);
        if spec.leaf_node_type != "It" {
            if spec.state != "passed" {
                self.around.push(format!("{}: {}: {why}", spec.state, spec.leaf_node_type));
            }
            return;
        }
        // Skipped without a word: it was not asked for.
        if (spec.state == "skipped" && why.is_empty()) || spec.state == "pending" {
            return;
        }
        let time = Duration::from_nanos(spec.run_time);
        self.outcomes.insert(spec.name(), Outcome { state: spec.state, time, why });
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(500).collect()
}

/// For use in a regular expression of Go's.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut all, c| {
        if r"\.+*?()|[]{}^$".contains(c) {
            all.push('\\');
        }
        all.push(c);
        all
    })
}

/// The part of ginkgo's report that is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
    run_time: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    run_time: u64,
    #[serde(default)]
    failure: Failure,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

impl Spec {
    fn name(&self) -> String {
        let above = self.container_hierarchy_texts.iter().flatten();
        above.chain([&self.leaf_node_text]).map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// Where the tests run, and whom they ask.
#[derive(Clone, Debug)]
pub struct Court<'a> {
    /// Logs.
    pub record: &'a Record,
    /// The host that the tests run on: it reaches the API server and the nodes.
    pub host: &'a Netns,
    /// Of somebody with all rights.
    pub kubeconfig: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// ginkgo and the tests.
    pub parts: &'a Parts,
    /// Number of nodes.
    pub nodes: u8,
}

/// A cluster that the tests can judge.
pub trait Judged {
    /// Where they run.
    fn court(&self) -> Court<'_>;
    /// Fails when the cluster is broken, whatever the tests say.
    fn check(&mut self) -> Result<()>;
    /// Prints how it goes.
    fn say(&self, what: &str);
}

/// Runs specs against a cluster, `processes` at a time, and leaves ginkgo's log and report and our table in `folder`.
pub fn run(cluster: &mut impl Judged, specs: &Specs, processes: u8, folder: &Path) -> Result<Report> {
    fs::create_dir_all(folder)?;
    let file = |ending: &str| folder.join(format!("{}.{ending}", specs.name));
    let report = file("json");
    drop(fs::remove_file(&report));
    let mut process = start(&cluster.court(), specs, processes, folder)?;
    let log = cluster.court().record.log(process.name());
    let ended = await_end(cluster, &mut process, &log);
    fs::copy(&log, file("log"))?;
    ended?;
    let text = fs::read_to_string(&report).with_context(|| format!("no report; {}", tail(&log, 30)))?;
    let report = Report::parse(&text, specs)?;
    fs::write(file("txt"), report.table())?;
    Ok(report)
}

fn start(court: &Court<'_>, specs: &Specs, processes: u8, folder: &Path) -> Result<Process> {
    let path = std::env::var("PATH").unwrap_or_default();
    let beside = court.kubectl.with_file_name("").display().to_string();
    let kubeconfig = court.kubeconfig.display().to_string();
    let env = [
        ("PATH", format!("{beside}:{path}")),
        ("KUBECONFIG", kubeconfig.clone()),
        ("HOME", court.record.dir().display().to_string()),
    ];
    let mut args = vec![
        format!("--procs={processes}"),
        "--no-color".to_owned(),
        "--seed=1".to_owned(),
        format!("--timeout={}s", DEADLINE.as_secs()),
        format!("--focus={}", specs.focus),
        format!("--json-report={}.json", specs.name),
        format!("--output-dir={}", folder.display()),
        court.parts.program("e2e.test").display().to_string(),
        "--".to_owned(),
        "--provider=skeleton".to_owned(),
        format!("--kubeconfig={kubeconfig}"),
        format!("--kubectl-path={}", court.kubectl.display()),
        format!("--num-nodes={}", court.nodes),
    ];
    if !specs.skip.is_empty() {
        args.insert(5, format!("--skip={}", specs.skip));
    }
    let program = court.parts.program("ginkgo");
    let name = format!("e2e-{}", specs.name);
    let start = Start { name: &name, program: &program, args: &args, env: &env };
    Process::start(court.record, court.host, &start)
}

/// Says how it goes. That specs failed is no error here: the report tells.
fn await_end(cluster: &mut impl Judged, process: &mut Process, log: &Path) -> Result<()> {
    let mut said = Instant::now();
    wait::until("the end-to-end tests to end", DEADLINE, || {
        if process.exited()? {
            return Ok(Look::Done(()));
        }
        cluster.check()?;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            let done = fs::read_to_string(log).unwrap_or_default();
            let failed = done.lines().filter(|line| line.contains("[FAILED] [")).count();
            cluster.say(&format!("{} specs done, {failed} failures", done.matches('•').count()));
        }
        Ok(Look::NotYet(tail(log, 5)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"[{"RunTime": 94000000000, "SpecReports": [
        {"LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "", "State": "passed", "RunTime": 1},
        {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "should serve",
         "State": "passed", "RunTime": 2000000000},
        {"ContainerHierarchyTexts": ["[sig-network] Services"], "LeafNodeType": "It", "LeafNodeText": "should balance",
         "State": "failed", "RunTime": 1, "Failure": {"Message": "no answer\n  from 10.96.0.1"}},
        {"ContainerHierarchyTexts": ["[sig-network] Firewall"], "LeafNodeType": "It", "LeafNodeText": "should block",
         "State": "skipped", "RunTime": 1, "Failure": {"Message": "only on a cloud"}},
        {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "should run",
         "State": "skipped", "RunTime": 0}]}]"#;

    fn report(expected: &[&str]) -> Report {
        let expected = expected.iter().map(|&spec| spec.to_owned()).collect();
        Report::parse(TEXT, &Specs { expected, ..Specs::matching("", "") }).unwrap()
    }

    #[test]
    fn report_counts_what_was_run_and_tells_what_is_not_applicable() {
        let report = report(&[]);
        assert_eq!(report.summary(), "focus: 1 of 2 passed, 1 not applicable in 94 s");
        assert_eq!(report.passed().collect::<Vec<_>>(), ["[sig-network] Services should serve"]);
        assert!(
            report.table().contains("no answer from 10.96.0.1") && report.table().contains("only on a cloud")
        );
    }

    #[test]
    fn check_names_failed_skipped_and_missing_specs_of_the_list() {
        let expected = ["[sig-network] Firewall should block", "[sig-network] DNS should answer"];
        let text = report(&expected).check().unwrap_err().to_string();
        for part in [
            "3 did not pass",
            "not run: [sig-network] DNS",
            "skipped: [sig-network] Firewall",
            "should balance",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn failure_outside_a_spec_fails_the_run() {
        let text = r#"[{"RunTime": 1, "SpecReports": [{"LeafNodeType": "SynchronizedBeforeSuite",
            "LeafNodeText": "", "State": "failed", "RunTime": 1, "Failure": {"Message": "no nodes"}}]}]"#;
        let report = Report::parse(text, &Specs::matching("", "")).unwrap();
        assert!(report.check().unwrap_err().to_string().contains("no nodes"));
    }

    #[test]
    fn names_are_taken_literally_in_a_focus() {
        assert_eq!(escaped("[sig-network] a.b (c)"), r"\[sig-network\] a\.b \(c\)");
    }
}
