//! `lighthpc logs`: prints what workloads printed, also of tasks that run.

use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use super::place::{MissionPlace, PlaceArgs};
use super::{screen, signals};
use crate::backend::Kind;
use crate::command::exit::ExitCode;
use crate::domain::ids::AttemptNumber;
use crate::domain::keys::log_key;
use crate::domain::mission::Mission;
use crate::domain::task::{State, Task};
use crate::summary::Selection;

/// The arguments of `logs`.
#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Task: its name, with or without the mission's prefix
    #[arg(value_name = "TASK", required_unless_present = "failed", conflicts_with = "failed")]
    pub(super) task: Option<String>,
    /// Print the logs of all failed tasks, at most 100
    #[arg(long)]
    pub(super) failed: bool,
    /// Attempt whose log to print (default: the newest that has one)
    #[arg(long, value_name = "N")]
    pub(super) attempt: Option<u64>,
    /// Print only the last N lines
    #[arg(long, value_name = "N")]
    pub(super) tail: Option<usize>,
    /// Print what is added, until the task has ended
    #[arg(long, conflicts_with = "failed")]
    pub(super) follow: bool,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
}

/// The pause between two reads of a log that is followed. A node saves it every minute.
const FOLLOW_PAUSE: Duration = Duration::from_secs(10);
/// In a local mission, every five seconds.
const FOLLOW_PAUSE_LOCAL: Duration = Duration::from_secs(2);
/// The most tasks whose logs `--failed` prints.
const TASKS_MAX: usize = 100;

/// Where an attempt's log is.
pub(super) struct Log {
    pub(super) attempt: AttemptNumber,
    pub(super) uri: String,
}

pub(super) async fn run(args: LogsArgs) -> Result<ExitCode, Failure> {
    let place = args.place.open().await?;
    let mission = place.mission(&args.mission).await?;
    let attempt = args.attempt.map(AttemptNumber);
    let Some(name) = &args.task else {
        let selection = Selection { states: vec![State::Failed], limit: Some(TASKS_MAX), ..Selection::default() };
        let selected = selection.read(&place.backend, &mission).await?;
        for task in &selected.tasks {
            screen::to_stdout(&format!("==> {} <==\n", screen::plain(task.src.as_str())));
            match find(&place, task, attempt).await? {
                Some(log) => match read(&place, &log).await? {
                    Some(bytes) => print(&bytes, args.tail, 0),
                    None => screen::to_stdout("(the log is not kept any more)\n"),
                },
                None => screen::to_stdout("(nothing was kept)\n"),
            }
        }
        if selected.is_cut {
            screen::to_stderr(&format!("note: only the logs of the first {TASKS_MAX} failed tasks are shown\n"));
        }
        return Ok(ExitCode::Ok);
    };
    let task = place.task(&mission, name).await?;
    let log = find(&place, &task, attempt).await?;
    let mut shown = Vec::new();
    let bytes = match &log {
        Some(log) => read(&place, log).await?,
        None => None,
    };
    match bytes {
        Some(bytes) => {
            print(&bytes, args.tail, 0);
            shown = bytes;
        }
        None if args.follow => screen::to_stderr("nothing is printed yet; a node saves the log every minute\n"),
        None => return Err(nothing(&task, attempt)),
    }
    if !args.follow {
        return Ok(ExitCode::Ok);
    }
    let attempt = log.map_or(task.attempt, |log| log.attempt);
    let followed = signals::unless_interrupted(follow(place, &mission, name, attempt, shown)).await?;
    followed.unwrap_or(Ok(ExitCode::Interrupted))
}

/// Prints what is added to a task's log until the task has ended. `shown` is what was printed of the attempt's log.
async fn follow(
    mut place: MissionPlace,
    mission: &Mission,
    name: &str,
    mut attempt: AttemptNumber,
    mut shown: Vec<u8>,
) -> Result<ExitCode, Failure> {
    loop {
        place = place.reopened()?;
        let task = place.task(mission, name).await?;
        // The end of an attempt says why it ended: it is printed before the next one.
        for number in [attempt, task.attempt] {
            if number > attempt {
                (attempt, shown) = (number, Vec::new());
                screen::to_stdout(&format!("==> attempt {attempt} <==\n"));
            }
            let Some(log) = find(&place, &task, Some(attempt)).await? else { continue };
            let Some(bytes) = read(&place, &log).await? else { continue };
            // A long log loses its middle, and notes are added at its end: then the whole log is printed again.
            let from = if bytes.starts_with(&shown) { shown.len() } else { 0 };
            if bytes.len() > from {
                print(&bytes, None, from);
            }
            shown = bytes;
        }
        if task.state.is_final() {
            return Ok(ExitCode::Ok);
        }
        tokio::time::sleep(if place.dir.is_some() { FOLLOW_PAUSE_LOCAL } else { FOLLOW_PAUSE }).await;
    }
}

fn nothing(task: &Task, attempt: Option<AttemptNumber>) -> Failure {
    let is_none = attempt.is_some_and(|attempt| attempt.0 == 0 || attempt > task.attempt);
    let attempts = screen::count(task.attempt.0, "attempt");
    let hint = match task.state {
        _ if is_none => &format!("the task has {attempts} so far"),
        _ if task.attempt.0 == 0 => "the task has not started",
        State::Running => "a node saves the log every minute; use --follow to wait for it",
        _ => "the workload printed nothing, or its node was gone before it could save the log",
    };
    Failure {
        exit: ExitCode::NoTask,
        error: anyhow::anyhow!("there is no log of task {}", task.src),
        hint: Some(hint.to_owned()),
    }
}

/// Returns where the log of an attempt is: of the given one, else of the newest that has one.
pub(super) async fn find(
    place: &MissionPlace,
    task: &Task,
    attempt: Option<AttemptNumber>,
) -> Result<Option<Log>, Failure> {
    let is_wanted = |number: AttemptNumber| attempt.is_none_or(|wanted| wanted == number);
    let mut history = task.history.iter().rev().filter(|past| is_wanted(past.attempt));
    let kept = history.find_map(|past| Some(Log { attempt: past.attempt, uri: past.log.clone()? }));
    // A running attempt saves its log every minute, and the row does not name it.
    let newest = attempt.unwrap_or(task.attempt);
    let is_newer = kept.as_ref().is_none_or(|kept| kept.attempt < newest);
    if is_newer && newest.0 > 0 {
        let Some(bucket) = &place.result_bucket else {
            let hint = "set --result-bucket or LIGHTHPC_RESULT_BUCKET";
            return kept.map(Some).ok_or_else(|| Failure::usage("the result bucket is not set", hint));
        };
        let key = log_key(&task.src, newest);
        if place.backend.store.head(bucket, &key).await?.is_some() {
            return Ok(Some(Log { attempt: newest, uri: crate::backend::store::uri(bucket, &key) }));
        }
    }
    Ok(kept)
}

/// Reads a log; `None` if it is gone: a lifecycle rule may have removed it.
pub(super) async fn read(place: &MissionPlace, log: &Log) -> Result<Option<Vec<u8>>, Failure> {
    let (bucket, key) = log.uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).unwrap_or_default();
    match place.backend.store.read(bucket, key).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind == Kind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Prints a log from a byte on, or its last lines.
fn print(bytes: &[u8], lines: Option<usize>, from: usize) {
    if let Some(lines) = lines {
        return screen::to_stdout(&tail(bytes, lines));
    }
    let mut text = String::from_utf8_lossy(&bytes[from.min(bytes.len())..]).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    screen::to_stdout(&text);
}

/// Returns the last lines of a log, with a line break at the end of each.
pub(super) fn tail(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_lines() {
        assert_eq!(tail(b"a\nb\nc", 2), "b\nc\n");
        assert_eq!(tail(b"a\nb\n", 10), "a\nb\n");
        assert_eq!(tail(b"", 10), "");
        assert_eq!(tail(b"\xff\n", 1), "\u{fffd}\n");
    }
}
