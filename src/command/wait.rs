//! `lighthpc wait`: waits until a mission is complete.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::process::Command;
use tokio::time::Instant;

use super::failure::Failure;
use super::flags::seconds;
use super::place::{MissionPlace, PlaceArgs};
use super::{screen, signals};
use crate::command::exit::ExitCode;
use crate::domain::mission::{Mission, Tally};
use crate::render::{SCHEMA, mission_json};

/// The arguments of `wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Stop waiting after this time; the mission goes on (default: no limit)
    #[arg(long, value_parser = seconds, value_name = "TIME")]
    pub(super) timeout: Option<Duration>,
    /// Shell command to run when the mission is complete; it gets LIGHTHPC_MISSION, LIGHTHPC_DONE and LIGHTHPC_FAILED
    #[arg(long, value_name = "COMMAND")]
    pub(super) on_end: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
}

/// The pauses between two reads of the row and the tally: the first reads are close, for short missions; then four a
/// minute, 5 to 9 kB each (a mission of 100,000 tasks has 64 tally items).
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How long a service may be unavailable before the wait gives up: longer than most incidents.
const OUTAGE_MAX: Duration = Duration::from_mins(30);

pub(super) async fn run(args: WaitArgs) -> Result<ExitCode, Failure> {
    let place = args.place.open().await?;
    let until = Until { limit: args.timeout, on_end: args.on_end.as_deref(), is_json: args.json };
    until_ended(place, &args.mission, until).await
}

/// How to wait, and what to do at the end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Until<'a> {
    /// When to stop waiting.
    pub(super) limit: Option<Duration>,
    /// The user's command.
    pub(super) on_end: Option<&'a str>,
    /// Whether to print the mission as JSON at the end.
    pub(super) is_json: bool,
}

/// Waits until a mission is complete, runs the user's command, and returns the exit code.
pub(super) async fn until_ended(place: MissionPlace, id: &str, until: Until<'_>) -> Result<ExitCode, Failure> {
    let Waited { mission, total, end } = until_complete(place, id, until.limit).await?;
    if until.is_json {
        let mut line = mission_json(&mission, total);
        line["schema"] = json!(SCHEMA);
        line["isComplete"] = json!(mission.is_complete(total));
        screen::json_to_stdout(&line);
    }
    if end != ExitCode::Ok {
        return Ok(end);
    }
    let ended = if total.failed > 0 { ExitCode::WorkloadFailed } else { ExitCode::Ok };
    let Some(command) = until.on_end else { return Ok(ended) };
    match run_at_end(command, &mission, total).await {
        // The failure of the mission is what a script must learn.
        Err(failure) if ended != ExitCode::Ok => {
            screen::to_stderr(&format!("error: {}\n", failure.error));
            Ok(ended)
        }
        other => other.map(|()| ended),
    }
}

/// A mission after the wait for it.
struct Waited {
    mission: Mission,
    total: Tally,
    /// [`ExitCode::Ok`] if the mission is complete, else why the wait has ended.
    end: ExitCode,
}

/// Waits until every task of a mission has ended, or until the time is over, or a signal comes.
async fn until_complete(mut place: MissionPlace, id: &str, limit: Option<Duration>) -> Result<Waited, Failure> {
    let (started, mut pause, mut shown) = (Instant::now(), PAUSE_MIN, None);
    let mut answered = Instant::now();
    let mut mission = place.mission(id).await?;
    let mut total = mission.rolled;
    if let Some(command) = place.to_continue() {
        screen::to_stderr(&format!("note: no run is active; to go on with the mission: {command}\n"));
    }
    if mission.trans_number.is_none() {
        return Err(Failure::usage(
            format!("the row of mission {} does not say how many tasks it has", mission.id),
            "set transNumber in the missions table",
        ));
    }
    loop {
        let read = async {
            let mission = place.mission(id).await?;
            let total = mission.total(place.backend.ledger.tally(&mission).await?);
            Ok::<_, Failure>((mission, total))
        };
        let Some(read) = signals::unless_interrupted(read).await? else {
            return Ok(interrupted(mission, total));
        };
        match read {
            Ok((now, sum)) => {
                answered = Instant::now();
                (mission, total) = (now, sum);
                if mission.is_complete(total) {
                    report(&mission, total);
                    return Ok(Waited { mission, total, end: ExitCode::Ok });
                }
                if shown != Some(total.ended()) {
                    shown = Some(total.ended());
                    report(&mission, total);
                }
            }
            Err(failure) if failure.exit == ExitCode::Unavailable && answered.elapsed() < OUTAGE_MAX => {
                screen::to_stderr(&format!("no answer, trying again: {}\n", failure.error));
            }
            Err(failure) => return Err(failure),
        }
        let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            screen::to_stderr("the time of --timeout is over; the mission goes on\n");
            return Ok(Waited { mission, total, end: ExitCode::WaitTimeout });
        }
        let pausing = tokio::time::sleep(left.map_or(pause, |left| left.min(pause)));
        if signals::unless_interrupted(pausing).await?.is_none() {
            return Ok(interrupted(mission, total));
        }
        pause = (pause * 2).min(PAUSE_MAX);
        place = place.reopened()?;
    }
}

fn interrupted(mission: Mission, total: Tally) -> Waited {
    screen::to_stderr("interrupted; the mission goes on\n");
    Waited { mission, total, end: ExitCode::Interrupted }
}

/// Prints one line with the counts.
fn report(mission: &Mission, total: Tally) {
    screen::to_stderr(&format!(
        "mission {}: {} of {} ended, {} failed\n",
        screen::plain(mission.id.as_str()),
        screen::grouped(total.ended()),
        screen::counted(mission.trans_number.unwrap_or(0), "task", screen::grouped),
        screen::grouped(total.failed),
    ));
}

/// Runs the user's command, with the counts in its environment.
async fn run_at_end(command: &str, mission: &Mission, total: Tally) -> Result<(), Failure> {
    let mut child = Command::new("/bin/sh");
    child.arg("-c").arg(command).kill_on_drop(true);
    child.env("LIGHTHPC_MISSION", mission.id.as_str());
    child.env("LIGHTHPC_DONE", total.ok.to_string()).env("LIGHTHPC_FAILED", total.failed.to_string());
    match child.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::usage(format!("the command of --on-end failed: {status}"), "check the command")),
        Err(error) => Err(Failure::usage(format!("the command of --on-end did not start: {error}"), "check /bin/sh")),
    }
}
