//! A workload that is a program: its processes, its output, its progress file.
//!
//! By hand it is a child in a process group of its own; behind the sandbox (`sandbox.rs`) it is a transient unit.

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

use super::env::{WorkloadEnv, is_withheld};
use super::machine::{self, is_of_machine};
use super::memory::OomCounter;
use super::progress_file::ProgressFile;
use super::sandbox::{self, UnitEnd, UnitState};
use super::{Bounds, Exit, Stops, log, orphans};
use crate::domain::progress::Progress;

/// How often the progress file is looked at: a `stat`, twice a second.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// What ends the wait for a program.
enum Event {
    Exit(io::Result<RawExit>),
    TimeLimit,
    Stop,
}

/// How a program ended by itself.
enum RawExit {
    Child(ExitStatus),
    /// Of the unit: with 0.
    Done,
    Failed(UnitEnd),
}

/// The workload's processes: what is waited for, and what a signal must reach.
struct Running {
    child: Child,
    reach: Reach,
    /// Whether the unit is known to be gone, with all that was in it.
    is_gone: bool,
    /// What the kernel had killed before.
    before: OomCounter,
}

/// How all processes of a workload are reached.
enum Reach {
    /// By the process group of the child, which is the program itself.
    Group(Option<Pid>),
    /// By its unit; the child is the `systemd-run` that waits for it.
    Unit(String),
}

/// The pauses before a start is tried again, in ms, 6.3 s in all: a program that is being written, and limits of
/// processes and files that others have reached, are free again within seconds or stay for long.
const START_PAUSES_MS: [u64; 6] = [100, 200, 400, 800, 1600, 3200];

pub(super) async fn run(
    argv: &[String],
    env: &WorkloadEnv,
    bounds: &Bounds,
    progress: &watch::Sender<Progress>,
    stops: &Stops,
) -> io::Result<Exit> {
    let program = argv.first().cloned().unwrap_or_default();
    if let Some((uid, gid)) = bounds.sandbox.as_ref().map(sandbox::Sandbox::user) {
        let env = env.clone();
        let handed = tokio::task::spawn_blocking(move || env.hand_over(uid, gid));
        handed.await.map_err(io::Error::other).flatten()?;
    }
    let mut pauses = START_PAUSES_MS.iter();
    loop {
        let failure = match start(argv, env, bounds) {
            Err(failure) => failure,
            Ok((running, output)) => match attend(running, output, env, bounds, progress, stops).await? {
                Ok(ended) => return Ok(ended),
                Err(failure) => failure,
            },
        };
        let Some(&pause) = pauses.next().filter(|_| failure.is_transient) else { return failure.conclude(program) };
        tracing::warn!("{program} could not be started, and is tried again: {}", failure.source);
        // Both arms may be dropped: neither holds anything.
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            () = stops.stop.cancelled() => return Ok(Exit::Stopped),
        }
        // A start that failed half-way must not run beside the next one.
        end_escaped(env.folder().to_owned(), None).await;
    }
}

/// Why a program did not begin.
struct StartFailure {
    source: io::Error,
    /// Whether the next try may succeed.
    is_transient: bool,
    /// Whether it is not the program that failed, but what the node needs to start any.
    is_of_machine: bool,
}

impl StartFailure {
    fn of_program(source: io::Error) -> Self {
        Self { is_transient: is_of_machine(&source), source, is_of_machine: false }
    }

    fn of_machine(source: io::Error) -> Self {
        Self { is_of_machine: true, ..Self::of_program(source) }
    }

    fn conclude(self, program: String) -> io::Result<Exit> {
        if self.is_of_machine && !self.is_transient {
            return Err(self.source);
        }
        Ok(Exit::NotStarted { program, source: self.source })
    }
}

/// Waits for a started program to its end; the inner error says that systemd could not begin it.
async fn attend(
    mut running: Running,
    output: pipe::Receiver,
    env: &WorkloadEnv,
    bounds: &Bounds,
    progress: &watch::Sender<Progress>,
    stops: &Stops,
) -> io::Result<Result<Exit, StartFailure>> {
    let mut side = JoinSet::new();
    let (over, ended) = oneshot::channel::<()>();
    let (folder, echo) = (env.folder().to_owned(), bounds.echo);
    side.spawn(async move { log::drain(output, &folder, echo, async { ended.await.unwrap_or(()) }).await });
    let looking = CancellationToken::new();
    side.spawn(look(ProgressFile::new(env.progress()), progress.clone(), looking.clone()));

    // Waiting is cancel-safe, and the other arms only set the reason; the match below acts on it.
    let event = tokio::select! {
        end = running.ended() => Event::Exit(end),
        () = time_limit(bounds.time_limit) => Event::TimeLimit,
        () = stops.stop.cancelled() => Event::Stop,
    };
    let ended = match event {
        Event::Exit(end) => end.and_then(|end| explain(end, running.before)),
        Event::TimeLimit => running.end(grace(stops, bounds), &stops.hurry).await.map(|()| Ok(Exit::TimedOut)),
        Event::Stop => running.end(grace(stops, bounds), &stops.hurry).await.map(|()| Ok(Exit::Stopped)),
    };
    running.end_the_rest(env.folder().to_owned()).await;
    looking.cancel();
    drop(over);
    side.join_all().await;
    ended
}

/// Starts the program, and returns it with its output.
fn start(argv: &[String], env: &WorkloadEnv, bounds: &Bounds) -> Result<(Running, pipe::Receiver), StartFailure> {
    let before = OomCounter::read();
    let (reader, output) = io::pipe().map_err(StartFailure::of_machine)?;
    let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(StartFailure::of_machine)?;
    let (mut command, unit) = match &bounds.sandbox {
        None => (plain(argv, env).map_err(StartFailure::of_machine)?, None),
        Some(sandbox) => {
            sandbox::check_program(argv.first().map_or("", String::as_str)).map_err(StartFailure::of_program)?;
            let (command, unit) = sandbox.command(argv, env).map_err(StartFailure::of_machine)?;
            (command, Some(unit))
        }
    };
    let errors = output.try_clone().map_err(StartFailure::of_machine)?;
    command.stdin(Stdio::null()).stdout(errors).stderr(output).process_group(0).kill_on_drop(true);
    let child = match command.spawn() {
        Ok(child) => child,
        // In the sandbox it is systemd-run that could not be started.
        Err(error) if unit.is_some() => return Err(StartFailure::of_machine(error)),
        Err(error) => return Err(StartFailure::of_program(error)),
    };
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if unit.is_none() {
        machine::give_back_descriptors(group);
    }
    let reach = unit.map_or(Reach::Group(group), Reach::Unit);
    Ok((Running { child, reach, is_gone: false, before }, reader))
}

fn plain(argv: &[String], env: &WorkloadEnv) -> io::Result<Command> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if is_withheld(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command.envs(env.variables());
    Ok(command)
}

impl Running {
    async fn signal(&self, signal: Signal) {
        match &self.reach {
            // The only refusal is "no such group": it has ended.
            Reach::Group(group) => drop(group.map(|group| kill_process_group(group, signal))),
            Reach::Unit(unit) => sandbox::signal(unit, signal).await,
        }
    }

    /// Waits for the end. Cancel-safe: what was not waited for to the end is waited for again.
    ///
    /// Of a unit, the word of the `systemd-run` that waits for it is not enough: it ends with 0 as well when it loses the bus
    /// while the unit goes on. Its end says when to look.
    async fn ended(&mut self) -> io::Result<RawExit> {
        let status = self.child.wait().await?;
        let Reach::Unit(unit) = &self.reach else { return Ok(RawExit::Child(status)) };
        let (mut has_run_on, mut silences) = (false, 0);
        loop {
            match sandbox::state(unit).await {
                UnitState::Failed(end) => return Ok(RawExit::Failed(end)),
                // One that ended otherwise would be remembered.
                UnitState::Gone if has_run_on || status.success() => {
                    self.is_gone = true;
                    return Ok(RawExit::Done);
                }
                UnitState::Gone => return Err(io::Error::other(format!("systemd-run made no unit: {status}"))),
                UnitState::Running => has_run_on = true,
                UnitState::Unknown if silences == SILENCES_MAX => {
                    return Err(io::Error::other("systemd does not say how the workload's unit is"));
                }
                UnitState::Unknown => silences += 1,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks all processes to end, gives them their grace, and ends them.
    async fn end(&mut self, grace: Duration, hurry: &CancellationToken) -> io::Result<()> {
        self.signal(Signal::TERM).await;
        // Waiting is cancel-safe; the other two arms hold nothing. How it ended does not matter.
        let has_ended = tokio::select! {
            ended = self.ended() => ended.is_ok(),
            () = tokio::time::sleep(grace) => false,
            () = hurry.cancelled() => false,
        };
        if has_ended {
            return Ok(());
        }
        for _ in 0..KILLS_MAX {
            self.signal(Signal::KILL).await;
            if tokio::time::timeout(KILL_PERIOD, self.ended()).await.is_ok() {
                return Ok(());
            }
        }
        Err(io::Error::other("the workload does not end, even by SIGKILL"))
    }

    /// Whatever is left is ended: nothing of the workload outlives the attempt.
    async fn end_the_rest(&self, folder: PathBuf) {
        let unit = match &self.reach {
            Reach::Group(group) => {
                self.signal(Signal::KILL).await;
                end_escaped(folder, *group).await;
                return;
            }
            Reach::Unit(_) if self.is_gone => return,
            Reach::Unit(unit) => unit,
        };
        for _ in 0..KILLS_MAX {
            match sandbox::state(unit).await {
                UnitState::Gone => return,
                UnitState::Failed(_) => return sandbox::forget(unit).await,
                UnitState::Running | UnitState::Unknown => self.signal(Signal::KILL).await,
            }
            tokio::time::sleep(KILL_PERIOD).await;
        }
        tracing::error!("the workload's unit {unit} does not end; the machine's end will end it");
    }
}

/// Reads what a program's own end means.
fn explain(exit: RawExit, before: OomCounter) -> io::Result<Result<Exit, StartFailure>> {
    let exited = |code, signal, out_of_memory| Ok(Ok(Exit::Exited { code, signal, out_of_memory }));
    match exit {
        RawExit::Child(status) => {
            let (code, signal) = (status.code(), status.signal());
            exited(code, signal, before.explain(code, signal))
        }
        RawExit::Done => exited(Some(0), None, false),
        RawExit::Failed(UnitEnd::Code(code)) => exited(Some(code), None, false),
        RawExit::Failed(UnitEnd::Signal(signal)) => exited(None, Some(signal), false),
        RawExit::Failed(UnitEnd::OutOfMemory) => exited(None, Some(Signal::KILL.as_raw()), true),
        RawExit::Failed(UnitEnd::NotExecuted) => {
            // systemd does not say why: a program that is just being written looks like one that is none.
            let source = io::Error::other("systemd could not run it (203/EXEC): look at its #! line");
            Ok(Err(StartFailure { source, is_transient: true, is_of_machine: false }))
        }
        RawExit::Failed(UnitEnd::NotMade(why)) => Err(io::Error::other(why)),
    }
}

/// The time between two looks at a unit that runs on without its `systemd-run`, or of which systemd says nothing; with the 30 s
/// that each look may take, systemd may be silent for five minutes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SILENCES_MAX: u32 = 10;
/// How often, and how long apart, SIGKILL is sent: a unit that is only being made is missed by the first. A process that is not
/// gone after half a minute waits for a disk that does not answer; the machine's end ends it.
const KILLS_MAX: u32 = 30;
const KILL_PERIOD: Duration = Duration::from_secs(1);

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

fn grace(stops: &Stops, bounds: &Bounds) -> Duration {
    stops.grace.borrow().unwrap_or(bounds.grace)
}

async fn time_limit(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Ends descendants that left the group.
async fn end_escaped(folder: PathBuf, group: Option<Pid>) {
    match tokio::task::spawn_blocking(move || orphans::end_below(&folder, group)).await {
        Ok(0) | Err(_) => {}
        Ok(count) => tracing::warn!("{count} processes of the workload had left its process group, and were ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{Attempt, SrcId};
    use rustix::io::Errno;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    const BOUNDS: Bounds = Bounds { time_limit: None, grace: Duration::from_secs(1), echo: false, sandbox: None };

    fn env(dir: &Path) -> WorkloadEnv {
        WorkloadEnv::prepare(dir, "t", SrcId::new("a").unwrap(), None, Attempt(1)).unwrap()
    }

    fn script(dir: &Path, mode: u32) -> PathBuf {
        let path = dir.join("program");
        std::fs::write(&path, "#!/bin/sh\necho x >> \"$LIGHTHPC_OUTPUT\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    async fn run_it(program: &Path, env: &WorkloadEnv, stops: &Stops) -> Exit {
        let argv = [program.display().to_string()];
        run(&argv, env, &BOUNDS, &watch::Sender::new(Progress::default()), stops).await.unwrap()
    }

    #[tokio::test]
    async fn a_program_that_is_being_written_is_started_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (program, env) = (script(dir.path(), 0o755), env(dir.path()));
        let writer = File::options().append(true).open(&program).unwrap();
        let stops = Stops::default();
        // It has been refused once when the first pause begins, and this goes on.
        let release = async { drop(writer) };
        let (ended, ()) = tokio::join!(run_it(&program, &env, &stops), release);
        assert!(matches!(ended, Exit::Exited { code: Some(0), .. }), "{ended:?}");
        assert_eq!(std::fs::read_to_string(env.output()).unwrap(), "x\n", "it ran once");
    }

    #[tokio::test]
    async fn a_start_that_stays_impossible_is_given_up_and_a_stop_ends_the_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (program, env) = (script(dir.path(), 0o755), env(dir.path()));
        let _writer = File::options().append(true).open(&program).unwrap();
        let stops = Stops::default();
        let began = std::time::Instant::now();
        let stop = async { stops.stop.cancel() };
        let (ended, ()) = tokio::join!(run_it(&program, &env, &stops), stop);
        assert!(matches!(ended, Exit::Stopped), "{ended:?}");
        assert!(began.elapsed() < Duration::from_secs(3));

        let ended = run_it(&program, &env, &Stops::default()).await;
        let Exit::NotStarted { source, .. } = ended else { panic!("{ended:?}") };
        assert_eq!(Errno::from_io_error(&source), Some(Errno::TXTBSY));
    }

    #[tokio::test]
    async fn a_program_that_is_none_is_not_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path());
        let began = std::time::Instant::now();
        for program in [dir.path().join("none"), dir.path().to_owned(), script(dir.path(), 0o644)] {
            let ended = run_it(&program, &env, &Stops::default()).await;
            assert!(matches!(ended, Exit::NotStarted { .. }), "{ended:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}
