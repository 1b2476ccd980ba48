//! The program: parse, set up logging, dispatch, and turn the end into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(lighthpc::command::main() as u8)
}
