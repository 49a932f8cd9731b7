//! Removes what beds of dead processes left behind (`make clean-bed`). Beds in use are left alone.

use std::{path::Path, process::ExitCode};

use fairlead_e2e::record::{self, Swept};

fn main() -> ExitCode {
    match record::sweep(Path::new(record::ROOT)) {
        Ok(Swept { beds, processes, in_use }) => {
            let beds_word = if beds == 1 { "bed" } else { "beds" };
            println!("removed {beds} dead {beds_word} and {processes} processes; {in_use} in use");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("clean-bed: {error:#} (it needs root)");
            ExitCode::FAILURE
        }
    }
}
