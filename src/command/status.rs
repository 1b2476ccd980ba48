//! `lighthpc status`: a mission's counts, and its tasks.

use std::path::Path;

use serde_json::{Value, json};

use super::cli::StatusArgs;
use super::{Failure, place, screen};
use crate::backend::machine::PowerOff;
use crate::backend::{Backend, Wire};
use crate::domain::ids::MissionId;
use crate::domain::mission::{Mission, Notified, Tally};
use crate::domain::policy::BidMode;
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::exit::Exit;
use crate::local::LocalCloud;

pub(super) async fn run(mut args: StatusArgs) -> Result<Exit, Failure> {
    // `status --local M001`: a word that is no folder is the mission's name.
    if let Some(word) = args.local.as_mut()
        && args.mission.is_none()
        && !word.exists()
        && Path::new(place::DEFAULT_DIR).exists()
    {
        args.mission = Some(word.display().to_string());
        *word = place::DEFAULT_DIR.into();
    }
    let backend = if let Some(dir) = &args.local {
        place::refuse_endpoints()?;
        place::backend(&LocalCloud::attach(dir)?, None)
    } else {
        let tables = args.tables.tables();
        Backend::new(&Wire::aws().await?, tables, PowerOff::Never)
    };
    let ledger = &backend.ledger;
    let mut missions = match &args.mission {
        Some(id) => vec![named(&backend, id).await?],
        None => ledger.missions().await?,
    };
    if args.mission.is_none() && missions.len() != 1 {
        let text = if args.json {
            json!({ "missions": missions.iter().map(|m| mission_json(m, m.rolled)).collect::<Vec<_>>() }).to_string()
        } else {
            list(&missions)
        };
        screen::to_stdout(&format!("{}\n", text.trim_end()));
        return Ok(Exit::Ok);
    }
    let mission = missions.remove(0);
    let total = mission.total(ledger.tally(&mission).await?);
    let mut tasks = Vec::new();
    ledger.each_task(Some(&mission.id), |task| tasks.push(task)).await?;
    tasks.sort_by(|a, b| a.src.cmp(&b.src));
    let text =
        if args.json { detail_json(&mission, total, &tasks).to_string() } else { detail(&mission, total, &tasks) };
    screen::to_stdout(&format!("{}\n", text.trim_end()));
    Ok(Exit::Ok)
}

async fn named(backend: &Backend, id: &str) -> Result<Mission, Failure> {
    let id = MissionId::new(id).map_err(|error| Failure::usage(error, "name the mission"))?;
    let mission = backend.ledger.mission(&id).await?;
    mission.ok_or_else(|| {
        let table = &backend.ledger.tables().missions;
        Failure::usage(format!("table {table} has no mission {id}"), "`lighthpc status` without a name lists them")
    })
}

fn list(missions: &[Mission]) -> String {
    if missions.is_empty() {
        return "no missions".to_owned();
    }
    let mut rows = vec![["MISSION", "TASKS", "OK", "FAILED", "TOLD"].map(str::to_owned)];
    rows.extend(missions.iter().map(|m| {
        [
            m.id.to_string(),
            count(m.trans_number),
            m.rolled.ok.to_string(),
            m.rolled.failed.to_string(),
            told(m).to_owned(),
        ]
    }));
    table(&rows)
}

fn detail(mission: &Mission, total: Tally, tasks: &[Task]) -> String {
    let of = |state| tasks.iter().filter(|task| task.state == state).count();
    let mut text = format!(
        "mission {}: {} tasks, {} ok, {} failed, {} running, {} pending; workloads {} s; notification: {}\n\n",
        mission.id,
        count(mission.trans_number),
        total.ok,
        total.failed,
        of(State::Running),
        of(State::Pending),
        tasks.iter().map(|task| task.time_cost_s).sum::<u64>(),
        told(mission),
    );
    let head = ["TASK", "STATE", "PROGRESS", "SECONDS", "ATTEMPT", "INSTANCE", "VERDICT"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(tasks.iter().map(|task| {
        [
            screen::plain(task.src.as_str()),
            task.state.as_str().to_owned(),
            task.progress.clone(),
            task.time_cost_s.to_string(),
            task.attempt.to_string(),
            instance(task).unwrap_or_default(),
            why(task),
        ]
    }));
    text.push_str(&table(&rows));
    text
}

fn detail_json(mission: &Mission, total: Tally, tasks: &[Task]) -> Value {
    let mut value = mission_json(mission, total);
    let of = |state| tasks.iter().filter(|task| task.state == state).count();
    value["states"] = json!({
        "pending": of(State::Pending), "running": of(State::Running), "done": of(State::Done), "failed": of(State::Failed),
    });
    value["tasks"] = tasks.iter().map(task_json).collect();
    value
}

pub(super) fn mission_json(mission: &Mission, total: Tally) -> Value {
    let policy = mission.policy.as_ref().ok();
    json!({
        "mission": mission.id.as_str(),
        "transNumber": mission.trans_number,
        "transOK": total.ok,
        "transFailed": total.failed,
        "timeCost": total.time_cost_s,
        "notifyEmail": told(mission),
        "exec": mission.exec,
        "name": mission.name,
        "nodes": mission.nodes,
        "slots": mission.slots,
        "bidMode": policy.as_ref().and_then(|policy| policy.bid_mode).map(BidMode::as_str),
        "cancelledAt": mission.cancelled_at,
    })
}

fn task_json(task: &Task) -> Value {
    json!({
        "srcFilename": task.src.as_str(),
        "state": task.state.as_str(),
        "strIndiProgress": task.progress,
        "timeCost": task.time_cost_s,
        "attempt": task.attempt.0,
        "execInstanceID": task.instance.as_ref().map(ToString::to_string),
        "verdict": verdict(task),
        "exitCode": task.exit_code,
        "rsltFilename": task.result,
        "resultETag": task.result_etag,
        "resultBytes": task.result_bytes,
        "appFailures": task.app_failures,
        "interruptions": task.interruptions,
        "launchInstanceID": task.launch.instance,
        "launchError": task.launch.error,
        "launchAfter": task.launch.after,
        "history": task.history.iter().map(past_json).collect::<Vec<_>>(),
    })
}

fn past_json(past: &PastAttempt) -> Value {
    json!({
        "attempt": past.attempt.0,
        "instance": past.instance,
        "started": past.started,
        "ended": past.ended,
        "verdict": past.verdict.as_str(),
        "exitCode": past.exit_code,
        "log": past.log,
    })
}

/// The instance that holds, or last held, the task; of one that waits, what was launched for it.
fn instance(task: &Task) -> Option<String> {
    let launched = task.launch.instance.as_ref().filter(|_| task.state == State::Pending);
    launched.cloned().or_else(|| task.instance.as_ref().map(ToString::to_string))
}

/// Why the last attempt ended; of a task that waits, why it has no node.
fn why(task: &Task) -> String {
    const LEN_MAX: usize = 60;
    match &task.launch.error {
        Some(error) if task.state == State::Pending => {
            let plain = screen::plain(error);
            let short: String = plain.chars().take(LEN_MAX).collect();
            format!("no node: {short}{}", if plain.chars().count() > LEN_MAX { "…" } else { "" })
        }
        _ => verdict(task).unwrap_or_default().to_owned(),
    }
}

fn verdict(task: &Task) -> Option<&'static str> {
    task.verdict.map(Verdict::as_str)
}

fn told(mission: &Mission) -> &'static str {
    match mission.notified {
        Notified::No => "No",
        Notified::Sending { .. } => "Sending",
        Notified::Yes => "Yes",
    }
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), |number| number.to_string())
}

/// Lines rows up in columns.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
