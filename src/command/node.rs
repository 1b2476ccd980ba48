//! `lighthpc run` on a node: AWS by the SDK's own wire, one task, then the machine's end.

use std::sync::Arc;
use std::time::Duration;

use super::cli::{Isolation, RunArgs};
use super::{Failure, service, signals};
use crate::backend::machine::{self, PowerOff};
use crate::backend::{Backend, Wire};
use crate::domain::budget::Limits;
use crate::domain::ids::{MissionId, SrcId};
use crate::exit::{self, Exit};
use crate::worker::{self, Ending, Node, Report, Settings, Stopping};
use crate::workload::{self, Bounds, Simulation, Wall, Workload};

/// The time between two copies of a running workload's log: what a machine that vanishes leaves is a minute old at the most,
/// and costs an object's put a minute, if anything was written.
const LOG_EVERY: Duration = Duration::from_mins(1);

pub(super) async fn run(args: Box<RunArgs>, logs: Result<(), Failure>) -> Result<Exit, Failure> {
    if let Some(file) = args.files.first() {
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
    let ready = logs.and(listening).and_then(|listener| Ok((listener, settings(&args)?)));
    let (_listener, settings) = match ready {
        Ok(ready) => ready,
        Err(failure) => {
            if !args.no_terminate {
                end_machine(args.power_off_command.as_deref()).await;
            }
            return Err(failure);
        }
    };
    let mut announcers = service::announce(settings.report.subscribe());
    let concluded = live(&args, settings, stopping).await;
    announcers.shutdown().await;
    concluded
}

/// The node's life, and the machine's end.
async fn live(args: &RunArgs, settings: Settings, stopping: Stopping) -> Result<Exit, Failure> {
    let power_off = power_off(args.power_off_command.as_deref());
    let wire = match Wire::aws().await {
        Ok(wire) => wire,
        Err(error) => {
            if settings.terminate {
                say(machine::end_unconnected(&power_off).await);
            }
            return Err(error.into());
        }
    };
    let (_work_dir, left) = take_work_dir(&settings.work_dir);
    let settings = Settings { left, ..settings };
    let tables = args.aws.tables.tables();
    let node = Node { backend: Backend::new(&wire, tables, power_off), settings: Arc::new(settings), stopping };
    conclude(worker::run(node).await)
}

/// Takes the work folder, and ends and removes what an earlier process left there. Trouble with it is found again, and
/// handled, when the first attempt makes its folder.
pub(super) fn take_work_dir(work_dir: &std::path::Path) -> (Option<std::fs::File>, Vec<SrcId>) {
    workload::take(work_dir).unwrap_or_else(|error| {
        tracing::warn!("{} could not be cleared: {error}", work_dir.display());
        (None, Vec::new())
    })
}

fn power_off(command: Option<&str>) -> PowerOff {
    match command.filter(|command| !command.trim().is_empty()) {
        Some(command) => PowerOff::By(command.to_owned()),
        None => PowerOff::OnEc2,
    }
}

/// Returns whether arguments that could not be read were meant for a node that ends with its task.
pub(super) fn is_meant(arguments: &[String]) -> bool {
    let ours: Vec<&str> = arguments.iter().map(String::as_str).take_while(|arg| *arg != "--").collect();
    let is_set =
        |name: &str| std::env::var(name).is_ok_and(|value| !matches!(value.trim(), "" | "0" | "false" | "no" | "off"));
    ours.first() == Some(&"run")
        && !ours.iter().any(|arg| arg.starts_with("--local") || *arg == "--no-terminate")
        && !is_set("LIGHTHPC_LOCAL")
        && !is_set("LIGHTHPC_NO_TERMINATE")
        && !ours.iter().any(|arg| std::path::Path::new(arg).exists())
}

/// Ends this machine where no node could be made.
pub(super) async fn end_machine(power_off_command: Option<&str>) {
    let from_variable = std::env::var("LIGHTHPC_POWER_OFF_COMMAND").ok();
    let power_off = power_off(power_off_command.or(from_variable.as_deref()));
    let ended = match Wire::aws().await {
        Ok(wire) => {
            let machine = machine::Machine::new(&wire, power_off);
            let instance = machine.instance_id().await.ok();
            machine.end(instance.as_deref()).await
        }
        Err(_) => machine::end_unconnected(&power_off).await,
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
        Ok(Ending::TryAgain(error)) | Err(error) => return Err(error.into()),
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
        Ending::Drained | Ending::Interrupted | Ending::Cancelled => Exit::Interrupted,
        Ending::TryAgain(_) => unreachable!("matched above"),
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
    Ok(Settings {
        src: text(&args.src_id).map(SrcId::new).transpose().map_err(name)?,
        mission: text(&args.mission).map(MissionId::new).transpose().map_err(name)?,
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
        terminate: !args.no_terminate,
        workload,
        simulation: Simulation { steps: args.steps, step_seconds: args.step_seconds, seed: args.seed },
        bounds: Bounds { time_limit: args.time_limit, grace, echo: true, wall: wall(args)? },
        limits: Limits {
            max_attempts: args.max_attempts,
            max_interruptions: args.max_interruptions,
            retry_app_errors: args.retry_app_errors,
        },
        report: tokio::sync::watch::Sender::new(Report::default()),
    })
}

/// Returns the wall of this machine, if workloads are to be behind one.
fn wall(args: &RunArgs) -> Result<Option<Wall>, Failure> {
    match args.isolation {
        Isolation::Process => Ok(None),
        Isolation::Unit => Wall::of_this_machine().map(Some).map_err(|error| {
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
