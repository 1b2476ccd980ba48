//! `lighthpc run` on a node: runs one task on AWS, then terminates the instance.

use std::sync::Arc;
use std::time::Duration;

use super::cli::{Isolation, RunArgs};
use super::failure::Failure;
use super::{service, signals};
use crate::backend::logs::LogQueue;
use crate::backend::machine::{self, EndOrder, PowerOff};
use crate::backend::{Backend, Wire, error_chain};
use crate::command::exit::{self, ExitCode};
use crate::domain::budget::{Limits, SizeLimits};
use crate::domain::ids::{MissionId, SrcId};
use crate::logging;
use crate::worker::{self, Node, NodeLog, NodeSettings, Outcome, Pricing, Report, Stopping};
use crate::workload::{self, Bounds, GroundError, Left, Sandbox, Simulation, WorkLock, Workload};

/// The time between two uploads of a running workload's log. If the instance vanishes, the log lacks at most one
/// minute. Cost: one S3 PUT per minute, if anything was written.
const LOG_EVERY: Duration = Duration::from_mins(1);

pub(super) async fn run(args: Box<RunArgs>, logs: Result<(), Failure>) -> Result<ExitCode, Failure> {
    let order = args.end_order();
    let file = args.files.first().map(|file| format!("input file {}", file.display()));
    if let Some(what) = file.or_else(|| args.form.is_given().then(|| "tasks".to_owned())) {
        // The user probably forgot `--local`. Only an explicit order shows that this is a node.
        if order == EndOrder::Terminate {
            end_machine(args.power_off_command.as_deref(), order).await;
        }
        return Err(Failure::usage(
            format!("{what} without --local: a node takes its task from its instance's tag"),
            "add --local to process these files on this computer; put the program after `--`",
        ));
    }
    let stopping = Stopping::default();
    let listening = signals::listen(stopping.clone()).map_err(|error| Failure {
        exit: ExitCode::Internal,
        error: error.into(),
        hint: None,
    });
    let ready = logs.and(listening).and_then(|listener| {
        let settings = settings(&args)?;
        if let Some(log) = &settings.log {
            logging::copy_to(&log.queue);
        }
        let taken = workload::lock_work_dir(&settings.work_dir, &args.aws.tables.tables().tasks);
        let (work_dir, left) = self::taken(taken, &settings.work_dir, WORK_DIR_HINT)?;
        Ok((listener, NodeSettings { left, holds_work_dir: work_dir.is_some(), ..settings }, work_dir))
    });
    let (_listener, settings, work_dir) = match ready {
        Ok(ready) => ready,
        Err(failure) => {
            end_machine(args.power_off_command.as_deref(), order).await;
            return Err(failure);
        }
    };
    let mut announcers = service::report_to_systemd(settings.report.subscribe());
    announcers.spawn(note_drain(work_dir, stopping.clone()));
    let exit = live(&args, settings, stopping).await;
    announcers.shutdown().await;
    exit
}

/// Writes a note into the work folder when the node is requested to stop, and keeps the folder's lock until the end.
async fn note_drain(work_dir: Option<WorkLock>, stopping: Stopping) {
    stopping.drain.cancelled().await;
    if let Some(Err(error)) = work_dir.as_ref().map(WorkLock::note_drain) {
        tracing::warn!("writing the stop request into the work folder failed: {error}");
    }
    // Keeps the lock until the node has finished.
    std::future::pending::<()>().await;
}

/// Runs the node, then terminates the instance.
async fn live(args: &RunArgs, settings: NodeSettings, stopping: Stopping) -> Result<ExitCode, Failure> {
    let power_off = power_off(args.power_off_command.as_deref());
    let wire = match Wire::aws().await {
        Ok(wire) => wire,
        Err(error) => {
            log_end(machine::end_unconnected(&power_off, settings.end_order).await);
            return Err(error.into());
        }
    };
    let tables = args.aws.tables.tables();
    let node = Node { backend: Backend::new(&wire, tables, power_off), settings: Arc::new(settings), stopping };
    conclude(worker::run(node).await)
}

const WORK_DIR_HINT: &str = "set --work-dir to a folder that this user owns and others cannot write to or replace \
                             (LIGHTHPC_WORK_DIR)";

/// The lock of the work folder, if this process holds it, and the tasks of attempts that were found in the folder.
type Taken = (Option<WorkLock>, Vec<Left>);

/// Converts the result of locking the work folder. A folder that is not certainly this user's own is a wrong setting.
/// Other failures are ignored here: they recur, and are handled, before the first claim.
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
            tracing::warn!("cleaning the work folder {} failed: {error}", work_dir.display());
            Ok((None, Vec::new()))
        }
    }
}

fn power_off(power_off_command: Option<&str>) -> PowerOff {
    match power_off_command.filter(|line| !line.trim().is_empty()) {
        Some(line) => PowerOff::By(line.to_owned()),
        None => PowerOff::OnEc2,
    }
}

/// Returns the order about termination from arguments that clap refused; `None` if nothing is to be terminated: the
/// command is not a node's, or a person may have mistyped it. In doubt, nothing is terminated.
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
        return Some(EndOrder::Terminate);
    }
    let names_a_file = ours.iter().any(|arg| std::path::Path::new(arg).exists());
    (!names_a_file).then_some(EndOrder::IfNode)
}

/// Returns whether the command is `run`. Only the global flag can precede it.
fn is_run(arguments: &[&str]) -> bool {
    match arguments {
        ["run", ..] => true,
        ["--log-format", _, rest @ ..] => is_run(rest),
        [flag, rest @ ..] if flag.starts_with("--log-format=") => is_run(rest),
        _ => false,
    }
}

/// Terminates this instance when no node could be created, if it may be terminated.
pub(super) async fn end_machine(power_off_command: Option<&str>, order: EndOrder) {
    let from_variable = std::env::var("LIGHTHPC_POWER_OFF_COMMAND").ok();
    let power_off = power_off(power_off_command.or(from_variable.as_deref()));
    log_end(match Wire::aws().await {
        Ok(wire) => machine::Machine::new(&wire, power_off).end(order, None).await,
        Err(_) => machine::end_unconnected(&power_off, order).await,
    });
}

fn log_end(ended: Result<machine::MachineEnd, machine::EndError>) {
    match ended {
        Ok(machine::MachineEnd::Terminated) => tracing::info!("this instance terminates"),
        Ok(machine::MachineEnd::PoweredOff) => tracing::info!("this machine powers off"),
        // The reason was logged.
        Ok(machine::MachineEnd::LeftRunning) => {}
        Err(error) => tracing::error!("this instance could not be terminated and may continue to cost money: {error}"),
    }
}

fn conclude(life: worker::Life) -> Result<ExitCode, Failure> {
    if let Err(error) = &life.end {
        tracing::error!("this instance could not be terminated and may continue to cost money: {error}");
    }
    let outcome = match life.outcome {
        Ok(Outcome::TryAgain(error) | Outcome::NoRoom(error)) | Err(error) => return Err(error.into()),
        Ok(outcome) => outcome,
    };
    let exit = match outcome {
        Outcome::Committed { result } => {
            tracing::info!("done: {result}");
            ExitCode::Ok
        }
        Outcome::EndedBefore(_) => ExitCode::Ok,
        Outcome::HeldByOther(holder) => {
            tracing::info!("instance {holder} holds the lease and is alive: this instance is not needed");
            ExitCode::Ok
        }
        Outcome::Served { done, other } => {
            tracing::info!("mission finished on this node: {done} tasks done, {other} attempts without a result");
            ExitCode::Ok
        }
        // A node of one task has no other tasks, so its outcome is the exit code.
        Outcome::Suspect | Outcome::Drained | Outcome::Interrupted | Outcome::Cancelled => ExitCode::Interrupted,
        Outcome::TryAgain(_) | Outcome::NoRoom(_) => unreachable!("matched above"),
    };
    Ok(if life.end.is_err() && exit == ExitCode::Ok { ExitCode::NotTerminated } else { exit })
}

/// The defaults for a lease of 90 s. A shorter lease uses a third for the heartbeat, and a sixth for the grace.
const HEARTBEAT_MAX: Duration = Duration::from_secs(20);
const GRACE_MAX: Duration = Duration::from_secs(10);

/// Reads the settings that nodes and local missions share.
pub(super) fn settings(args: &RunArgs) -> Result<NodeSettings, Failure> {
    let heartbeat = args.heartbeat.unwrap_or_else(|| HEARTBEAT_MAX.min(args.lease / 3));
    if heartbeat > args.lease / 3 {
        let message = format!("--heartbeat {heartbeat:?} is more than a third of --lease {:?}", args.lease);
        return Err(Failure::usage(
            message,
            "a node must be able to miss two heartbeats: use a shorter heartbeat or a longer lease",
        ));
    }
    // A holder that cannot renew its lease stops the workload after five sixths of it; the last sixth is the grace.
    let grace = args.grace.unwrap_or_else(|| GRACE_MAX.min(args.lease / 6));
    if grace > args.lease / 6 {
        let message = format!("--grace {grace:?} is more than a sixth of --lease {:?}", args.lease);
        return Err(Failure::usage(
            message,
            "a workload must stop before another node takes over its task: use a shorter grace or a longer lease",
        ));
    }
    let name = |error: crate::domain::ids::IdError| Failure::usage(error, "check --src-id and --mission");
    let text = |value: &Option<String>| value.clone().filter(|value| !value.trim().is_empty());
    if args.program.first().is_some_and(|program| program.trim().is_empty()) {
        return Err(Failure::usage("the program after -- is empty", "give a program, as in -- ./program ARGS"));
    }
    let workload = match (args.program.is_empty(), text(&args.exec)) {
        (false, _) => Some(Workload::Program(args.program.clone())),
        (true, Some(line)) => Some(Workload::Shell(line)),
        (true, None) => None,
    };
    let mission = text(&args.mission).map(MissionId::new).transpose().map_err(name)?;
    if let Some((id, rule)) = mission.as_ref().and_then(|id| Some((id, id.unfit()?))) {
        // An older mission may have such an id.
        tracing::warn!("--mission {id}: a new mission cannot have this id: {rule}");
    }
    Ok(NodeSettings {
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
        claim_ahead: args.claim_ahead,
        left: Vec::new(),
        max_idle: args.max_idle,
        max_lifetime: args.max_lifetime,
        end_order: args.end_order(),
        holds_work_dir: false,
        workload,
        simulation: Simulation { steps: args.steps, step_seconds: args.step_seconds, seed: args.seed },
        bounds: Bounds { time_limit: args.time_limit, grace, echo: true, sandbox: sandbox(args)? },
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
        pricing: Pricing::Ec2 {
            on_demand: args.on_demand_prices.iter().cloned().collect(),
            billed_before: worker::billed_before(&args.work_dir),
        },
        log: text(&args.log_group).map(|group| NodeLog {
            queue: LogQueue::default(),
            group,
            output_bytes: args.log_output_bytes,
        }),
        disk: Arc::default(),
        preflight: Arc::default(),
        report: tokio::sync::watch::Sender::new(Report::default()),
    })
}

/// Returns the sandbox of this machine if workloads are to run in one.
fn sandbox(args: &RunArgs) -> Result<Option<Sandbox>, Failure> {
    match args.isolation {
        Isolation::Process => Ok(None),
        Isolation::Unit => Sandbox::of_this_machine(args.devices.clone()).map(Some).map_err(|error| {
            let hint = "run scripts/provision on this machine, or use --isolation process, which has no sandbox";
            Failure::usage(format!("--isolation unit is not available on this machine: {error}"), hint)
        }),
    }
}

/// Returns a node's error with its causes and its hint as one line.
pub(super) fn describe(error: &worker::NodeError) -> String {
    let words = error_chain(error);
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
            assert_eq!(order(bad, &[("LIGHTHPC_TERMINATE", on)], false), Some(EndOrder::Terminate), "{on}");
            let both = [("LIGHTHPC_TERMINATE", "1"), ("LIGHTHPC_NO_TERMINATE", on)];
            assert_eq!(order(bad, &both, false), None, "{on}: --no-terminate wins");
        }
        for off in ["", "0", "No", "f", "OFF"] {
            assert_eq!(order(bad, &[("LIGHTHPC_TERMINATE", off)], false), Some(EndOrder::IfNode), "{off}");
            let both = [("LIGHTHPC_TERMINATE", "1"), ("LIGHTHPC_NO_TERMINATE", off)];
            assert_eq!(order(bad, &both, false), Some(EndOrder::Terminate), "{off}");
        }
        assert_eq!(order(bad, &[("LIGHTHPC_TERMINATE", "perhaps")], false), Some(EndOrder::IfNode));
        assert_eq!(order(bad, &[("LIGHTHPC_NO_TERMINATE", "perhaps")], false), None);
        assert_eq!(order(&["run", "--terminate", "--bad"], &[], false), Some(EndOrder::Terminate));
        assert_eq!(order(&["run", "--terminate", "--no-terminate"], &[], false), None, "both are refused");
    }
}
