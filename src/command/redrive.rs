//! `lighthpc redrive`: sets failed tasks to pending again.

use serde_json::json;

use super::cli::RedriveArgs;
use super::failure::Failure;
use super::{filter, scheduling, screen};
use crate::command::exit::ExitCode;
use crate::domain::ids::{MissionId, SrcId};
use crate::render::SCHEMA;

pub(super) async fn run(args: RedriveArgs) -> Result<ExitCode, Failure> {
    let mission = MissionId::new(&args.mission).map_err(|error| Failure::usage(error, "give the id of the mission"))?;
    let verdict = args.verdict.as_deref().map(filter::verdict_of).transpose()?;
    let srcs: Result<Vec<SrcId>, _> = args.srcs.iter().map(SrcId::new).collect();
    let srcs = srcs.map_err(|error| Failure::usage(error, "give the keys of the tasks"))?;
    let scheduler = scheduling::scheduler_at(args.local.as_deref(), &args.scheduler).await?;

    let redriven = scheduler.redrive(&mission, verdict, &srcs).await?;

    let end = if redriven.others.is_empty() { ExitCode::Ok } else { ExitCode::Usage };
    if args.json {
        screen::json_to_stdout(&json!({
            "schema": SCHEMA, "mission": mission.as_str(), "putBack": redriven.put_back, "launched": redriven.launched,
            "reasons": redriven.waits, "skipped": redriven.others,
        }));
        return Ok(end);
    }
    screen::to_stdout(&format!(
        "mission {}: {} set to pending, {} launched\n",
        screen::plain(mission.as_str()),
        screen::count(redriven.put_back, "task"),
        screen::count(redriven.launched, "node")
    ));
    for why in &redriven.waits {
        screen::to_stderr(&format!("no node was launched for some of them: {}\n", screen::plain(why)));
    }
    if let Some(dir) = args.local.as_deref().filter(|_| redriven.put_back > 0) {
        screen::to_stdout(&format!("next: lighthpc run{}\n", super::local_dir::flag(dir)));
    }
    for src in &redriven.others {
        screen::to_stderr(&format!("skipped, not a failed task of this mission: {}\n", screen::plain(src)));
    }
    Ok(end)
}
