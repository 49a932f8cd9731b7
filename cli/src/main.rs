//! `fairlead`, also `kubectl-fairlead`: renders, explains and traces Services by the planner and the compiler that the
//! daemons use, so that what it shows is what they do.
//!
//! ```text
//!  files ─── input ──┬──> objects ── snapshot ──> planner ──> Endpoints, EndpointSlices ── output ──> stdout
//!  API server ── cluster    │                        └─ explain: notes, gates ── table ──> stdout
//!                           └────── compilation ──> compiler ──> rules ────────────────── output ──> stdout
//!               kernel, or iptables-save in a file ──────────────> └─ trace: account ──────────────> stdout
//! ```
//!
//! Invariants: nothing is ever changed, neither in a cluster nor in a kernel; results go to standard output, everything else to
//! standard error; nothing is printed as a result unless all
//! of the input was good; the exit code is 0 for done, 1 when the answer is no, 2 for bad input.

mod args;
mod cluster;
mod compilation;
mod condition;
mod config;
mod defaulting;
mod explain;
mod input;
mod node;
mod objects;
mod output;
mod render;
mod snapshot;
mod supply;
mod table;
mod trace;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use args::{Cli, Command, Explain, Render};

/// What a command has to say.
#[derive(Debug)]
struct Answer {
    /// Whether the answer to the question is yes, or there was no question.
    yes: bool,
    /// Whole lines for standard error.
    notices: Vec<String>,
    /// Text for standard output.
    output: String,
}

impl Answer {
    /// The answer of a command that only shows something.
    fn yes(notices: Vec<String>, output: String) -> Self {
        Self { yes: true, notices, output }
    }
}

fn main() -> ExitCode {
    match answer(&Cli::of_process().command).and_then(|answer| print(&answer).map(|()| answer.yes)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            for line in format!("{error:#}").lines() {
                eprintln!("error: {line}");
            }
            ExitCode::from(2)
        }
    }
}

fn answer(command: &Command) -> anyhow::Result<Answer> {
    match command {
        Command::Render(Render::Endpoints(args)) => render::endpoints::run(args),
        Command::Render(Render::Rules(args)) => render::rules::run(args),
        Command::Explain(Explain::Service(args)) => explain::run(args),
        Command::Trace(args) => trace::run(args),
    }
}

/// A reader that has seen enough (`fairlead ... | head`) is not an error.
fn print(answer: &Answer) -> anyhow::Result<()> {
    for notice in &answer.notices {
        eprintln!("{notice}");
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(answer.output.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
