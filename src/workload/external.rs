//! A workload that is a program: its process group, its output, its progress file.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::contract::{Contract, is_withheld};
use super::memory::Kills;
use super::progress_file::ProgressFile;
use super::{Bounds, Ended, Stops, leftovers, log};
use crate::domain::progress::Progress;

/// How often the progress file is looked at: a `stat`, twice a second.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// What ends the wait for a program.
enum Event {
    Exit(io::Result<ExitStatus>),
    TimeLimit,
    Stop,
}

pub(super) async fn run(
    argv: &[String],
    contract: &Contract,
    bounds: Bounds,
    progress: &watch::Sender<Progress>,
    stops: &Stops,
) -> io::Result<Ended> {
    let before = Kills::read();
    let (reader, writer) = io::pipe()?;
    let mut child = match command(argv, contract, writer)?.spawn() {
        Ok(child) => child,
        Err(source) => return Ok(Ended::NotStarted { program: argv.first().cloned().unwrap_or_default(), source }),
    };
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));

    let mut side = JoinSet::new();
    let (over, ended) = oneshot::channel::<()>();
    let (reader, folder, echo) =
        (pipe::Receiver::from_owned_fd(reader.into())?, contract.folder().to_owned(), bounds.echo);
    side.spawn(async move { log::drain(reader, &folder, echo, async { ended.await.unwrap_or(()) }).await });
    let looking = CancellationToken::new();
    side.spawn(look(ProgressFile::new(contract.progress()), progress.clone(), looking.clone()));

    // Waiting for a child is cancel-safe, and the other arms only set the reason; the match below acts on it.
    let event = tokio::select! {
        status = child.wait() => Event::Exit(status),
        () = time_limit(bounds.time_limit) => Event::TimeLimit,
        () = stops.stop.cancelled() => Event::Stop,
    };
    let ended = match event {
        Event::Exit(status) => exited(status?, before),
        Event::TimeLimit => {
            end(&mut child, group, grace(stops, bounds), &stops.hurry).await.map(|()| Ended::TimedOut)?
        }
        Event::Stop => end(&mut child, group, grace(stops, bounds), &stops.hurry).await.map(|()| Ended::Stopped)?,
    };
    // Whatever is left of the group is ended with it: nothing of the workload outlives the attempt.
    signal(group, Signal::KILL);
    end_escaped(contract.folder().to_owned(), group).await;
    looking.cancel();
    drop(over);
    side.join_all().await;
    Ok(ended)
}

fn command(argv: &[String], contract: &Contract, output: io::PipeWriter) -> io::Result<Command> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if is_withheld(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
        .envs(contract.variables())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

async fn look(mut file: ProgressFile, progress: watch::Sender<Progress>, over: CancellationToken) {
    loop {
        // Both arms may be dropped: neither holds anything.
        let last = tokio::select! {
            () = tokio::time::sleep(LOOK_PERIOD) => false,
            () = over.cancelled() => true,
        };
        if let Some(newest) = file.look(last) {
            progress.send_replace(newest);
        }
        if last {
            break;
        }
    }
    if file.malformed() > 1 {
        tracing::info!(lines = file.malformed(), "lines in the progress file that are not a percentage were ignored");
    }
}

fn grace(stops: &Stops, bounds: Bounds) -> Duration {
    stops.grace.borrow().unwrap_or(bounds.grace)
}

async fn time_limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn exited(status: ExitStatus, before: Kills) -> Ended {
    let (code, signal) = (status.code(), status.signal());
    Ended::Exited { code, signal, out_of_memory: before.explain(code, signal) }
}

/// Asks the process group to end, gives it its grace, and ends it.
async fn end(child: &mut Child, group: Option<Pid>, grace: Duration, hurry: &CancellationToken) -> io::Result<()> {
    signal(group, Signal::TERM);
    // Waiting for a child is cancel-safe; the other two arms hold nothing.
    let has_ended = tokio::select! {
        status = child.wait() => status.map(|_| true)?,
        () = tokio::time::sleep(grace) => false,
        () = hurry.cancelled() => false,
    };
    if !has_ended {
        signal(group, Signal::KILL);
        child.wait().await?;
    }
    Ok(())
}

/// Ends descendants that left the group.
async fn end_escaped(folder: PathBuf, group: Option<Pid>) {
    match tokio::task::spawn_blocking(move || leftovers::end_below(&folder, group)).await {
        Ok(0) | Err(_) => {}
        Ok(count) => tracing::warn!("{count} processes of the workload had left its process group, and were ended"),
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // The only refusal is "no such group": it has ended.
        kill_process_group(group, signal).ok();
    }
}
