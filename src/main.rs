//! The vitq command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vitq::cli::main()
}
