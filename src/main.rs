//! The program: parse, set up logging, dispatch, and turn the end into an exit code.

use std::process::ExitCode;

use clap::Parser;
use lighthpc::command::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    ExitCode::from(command::dispatch(cli) as u8)
}
