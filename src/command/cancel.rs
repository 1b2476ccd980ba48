//! `lighthpc cancel`: ends a mission.

use super::cli::CancelArgs;
use super::failure::Failure;
use super::{scheduling, screen};
use crate::command::exit::ExitCode;
use crate::domain::ids::MissionId;

pub(super) async fn run(args: CancelArgs) -> Result<ExitCode, Failure> {
    let mission = MissionId::new(&args.mission).map_err(|error| Failure::usage(error, "name the mission"))?;
    let scheduler = scheduling::scheduler(&args.scheduler).await?;
    // A heartbeat comes within a third of a lease, and a workload has its grace.
    let wait = args.wait.unwrap_or(args.scheduler.lease * 3 / 2);

    let cancelled = scheduler.cancel(&mission, wait).await?;

    screen::to_stdout(&format!(
        "mission {} is cancelled: {} tasks ended, {} asked to stop, {} still running, {} instances ended\n",
        screen::plain(mission.as_str()),
        cancelled.ended,
        cancelled.asked,
        cancelled.running,
        cancelled.instances.len()
    ));
    if cancelled.is_reinstated {
        let message = format!("mission {mission} was reinstated while it was being cancelled");
        return Err(Failure {
            exit: ExitCode::Unavailable,
            ..Failure::usage(message, "cancel it again if that is meant")
        });
    }
    if cancelled.running > 0 {
        screen::to_stderr("a sweep ends those that do not answer within a lease; or run this again\n");
        return Ok(ExitCode::Unavailable);
    }
    Ok(ExitCode::Ok)
}
