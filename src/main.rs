//! The binary: runs [`lighthpc::command::main`] and returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(lighthpc::command::main() as u8)
}
