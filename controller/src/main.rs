//! `fairlead-controller`: see the library of the same name, and `--help`.

use std::process::ExitCode;

use clap::Parser as _;
use fairlead_controller::{flags::Flags, run};

/// Gives memory back after a burst, which matters to a process that lives for months.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit status for a command line that cannot be run.
const BAD_INPUT: u8 = 2;

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Nothing to be done if even that cannot be printed.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(BAD_INPUT));
        }
    };
    match start(flags) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fairlead-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(flags: Flags) -> anyhow::Result<ExitCode> {
    let mut problems = Vec::new();
    let settings = flags.settings().map_err(|found| problems.extend(found)).ok();
    let log =
        flags.logging().start().map_err(|error| problems.push(fairlead_daemon::failure::chain(&error))).ok();
    let (Some(settings), Some(())) = (settings, log) else {
        for problem in problems {
            eprintln!("fairlead-controller: {problem}");
        }
        return Ok(ExitCode::from(BAD_INPUT));
    };
    if flags.dumps_config() {
        println!("{}", flags.dump()?);
        return Ok(ExitCode::SUCCESS);
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run::run(flags, settings))
}
