//! The command line: each command, and its own flags; `flags.rs` has what they share. Each flag also reads `LIGHTHPC_<NAME>`;
//! systemd and user data use the variables.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::flags::{AwsArgs, SchedulerArgs, TableArgs, bytes, range, seconds};
use super::place::{self, DEFAULT_DIR};
use crate::backend::machine::EndOrder;
use crate::logging::Format;
use crate::workload::{DEVICES_DEFAULT, Devices};

/// One task per input file on EC2 Spot instances: nothing lost, nothing counted twice, nothing left running.
#[derive(Debug, Parser)]
#[command(name = "lighthpc", version, propagate_version = true, arg_required_else_help = true)]
pub(super) struct Cli {
    /// How logs look
    #[arg(long, global = true, value_enum, default_value = "text", env = "LIGHTHPC_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// Reads the program's arguments and variables. A variable that is set to nothing is not set: that is how a line of an
    /// environment file is left open. With `--local`, the variables of an account and of a node are not read at all
    /// ([`place::is_ignored`]).
    ///
    /// # Errors
    /// What is wrong, or the help or the version that was asked for.
    pub(super) fn read() -> Result<Self, clap::Error> {
        let mut arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
        let is_local = place::is_local(&arguments);
        let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
        let without = move |arg: clap::Arg| if arg.get_env().is_some_and(is_empty) { arg.env(None) } else { arg };
        let local = move |arg: clap::Arg| {
            if arg.get_env().is_some_and(place::is_ignored) { arg.env(None) } else { without(arg) }
        };
        let readable = move |command: clap::Command| {
            let takes_local = command.get_arguments().any(|arg| arg.get_id() == "local");
            if takes_local && is_local { command.mut_args(local) } else { command.mut_args(without) }
        };
        if super::lambda::is_bootstrap(&arguments) {
            arguments.push("lambda".into());
        }
        let definition = Self::command().mut_args(without).mut_subcommands(readable);
        let matches = definition.try_get_matches_from(&arguments)?;
        refuse_both_orders(&matches)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let is_folder = !place::is_bare(&arguments);
        match &mut cli.command {
            Command::Run(args) => args.local_is_folder = is_folder,
            Command::Status(args) => args.local_is_folder = is_folder,
            _ => {}
        }
        Ok(cli)
    }

    /// Returns whether this is a node, or the function, whose every step belongs in the journal.
    pub(super) const fn is_a_service(&self) -> bool {
        match &self.command {
            Command::Run(args) => args.local.is_none(),
            Command::Lambda(_) => true,
            _ => false,
        }
    }
}

/// Refuses a command line that orders the machine's end, and orders that it keep running. Variables do not count: the
/// image sets `LIGHTHPC_TERMINATE`, and `--no-terminate` wins over that.
fn refuse_both_orders(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(run) = matches.subcommand_matches("run") else { return Ok(()) };
    let is_typed = |flag: &str| run.value_source(flag) == Some(ValueSource::CommandLine);
    if is_typed("terminate") && is_typed("no_terminate") {
        let words = "the argument '--terminate' cannot be used with '--no-terminate'";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, words));
    }
    Ok(())
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Do one task, from the instance's tag to the instance's end; or, with --local, a whole mission on this machine
    Run(Box<RunArgs>),
    /// Show a mission's counts and its tasks
    Status(StatusArgs),
    /// Make a mission of many inputs, and launch nodes for it
    Submit(Box<SubmitArgs>),
    /// Find what was lost and what leaked, and mend it
    Sweep(SweepArgs),
    /// Put a mission's failed tasks back, with fresh budgets
    Redrive(RedriveArgs),
    /// Cancel a mission: nothing new begins, what runs is stopped, its instances are ended
    Cancel(CancelArgs),
    /// Look for what would go wrong on this node, on this machine, or in this image, and say how to correct it
    Doctor(Box<DoctorArgs>),
    /// Be the AWS Lambda function: events of S3, SQS, EC2, and a schedule, and the HTTP interface
    Lambda(SchedulerArgs),
}

#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    /// The inputs: local files, which are uploaded; s3://BUCKET/PREFIX; or - for a list of keys on standard input
    #[arg(value_name = "INPUT", required = true)]
    pub(super) inputs: Vec<String>,
    /// The workload: a program and its arguments, as the nodes have it (default: what the nodes are told)
    #[arg(last = true, value_name = "PROGRAM ARGS")]
    pub(super) program: Vec<String>,
    /// The workload as a command line for sh
    #[arg(long, value_name = "COMMAND")]
    pub(super) exec: Option<String>,
    /// The mission's id (default: the time). Name it to go on with one, or to add to it
    #[arg(long, value_name = "ID")]
    pub(super) mission: Option<String>,
    /// What the mission is called, for people
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Serve the mission by so many nodes that do task after task (default: a node for each task)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) nodes: Option<u32>,
    /// With --nodes: how many tasks a node works at, at a time (default: one)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) slots: Option<u16>,
    /// Whether objects that anybody puts under MISSION/ in the source bucket become tasks of it, too (default: no for a new
    /// mission; one that is there stays as it is)
    #[arg(long, env = "LIGHTHPC_UPLOADS", value_name = "yes|no", value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) uploads: Option<bool>,
    /// Make the rows and launch nothing
    #[arg(long)]
    pub(super) no_launch: bool,
    /// Show rows, launch requests, and prices; change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Sweep again and again, until SIGINT or SIGTERM
    #[arg(long)]
    pub(super) watch: bool,
    /// With --watch: the pause between two sweeps
    #[arg(long, default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub(super) every: Duration,
    /// Print a JSON object for each finding
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct RedriveArgs {
    /// The mission
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// The tasks (default: all that failed)
    #[arg(value_name = "SRC")]
    pub(super) srcs: Vec<String>,
    /// Only those that failed with this verdict
    #[arg(long, value_name = "VERDICT")]
    pub(super) verdict: Option<String>,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// The mission
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// How long to wait for what runs (default: a lease and a half)
    #[arg(long, value_parser = seconds, value_name = "SECONDS")]
    pub(super) wait: Option<Duration>,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Look at what can be known of an image while it is baked: nothing of AWS
    #[arg(long)]
    pub(super) bake: bool,
    /// Print a JSON object, for programs
    #[arg(long)]
    pub(super) json: bool,
    /// Where the attempts' folders are made
    #[arg(long, env = "LIGHTHPC_WORK_DIR", default_value = "/var/lib/lighthpc", value_name = "DIR")]
    pub(super) work_dir: PathBuf,
    /// What the doctor starts behind the wall, to try it
    #[arg(long, hide = true)]
    pub(super) behind_the_wall: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

/// What is around a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Isolation {
    /// A process group.
    Process,
    /// A transient systemd unit: the wall.
    Unit,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// With --local: the input files, one task each
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// The workload: a program and its arguments. Without it the mission's is run, or a simulated one
    #[arg(last = true, value_name = "PROGRAM ARGS")]
    pub(super) program: Vec<String>,
    /// Run on this machine, on a cloud of its own that is kept in DIR (write --local=DIR before files)
    #[arg(long, num_args = 0..=1, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    /// Whether `local` is a folder for certain: by `--local=DIR`, or by the variable.
    #[arg(skip)]
    pub(super) local_is_folder: bool,
    /// With --local: run the program that this mission's folder names, although it is another user's or others may
    /// write to it; several are separated by commas, and * is any
    #[arg(long, env = "LIGHTHPC_TRUST_FOLDER", value_name = "DIR", value_delimiter = ',')]
    pub(super) trust_folder: Vec<PathBuf>,
    /// How many tasks run at a time: with --local (default: the cores), or on a node that serves a mission which does
    /// not say (default: one)
    #[arg(long, env = "LIGHTHPC_SLOTS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) slots: Option<u16>,
    /// The workload as a command line for sh, where a program after `--` is unhandy
    #[arg(long, env = "LIGHTHPC_EXEC", value_name = "COMMAND")]
    pub(super) exec: Option<String>,

    /// The task: the S3 key of its input (default: the instance's tag srcID)
    #[arg(long, env = "LIGHTHPC_SRC_ID", value_name = "KEY", help_heading = "The task")]
    pub(super) src_id: Option<String>,
    /// The mission it counts for (default: its row's, or the instance's tag missionID)
    #[arg(long, env = "LIGHTHPC_MISSION", value_name = "ID", help_heading = "The task")]
    pub(super) mission: Option<String>,
    #[command(flatten)]
    pub(super) aws: AwsArgs,

    /// Where the attempts' folders are made
    #[arg(
        long,
        env = "LIGHTHPC_WORK_DIR",
        default_value = "/var/tmp/lighthpc",
        value_name = "DIR",
        help_heading = "The node"
    )]
    pub(super) work_dir: PathBuf,
    /// How long the lease on a task lasts without a heartbeat
    #[arg(long, env = "LIGHTHPC_LEASE", default_value = "90", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) lease: Duration,
    /// The time between heartbeats; at most a third of the lease (default: 20, or a third of the lease if that is
    /// shorter)
    #[arg(long, env = "LIGHTHPC_HEARTBEAT", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) heartbeat: Option<Duration>,
    /// The time between saves of a checkpoint that changes
    #[arg(long, env = "LIGHTHPC_CHECKPOINT_EVERY", default_value = "300", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) checkpoint_every: Duration,
    /// How long the node waits for tables that do not answer before it ends
    #[arg(long, env = "LIGHTHPC_MAX_IDLE", default_value = "300", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) max_idle: Duration,
    /// How long the node may live; then it hands its task back and ends (default: no limit)
    #[arg(long, env = "LIGHTHPC_MAX_LIFETIME", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) max_lifetime: Option<Duration>,
    /// End the machine at the end, even if no tag of its instance (srcID, missionID, lighthpc) shows that it is a node
    #[arg(long, env = "LIGHTHPC_TERMINATE", value_parser = clap::builder::BoolishValueParser::new(), help_heading = "The node")]
    pub(super) terminate: bool,
    /// Leave the instance running at the end, to look at it; it bills until you end it. Wins over LIGHTHPC_TERMINATE
    #[arg(long, env = "LIGHTHPC_NO_TERMINATE", value_parser = clap::builder::BoolishValueParser::new(), help_heading = "The node")]
    pub(super) no_terminate: bool,
    /// What switches a machine that may be ended off if EC2 does not (default, on EC2 only: systemctl poweroff)
    #[arg(long, env = "LIGHTHPC_POWER_OFF_COMMAND", value_name = "COMMAND", help_heading = "The node")]
    pub(super) power_off_command: Option<String>,
    /// What is around a workload: a process group of the node's own user, or a systemd unit with a user of its own, that
    /// cannot reach the instance's role
    #[arg(
        long,
        value_enum,
        default_value = "process",
        env = "LIGHTHPC_ISOLATION",
        value_name = "HOW",
        help_heading = "The node"
    )]
    pub(super) isolation: Isolation,
    /// With --isolation unit: the devices below /dev that workloads may use, separated by commas, or none
    #[arg(
        long,
        default_value = DEVICES_DEFAULT,
        env = "LIGHTHPC_DEVICES",
        value_name = "DEVICES",
        help_heading = "The node"
    )]
    pub(super) devices: Devices,
    /// How long an attempt's workload may take (default: no limit)
    #[arg(long, env = "LIGHTHPC_TIME_LIMIT", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) time_limit: Option<Duration>,
    /// The time between SIGTERM and SIGKILL for a workload that must end; at most a sixth of the lease (default: 10,
    /// or a sixth of the lease if that is shorter)
    #[arg(long, env = "LIGHTHPC_GRACE", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) grace: Option<Duration>,
    /// How many failures that may pass (exit 75, time limit, trouble around it) a task may have
    #[arg(long, env = "LIGHTHPC_MAX_ATTEMPTS", default_value = "3", value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "The node")]
    pub(super) max_attempts: u64,
    /// How many interruptions a task may have
    #[arg(long, env = "LIGHTHPC_MAX_INTERRUPTIONS", default_value = "20", value_name = "N", help_heading = "The node")]
    pub(super) max_interruptions: u64,
    /// How often an application's error is tried again
    #[arg(long, env = "LIGHTHPC_RETRY_APP_ERRORS", default_value = "0", value_name = "N", help_heading = "The node")]
    pub(super) retry_app_errors: u64,

    /// The most bytes of a result, such as 500G or 1T; holes of sparse files count, for S3 stores them as zeros
    #[arg(long, env = "LIGHTHPC_MAX_RESULT_BYTES", default_value = "1T", value_parser = bytes, value_name = "BYTES", help_heading = "The node")]
    pub(super) max_result_bytes: u64,
    /// The most files of a result that is a folder
    #[arg(long, env = "LIGHTHPC_MAX_RESULT_FILES", default_value = "100000", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "The node")]
    pub(super) max_result_files: u32,
    /// The most bytes of a checkpoint; a larger one is not saved, and the workload goes on
    #[arg(long, env = "LIGHTHPC_MAX_CHECKPOINT_BYTES", default_value = "256G", value_parser = bytes, value_name = "BYTES", help_heading = "The node")]
    pub(super) max_checkpoint_bytes: u64,
    /// The most files, folders, and links of a checkpoint
    #[arg(long, env = "LIGHTHPC_MAX_CHECKPOINT_FILES", default_value = "10000", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "The node")]
    pub(super) max_checkpoint_files: u32,

    /// Steps of the simulated workload
    #[arg(
        long,
        env = "LIGHTHPC_STEPS",
        default_value = "15",
        value_name = "N",
        help_heading = "The simulated workload"
    )]
    pub(super) steps: u32,
    /// How long its steps take: one number, or the shortest and the longest
    #[arg(long, env = "LIGHTHPC_STEP_SECONDS", default_value = "12..20", value_parser = range, value_name = "A..B", help_heading = "The simulated workload")]
    pub(super) step_seconds: (f64, f64),
    /// Makes its random steps the same on every run
    #[arg(long, env = "LIGHTHPC_SEED", value_name = "N", help_heading = "The simulated workload")]
    pub(super) seed: Option<u64>,
}

impl RunArgs {
    /// Returns what was ordered about the machine's end.
    pub(super) const fn end_order(&self) -> EndOrder {
        match (self.no_terminate, self.terminate) {
            (true, _) => EndOrder::Keep,
            (false, true) => EndOrder::End,
            (false, false) => EndOrder::IfNode,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The mission (default: all of them, and the tasks if there is only one)
    #[arg(value_name = "MISSION", env = "LIGHTHPC_MISSION")]
    pub(super) mission: Option<String>,
    /// Look at the cloud of a local mission, kept in DIR
    #[arg(long, num_args = 0..=1, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    /// Whether `local` is a folder for certain: by `--local=DIR`, or by the variable.
    #[arg(skip)]
    pub(super) local_is_folder: bool,
    /// Print JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) tables: TableArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
