//! `lighthpc wait`: waits until a mission is complete.

use std::time::Duration;

use clap::Args;
use tokio::process::Command;
use tokio::time::Instant;

use super::failure::Failure;
use super::flags::seconds;
use super::place::{MissionPlace, PlaceArgs};
use super::{screen, signals};
use crate::command::exit::ExitCode;
use crate::domain::mission::{Mission, Tally};
use crate::worker::Stopping;

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
    until_ended(place, &args.mission, args.timeout, args.on_end.as_deref()).await
}

/// Waits until a mission is complete, runs the user's command, and returns the exit code.
pub(super) async fn until_ended(
    place: MissionPlace,
    id: &str,
    limit: Option<Duration>,
    on_end: Option<&str>,
) -> Result<ExitCode, Failure> {
    let Some((mission, total)) = until_complete(place, id, limit).await? else { return Ok(ExitCode::WaitTimeout) };
    let Some(total) = total else { return Ok(ExitCode::Interrupted) };
    if let Some(command) = on_end {
        run_at_end(command, &mission, total).await?;
    }
    Ok(if total.failed > 0 { ExitCode::WorkloadFailed } else { ExitCode::Ok })
}

/// Waits until every task of a mission has ended. Returns the mission and its tally; no tally if a signal came first,
/// and `None` if the time is over.
async fn until_complete(
    mut place: MissionPlace,
    id: &str,
    limit: Option<Duration>,
) -> Result<Option<(Mission, Option<Tally>)>, Failure> {
    let stopping = Stopping::default();
    let _listener = signals::listen(stopping.clone()).map_err(|error| Failure {
        exit: ExitCode::Internal,
        error: error.into(),
        hint: None,
    })?;
    let (started, mut pause, mut shown) = (Instant::now(), PAUSE_MIN, None);
    let mut answered = Instant::now();
    let mut mission = place.mission(id).await?;
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
        match read.await {
            Ok((now, total)) => {
                answered = Instant::now();
                if now.is_complete(total) {
                    report(&now, total);
                    return Ok(Some((now, Some(total))));
                }
                if shown != Some(total.ended()) {
                    shown = Some(total.ended());
                    report(&now, total);
                }
                mission = now;
            }
            Err(failure) if failure.exit == ExitCode::Unavailable && answered.elapsed() < OUTAGE_MAX => {
                screen::to_stderr(&format!("no answer, trying again: {}\n", failure.error));
            }
            Err(failure) => return Err(failure),
        }
        let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            screen::to_stderr("the time of --timeout is over; the mission goes on\n");
            return Ok(None);
        }
        // Both arms may be dropped: neither holds anything.
        tokio::select! {
            () = tokio::time::sleep(left.map_or(pause, |left| left.min(pause))) => {}
            () = stopping.drain.cancelled() => {
                screen::to_stderr("interrupted; the mission goes on\n");
                return Ok(Some((mission, None)));
            }
        }
        pause = (pause * 2).min(PAUSE_MAX);
        place = place.reopened()?;
    }
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
