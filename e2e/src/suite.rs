//! Runs the cases of a test file on one bed.
//!
//! A bed takes seconds to start and Rust never drops a static, so a file of cases is a program of its own: it starts
//! one bed, runs its cases one after the other on an emptied namespace `default`, says what failed with the ends of all
//! logs, and drops the bed. It takes the arguments of `cargo test` that matter here: filters, `--exact`, `--list`.
//!
//! Invariant: a suite that cannot run says so loudly; in CI (`CI=true`) that is a failure.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::Mutex,
    time::Instant,
};

use anyhow::Result;

use crate::bed::{Bed, Options};

/// What the last failed assertion said.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// A named case.
pub struct Case {
    name: &'static str,
    run: fn(&mut Bed) -> Result<()>,
}

impl Case {
    /// See [`cases!`](crate::cases).
    pub const fn new(name: &'static str, run: fn(&mut Bed) -> Result<()>) -> Self {
        Self { name, run }
    }
}

/// Makes a list of [`Case`]s from functions `fn(&mut Bed) -> anyhow::Result<()>`.
#[macro_export]
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$($crate::suite::Case::new(stringify!($case), $case)),*] };
}

/// Runs the cases that the command line asks for, on a bed as the environment asks for. `prepare` gets the bed when its
/// cluster is up.
pub fn run(prepare: fn(&mut Bed) -> Result<()>, cases: &[Case]) -> ExitCode {
    run_on(Options::from_env, prepare, cases)
}

/// As [`run`], on a bed made to these options.
pub fn run_on(
    options: impl FnOnce() -> Result<Options>,
    prepare: fn(&mut Bed) -> Result<()>,
    cases: &[Case],
) -> ExitCode {
    run_comparing(options, prepare, cases, Packets::Any)
}

/// As [`run`], for a suite about packets: it fails if not one of them was held against the tracer.
pub fn run_traced(prepare: fn(&mut Bed) -> Result<()>, cases: &[Case]) -> ExitCode {
    run_traced_on(Options::from_env, prepare, cases)
}

/// As [`run_traced`], on a bed made to these options.
pub fn run_traced_on(
    options: impl FnOnce() -> Result<Options>,
    prepare: fn(&mut Bed) -> Result<()>,
    cases: &[Case],
) -> ExitCode {
    run_comparing(options, prepare, cases, Packets::Traced)
}

/// What a suite sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packets {
    Any,
    /// Some that meet rules, in a run of all its cases.
    Traced,
}

fn run_comparing(
    options: impl FnOnce() -> Result<Options>,
    prepare: fn(&mut Bed) -> Result<()>,
    cases: &[Case],
    packets: Packets,
) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Vec<&Case> = cases.iter().filter(|case| asked_for(&args, case.name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        for case in chosen {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    if let Some(code) = refuse() {
        return code;
    }
    println!("\nrunning {} tests on one bed", chosen.len());
    // A failed assertion is told with its case; the way to it through this runner is of no interest.
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut said) = PANIC.lock() {
            *said = Some(panic.to_string());
        }
    }));
    let began = Instant::now();
    let mut bed = match options().and_then(Bed::start) {
        Ok(bed) => bed,
        Err(error) => {
            println!("the bed did not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("bed up in {:.1?}", began.elapsed());
    if let Err(error) = prepare(&mut bed) {
        println!("preparing the bed failed: {error:#}\n{}", bed.log_tails());
        return ExitCode::FAILURE;
    }
    let failed = chosen.iter().filter(|case| !passes(&mut bed, case)).count();
    let agreement = bed.agreement();
    println!("{agreement}");
    drop(bed);
    let all = packets == Packets::Traced && chosen.len() == cases.len();
    let uncompared = all && agreement.requests == 0;
    if uncompared {
        println!("not one packet was held against the tracer");
    }
    let good = failed == 0 && !uncompared;
    let result = if good { "ok" } else { "FAILED" };
    let passed = chosen.len() - failed;
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; finished in {:.1?}\n",
        began.elapsed()
    );
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What keeps suites from running here, if anything: then the exit code of the suite.
pub fn refuse() -> Option<ExitCode> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    println!("\n*** NOT RUN: these tests need root for network namespaces ***\n");
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    Some(if ci { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn passes(bed: &mut Bed, case: &Case) -> bool {
    let began = Instant::now();
    let run = || bed.reset().and_then(|()| (case.run)(bed)).and_then(|()| bed.check());
    // A panic is a failed assertion; the bed itself stays usable.
    let failure = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => PANIC.lock().ok().and_then(|mut said| said.take()),
    };
    let verdict = if failure.is_some() { "FAILED" } else { "ok" };
    println!("test {} ... {verdict} ({:.1?})", case.name, began.elapsed());
    if let Some(failure) = &failure {
        println!("\n---- {} ----\n{failure}\n\n{}\n", case.name, bed.log_tails());
    }
    failure.is_none()
}

/// Filters as cargo's own test programs take them; flags with a value are skipped with it.
fn asked_for(args: &[String], name: &str) -> bool {
    let exact = args.iter().any(|arg| arg == "--exact");
    let mut filters = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--test-threads" | "--format" | "--color" | "--skip" | "-Z" | "--logfile" => drop(words.next()),
            word if word.starts_with('-') => {}
            filter => filters.push(filter),
        }
    }
    filters.is_empty()
        || filters.iter().any(|filter| if exact { *filter == name } else { name.contains(filter) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(args: &[&str], name: &str) -> bool {
        asked_for(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>(), name)
    }

    #[test]
    fn filters_choose_cases_and_flags_do_not() {
        assert!(asks(&[], "hairpin"));
        assert!(asks(&["--nocapture", "--test-threads", "1"], "hairpin"));
        assert!(asks(&["hair"], "hairpin"));
        assert!(!asks(&["hair", "--exact"], "hairpin"));
        assert!(!asks(&["other"], "hairpin"));
    }
}
