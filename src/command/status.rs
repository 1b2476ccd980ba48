//! `lighthpc status`: prints missions, or a mission's counts and tasks.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::cli::StatusArgs;
use super::failure::Failure;
use super::review::Review;
use super::{local_dir, screen};
use crate::backend::machine::PowerOff;
use crate::backend::{Backend, Wire};
use crate::command::exit::ExitCode;
use crate::domain::ids::MissionId;
use crate::domain::machine_info::{MicroUsd, Purchase};
use crate::domain::mission::{Mission, Notified, Tally};
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::render::mission_json;
use local_cloud::LocalCloud;

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
    let mut review = None;
    let backend = if let Some(dir) = &args.local {
        local_dir::note_ignored();
        let cloud = LocalCloud::attach(dir)?;
        let backend = local_dir::backend(&cloud, None);
        review = Some(Review::new(cloud, REVIEW_BYTES_MAX));
        backend
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
        if args.json {
            let all: Vec<_> = missions.iter().map(|mission| mission_json(mission, mission.rolled)).collect();
            screen::json_to_stdout(&json!({ "missions": all }));
        } else {
            screen::to_stdout(&format!("{}\n", list(&missions).trim_end()));
        }
        return Ok(ExitCode::Ok);
    }
    let mission = missions.remove(0);
    let total = mission.total(ledger.tally(&mission).await?);
    let mut tasks = Vec::new();
    ledger.each_task(Some(&mission.id), |task| tasks.push(task)).await?;
    tasks.sort_by(|a, b| a.src.cmp(&b.src));
    if args.json {
        screen::json_to_stdout(&detail_json(&mission, total, &tasks));
    } else {
        screen::to_stdout(&format!("{}\n", detail(&mission, total, &tasks).trim_end()));
    }
    if let Some(review) = &mut review {
        for task in &tasks {
            review.look(task, false);
        }
        if review.sum_up() > 0 {
            return Ok(ExitCode::ResultChanged);
        }
    }
    Ok(ExitCode::Ok)
}

/// The maximum number of bytes that `status` reads to compare results whose files were replaced. It covers a copied
/// folder of ordinary size, and keeps a large one below minutes.
const REVIEW_BYTES_MAX: u64 = 256 * 1024 * 1024;

async fn named(backend: &Backend, id: &str) -> Result<Mission, Failure> {
    let id = MissionId::new(id).map_err(|error| Failure::usage(error, "give the id of the mission"))?;
    let mission = backend.ledger.mission(&id).await?;
    mission.ok_or_else(|| {
        let table = &backend.ledger.tables().missions;
        Failure {
            exit: ExitCode::NoTask,
            error: anyhow::anyhow!("table {table} has no mission {id}"),
            hint: Some("list the missions with `lighthpc status`".to_owned()),
        }
    })
}

fn list(missions: &[Mission]) -> String {
    if missions.is_empty() {
        return "no missions".to_owned();
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
    screen::table(&rows)
}

fn detail(mission: &Mission, total: Tally, tasks: &[Task]) -> String {
    let of = |state| tasks.iter().filter(|task| task.state == state).count();
    let mut text = format!(
        "mission {}: {}, {} done, {} failed, {} running, {} pending; workloads {}; notification: {}\n\n",
        screen::plain(mission.id.as_str()),
        mission.trans_number.map_or_else(|| "? tasks".to_owned(), |number| screen::count(number, "task")),
        total.ok,
        total.failed,
        of(State::Running),
        of(State::Pending),
        // Rows may have been edited: the sum saturates instead of wrapping to a small number.
        screen::duration(Duration::from_millis(tasks.iter().map(|task| task.time_cost_ms).fold(0, u64::saturating_add))),
        notification(mission),
    );
    let head = ["TASK", "STATE", "PROGRESS", "SECONDS", "ATTEMPT", "INSTANCE", "VERDICT"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(tasks.iter().map(|task| {
        [
            task.src.to_string(),
            task.state.as_str().to_owned(),
            task.progress.clone(),
            task.time_cost_s().to_string(),
            task.attempt.to_string(),
            instance(task).unwrap_or_default(),
            why(task),
        ]
    }));
    text.push_str(&screen::table(&rows));
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

fn task_json(task: &Task) -> Value {
    json!({
        "srcFilename": task.src.as_str(),
        "state": task.state.as_str(),
        "strIndiProgress": task.progress,
        "timeCost": task.time_cost_s(),
        "timeCostMs": task.time_cost_ms,
        "attempt": task.attempt.0,
        "execInstanceID": task.instance.as_ref().map(ToString::to_string),
        "verdict": verdict(task),
        "exitCode": task.exit_code,
        "signal": task.signal,
        "error": task.error,
        "rsltFilename": task.result,
        "resultETag": task.result_etag,
        "resultBytes": task.result_bytes,
        "inputETag": task.input_etag,
        "appFailures": task.app_failures,
        "interruptions": task.interruptions,
        "crashes": task.crashes,
        "suspect": task.is_suspect,
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
        "type": past.machine.instance_type,
        "zone": past.machine.zone,
        "purchase": past.machine.purchase.map(Purchase::as_str),
        "usdPerHour": past.machine.usd_per_hour.map(MicroUsd::usd),
        "verdict": past.end.verdict.as_str(),
        "exitCode": past.end.exit_code,
        "signal": past.end.signal,
        "peakMemory": past.end.peak_memory,
        "error": past.end.error,
        "log": past.log,
    })
}

/// Returns the instance that holds, or last held, the task. For a pending task, returns the instance that was launched
/// for it.
fn instance(task: &Task) -> Option<String> {
    let launched = task.launch.instance.as_ref().filter(|_| task.state == State::Pending);
    launched.cloned().or_else(|| task.instance.as_ref().map(ToString::to_string))
}

/// Returns why the last attempt failed; for a pending task, why it has no node.
fn why(task: &Task) -> String {
    const LEN_MAX: usize = 60;
    match &task.launch.error {
        Some(error) if task.state == State::Pending => {
            let short: String = error.chars().take(LEN_MAX).collect();
            format!("no node: {short}{}", if short.len() < error.len() { "…" } else { "" })
        }
        _ => verdict(task).unwrap_or_default().to_owned(),
    }
}

fn verdict(task: &Task) -> Option<&'static str> {
    task.verdict.map(Verdict::as_str)
}

/// Returns the state of the notification. Without a topic, the mission is marked but nothing is sent.
fn notification(mission: &Mission) -> &'static str {
    match (&mission.notified, mission.notified_to.as_deref()) {
        (Notified::Yes, Some("none")) => "none (no topic)",
        (notified, _) => notified.as_str(),
    }
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{AttemptNumber, InstanceId, SrcId};

    fn odd() -> (Mission, Vec<Task>) {
        let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\n";
        let mut mission = Mission::unknown(MissionId::new(format!("M{evil}")).unwrap());
        mission.trans_number = Some(u64::MAX);
        mission.tally_base = u64::MAX;
        mission.name = Some(evil.to_owned());
        let mut task = Task::new(SrcId::new(format!("文件{evil}")).unwrap(), None);
        task.time_cost_ms = u64::MAX;
        task.attempt = AttemptNumber(u64::MAX);
        task.progress = evil.to_owned();
        task.instance = Some(InstanceId::new(format!("i{evil}")).unwrap());
        task.launch.error = Some(evil.repeat(30));
        (mission, vec![task.clone(), task])
    }

    #[test]
    fn odd_rows_are_shown_and_do_nothing_to_a_terminal() {
        let (mission, tasks) = odd();
        let total = Tally { ok: 1, failed: u64::MAX, time_cost_ms: u64::MAX, seq: u64::MAX };
        for text in [detail(&mission, total, &tasks), list(std::slice::from_ref(&mission))] {
            assert!(!text.contains(|c: char| c != '\n' && crate::domain::printable::is_unsafe(c)), "{text:?}");
        }
        // A head, an empty line, and a row for each task: no name makes a row of its own.
        assert_eq!(detail(&mission, total, &tasks).trim_end().lines().count(), 2 + 1 + tasks.len());
        assert!(detail_json(&mission, total, &tasks)["tasks"][0]["srcFilename"].as_str().unwrap().contains('\u{1b}'));
    }

    #[test]
    fn an_end_without_a_topic_is_not_called_a_notification() {
        let mut mission = Mission::unknown(MissionId::new("M").unwrap());
        mission.notified = Notified::Yes;
        assert_eq!(notification(&mission), "Yes");
        mission.notified_to = Some("none".to_owned());
        assert_eq!(notification(&mission), "none (no topic)");
        assert_eq!(mission_json(&mission, mission.rolled)["notifyEmail"], "Yes");
        mission.notified = Notified::No;
        assert_eq!(notification(&mission), "No");
    }
}
