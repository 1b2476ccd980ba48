//! `lighthpc run` on a node: AWS by the SDK's own wire, one task, then the machine's end.

use std::sync::Arc;
use std::time::Duration;

use super::cli::{Isolation, RunArgs};
use super::{Failure, service, signals};
use crate::backend::machine::{self, EndOrder, PowerOff};
use crate::backend::{Backend, Wire};
use crate::domain::budget::{Limits, SizeLimits};
use crate::domain::ids::{MissionId, SrcId};
use crate::exit::{self, Exit};
use crate::worker::{self, Ending, Node, Report, Settings, Stopping};
use crate::workload::{self, Bounds, GroundError, Left, Simulation, Wall, WorkLock, Workload};

/// The time between two copies of a running workload's log: what a machine that vanishes leaves is a minute old at the most,
/// and costs an object's put a minute, if anything was written.
const LOG_EVERY: Duration = Duration::from_mins(1);

pub(super) async fn run(args: Box<RunArgs>, logs: Result<(), Failure>) -> Result<Exit, Failure> {
    let order = args.end_order();
    if let Some(file) = args.files.first() {
        // A person has left `--local` out, as a rule. Only an explicit order says that this is a node all the same.
        if order == EndOrder::End {
            end_machine(args.power_off_command.as_deref(), order).await;
        }
        let hint = "add --local to run a mission on these files on this machine; a program goes after `--`";
        let message = format!("{} is named, but a node takes its task from its tag", file.display());
        return Err(Failure::usage(message, hint));
    }
    let stopping = Stopping::default();
    let listening = signals::listen(stopping.clone()).map_err(|error| Failure {
        exit: Exit::Internal,
        error: error.into(),
        hint: None,
    });
    let ready = logs.and(listening).and_then(|listener| {
        let settings = settings(&args)?;
        let taken = workload::take(&settings.work_dir, &args.aws.tables.tables().tasks);
        let (work_dir, left) = self::taken(taken, &settings.work_dir, WORK_DIR_HINT)?;
        Ok((listener, Settings { left, holds_work_dir: work_dir.is_some(), ..settings }, work_dir))
    });
    let (_listener, settings, work_dir) = match ready {
        Ok(ready) => ready,
        Err(failure) => {
            end_machine(args.power_off_command.as_deref(), order).await;
            return Err(failure);
        }
    };
    let mut announcers = service::announce(settings.report.subscribe());
    announcers.spawn(note_drain(work_dir, stopping.clone()));
    let concluded = live(&args, settings, stopping).await;
    announcers.shutdown().await;
    concluded
}

/// Holds the work folder, and notes in it when the node is asked to stop.
async fn note_drain(work_dir: Option<WorkLock>, stopping: Stopping) {
    stopping.drain.cancelled().await;
    if let Some(Err(error)) = work_dir.as_ref().map(WorkLock::note_drain) {
        tracing::warn!("the request to stop could not be noted in the work folder: {error}");
    }
    // The lock is kept until the node has ended.
    std::future::pending::<()>().await;
}

/// The node's life, and the machine's end.
async fn live(args: &RunArgs, settings: Settings, stopping: Stopping) -> Result<Exit, Failure> {
    let power_off = power_off(args.power_off_command.as_deref());
    let wire = match Wire::aws().await {
        Ok(wire) => wire,
        Err(error) => {
            say(machine::end_unconnected(&power_off, settings.end_order).await);
            return Err(error.into());
        }
    };
    let tables = args.aws.tables.tables();
    let node = Node { backend: Backend::new(&wire, tables, power_off), settings: Arc::new(settings), stopping };
    conclude(worker::run(node).await)
}

const WORK_DIR_HINT: &str = "name a folder of this user's own, which others cannot write to or replace, with --work-dir \
                             (LIGHTHPC_WORK_DIR)";

/// The lock of a work folder, if this process has it, and the tasks of the attempts that were found there.
type Taken = (Option<WorkLock>, Vec<Left>);

/// Returns what came of taking the work folder. One that is not certainly this user's own is a wrong setting. Any other
/// failure is found again, and handled, before the first claim.
pub(super) fn taken(
    taken: Result<Taken, GroundError>,
    work_dir: &std::path::Path,
    hint: &str,
) -> Result<Taken, Failure> {
    match taken {
        Ok(taken) => Ok(taken),
        Err(error @ GroundError::Unsafe { .. }) => {
            Err(Failure::usage(format!("the work folder {} is not safe: {error}", work_dir.display()), hint))
        }
        Err(error) => {
            tracing::warn!("{} could not be cleared: {error}", work_dir.display());
            Ok((None, Vec::new()))
        }
    }
}

fn power_off(command: Option<&str>) -> PowerOff {
    match command.filter(|command| !command.trim().is_empty()) {
        Some(command) => PowerOff::By(command.to_owned()),
        None => PowerOff::OnEc2,
    }
}

/// Reads from arguments that clap refused what they order about the machine's end; `None` if nothing is to be ended:
/// this is no node's command line, or a person may have mistyped something. Whatever is unclear ends nothing.
pub(super) fn order_of_refused(
    arguments: &[String],
    variable: impl Fn(&str) -> Option<String>,
    is_terminal: bool,
) -> Option<EndOrder> {
    let ours: Vec<&str> = arguments.iter().map(String::as_str).take_while(|arg| *arg != "--").collect();
    let value = |name: &str| variable(name).map(|value| value.trim().to_ascii_lowercase()).unwrap_or_default();
    let is_off = |value: &str| matches!(value, "" | "0" | "false" | "f" | "no" | "n" | "off");
    let is_on = |value: &str| matches!(value, "1" | "true" | "t" | "yes" | "y" | "on");
    let is_given = |flag: &str| {
        ours.iter().any(|arg| arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
    };

    let is_local = is_given("--local") || !value("LIGHTHPC_LOCAL").is_empty();
    let keeps = is_given("--no-terminate") || !is_off(&value("LIGHTHPC_NO_TERMINATE"));
    if !is_run(&ours) || is_terminal || is_local || keeps {
        return None;
    }
    if is_given("--terminate") || is_on(&value("LIGHTHPC_TERMINATE")) {
        return Some(EndOrder::End);
    }
    let names_a_file = ours.iter().any(|arg| std::path::Path::new(arg).exists());
    (!names_a_file).then_some(EndOrder::IfNode)
}

/// Returns whether the command is `run`: only the global flag can stand before it.
fn is_run(arguments: &[&str]) -> bool {
    match arguments {
        ["run", ..] => true,
        ["--log-format", _, rest @ ..] => is_run(rest),
        [flag, rest @ ..] if flag.starts_with("--log-format=") => is_run(rest),
        _ => false,
    }
}

/// Ends this machine where no node could be made, if it may be ended.
pub(super) async fn end_machine(power_off_command: Option<&str>, order: EndOrder) {
    let from_variable = std::env::var("LIGHTHPC_POWER_OFF_COMMAND").ok();
    let power_off = power_off(power_off_command.or(from_variable.as_deref()));
    let ended = match Wire::aws().await {
        Ok(wire) => machine::Machine::new(&wire, power_off).end(order, None).await,
        Err(_) => machine::end_unconnected(&power_off, order).await,
    };
    say(ended);
}

fn say(ended: Result<machine::End, machine::EndError>) {
    match ended {
        Ok(end) => tracing::info!("the end of this machine: {end:?}"),
        Err(error) => tracing::error!("this machine could not be ended and may go on billing: {error}"),
    }
}

fn conclude(life: worker::Life) -> Result<Exit, Failure> {
    if let Err(error) = &life.end {
        tracing::error!("this machine could not be ended and may go on billing: {error}");
    }
    let ending = match life.ending {
        Ok(Ending::TryAgain(error) | Ending::NoRoom(error)) | Err(error) => return Err(error.into()),
        Ok(ending) => ending,
    };
    let exit = match ending {
        Ending::Committed { result } => {
            tracing::info!("done: {result}");
            Exit::Ok
        }
        Ending::EndedBefore(_) => Exit::Ok,
        Ending::HeldByOther(holder) => {
            tracing::info!("{holder} holds the task and lives: this instance is not needed");
            Exit::Ok
        }
        Ending::Served { done, other } => {
            tracing::info!("served the mission: {done} tasks done here, {other} attempts that ended otherwise");
            Exit::Ok
        }
        // A node of one task is alone with it.
        Ending::Suspect | Ending::Drained | Ending::Interrupted | Ending::Cancelled => Exit::Interrupted,
        Ending::TryAgain(_) | Ending::NoRoom(_) => unreachable!("matched above"),
    };
    Ok(if life.end.is_err() && exit == Exit::Ok { Exit::NotTerminated } else { exit })
}

/// The defaults for a lease of 90 s; a shorter one has its third, and its sixth.
const HEARTBEAT_MAX: Duration = Duration::from_secs(20);
const GRACE_MAX: Duration = Duration::from_secs(10);

/// Reads the settings that a node and a local mission share.
pub(super) fn settings(args: &RunArgs) -> Result<Settings, Failure> {
    let heartbeat = args.heartbeat.unwrap_or_else(|| HEARTBEAT_MAX.min(args.lease / 3));
    if heartbeat > args.lease / 3 {
        let message = format!("--heartbeat {heartbeat:?} is more than a third of --lease {:?}", args.lease);
        return Err(Failure::usage(
            message,
            "a holder must be able to miss two heartbeats: shorten it, or lengthen the lease",
        ));
    }
    // A holder that cannot renew its lease stops its workload at five sixths of it; the rest is the workload's grace.
    let grace = args.grace.unwrap_or_else(|| GRACE_MAX.min(args.lease / 6));
    if grace > args.lease / 6 {
        let message = format!("--grace {grace:?} is more than a sixth of --lease {:?}", args.lease);
        return Err(Failure::usage(
            message,
            "a workload whose lease is lost must end before another may begin: shorten it, or lengthen the lease",
        ));
    }
    let name = |error: crate::domain::ids::IdError| Failure::usage(error, "look at --src-id and --mission");
    let text = |value: &Option<String>| value.clone().filter(|value| !value.trim().is_empty());
    let workload = match (args.program.is_empty(), text(&args.exec)) {
        (false, _) => Some(Workload::Program(args.program.clone())),
        (true, Some(line)) => Some(Workload::Shell(line)),
        (true, None) => None,
    };
    let mission = text(&args.mission).map(MissionId::new).transpose().map_err(name)?;
    if let Some((id, rule)) = mission.as_ref().and_then(|id| Some((id, id.unfit()?))) {
        // It may be an older mission's.
        tracing::warn!("--mission {id}: no new mission may have such an id: {rule}");
    }
    Ok(Settings {
        src: text(&args.src_id).map(SrcId::new).transpose().map_err(name)?,
        mission,
        source_bucket: args.aws.source_bucket(),
        result_bucket: args.aws.result_bucket(),
        topic_arn: args.aws.topic_arn()?,
        work_dir: args.work_dir.clone(),
        lease: args.lease,
        heartbeat,
        checkpoint_every: args.checkpoint_every,
        log_every: LOG_EVERY,
        slots: args.slots,
        left: Vec::new(),
        max_idle: args.max_idle,
        max_lifetime: args.max_lifetime,
        end_order: args.end_order(),
        holds_work_dir: false,
        workload,
        simulation: Simulation { steps: args.steps, step_seconds: args.step_seconds, seed: args.seed },
        bounds: Bounds { time_limit: args.time_limit, grace, echo: true, wall: wall(args)? },
        limits: Limits {
            max_attempts: args.max_attempts,
            max_interruptions: args.max_interruptions,
            retry_app_errors: args.retry_app_errors,
        },
        sizes: SizeLimits {
            result_bytes: args.max_result_bytes,
            result_files: usize::try_from(args.max_result_files).unwrap_or(usize::MAX),
            checkpoint_bytes: args.max_checkpoint_bytes,
            checkpoint_files: usize::try_from(args.max_checkpoint_files).unwrap_or(usize::MAX),
        },
        disk: Arc::default(),
        preflight: Arc::default(),
        report: tokio::sync::watch::Sender::new(Report::default()),
    })
}

/// Returns the wall of this machine, if workloads are to be behind one.
fn wall(args: &RunArgs) -> Result<Option<Wall>, Failure> {
    match args.isolation {
        Isolation::Process => Ok(None),
        Isolation::Unit => Wall::of_this_machine(args.devices.clone()).map(Some).map_err(|error| {
            let hint = "run scripts/provision on this machine, or set --isolation process (no wall then)";
            Failure::usage(format!("--isolation unit cannot be had: {error}"), hint)
        }),
    }
}

/// Returns a node's error with its causes and its hint, for a line of a mission's output.
pub(super) fn words(error: &worker::NodeError) -> String {
    let words = worker::words(error);
    match exit::of_node(error).1 {
        Some(hint) => format!("{words} (hint: {hint})"),
        None => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(arguments: &[&str], variables: &[(&str, &str)], is_terminal: bool) -> Option<EndOrder> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        order_of_refused(&arguments, variable, is_terminal)
    }

    #[test]
    fn a_refused_command_line_ends_nothing_without_tags_or_an_order() {
        let bad = &["run", "--no-such-flag"];
        assert_eq!(order(bad, &[], false), Some(EndOrder::IfNode));
        assert_eq!(order(bad, &[], true), None, "a person typed it");
        assert_eq!(order(&["status", "--no-such-flag"], &[("LIGHTHPC_TERMINATE", "1")], false), None);
        assert_eq!(order(&["run", "--local=x", "--bad"], &[("LIGHTHPC_TERMINATE", "1")], false), None);
        assert_eq!(order(bad, &[("LIGHTHPC_LOCAL", "x"), ("LIGHTHPC_TERMINATE", "1")], false), None);
        assert_eq!(order(&["run", "Cargo.toml", "--bad"], &[], false), None, "files are named");
        assert_eq!(order(&["run", "--bad", "--", "--terminate"], &[], false), Some(EndOrder::IfNode), "the program's");
        assert_eq!(order(&["--log-format", "json", "run", "--bad"], &[], false), Some(EndOrder::IfNode));
    }

    #[test]
    fn an_order_in_a_refused_command_line_is_read_as_it_would_have_been() {
        let bad = &["run", "--no-such-flag"];
        for on in ["1", "true", "Yes", "ON", " y ", "T"] {
            assert_eq!(order(bad, &[("LIGHTHPC_TERMINATE", on)], false), Some(EndOrder::End), "{on}");
            let both = [("LIGHTHPC_TERMINATE", "1"), ("LIGHTHPC_NO_TERMINATE", on)];
            assert_eq!(order(bad, &both, false), None, "{on}: --no-terminate wins");
        }
        for off in ["", "0", "No", "f", "OFF"] {
            assert_eq!(order(bad, &[("LIGHTHPC_TERMINATE", off)], false), Some(EndOrder::IfNode), "{off}");
            let both = [("LIGHTHPC_TERMINATE", "1"), ("LIGHTHPC_NO_TERMINATE", off)];
            assert_eq!(order(bad, &both, false), Some(EndOrder::End), "{off}");
        }
        assert_eq!(order(bad, &[("LIGHTHPC_TERMINATE", "perhaps")], false), Some(EndOrder::IfNode));
        assert_eq!(order(bad, &[("LIGHTHPC_NO_TERMINATE", "perhaps")], false), None);
        assert_eq!(order(&["run", "--terminate", "--bad"], &[], false), Some(EndOrder::End));
        assert_eq!(order(&["run", "--terminate", "--no-terminate"], &[], false), None, "both are refused");
    }
}
