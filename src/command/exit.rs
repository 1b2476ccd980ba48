//! Exit codes and hints: what a failure means to a script, to systemd, and to a person. The README lists them.

use crate::backend::store::{StoreError, is_no_room};
use crate::backend::{CloudError, Kind};
use crate::domain::printable;
use crate::scheduler::SchedulerError;
use crate::worker::NodeError;
use crate::workload::is_of_machine;

/// An exit code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// All is well.
    Ok = 0,
    /// Something that no other code names; perhaps a bug.
    Internal = 1,
    /// The command line, a setting, or a file named on it is wrong.
    Usage = 2,
    /// No credentials, or none that work.
    NoCredentials = 10,
    /// The credentials may not do this.
    AccessDenied = 11,
    /// No region, or another one than the table's or bucket's.
    WrongRegion = 12,
    /// The table does not exist.
    NoTable = 13,
    /// The bucket, or the topic, does not exist.
    NoBucket = 14,
    /// The table has another key.
    TableKey = 15,
    /// The input does not exist.
    MissingInput = 16,
    /// The instance has no task.
    NoTask = 17,
    /// The disk is full.
    DiskFull = 18,
    /// The machine cannot be identified.
    NoIdentity = 19,
    /// The workload failed; of a local mission: at least one task did.
    WorkloadFailed = 20,
    /// The program cannot be started.
    ProgramNotFound = 21,
    /// The workload wrote no result.
    NoResult = 22,
    /// The workload ran into its time limit.
    TimeLimit = 23,
    /// The task was interrupted more often than it may be.
    Exhausted = 24,
    /// The workload ran out of memory.
    OutOfMemory = 25,
    /// EC2 does not accept the launch.
    LaunchRefused = 26,
    /// The doctor found a failure.
    Unfit = 27,
    /// The input is there but cannot be read: it is archived, or its key cannot be used.
    InputUnreadable = 28,
    /// The machine's clock is wrong.
    WrongClock = 29,
    /// The lease was lost to another attempt.
    LeaseLost = 30,
    /// A finished task's result of a local mission is missing, or is not what was committed.
    ResultChanged = 31,
    /// A service cannot be reached, or stays busy.
    Unavailable = 40,
    /// Standard output could not be written, for another reason than a closed pipe.
    OutputNotWritten = 41,
    /// The machine could not be ended: it may go on billing.
    NotTerminated = 50,
    /// Drained by SIGINT or SIGTERM; the task is handed back.
    Interrupted = 130,
}

impl ExitCode {
    /// Every exit code.
    pub const ALL: [Self; 27] = [
        Self::Ok,
        Self::Internal,
        Self::Usage,
        Self::NoCredentials,
        Self::AccessDenied,
        Self::WrongRegion,
        Self::NoTable,
        Self::NoBucket,
        Self::TableKey,
        Self::MissingInput,
        Self::NoTask,
        Self::DiskFull,
        Self::NoIdentity,
        Self::WorkloadFailed,
        Self::ProgramNotFound,
        Self::NoResult,
        Self::TimeLimit,
        Self::Exhausted,
        Self::OutOfMemory,
        Self::LaunchRefused,
        Self::Unfit,
        Self::InputUnreadable,
        Self::WrongClock,
        Self::LeaseLost,
        Self::Unavailable,
        Self::NotTerminated,
        Self::Interrupted,
    ];
}

/// Returns the exit code and, if there is one, the hint for a failed node.
#[must_use]
pub fn of_node(error: &NodeError) -> (ExitCode, Option<String>) {
    match error {
        NodeError::Identity(source) if source.kind == Kind::Unreachable => (
            ExitCode::NoIdentity,
            Some("on a computer that is not an EC2 instance, set --src-id, or use --local".to_owned()),
        ),
        NodeError::Identity(source) | NodeError::Cloud { source, .. } => of_cloud(source),
        NodeError::NoTask { .. } => (
            ExitCode::NoTask,
            Some(
                "tag the instance with srcID=<object key> (and missionID), and allow tags in its metadata options \
                 or ec2:DescribeTags in its role"
                    .to_owned(),
            ),
        ),
        NodeError::NoMission { .. } => (
            ExitCode::NoTask,
            Some("create it with `lighthpc submit`, or check the tag missionID and the missions table".to_owned()),
        ),
        NodeError::BadName(_) => (ExitCode::Usage, None),
        NodeError::Setting { hint, .. } => (ExitCode::Usage, Some((*hint).to_owned())),
        NodeError::MissingInput { uri } => (
            ExitCode::MissingInput,
            Some(format!(
                "look with `aws s3 ls {}`; a key from an S3 event must be URL-decoded first",
                printable::shell(uri)
            )),
        ),
        NodeError::Store { source, .. } | NodeError::InputsRefused { source } => of_store(source),
        NodeError::Disk { source, .. } if is_no_room(source) => {
            (ExitCode::DiskFull, Some(disk_hint()))
        }
        NodeError::Disk { .. } => (ExitCode::Usage, Some("set --work-dir to a folder that this user can write to".to_owned())),
        NodeError::NotStarted { program, source } => (ExitCode::ProgramNotFound, Some(program_hint(program, source))),
        NodeError::WorkloadFailed { how } => (ExitCode::WorkloadFailed, Some(workload_hint(how))),
        NodeError::OutOfMemory => {
            (ExitCode::OutOfMemory, Some("use an instance type with more memory, or smaller tasks".to_owned()))
        }
        NodeError::WorkloadDiskFull => (ExitCode::DiskFull, Some(disk_hint())),
        NodeError::TimeLimit => (ExitCode::TimeLimit, Some("raise --time-limit, or use smaller tasks".to_owned())),
        NodeError::NoResult { .. } => (
            ExitCode::NoResult,
            Some(
                "the workload must write its result to the path in $LIGHTHPC_OUTPUT; an empty file is a result"
                    .to_owned(),
            ),
        ),
        NodeError::LeaseLost { .. } => (
            ExitCode::LeaseLost,
            Some("the task's row names the attempt that now owns it; if DynamoDB was unreachable for the length of a lease, another attempt may start".to_owned()),
        ),
        NodeError::Exhausted { .. } => (
            ExitCode::Exhausted,
            Some("check the row's history: a task that crashes its machine each time needs more memory or disk; or raise --max-interruptions".to_owned()),
        ),
        NodeError::OddRow { .. } => (
            ExitCode::Internal,
            Some("correct the row in the tasks table: docs/TABLES.md says what each attribute holds".to_owned()),
        ),
        NodeError::DrainCutShort => (
            ExitCode::Unavailable,
            Some("a task that it held is taken up when its lease runs out, or by the next sweep".to_owned()),
        ),
        NodeError::Panicked(_) => (ExitCode::Internal, Some("please report this".to_owned())),
    }
}

/// Returns the exit code and the hint for a failed service call, as the table in `backend/failures.rs` has them.
#[must_use]
pub fn of_cloud(error: &CloudError) -> (ExitCode, Option<String>) {
    let exit = ExitCode::ALL.into_iter().find(|exit| *exit as u8 == error.nature().exit);
    (exit.unwrap_or(ExitCode::Internal), Some(error.hint()))
}

/// Returns the exit code and the hint for a scheduler's failure.
#[must_use]
pub fn of_scheduler(error: &SchedulerError) -> (ExitCode, Option<String>) {
    let hint = |text: &str| Some(text.to_owned());
    match error {
        SchedulerError::Cloud { source, .. } => of_cloud(source),
        SchedulerError::Announce { source, .. } => of_node(source),
        SchedulerError::Policy { .. } => (
            ExitCode::Usage,
            hint("check the mission's row, --bid-mode, --max-unit-price, --max-wait and --on-demand-floor"),
        ),
        SchedulerError::NoMission(_) => (ExitCode::NoTask, hint("`lighthpc status` lists the missions")),
        SchedulerError::NoTemplate => (
            ExitCode::Usage,
            hint("set --launch-template or LIGHTHPC_LAUNCH_TEMPLATE, or use --no-launch to only create the tasks"),
        ),
        SchedulerError::OtherMission { .. } => (ExitCode::Usage, hint("name another mission with --mission")),
        SchedulerError::OtherTask { .. } => {
            (ExitCode::Usage, hint("an object can be one task only: copy it to another key, or omit it"))
        }
        SchedulerError::BadName(_) => (ExitCode::Usage, None),
    }
}

/// Returns the exit code and the hint for a failure between S3 and the disk.
#[must_use]
pub fn of_store(error: &StoreError) -> (ExitCode, Option<String>) {
    match error {
        StoreError::Cloud(error) => of_cloud(error),
        StoreError::DiskFull { .. } => (ExitCode::DiskFull, Some(disk_hint())),
        StoreError::Changed { .. } => {
            (ExitCode::Unavailable, Some("wait until the input is no longer being written, then try again".to_owned()))
        }
        StoreError::BadResult { .. } => (
            ExitCode::WorkloadFailed,
            Some(
                "the result must be a file, or a folder of files and folders with UTF-8 names, at $LIGHTHPC_OUTPUT"
                    .to_owned(),
            ),
        ),
        StoreError::TooLarge { .. } => (
            ExitCode::WorkloadFailed,
            Some(
                "write less, pack many files into one, or raise the limit on the nodes, then redrive the task"
                    .to_owned(),
            ),
        ),
        StoreError::Taken { .. } => (
            ExitCode::WorkloadFailed,
            Some(
                "two tasks or two deployments write to the same result: rename the task, or the file in its \
                 result folder, or use another result bucket"
                    .to_owned(),
            ),
        ),
        StoreError::Disk { .. } => (ExitCode::Internal, None),
    }
}

fn disk_hint() -> String {
    "make room, for bytes (`df -h`) and for files (`df -i`); or use a larger disk: \
     on a node by a larger volume or --work-dir, on this machine by --local=DIR"
        .to_owned()
}

fn program_hint(program: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    // Linux: ENFILE and EMFILE have no kind of their own.
    const FILES: [i32; 2] = [23, 24];
    match error.kind() {
        ErrorKind::ExecutableFileBusy => {
            return format!("{program} was open for writing: write it to another name, then rename it into its place");
        }
        ErrorKind::WouldBlock => {
            return "the machine or the user has reached its limit of processes: raise it (`ulimit -u`, TasksMax=), or \
                    use fewer --slots"
                .to_owned();
        }
        ErrorKind::OutOfMemory => {
            return "the machine had no memory to start a program: use an instance type with more, or fewer --slots"
                .to_owned();
        }
        ErrorKind::ArgumentListTooLong => {
            return "its arguments and environment are too long: pass them in a file".to_owned();
        }
        _ if error.raw_os_error().is_some_and(|code| FILES.contains(&code)) => {
            return "the machine or the node has reached its limit of open files: raise it (`ulimit -n`, LimitNOFILE=), \
                    or use fewer --slots"
                .to_owned();
        }
        _ if is_of_machine(error) => {
            return format!(
                "the machine could not read {program}: check its disk and mounts; another node may be able to"
            );
        }
        _ => {}
    }
    if program.contains('/') {
        format!("{program} must exist, be executable, and begin with #! if it is a script")
    } else {
        format!("{program} is not in PATH; give its path, as in ./{program}")
    }
}

fn workload_hint(how: &str) -> String {
    match how {
        "exited with code 127" => {
            "exit code 127 means that the shell did not find a command; the task's log names it".to_owned()
        }
        "exited with code 126" => "exit code 126 means that a file is not executable".to_owned(),
        _ => "the workload's output, if any, is in the result bucket under logs/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_failed_for_the_machine_has_a_hint_of_its_own() {
        // ETXTBSY, EAGAIN, EMFILE, ENFILE, ENOMEM, EIO; then ENOENT and EACCES.
        let hints = [26, 11, 24, 23, 12, 5].map(hint_of);
        assert!(hints.iter().all(|hint| !hint.contains("must exist")), "{hints:?}");
        assert!(hint_of(2).contains("must exist") && hint_of(13).contains("executable"));
    }

    fn hint_of(code: i32) -> String {
        let source = std::io::Error::from_raw_os_error(code);
        let (exit, hint) = of_node(&NodeError::NotStarted { program: "/a/program".to_owned(), source });
        assert_eq!(exit, ExitCode::ProgramNotFound);
        hint.unwrap()
    }

    #[test]
    fn every_exit_code_of_the_table_of_failures_is_one_of_ours() {
        for kind in Kind::ALL {
            for operation in ["GetObject", "PutObject", "Publish", "UpdateItem"] {
                let error = CloudError::new(kind, operation, "a resource", "words");
                let (exit, hint) = of_cloud(&error);
                assert_eq!(exit as u8, error.nature().exit, "{kind:?} {operation}");
                let hint = hint.unwrap_or_default();
                assert!(!hint.is_empty() && !hint.contains(['{', '}']), "{hint}");
            }
        }
    }
}
