//! `lighthpc explain`: one page about one task.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::logs::{self, Log};
use super::place::{MissionPlace, PlaceArgs};
use super::{listing, screen};
use crate::clock;
use crate::command::exit::ExitCode;
use crate::domain::keys::INDEX_NAME;
use crate::domain::mission::Mission;
use crate::domain::printable;
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::domain::work::{Inputs, ObjectName};
use crate::render::{SCHEMA, task_json};
use crate::summary::purchase_word;

/// The arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Task: its name, with or without the mission's prefix
    #[arg(value_name = "TASK")]
    pub(super) task: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
}

/// The last lines of the log that are shown.
const LOG_LINES: usize = 10;

pub(super) async fn run(args: ExplainArgs) -> Result<ExitCode, Failure> {
    let place = args.place.open().await?;
    let mission = place.mission(&args.mission).await?;
    let task = place.task(&mission, &args.task).await?;
    if args.json {
        let mut value = task_json(&task);
        value["schema"] = json!(SCHEMA);
        value["mission"] = json!(mission.id.as_str());
        value["why"] = json!(why(&task, &mission));
        screen::json_to_stdout(&value);
        return Ok(ExitCode::Ok);
    }
    screen::to_stdout(&page_of(&place, &mission, &task).await);
    Ok(ExitCode::Ok)
}

/// Returns the page about a task, with the end of its log.
pub(super) async fn page_of(place: &MissionPlace, mission: &Mission, task: &Task) -> String {
    let log = match logs::find(place, task, None).await {
        Ok(Some(log)) => logs::read(place, &log).await.map(|text| Some((log, text?))).transpose(),
        Ok(None) => None,
        Err(failure) => Some(Err(failure)),
    };
    page(task, mission, place, log)
}

fn page(task: &Task, mission: &Mission, place: &MissionPlace, log: Option<Result<(Log, Vec<u8>), Failure>>) -> String {
    let line = |name: &str, value: &str| format!("  {name:<11} {}\n", screen::plain(value));
    let mut text = format!("task {}\n", screen::plain(task.src.as_str()));
    text.push_str(&line("mission", mission.id.as_str()));
    text.push_str(&line("state", &state(task)));
    text.push_str(&line("why", &why(task, mission)));
    if let Some(fix) = what_to_do(task, mission, &place.flag()) {
        text.push_str(&line("what to do", &fix));
    }
    for (name, value) in worked_on(task) {
        text.push_str(&line(name, &value));
    }
    text.push_str(&line("workload", &screen::duration(Duration::from_millis(task.time_cost_ms))));
    if let Some(result) = &task.result {
        let bytes = task.result_bytes.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
        text.push_str(&line("result", &format!("{}{bytes}", shown(result, place))));
    }
    if let Some(checkpoint) = &task.checkpoint {
        text.push_str(&line("checkpoint", &shown(checkpoint, place)));
    }
    text.push_str(&line(
        "budgets",
        &format!(
            "{}, {}, {}",
            screen::count(task.app_failures, "failure"),
            screen::count(task.interruptions, "interruption"),
            screen::count(task.crashes, "crash")
        ),
    ));
    if task.history.is_empty() {
        text.push_str("\nno attempt has ended\n");
    } else {
        let first = task.history.first().map_or(1, |past| past.attempt.0);
        text.push_str(if first > 1 { "\nthe last attempts\n" } else { "\nattempts\n" });
        for past in &task.history {
            text.push_str(&attempt(past));
        }
    }
    text.push_str(&match log {
        None => "\nthe workload has printed nothing that was kept\n".to_owned(),
        Some(Err(failure)) => format!("\nthe log cannot be read: {}\n", screen::plain(&failure.error.to_string())),
        Some(Ok((log, bytes))) => {
            let tail = logs::tail(&bytes, LOG_LINES);
            format!(
                "\nlog of attempt {}, its last lines ({})\n{tail}",
                log.attempt,
                screen::plain(&shown(&log.uri, place))
            )
        }
    });
    let (id, name) = (printable::shell(mission.id.as_str()), printable::shell(task.src.as_str()));
    let flag = place.flag();
    text.push_str(&match task.state {
        State::Failed => format!("\nnext: lighthpc redrive{flag} {id} {name}\n"),
        State::Done => format!("\nnext: lighthpc fetch{flag} {id} --name={name} --to DIR\n"),
        State::Pending if place.to_continue().is_some() => {
            format!("\nno run is active\nnext: {}\n", place.to_continue().unwrap_or_default())
        }
        _ => format!("\nnext: lighthpc logs{flag} {id} {name}\n"),
    });
    text
}

/// Returns what the task works on, if that is not the object of its name.
fn worked_on(task: &Task) -> Vec<(&'static str, String)> {
    let work = match &task.work {
        Ok(work) => work,
        Err(what) => return vec![("input", format!("cannot be understood: {what}"))],
    };
    let inputs = match &work.inputs {
        Inputs::Named | Inputs::None => None,
        Inputs::Key(key) => Some(("input", key.clone())),
        Inputs::Several(objects) => {
            Some(("inputs", objects.iter().map(ObjectName::uri).collect::<Vec<_>>().join("  ")))
        }
    };
    let index = work.index.map(|index| ("index", index.to_string()));
    let params: Vec<String> = work.params.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let params = (!params.is_empty()).then(|| ("parameters", params.join("  ")));
    inputs.into_iter().chain(index).chain(params).collect()
}

fn shown(uri: &str, place: &MissionPlace) -> String {
    let key = uri.strip_prefix(&format!("s3://{}/", local_cloud::RESULT_BUCKET));
    match place.cloud.as_ref().zip(key) {
        // The name of a file differs from its key where a file system cannot hold it.
        Some((cloud, key)) if !key.ends_with('/') => {
            cloud.object_path(local_cloud::RESULT_BUCKET, key).display().to_string()
        }
        Some((cloud, key)) => {
            let index = cloud.object_path(local_cloud::RESULT_BUCKET, &format!("{key}{INDEX_NAME}"));
            index.parent().unwrap_or(&index).display().to_string()
        }
        None => uri.to_owned(),
    }
}

fn state(task: &Task) -> String {
    let since = task.open_since.as_ref().map(|since| {
        let ago = clock::since(since).map(|ago| format!(", {} ago", screen::duration(ago))).unwrap_or_default();
        format!(" since {since}{ago}")
    });
    let since = since.unwrap_or_default();
    match task.state {
        State::Running => {
            let holder = task.instance.as_ref().map(|id| format!(", held by {id}")).unwrap_or_default();
            let beats =
                if task.beat > 0 { format!(", {}", screen::count(task.beat, "heartbeat")) } else { String::new() };
            let progress =
                if task.progress.is_empty() { String::new() } else { format!(", progress {}", task.progress) };
            format!("running{since}{holder} (attempt {}{beats}{progress})", task.attempt.0)
        }
        state => format!("{}{since}", state.as_str()),
    }
}

/// Returns why the task is in its state.
fn why(task: &Task, mission: &Mission) -> String {
    if let Some(oddity) = task.oddity() {
        return format!("nobody can claim the row: {oddity}");
    }
    match task.state {
        State::Done => "its result is committed".to_owned(),
        State::Failed => listing::why(task),
        State::Running if task.cancelled => "its mission is cancelled: the node stops it".to_owned(),
        State::Running => format!("attempt {} runs", task.attempt.0),
        State::Unknown => "its state is unknown".to_owned(),
        State::Pending if mission.cancelled_at.is_some() => "its mission is cancelled: a sweep fails it".to_owned(),
        State::Pending => {
            let last = task.error.as_ref().map(|_| format!("; the last attempt: {}", listing::why_ended(task)));
            let wait = match (&task.launch.error, &task.launch.instance) {
                (Some(error), _) => format!("no node: {error}"),
                (None, Some(instance)) if task.launch.is_for(task.attempt) => {
                    format!("instance {instance} was launched for it and has not claimed it yet")
                }
                _ if task.is_suspect => "its node crashed: it waits until a node can run it alone".to_owned(),
                _ if mission.nodes.is_some() => "it waits for a slot of the mission's nodes".to_owned(),
                _ => "it waits for a node".to_owned(),
            };
            format!("{wait}{}", last.unwrap_or_default())
        }
    }
}

/// Returns what a person can do about it; `None` if there is nothing to do.
fn what_to_do(task: &Task, mission: &Mission, flag: &str) -> Option<String> {
    let id = printable::shell(mission.id.as_str());
    match task.state {
        State::Pending if task.launch.error.is_some() => {
            Some("a sweep tries again; see docs/troubleshooting.md for limits and capacity of EC2".to_owned())
        }
        State::Pending | State::Done | State::Running => None,
        State::Unknown => Some("correct the row in the tasks table (docs/TABLES.md)".to_owned()),
        State::Failed => Some(match task.verdict {
            Some(Verdict::Oom) => "use an instance type with more memory, or fewer slots; then redrive it".to_owned(),
            Some(Verdict::Timeout) => "raise --time-limit, or make the task smaller; then redrive it".to_owned(),
            Some(Verdict::DiskFull) => "use a larger disk, or write less; then redrive it".to_owned(),
            Some(Verdict::NoResult) => "write the result to $LIGHTHPC_OUTPUT; then redrive it".to_owned(),
            Some(Verdict::Cancelled) => format!("redrive it to go on with the mission: lighthpc redrive{flag} {id}"),
            Some(Verdict::Infra) => "correct what the reason names; then redrive it".to_owned(),
            _ => "read the log below, correct the program or the input, then redrive it".to_owned(),
        }),
    }
}

/// Returns one attempt, in two lines.
fn attempt(past: &PastAttempt) -> String {
    let took = clock::between(&past.started, &past.ended);
    let mut facts = vec![past.instance.clone()];
    facts.extend(past.machine.instance_type.clone());
    facts.extend(past.machine.zone.clone());
    facts.extend(past.machine.purchase.map(|purchase| purchase_word(purchase).to_owned()));
    if let (Some(price), Some(took)) = (past.machine.usd_per_hour, took) {
        facts.push(format!("{} USD", price.for_time(took)));
    }
    facts.extend(past.end.peak_memory.map(|bytes| format!("peak memory {}", bytes_text(bytes))));
    // The history has whole seconds.
    let took = took.filter(|took| took.as_secs() > 0);
    let took = took.map(|took| format!(" after {}", screen::duration(took))).unwrap_or_default();
    let error = past.end.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!(
        "  {:>3}  {}{took}{}\n       {}\n",
        past.attempt.0,
        past.end.verdict.as_str(),
        screen::plain(&error),
        screen::plain(&facts.join(", ")),
    )
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn bytes_text(bytes: u64) -> String {
    let mib = bytes as f64 / 1_048_576.0;
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}
