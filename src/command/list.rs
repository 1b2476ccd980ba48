//! `lighthpc list`: prints the tasks of a mission, for people and for scripts.

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::filter::FilterArgs;
use super::place::PlaceArgs;
use super::{listing, screen};
use crate::command::exit::ExitCode;
use crate::render::{SCHEMA, task_json};
use crate::summary::Order;

/// The arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub(super) json: bool,
    /// Print CSV
    #[arg(long)]
    pub(super) csv: bool,
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
}

pub(super) async fn run(args: ListArgs) -> Result<ExitCode, Failure> {
    let place = args.place.open().await?;
    let mission = place.mission(&args.mission).await?;
    let selected = args.filter.selection(None).read(&place.backend, &mission).await?;
    if args.json {
        let tasks: Vec<_> = selected.tasks.iter().map(task_json).collect();
        screen::json_to_stdout(&json!({
            "schema": SCHEMA, "mission": mission.id.as_str(), "isCut": selected.is_cut, "tasks": tasks,
        }));
    } else if args.csv {
        screen::csv_to_stdout(&listing::csv(&selected.tasks));
    } else {
        screen::to_stdout(&listing::table(&selected.tasks));
        if selected.order == Order::Scan && args.filter.failed {
            screen::to_stderr(
                "note: the whole table was scanned, because failed tasks of an earlier version are in no index\n",
            );
        }
        if selected.tasks.is_empty() {
            screen::to_stderr("note: no task matches\n");
        }
        if selected.is_cut {
            screen::to_stderr("note: there are more tasks: raise --limit\n");
        }
    }
    Ok(ExitCode::Ok)
}
