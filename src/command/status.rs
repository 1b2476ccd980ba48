//! `lighthpc status`: prints missions, or what is going on in one.

use std::path::Path;

use serde_json::json;

use super::cli::StatusArgs;
use super::failure::Failure;
use super::place::MissionPlace;
use super::review::Review;
use super::summary_text::{notification, text};
use super::{local_dir, screen, watch};
use crate::command::exit::ExitCode;
use crate::domain::mission::Mission;
use crate::render::{SCHEMA, mission_json, summary_json, task_json};
use crate::summary::Summary;

/// Tasks that are shown if no limit is given: a screen.
const TASKS_SHOWN: usize = 20;
/// The maximum number of bytes that `status` reads to compare results whose files were replaced. It covers a copied
/// folder of ordinary size, and keeps a large one below minutes.
const REVIEW_BYTES_MAX: u64 = 256 * 1024 * 1024;

pub(super) async fn run(mut args: StatusArgs) -> Result<ExitCode, Failure> {
    // `status --local M001`: if there is no such folder, the word is the mission id. `--local=M001` is a folder.
    if let Some(word) = args.local.as_mut()
        && !args.local_is_folder
        && args.mission.is_none()
        && !word.exists()
        && Path::new(local_dir::DEFAULT_DIR).exists()
    {
        args.mission = Some(word.display().to_string());
        *word = local_dir::DEFAULT_DIR.into();
    }
    let place = args.place().open().await?;
    if place.dir.is_some() {
        local_dir::note_ignored();
    }
    if args.watch {
        let id = match &args.mission {
            Some(id) => id.clone(),
            None => only_mission(&place).await?,
        };
        return watch::run(place, &id, args.every).await;
    }
    let mut missions = match &args.mission {
        Some(id) => vec![place.mission(id).await?],
        None => place.backend.ledger.missions().await?,
    };
    if args.mission.is_none() && missions.len() != 1 {
        if args.json {
            let all: Vec<_> = missions.iter().map(|mission| mission_json(mission, mission.rolled)).collect();
            screen::json_to_stdout(&json!({ "schema": SCHEMA, "missions": all }));
        } else {
            screen::to_stdout(&format!("{}\n", missions_table(&missions, &place).trim_end()));
        }
        return Ok(ExitCode::Ok);
    }
    let summary = Summary::read(&place.backend, missions.remove(0)).await?;
    let selected = if args.filter.is_set() {
        let selection = args.filter.selection(Some(TASKS_SHOWN));
        Some(selection.read(&place.backend, &summary.mission).await?)
    } else {
        None
    };
    if args.json {
        let mut value = summary_json(&summary);
        if let Some(selected) = &selected {
            value["tasks"] = selected.tasks.iter().map(task_json).collect();
            value["isCut"] = json!(selected.is_cut);
        }
        screen::json_to_stdout(&value);
    } else {
        screen::to_stdout(&text(&summary, selected.as_ref(), &place.flag(), place.to_continue().as_deref()));
    }
    // The comparison reads the rows of all tasks, whatever their state.
    if summary.mission.trans_number.unwrap_or(0).max(summary.total.ok) > REVIEW_TASKS_MAX {
        return Ok(ExitCode::Ok);
    }
    review(place, &summary.mission).await
}

/// The most tasks whose results `status` compares: some seconds. A larger mission is compared by `run --local`.
const REVIEW_TASKS_MAX: u64 = 20_000;

/// Returns the id of the only mission.
async fn only_mission(place: &MissionPlace) -> Result<String, Failure> {
    let missions = place.backend.ledger.missions().await?;
    match missions.as_slice() {
        [only] => Ok(only.id.to_string()),
        _ => Err(Failure::usage(
            format!("there are {}", screen::count(missions.len() as u64, "mission")),
            "name one: lighthpc status MISSION --watch",
        )),
    }
}

/// Compares the results of a local mission's tasks that are done with what was committed.
async fn review(place: MissionPlace, mission: &Mission) -> Result<ExitCode, Failure> {
    let Some(cloud) = place.cloud else { return Ok(ExitCode::Ok) };
    let mut review = Review::new(cloud, REVIEW_BYTES_MAX);
    let mut tasks = Vec::new();
    place.backend.ledger.each_task(Some(&mission.id), |task| tasks.push(task)).await?;
    tasks.sort_by(|a, b| a.src.cmp(&b.src));
    for task in &tasks {
        review.look(task, false);
    }
    Ok(if review.sum_up() > 0 { ExitCode::ResultChanged } else { ExitCode::Ok })
}

fn missions_table(missions: &[Mission], place: &MissionPlace) -> String {
    if missions.is_empty() {
        return "no missions\nnext: lighthpc submit --help".to_owned();
    }
    let mut rows = vec![["MISSION", "TASKS", "DONE", "FAILED", "NOTIFIED"].map(str::to_owned)];
    rows.extend(missions.iter().map(|m| {
        [
            m.id.to_string(),
            count(m.trans_number),
            m.rolled.ok.to_string(),
            m.rolled.failed.to_string(),
            notification(m).to_owned(),
        ]
    }));
    format!("{}\nnext: lighthpc status MISSION{}", screen::table(&rows), place.flag())
}
fn count(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), |number| number.to_string())
}
