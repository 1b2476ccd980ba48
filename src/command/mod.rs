//! The commands: one file each. They read settings, call the floors below, and say what came of it.

mod cli;
mod inputs;
mod mission;
mod node;
mod place;
mod screen;
mod signals;
mod status;

pub use cli::Cli;

use std::fmt::Display;

use cli::Command;
use tracing::level_filters::LevelFilter;

use crate::exit::{self, Exit};
use crate::logging;

/// A failure as its user sees it: cause, hint, exit code.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
}

impl Failure {
    fn usage(message: impl Display, hint: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, error: anyhow::anyhow!("{message}"), hint: Some(hint.into()) }
    }
}

impl From<crate::backend::CloudError> for Failure {
    fn from(error: crate::backend::CloudError) -> Self {
        let (exit, hint) = exit::of_cloud(&error);
        Self { exit, error: error.into(), hint }
    }
}

impl From<crate::worker::NodeError> for Failure {
    fn from(error: crate::worker::NodeError) -> Self {
        let (exit, hint) = exit::of_node(&error);
        Self { exit, error: error.into(), hint }
    }
}

/// Runs the command to its end and returns the program's exit code.
#[must_use]
pub fn dispatch(cli: Cli) -> Exit {
    match start(cli) {
        Ok(exit) => exit,
        Err(failure) => {
            report(&failure);
            failure.exit
        }
    }
}

fn start(cli: Cli) -> Result<Exit, Failure> {
    let level = if cli.is_for_a_node() { LevelFilter::INFO } else { LevelFilter::WARN };
    logging::init(level, cli.log_format)
        .map_err(|error| Failure::usage(error, "LIGHTHPC_LOG is a level: error, warn, info, debug, or trace"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build();
    let runtime = runtime.map_err(|error| Failure { exit: Exit::Internal, error: error.into(), hint: None })?;
    runtime.block_on(async {
        match cli.command {
            Command::Run(args) if args.local.is_some() => mission::run(args).await,
            Command::Run(args) => node::run(args).await,
            Command::Status(args) => status::run(args).await,
        }
    })
}

/// Two threads move data faster than any instance's network does; the rest belongs to the workload.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// Prints a failure: the cause, what caused that, and the next step.
fn report(failure: &Failure) {
    let mut causes = failure.error.chain();
    let mut text = format!("error: {}\n", causes.next().map(ToString::to_string).unwrap_or_default());
    for cause in causes {
        text.push_str(&format!("  because: {cause}\n"));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    screen::to_stderr(&text);
}
