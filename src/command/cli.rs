//! The command line: the commands and their own flags. `flags.rs` has the shared flags.
//!
//! Each flag of a node or scheduler can also be set by `LIGHTHPC_<NAME>`; systemd and user data use these variables.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::examples;
use super::explain::ExplainArgs;
use super::fetch::FetchArgs;
use super::filter::FilterArgs;
use super::flags::{AwsArgs, SchedulerArgs, TableArgs, bytes, price, range, seconds, seconds_or_zero};
use super::forms::FormArgs;
use super::list::ListArgs;
use super::local_dir::{self, DEFAULT_DIR};
use super::logs::LogsArgs;
use super::place::PlaceArgs;
use super::report::ReportArgs;
use super::wait::WaitArgs;
use crate::backend::machine::EndOrder;
use crate::domain::machine_info::MicroUsd;
use crate::domain::mission::NotifyOn;
use crate::logging::Format;
use crate::workload::{DEVICES_DEFAULT, Devices};

/// One task per input file on EC2 Spot instances: nothing lost, nothing counted twice, nothing left running.
#[derive(Debug, Parser)]
#[command(name = "lighthpc", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    before_help = examples::PROGRAM
)]
pub(super) struct Cli {
    /// Format of log lines
    #[arg(long, global = true, value_enum, default_value = "text", env = "LIGHTHPC_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Format,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Cli {
    /// Parses the program's arguments and variables. An empty variable counts as not set, so that an environment file
    /// can contain settings without a value. With `--local`, variables of an account or a node are ignored
    /// ([`local_dir::is_ignored`]).
    ///
    /// # Errors
    /// The parse error, or the requested help or version text.
    pub(super) fn read() -> Result<Self, clap::Error> {
        let mut arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
        let is_local = local_dir::is_local(&arguments);
        let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
        let without = move |arg: clap::Arg| if arg.get_env().is_some_and(is_empty) { arg.env(None) } else { arg };
        let local = move |arg: clap::Arg| {
            if arg.get_env().is_some_and(local_dir::is_ignored) { arg.env(None) } else { without(arg) }
        };
        let readable = move |command: clap::Command| {
            let takes_local = command.get_arguments().any(|arg| arg.get_id() == "local");
            if takes_local && is_local { command.mut_args(local) } else { command.mut_args(without) }
        };
        if super::lambda::is_bootstrap(&arguments) {
            arguments.push("lambda".into());
        }
        let definition = Self::definition().mut_args(without).mut_subcommands(readable);
        let matches = definition.try_get_matches_from(&arguments).map_err(|error| name_variable(error, &arguments))?;
        refuse_conflicts(&matches, is_local)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        let is_folder = !local_dir::is_bare(&arguments);
        match &mut cli.command {
            Command::Run(args) => args.local_is_folder = is_folder,
            Command::Status(args) => args.local_is_folder = is_folder,
            _ => {}
        }
        Ok(cli)
    }

    /// Returns the definition of the command line. The help of each command begins with its purpose and examples.
    pub(super) fn definition() -> clap::Command {
        const HELP: &str = "{about-with-newline}\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}";
        // The values of variables are hidden, so that the help text is the same everywhere.
        // A negative number is a value that is refused, and not an unknown flag.
        let plain = |arg: clap::Arg| {
            let takes_value = arg.get_action().takes_values();
            let arg = arg.hide_env_values(true);
            if takes_value { arg.allow_negative_numbers(true) } else { arg }
        };
        let of_command = |command: clap::Command| command.help_template(HELP).mut_args(plain);
        Self::command().help_template(HELP).mut_args(plain).mut_subcommands(of_command)
    }

    /// Returns whether this process is a node or the function; these log each step.
    pub(super) const fn is_a_service(&self) -> bool {
        match &self.command {
            Command::Run(args) => args.local.is_none(),
            Command::Lambda(_) => true,
            _ => false,
        }
    }
}

/// Pairs of arguments that exclude each other if both are typed. Variables do not count: the image sets
/// `LIGHTHPC_TERMINATE`, and `--no-terminate` overrides it; a program overrides `LIGHTHPC_EXEC`.
const CONFLICTS: [(&str, &str); 2] = [("--terminate", "--no-terminate"), ("--exec", "PROGRAM ARGS")];

/// Flags that have no meaning in a local mission.
const NOT_LOCAL: [&str; 7] = [
    "--tasks-table",
    "--missions-table",
    "--work-dir",
    "--terminate",
    "--no-terminate",
    "--power-off-command",
    "--log-group",
];

/// Refuses arguments that exclude each other.
fn refuse_conflicts(matches: &ArgMatches, is_local: bool) -> Result<(), clap::Error> {
    let Some((_, command)) = matches.subcommand() else { return Ok(()) };
    let is_typed = |name: &str| {
        let id = if name == "PROGRAM ARGS" { "program" } else { &name[2..] };
        let id = id.replace('-', "_");
        command.try_contains_id(&id).is_ok() && command.value_source(&id) == Some(ValueSource::CommandLine)
    };
    let takes_local = command.try_contains_id("local").is_ok();
    let of_local = NOT_LOCAL.into_iter().filter(|_| is_local && takes_local).map(|flag| (flag, "--local"));
    let mut pairs = CONFLICTS.into_iter().filter(|(_, other)| is_typed(other)).chain(of_local);
    let Some((one, other)) = pairs.find(|(one, _)| is_typed(one)) else { return Ok(()) };
    let words = format!("the argument '{one}' cannot be used with '{other}'");
    Err(Cli::command().error(ErrorKind::ArgumentConflict, words))
}

/// Adds to an error the variable that has the invalid value, if the flag was not typed.
fn name_variable(mut error: clap::Error, arguments: &[std::ffi::OsString]) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = argument.split(' ').next().unwrap_or_default().to_owned();
    let is_typed = |word: &std::ffi::OsString| {
        word.to_str()
            .and_then(|word| word.strip_prefix(&flag))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    if arguments.iter().any(is_typed) {
        return error;
    }
    let definition = Cli::definition();
    let mut commands = std::iter::once(&definition).chain(definition.get_subcommands());
    let variable = commands.find_map(|command| {
        let mut known =
            command.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| flag == format!("--{long}")));
        known.find_map(|arg| arg.get_env().map(|name| name.to_string_lossy().into_owned()))
    });
    if let Some(variable) = variable {
        let tip = format!("the value is from the environment variable {variable}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the tasks of this instance, then terminate the instance; or, with --local, run a mission on this computer
    #[command(
        before_help = examples::RUN
    )]
    Run(Box<RunArgs>),
    /// Show missions, or what is going on in one: counts, failures by reason, time left
    #[command(
        before_help = examples::STATUS
    )]
    Status(StatusArgs),
    /// List the tasks of a mission; also as JSON or CSV for scripts
    #[command(before_help = examples::LIST)]
    List(ListArgs),
    /// Show all about one task: why it waits or failed, what to do, its attempts, and the end of its log
    #[command(before_help = examples::EXPLAIN)]
    Explain(ExplainArgs),
    /// Print what a workload printed, also while it runs
    #[command(before_help = examples::LOGS)]
    Logs(LogsArgs),
    /// Wait until a mission is complete
    #[command(before_help = examples::WAIT)]
    Wait(WaitArgs),
    /// Write what happened in a mission into one HTML file: timeline, distributions, failures, cost
    #[command(before_help = examples::REPORT)]
    Report(ReportArgs),
    /// Download the committed results of a mission; a repeated call continues
    #[command(before_help = examples::FETCH)]
    Fetch(FetchArgs),
    /// Create a mission from input files or objects, and launch nodes for it
    #[command(
        before_help = examples::SUBMIT
    )]
    Submit(Box<SubmitArgs>),
    /// Relaunch lost tasks, terminate leaked instances, and repair rows and notifications
    #[command(
        before_help = examples::SWEEP
    )]
    Sweep(SweepArgs),
    /// Set failed tasks of a mission to pending again, with their attempts counted from zero
    #[command(
        before_help = examples::REDRIVE
    )]
    Redrive(RedriveArgs),
    /// Cancel a mission: no task starts, running workloads stop, and its instances are terminated
    #[command(before_help = examples::CANCEL)]
    Cancel(CancelArgs),
    /// Check this node, computer or image for problems, and print a fix for each
    #[command(
        before_help = examples::DOCTOR
    )]
    Doctor(Box<DoctorArgs>),
    /// Run as the AWS Lambda function (S3, SQS and EC2 events, schedules, and HTTP requests)
    Lambda(SchedulerArgs),
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(super) struct SubmitArgs {
    /// Inputs: local files to upload, s3://BUCKET/PREFIX, or - to read object keys from standard input
    #[arg(value_name = "INPUT", required_unless_present = "form")]
    pub(super) inputs: Vec<String>,
    #[command(flatten)]
    pub(super) form: FormArgs,
    /// Workload: a program on the node and its arguments (default: the program that the nodes are configured with).
    /// {input}, {output}, {name}, {index}, {scratch} and {param.NAME} are replaced
    #[arg(last = true, value_name = "PROGRAM ARGS")]
    pub(super) program: Vec<String>,
    /// Workload as a shell command, instead of PROGRAM ARGS
    #[arg(long, value_name = "COMMAND")]
    pub(super) exec: Option<String>,
    /// Mission id (default: the current time and six hexadecimal digits). Use the id of an existing mission to continue
    /// it or to add tasks to it
    #[arg(long, value_name = "ID")]
    pub(super) mission: Option<String>,
    /// Display name of the mission
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Launch N nodes that each run one task after another (default: one node per task)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) nodes: Option<u32>,
    /// With --nodes: number of tasks that a node runs at the same time (default: 1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) slots: Option<u16>,
    /// Whether objects that are put under MISSION/ in the source bucket become tasks too (default: no for a new
    /// mission, unchanged for an existing one)
    #[arg(long, env = "LIGHTHPC_UPLOADS", value_name = "yes|no", hide_possible_values = true, value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) uploads: Option<bool>,
    /// Notify people before the mission's end too, within a sweep's interval: of the first failure, or of a stall (for
    /// 30 minutes, tasks wait, none runs, and none has ended). Separate both with a comma
    #[arg(long, value_name = "failure,stall", value_parser = NotifyOn::parse)]
    pub(super) notify_on: Option<NotifyOn>,
    /// Create the tasks, but launch no nodes
    #[arg(long)]
    pub(super) no_launch: bool,
    /// Expected time of a task, such as 10m: estimates what the mission costs in all
    #[arg(long, value_parser = seconds, value_name = "TIME")]
    pub(super) task_time: Option<Duration>,
    /// On-Demand prices in USD per hour, for the estimate, such as c7i.large=0.08925 (default: unknown). Spot prices are
    /// looked up in EC2
    #[arg(long, env = "LIGHTHPC_ON_DEMAND_PRICES", value_name = "TYPE=USD", value_delimiter = ',', value_parser = price)]
    pub(super) on_demand_prices: Vec<(String, MicroUsd)>,
    /// Wait until the mission is complete: exit code 0 if all tasks are done, 20 if some failed
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) wait: bool,
    /// Show tasks, launch requests and prices, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// Repeat until SIGINT or SIGTERM
    #[arg(long)]
    pub(super) watch: bool,
    /// With --watch: pause between two sweeps
    #[arg(long, requires = "watch", default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub(super) every: Duration,
    /// Print one JSON object per finding
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct RedriveArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Tasks to return (default: all failed tasks)
    #[arg(value_name = "SRC")]
    pub(super) srcs: Vec<String>,
    /// Only tasks that failed with this verdict, such as app-error or oom
    #[arg(long, value_name = "VERDICT")]
    pub(super) verdict: Option<String>,
    /// The mission is a local one, in DIR; the next `run --local` runs its tasks
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Time to wait for running workloads to stop (default: one and a half leases)
    #[arg(long, value_parser = seconds, value_name = "SECONDS")]
    pub(super) wait: Option<Duration>,
    /// The mission is a local one, in DIR, that does not run now
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(super) struct DoctorArgs {
    /// Check only what can be known while an image is built; make no AWS calls
    #[arg(long)]
    pub(super) bake: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Also publish a test message to the topic, to see who receives notifications
    #[arg(long, conflicts_with = "bake")]
    pub(super) send_test_notification: bool,
    /// Folder for the files of attempts
    #[arg(long, env = "LIGHTHPC_WORK_DIR", default_value = "/var/lib/lighthpc", value_name = "DIR")]
    pub(super) work_dir: PathBuf,
    /// Runs the checks inside the sandbox; set when the doctor starts itself as a workload
    #[arg(long, hide = true)]
    pub(super) inside_sandbox: bool,
    #[command(flatten)]
    pub(super) scheduler: SchedulerArgs,
}

/// The isolation of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Isolation {
    /// A process group.
    Process,
    /// A transient systemd unit with a sandbox.
    Unit,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(super) struct RunArgs {
    /// With --local: input files, one task per file; - reads their names from standard input
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) form: FormArgs,
    /// Workload: a program and its arguments (default: the mission's program, else a simulated workload). {input},
    /// {output}, {name}, {index}, {scratch} and {param.NAME} are replaced
    #[arg(last = true, value_name = "PROGRAM ARGS")]
    pub(super) program: Vec<String>,
    /// Run on this computer, without AWS; state and results are kept in DIR. Write --local=DIR if FILE follows
    #[arg(long, num_args = 0..=1, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    /// Whether `local` is certainly a folder: it was set by `--local=DIR` or by the variable.
    #[arg(skip)]
    pub(super) local_is_folder: bool,
    /// With --local: allow the program stored in this mission folder to run although the folder belongs to another
    /// user, or other users may write to it. Separate several folders with commas; * allows any folder
    #[arg(long, env = "LIGHTHPC_TRUST_FOLDER", value_name = "DIR", value_delimiter = ',')]
    pub(super) trust_folder: Vec<PathBuf>,
    /// With --local: show a live screen, as `status --watch` does; without a terminal, print a line per task
    #[arg(long, requires = "local")]
    pub(super) watch: bool,
    /// Number of tasks that run at the same time (default: with --local the number of cores; on a node the mission's
    /// value, else 1)
    #[arg(long, env = "LIGHTHPC_SLOTS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) slots: Option<u16>,
    /// Workload as a shell command, instead of PROGRAM ARGS
    #[arg(long, env = "LIGHTHPC_EXEC", value_name = "COMMAND")]
    pub(super) exec: Option<String>,

    /// Task: the S3 key of its input (default: the instance's tag srcID)
    #[arg(long, env = "LIGHTHPC_SRC_ID", value_name = "KEY", help_heading = "The task")]
    pub(super) src_id: Option<String>,
    /// Mission of the task (default: the mission in the task's row, else the instance's tag missionID)
    #[arg(long, env = "LIGHTHPC_MISSION", value_name = "ID", help_heading = "The task")]
    pub(super) mission: Option<String>,
    #[command(flatten)]
    pub(super) aws: AwsArgs,

    /// Folder for the files of attempts. This user must own it, and nobody else may write to it
    #[arg(
        long,
        env = "LIGHTHPC_WORK_DIR",
        default_value = "/var/tmp/lighthpc",
        value_name = "DIR",
        help_heading = "The node"
    )]
    pub(super) work_dir: PathBuf,
    /// Time after which a task without a heartbeat is taken over; must be the same on all nodes
    #[arg(long, env = "LIGHTHPC_LEASE", default_value = "90", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) lease: Duration,
    /// Time between heartbeats, at most a third of the lease (default: 20, or a third of a lease under 60)
    #[arg(long, env = "LIGHTHPC_HEARTBEAT", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) heartbeat: Option<Duration>,
    /// On-Demand prices in USD per hour, for the cost of tasks, such as c7i.large=0.08925,c7i.xlarge=0.1785 (default:
    /// unknown). Spot prices are looked up in EC2
    #[arg(long, env = "LIGHTHPC_ON_DEMAND_PRICES", value_name = "TYPE=USD", value_delimiter = ',', value_parser = price, help_heading = "The node")]
    pub(super) on_demand_prices: Vec<(String, MicroUsd)>,
    /// CloudWatch log group for the node's log and the end of each attempt, one stream per instance (default: none).
    /// CloudWatch Logs costs money: see docs/operating.md
    #[arg(long, env = "LIGHTHPC_LOG_GROUP", value_name = "GROUP", help_heading = "The node")]
    pub(super) log_group: Option<String>,
    /// With --log-group: maximum number of bytes of a workload's output to send per attempt, from its end; 0 sends none
    #[arg(long, env = "LIGHTHPC_LOG_OUTPUT_BYTES", default_value = "4096", value_name = "N", value_parser = clap::value_parser!(u64).range(..=131_072), help_heading = "The node")]
    pub(super) log_output_bytes: u64,
    /// Minimum time between two saves of a checkpoint
    #[arg(long, env = "LIGHTHPC_CHECKPOINT_EVERY", default_value = "300", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) checkpoint_every: Duration,
    /// Claim a mission's next task and download its input while a workload runs, if recent workloads took less than
    /// this; 0: never
    #[arg(long, env = "LIGHTHPC_CLAIM_AHEAD", default_value = "30", value_parser = seconds_or_zero, value_name = "SECONDS", help_heading = "The node")]
    pub(super) claim_ahead: Duration,
    /// Time that the node waits for DynamoDB to answer before it terminates
    #[arg(long, env = "LIGHTHPC_MAX_IDLE", default_value = "300", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) max_idle: Duration,
    /// Maximum age of the node: it then releases its tasks and terminates (default: no limit)
    #[arg(long, env = "LIGHTHPC_MAX_LIFETIME", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) max_lifetime: Option<Duration>,
    /// Terminate the instance at the end even if none of its tags (srcID, missionID, lighthpc) shows that it is a
    /// node
    #[arg(long, env = "LIGHTHPC_TERMINATE", value_parser = clap::builder::BoolishValueParser::new(), help_heading = "The node")]
    pub(super) terminate: bool,
    /// Keep the instance running at the end; you pay until you terminate it. Overrides LIGHTHPC_TERMINATE
    #[arg(long, env = "LIGHTHPC_NO_TERMINATE", value_parser = clap::builder::BoolishValueParser::new(), help_heading = "The node")]
    pub(super) no_terminate: bool,
    /// Command that powers the machine off if EC2 does not terminate it (default: systemctl poweroff, on EC2 only)
    #[arg(long, env = "LIGHTHPC_POWER_OFF_COMMAND", value_name = "COMMAND", help_heading = "The node")]
    pub(super) power_off_command: Option<String>,
    /// Isolation of workloads: process (a process group of the node's user) or unit (a systemd sandbox with its own
    /// user, without access to the instance's role)
    #[arg(
        long,
        value_enum,
        default_value = "process",
        env = "LIGHTHPC_ISOLATION",
        value_name = "HOW",
        help_heading = "The node"
    )]
    pub(super) isolation: Isolation,
    /// With --isolation unit: comma-separated devices in /dev that workloads may use, or none
    #[arg(
        long,
        default_value = DEVICES_DEFAULT,
        env = "LIGHTHPC_DEVICES",
        value_name = "DEVICES",
        help_heading = "The node"
    )]
    pub(super) devices: Devices,
    /// Time limit of one attempt (default: no limit)
    #[arg(long, env = "LIGHTHPC_TIME_LIMIT", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) time_limit: Option<Duration>,
    /// Time between SIGTERM and SIGKILL when a workload is stopped, at most a sixth of the lease (default: 10, or a
    /// sixth of a lease under 60)
    #[arg(long, env = "LIGHTHPC_GRACE", value_parser = seconds, value_name = "SECONDS", help_heading = "The node")]
    pub(super) grace: Option<Duration>,
    /// Number of transient failures (exit code 75, time limit, failures outside the workload) after which a task
    /// fails
    #[arg(long, env = "LIGHTHPC_MAX_ATTEMPTS", default_value = "3", value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "The node")]
    pub(super) max_attempts: u64,
    /// Number of interruptions after which a task fails
    #[arg(long, env = "LIGHTHPC_MAX_INTERRUPTIONS", default_value = "20", value_name = "N", help_heading = "The node")]
    pub(super) max_interruptions: u64,
    /// Number of retries after an application error
    #[arg(long, env = "LIGHTHPC_RETRY_APP_ERRORS", default_value = "0", value_name = "N", help_heading = "The node")]
    pub(super) retry_app_errors: u64,

    /// Maximum size of a result, such as 500G or 1T. Holes of sparse files count, because S3 stores them as zeros
    #[arg(long, env = "LIGHTHPC_MAX_RESULT_BYTES", default_value = "1T", value_parser = bytes, value_name = "BYTES", help_heading = "The node")]
    pub(super) max_result_bytes: u64,
    /// Maximum number of files of a result folder
    #[arg(long, env = "LIGHTHPC_MAX_RESULT_FILES", default_value = "100000", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "The node")]
    pub(super) max_result_files: u32,
    /// Maximum size of a checkpoint; a larger one is not saved, and the workload continues
    #[arg(long, env = "LIGHTHPC_MAX_CHECKPOINT_BYTES", default_value = "256G", value_parser = bytes, value_name = "BYTES", help_heading = "The node")]
    pub(super) max_checkpoint_bytes: u64,
    /// Maximum number of files, folders and links of a checkpoint
    #[arg(long, env = "LIGHTHPC_MAX_CHECKPOINT_FILES", default_value = "10000", value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "The node")]
    pub(super) max_checkpoint_files: u32,

    /// Number of steps of the simulated workload
    #[arg(
        long,
        env = "LIGHTHPC_STEPS",
        default_value = "15",
        value_name = "N",
        help_heading = "The simulated workload"
    )]
    pub(super) steps: u32,
    /// Duration of a simulated step: one number, or the minimum and the maximum
    #[arg(long, env = "LIGHTHPC_STEP_SECONDS", default_value = "12..20", value_parser = range, value_name = "A..B", help_heading = "The simulated workload")]
    pub(super) step_seconds: (f64, f64),
    /// Seed of the simulated durations, for equal runs
    #[arg(long, env = "LIGHTHPC_SEED", value_name = "N", help_heading = "The simulated workload")]
    pub(super) seed: Option<u64>,
}

impl RunArgs {
    /// Returns whether the instance is to be terminated at the end.
    pub(super) const fn end_order(&self) -> EndOrder {
        match (self.no_terminate, self.terminate) {
            (true, _) => EndOrder::Keep,
            (false, true) => EndOrder::Terminate,
            (false, false) => EndOrder::IfNode,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Mission id (default: list all missions, or show the only one)
    #[arg(value_name = "MISSION", env = "LIGHTHPC_MISSION")]
    pub(super) mission: Option<String>,
    /// Show the local mission in DIR
    #[arg(long, num_args = 0..=1, default_missing_value = DEFAULT_DIR, env = "LIGHTHPC_LOCAL", value_name = "DIR")]
    pub(super) local: Option<PathBuf>,
    /// Whether `local` is certainly a folder: it was set by `--local=DIR` or by the variable.
    #[arg(skip)]
    pub(super) local_is_folder: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "watch")]
    pub(super) json: bool,
    /// Show a live screen; without a terminal, print a line per change until the mission is complete
    #[arg(long)]
    pub(super) watch: bool,
    /// With --watch: pause between two reads
    #[arg(long, requires = "watch", default_value = "5s", value_parser = seconds, value_name = "TIME")]
    pub(super) every: Duration,
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    #[command(flatten)]
    pub(super) tables: TableArgs,
}

impl SubmitArgs {
    /// Returns where the mission will be.
    pub(super) fn place(&self) -> PlaceArgs {
        let AwsArgs { tables, result_bucket, .. } = &self.scheduler.aws;
        PlaceArgs { local: None, tables: tables.clone(), result_bucket: result_bucket.clone() }
    }
}

impl StatusArgs {
    /// Returns where the missions are.
    pub(super) fn place(&self) -> PlaceArgs {
        PlaceArgs { local: self.local.clone(), tables: self.tables.clone(), result_bucket: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
