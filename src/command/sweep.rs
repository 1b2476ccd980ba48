//! `lighthpc sweep`: relaunches lost tasks, terminates leaked instances, repairs rows and notifications.

use serde_json::json;

use super::cli::SweepArgs;
use super::failure::Failure;
use super::{scheduling, screen, signals};
use crate::backend::error_chain;
use crate::command::exit::ExitCode;
use crate::scheduler::{Finding, What};
use crate::worker::Stopping;

pub(super) async fn run(args: SweepArgs) -> Result<ExitCode, Failure> {
    let scheduler = scheduling::scheduler(&args.scheduler).await?;
    let stopping = Stopping::default();
    let listener = signals::listen(stopping.clone());
    let _listener = listener.map_err(|error| Failure { exit: ExitCode::Internal, error: error.into(), hint: None })?;
    loop {
        // It may be dropped anywhere, as the function may be killed: the next sweep goes on.
        let swept = tokio::select! {
            swept = scheduler.sweep(&stopping.drain) => swept,
            () = stopping.hurry.cancelled() => return Ok(ExitCode::Interrupted),
        };
        let has_failed = match &swept {
            Ok(findings) => {
                for finding in findings {
                    show(finding, args.json);
                }
                findings.iter().any(|finding| finding.what == What::Failure)
            }
            Err(_) => true,
        };
        if !args.watch {
            swept?;
            return Ok(if has_failed { ExitCode::Unavailable } else { ExitCode::Ok });
        }
        // Nobody can read further findings.
        screen::finish_stdout()?;
        if let Err(error) = swept {
            // The next sweep may succeed. A permanent failure is printed after each sweep.
            screen::to_stderr(&format!("sweep: {}\n", screen::plain(&error_chain(&error))));
        }
        // Both arms may be dropped: they hold no resources.
        tokio::select! {
            () = tokio::time::sleep(args.every) => {}
            () = stopping.drain.cancelled() => return Ok(ExitCode::Ok),
        }
    }
}

fn show(finding: &Finding, is_json: bool) {
    let Finding { what, subject, reason } = finding;
    if is_json {
        let line = json!({ "what": what.as_str(), "subject": subject, "reason": reason });
        screen::json_to_stdout(&line);
    } else {
        screen::to_stdout(&format!("{:<10} {}  {}\n", what.as_str(), screen::plain(subject), screen::plain(reason)));
    }
}
