//! The node agent's program. Everything is in the library; this turns its outcome into an exit code.

use std::process::ExitCode;

use fairlead_programmer::{agent, command::Command};

#[tokio::main]
async fn main() -> ExitCode {
    match Box::pin(agent::run(Command::parse())).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.sentence().lines() {
                eprintln!("fairlead-programmer: {line}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
