#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    handoff::cli::main()
}
