//! Runs a workload that is a program: its processes, its output, its progress file.
//!
//! Without a sandbox it is a child in its own process group; with one (`sandbox.rs`) it is a transient unit.

use std::ffi::{OsStr, OsString};
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
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::children::Leader;
use super::env::{WorkloadEnv, is_withheld};
use super::machine::{self, is_of_machine};
use super::memory::OomCounter;
use super::peak::Measured;
use super::period::period;
use super::progress_file::ProgressFile;
use super::run::{Bounds, Exit, Stops};
use super::sandbox::{self, UnitEnd, UnitState};
use super::{children, log, orphans, peak};
use crate::domain::progress::Progress;

/// The longest time between two checks of the progress file. A heartbeat, which writes the progress, is 20 s after the
/// last one.
const LOOK_PERIOD_MAX: Duration = Duration::from_secs(2);

/// The reason why the wait for a program finished.
enum Event {
    Exit(io::Result<RawExit>),
    TimeLimit,
    Stop,
}

/// The exit of a program without our request.
enum RawExit {
    Child(ExitStatus),
    /// Unit: exit code 0.
    Done,
    Failed(UnitEnd),
}

/// The workload's processes: the child to wait for, and the targets of signals.
struct Running {
    child: Child,
    /// Shows that the child is waited for here; `None` once it has ended.
    leader: Option<Leader>,
    reach: Reach,
    /// Whether the unit is known to be gone, with all its processes.
    is_gone: bool,
    /// The kernel's OOM counter before the start.
    before: OomCounter,
}

/// The way to reach all processes of a workload.
enum Reach {
    /// The process group of the child, which is the program itself.
    Group(Option<Pid>),
    /// The unit. The child is the `systemd-run` that waits for it.
    Unit(String),
}

/// The pauses before retries of a start, in ms, 6.3 s in total. A program that is being written, or an exhausted limit
/// of processes or files, is usually available again within seconds.
const START_PAUSES_MS: [u64; 6] = [100, 200, 400, 800, 1600, 3200];

pub(super) async fn run(
    argv: &[OsString],
    env: &WorkloadEnv,
    bounds: &Bounds,
    progress: &watch::Sender<Progress>,
    stops: &Stops,
) -> io::Result<Exit> {
    let program = argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some((uid, gid)) = bounds.sandbox.as_ref().map(sandbox::Sandbox::user) {
        let env = env.clone();
        let handed = lighthpc_runtime::blocking(move || env.hand_over(uid, gid));
        handed.await.map_err(io::Error::other).flatten()?;
    }
    let mut pauses = START_PAUSES_MS.iter();
    loop {
        let failure = match start(argv, env, bounds) {
            Err(failure) => failure,
            Ok(started) => match attend(started, env, bounds, progress, stops).await? {
                Ok(ended) => return Ok(ended),
                Err(failure) => failure,
            },
        };
        let Some(&pause) = pauses.next().filter(|_| failure.is_transient) else { return failure.conclude(program) };
        tracing::warn!("starting {program} failed, retrying: {}", failure.source);
        // Both arms may be dropped: they hold no resources.
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            () = stops.stop.cancelled() => return Ok(Exit::Stopped),
        }
        // Processes of a partly failed start must not run beside the next one.
        end_escaped(env.folder().to_owned(), None).await;
    }
}

/// The failure of a start.
struct StartFailure {
    source: io::Error,
    /// Whether a retry may succeed.
    is_transient: bool,
    /// Whether the cause is the machine, and not the program.
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

/// Waits for a started program. The inner error means that systemd could not start it.
async fn attend(
    (mut running, output): (Running, pipe::Receiver),
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
    if let Some(what) = running.measured() {
        side.spawn(peak::measure(what, env.peak.clone(), looking.clone()));
    }
    side.spawn(poll_progress(ProgressFile::new(env.progress()), progress.clone(), looking.clone()));

    // Waiting is cancel-safe, and the other arms only set the reason. The match below acts on it.
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

/// Starts the program, and returns it with the pipe of its output.
fn start(argv: &[OsString], env: &WorkloadEnv, bounds: &Bounds) -> Result<(Running, pipe::Receiver), StartFailure> {
    let before = OomCounter::read();
    let (reader, output) = io::pipe().map_err(StartFailure::of_machine)?;
    let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(StartFailure::of_machine)?;
    let (mut command, unit) = match &bounds.sandbox {
        None => (plain(argv, env).map_err(StartFailure::of_machine)?, None),
        Some(sandbox) => {
            sandbox::check_program(argv.first().map_or(OsStr::new(""), OsString::as_os_str))
                .map_err(StartFailure::of_program)?;
            let (command, unit) = sandbox.command(argv, env).map_err(StartFailure::of_machine)?;
            (command, Some(unit))
        }
    };
    let errors = output.try_clone().map_err(StartFailure::of_machine)?;
    command.stdin(Stdio::null()).stdout(errors).stderr(output).kill_on_drop(true);
    let (child, leader) = match children::start(&mut command) {
        Ok(started) => started,
        // In a sandbox this is a failure of systemd-run.
        Err(error) if unit.is_some() => return Err(StartFailure::of_machine(error)),
        Err(error) => return Err(StartFailure::of_program(error)),
    };
    let group = leader.as_ref().map(Leader::group);
    if unit.is_none() {
        machine::give_back_descriptors(group);
    }
    let reach = unit.map_or(Reach::Group(group), Reach::Unit);
    Ok((Running { child, leader, reach, is_gone: false, before }, reader))
}

fn plain(argv: &[OsString], env: &WorkloadEnv) -> io::Result<Command> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("the command line has no program"))?;
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
    /// Returns whose memory is measured.
    fn measured(&self) -> Option<Measured> {
        match &self.reach {
            Reach::Group(group) => group.map(Measured::Tree),
            Reach::Unit(unit) => Some(Measured::Cgroup(sandbox::cgroup(unit))),
        }
    }

    async fn signal(&self, signal: Signal) {
        match &self.reach {
            // The only error is "no such group": it has exited.
            Reach::Group(group) => drop(group.map(|group| kill_process_group(group, signal))),
            Reach::Unit(unit) => sandbox::signal(unit, signal).await,
        }
    }

    /// Waits for the exit. Cancel-safe: the next call continues to wait.
    ///
    /// The exit code of the `systemd-run` that waits for a unit is not sufficient: it is also 0 when it loses the
    /// connection to the bus while the unit runs. After its exit, the unit's state is read.
    async fn ended(&mut self) -> io::Result<RawExit> {
        let status = self.child.wait().await?;
        // From here on, another process may get its number.
        self.leader = None;
        let Reach::Unit(unit) = &self.reach else { return Ok(RawExit::Child(status)) };
        let (mut has_run_on, mut silences) = (false, 0);
        loop {
            match sandbox::state(unit).await {
                UnitState::Failed(end) => return Ok(RawExit::Failed(end)),
                // systemd would still have the unit if it had failed.
                UnitState::Gone if has_run_on || status.success() => {
                    self.is_gone = true;
                    return Ok(RawExit::Done);
                }
                UnitState::Gone => return Err(io::Error::other(format!("systemd-run created no unit: {status}"))),
                UnitState::Running => has_run_on = true,
                UnitState::Unknown if silences == SILENCES_MAX => {
                    return Err(io::Error::other("systemd does not report the state of the workload's unit"));
                }
                UnitState::Unknown => silences += 1,
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sends SIGTERM to all processes, waits for the grace, and sends SIGKILL.
    async fn end(&mut self, grace: Duration, hurry: &CancellationToken) -> io::Result<()> {
        self.signal(Signal::TERM).await;
        // Waiting is cancel-safe; the other two arms hold no resources. The kind of exit does not matter.
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
        Err(io::Error::other("the workload did not exit after SIGKILL"))
    }

    /// Kills the remaining processes: no process of the workload outlives the attempt.
    async fn end_the_rest(&mut self, folder: PathBuf) {
        self.leader = None;
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
        tracing::error!("the workload's unit {unit} did not stop; it will stop when the machine terminates");
    }
}

/// Converts the exit of a program.
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
            // systemd does not report the cause: a program that is being written gives the same error as one that is
            // not executable.
            let source = io::Error::other("systemd could not run it (203/EXEC): check its #! line");
            Ok(Err(StartFailure { source, is_transient: true, is_of_machine: false }))
        }
        RawExit::Failed(UnitEnd::NotMade(why)) => Err(io::Error::other(why)),
    }
}

/// The time between two checks of a unit whose `systemd-run` has exited, or whose state systemd does not report. With
/// the 30 s that each check may take, systemd may be unresponsive for five minutes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const SILENCES_MAX: u32 = 10;
/// The maximum number of SIGKILL signals, and the pause between them. A unit that is being created misses the first. A
/// process that still exists after half a minute waits for an unresponsive disk; the termination of the machine removes
/// it.
const KILLS_MAX: u32 = 30;
const KILL_PERIOD: Duration = Duration::from_secs(1);

async fn poll_progress(mut file: ProgressFile, progress: watch::Sender<Progress>, over: CancellationToken) {
    let started = Instant::now();
    loop {
        // Both arms may be dropped: they hold no resources.
        let last = tokio::select! {
            () = tokio::time::sleep(period(started, LOOK_PERIOD_MAX)) => {
                children::reap();
                false
            }
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
        tracing::info!(lines = file.malformed(), "ignored lines in the progress file that are not a percentage");
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

/// Kills descendants that left the process group.
async fn end_escaped(folder: PathBuf, group: Option<Pid>) {
    match lighthpc_runtime::blocking(move || orphans::end_below(&folder, group)).await {
        Ok(0) | Err(_) => {}
        Ok(count) => tracing::warn!("killed {count} processes that had left the workload's process group"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::children::ALONE;
    use super::*;
    use crate::domain::ids::{AttemptNumber, SrcId};
    use rustix::io::Errno;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    const BOUNDS: Bounds = Bounds { time_limit: None, grace: Duration::from_secs(1), echo: false, sandbox: None };

    fn env(dir: &Path) -> WorkloadEnv {
        WorkloadEnv::prepare(dir, "t", SrcId::new("a").unwrap(), None, AttemptNumber(1)).unwrap()
    }

    fn script(dir: &Path, mode: u32) -> PathBuf {
        let path = dir.join("program");
        std::fs::write(&path, "#!/bin/sh\necho x >> \"$LIGHTHPC_OUTPUT\"\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    async fn run_it(program: &Path, env: &WorkloadEnv, stops: &Stops) -> Exit {
        let argv = [program.as_os_str().to_owned()];
        run(&argv, env, &BOUNDS, &watch::Sender::new(Progress::default()), stops).await.unwrap()
    }

    #[tokio::test]
    async fn a_program_that_is_being_written_is_started_when_it_is_whole() {
        let _alone = ALONE.lock().await;
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
        let _alone = ALONE.lock().await;
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
        let _alone = ALONE.lock().await;
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
