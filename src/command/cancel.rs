//! `lighthpc cancel`: cancels a mission.

use serde_json::json;

use super::cli::CancelArgs;
use super::failure::Failure;
use super::{scheduling, screen};
use crate::command::exit::ExitCode;
use crate::domain::ids::MissionId;
use crate::render::SCHEMA;

pub(super) async fn run(args: CancelArgs) -> Result<ExitCode, Failure> {
    let mission = MissionId::new(&args.mission).map_err(|error| Failure::usage(error, "give the id of the mission"))?;
    let scheduler = scheduling::scheduler_at(args.local.as_deref(), &args.scheduler).await?;
    // A running node reads the row within a third of a lease, and then its workload has the grace period.
    let wait = args.wait.unwrap_or(args.scheduler.lease * 3 / 2);

    let cancelled = scheduler.cancel(&mission, wait).await?;

    if args.json {
        screen::json_to_stdout(&json!({
            "schema": SCHEMA, "mission": mission.as_str(), "ended": cancelled.ended, "asked": cancelled.asked,
            "running": cancelled.running, "instances": cancelled.instances, "isReinstated": cancelled.is_reinstated,
        }));
    } else {
        screen::to_stdout(&format!(
            "mission {} is cancelled: {} ended, {} requested to stop, {} still running, {} terminated\n",
            screen::plain(mission.as_str()),
            screen::count(cancelled.ended, "task"),
            cancelled.asked,
            cancelled.running,
            screen::count(cancelled.instances.len() as u64, "instance")
        ));
    }
    if cancelled.is_reinstated {
        let message = format!("mission {mission} was reinstated during the cancellation");
        return Err(Failure {
            exit: ExitCode::Unavailable,
            ..Failure::usage(message, "run the command again to cancel it")
        });
    }
    if cancelled.running > 0 {
        screen::to_stderr(
            "the next sweep terminates nodes that do not respond within a lease; or run this command again\n",
        );
        return Ok(ExitCode::Unavailable);
    }
    Ok(ExitCode::Ok)
}
