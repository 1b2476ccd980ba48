//! The commands, one file each: they read settings, call the layers below, and print the outcome.

mod cancel;
mod cli;
mod doctor;
mod dry_run;
mod estimate;
mod examples;
pub mod exit;
mod explain;
mod failure;
mod fetch;
mod filter;
mod flags;
mod forms;
mod inputs;
mod lambda;
mod list;
mod listing;
mod local_dir;
mod logs;
mod mission;
mod node;
mod place;
mod plan;
mod redrive;
#[cfg(test)]
mod reference;
mod report;
mod review;
mod scheduling;
mod screen;
mod service;
mod signals;
mod status;
mod submit;
mod summary_text;
mod sweep;
mod trust;
mod wait;
mod watch;

use std::time::Duration;

use cli::{Cli, Command};
use exit::ExitCode;
use failure::Failure;
use tracing::level_filters::LevelFilter;

use crate::backend::error_chain;
use crate::logging;

/// Parses the command line, runs the command, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    // First, because a signal that kills the node here would leave its instance running.
    signals::catch();
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            // Without styles: the text repeats arguments, which are escaped below.
            let text = error.render().to_string();
            if !error.use_stderr() {
                screen::to_stdout(&text);
                return ended(Ok(ExitCode::Ok), false);
            }
            screen::to_stderr(&text);
            end_unused_node();
            return ExitCode::Usage;
        }
    };
    let is_json = cli.log_format == logging::Format::Json;
    ended(start(cli), is_json)
}

/// Reports a failure and returns the exit code. If standard output could not be written, a success becomes a failure.
fn ended(result: Result<ExitCode, Failure>, is_json: bool) -> ExitCode {
    let exit = result.unwrap_or_else(|failure| {
        report(&failure, is_json);
        failure.exit
    });
    match screen::finish_stdout() {
        Ok(()) => exit,
        Err(failure) => {
            report(&failure, is_json);
            if exit == ExitCode::Ok { failure.exit } else { exit }
        }
    }
}

/// Terminates the instance of a node whose command line is invalid, because it would run without a task. Does nothing
/// on a terminal: a person may have mistyped a command.
fn end_unused_node() {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
    let Some(order) = node::order_of_refused(&arguments, variable, is_terminal) else { return };
    logging::init(LevelFilter::INFO, logging::Format::Text).ok();
    match runtime() {
        Ok(runtime) => runtime.block_on(node::end_machine(None, order)),
        Err(error) => tracing::error!("this instance could not be terminated: {error}"),
    }
}

fn start(cli: Cli) -> Result<ExitCode, Failure> {
    if !matches!(&cli.command, Command::Run(args) if args.local.is_none()) {
        // Only a node must terminate its instance. Other commands exit at once on a signal, or listen for it later.
        signals::restore();
    }
    let level = if cli.is_a_service() { LevelFilter::INFO } else { LevelFilter::WARN };
    let logs = logging::init(level, cli.log_format);
    crate::workload::raise_descriptors();
    let internal = |error: std::io::Error| Failure { exit: ExitCode::Internal, error: error.into(), hint: None };
    let runtime = runtime().map_err(internal)?;
    let done = runtime.block_on(async {
        let logs = logs.map_err(|error| {
            Failure::usage(
                error,
                "set LIGHTHPC_LOG to a level (error, warn, info, debug, trace), or to a list such as lighthpc=info",
            )
        });
        match cli.command {
            Command::Run(args) if args.local.is_some() => {
                logs?;
                mission::run(args).await
            }
            Command::Run(args) => node::run(args, logs).await,
            other => {
                logs?;
                match other {
                    Command::Status(args) => status::run(args).await,
                    Command::List(args) => list::run(args).await,
                    Command::Explain(args) => explain::run(args).await,
                    Command::Logs(args) => logs::run(args).await,
                    Command::Wait(args) => wait::run(args).await,
                    Command::Report(args) => report::run(args).await,
                    Command::Fetch(args) => fetch::run(args).await,
                    Command::Submit(args) => submit::run(*args).await,
                    Command::Sweep(args) => sweep::run(args).await,
                    Command::Redrive(args) => redrive::run(args).await,
                    Command::Cancel(args) => cancel::run(args).await,
                    Command::Doctor(args) => doctor::run(args).await,
                    Command::Lambda(args) => lambda::run(args).await,
                    Command::Run(_) => unreachable!("matched above"),
                }
            }
        }
    });
    // A thread that the drain did not wait for may be blocked by a disk.
    runtime.shutdown_timeout(THREADS_END_TIMEOUT);
    done
}

/// The time that the process waits at its end for threads that read or remove files. A drain takes at most 70 s; with
/// the termination of the instance and this time, it stays below the 90 s of systemd's stop timeout.
const THREADS_END_TIMEOUT: Duration = Duration::from_secs(3);

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()
}

/// Two threads transfer data faster than any instance's network; the other cores are for the workload. Two even on one
/// core: while one thread removes a folder of many files, the other notifies systemd's watchdog.
const THREADS: usize = 2;

/// Prints a failure: the error, its causes, and the hint. In the JSON log format, it is one record.
fn report(failure: &Failure, is_json: bool) {
    if is_json {
        let hint = failure.hint.as_deref().unwrap_or("");
        tracing::error!(exit_code = failure.exit as u8, hint, "{}", error_chain(failure.error.as_ref()));
        return;
    }
    let mut causes = failure.error.chain().map(ToString::to_string);
    let mut text = format!("error: {}\n", screen::plain(&causes.next().unwrap_or_default()));
    for cause in causes {
        text.push_str(&format!("  because: {}\n", screen::plain(&cause)));
    }
    if let Some(hint) = &failure.hint {
        text.push_str(&format!("hint: {}\n", screen::plain(hint)));
    }
    screen::to_stderr(&text);
}
