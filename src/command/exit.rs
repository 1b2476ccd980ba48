//! Exit codes and hints for failures. docs/exit-codes.md lists the codes.

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
    /// Success.
    Ok = 0,
    /// An internal error, possibly a bug. No other code describes it.
    Internal = 1,
    /// The command line, a setting, or a file named on it is invalid.
    Usage = 2,
    /// No credentials were found, or they are invalid.
    NoCredentials = 10,
    /// The credentials do not permit the request.
    AccessDenied = 11,
    /// No region is set, or the table or bucket is in another region.
    WrongRegion = 12,
    /// The table does not exist.
    NoTable = 13,
    /// The bucket or the topic does not exist.
    NoBucket = 14,
    /// The table's key differs from the expected key.
    TableKey = 15,
    /// The input does not exist.
    MissingInput = 16,
    /// The instance has no task.
    NoTask = 17,
    /// The disk is full.
    DiskFull = 18,
    /// The machine cannot be identified.
    NoIdentity = 19,
    /// The workload failed. In a local mission: at least one task failed.
    WorkloadFailed = 20,
    /// The program cannot be started.
    ProgramNotFound = 21,
    /// The workload wrote no result.
    NoResult = 22,
    /// The workload ran into its time limit.
    TimeLimit = 23,
    /// The task was interrupted more often than the limit allows.
    Exhausted = 24,
    /// The workload ran out of memory.
    OutOfMemory = 25,
    /// EC2 refused the launch.
    LaunchRefused = 26,
    /// `doctor` found a failure.
    Unfit = 27,
    /// The input exists but cannot be read: it is archived, or its key is invalid.
    InputUnreadable = 28,
    /// The machine's clock is wrong.
    WrongClock = 29,
    /// The lease was lost to another attempt.
    LeaseLost = 30,
    /// The result of a finished task of a local mission is missing or differs from the committed one.
    ResultChanged = 31,
    /// `wait` reached the time limit of `--timeout`; the mission goes on.
    WaitTimeout = 32,
    /// A service is unreachable or remains busy.
    Unavailable = 40,
    /// Standard output could not be written, and the cause is not a closed pipe.
    OutputNotWritten = 41,
    /// The instance could not be terminated and may continue to cost money.
    NotTerminated = 50,
    /// SIGINT or SIGTERM stopped the process; the task was released.
    Interrupted = 130,
}

impl ExitCode {
    /// Every exit code.
    pub const ALL: [Self; 30] = [
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
        Self::ResultChanged,
        Self::WaitTimeout,
        Self::Unavailable,
        Self::OutputNotWritten,
        Self::NotTerminated,
        Self::Interrupted,
    ];
}

/// Returns the exit code and the optional hint for a node's error.
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
        NodeError::BadName(_) => {
            (ExitCode::Usage, Some("check the tags srcID and missionID, or --src-id and --mission".to_owned()))
        }
        NodeError::Setting { hint, .. } => (ExitCode::Usage, Some((*hint).to_owned())),
        NodeError::MissingInput { uri } => (
            ExitCode::MissingInput,
            Some(format!(
                "check it with `aws s3 ls {}`; a key from an S3 event must be URL-decoded first",
                printable::shell(uri)
            )),
        ),
        NodeError::Store { source, .. } | NodeError::InputsRefused { source } => of_store(source),
        NodeError::Disk { source, .. } if is_no_room(source) => (ExitCode::DiskFull, Some(disk_hint())),
        NodeError::Disk { .. } => {
            (ExitCode::Usage, Some("set --work-dir to a folder that this user can write to".to_owned()))
        }
        NodeError::NotStarted { program, source } => (ExitCode::ProgramNotFound, Some(program_hint(program, source))),
        NodeError::WorkloadFailed { how } => (ExitCode::WorkloadFailed, Some(workload_hint(how))),
        NodeError::OutOfMemory => {
            (ExitCode::OutOfMemory, Some("use an instance type with more memory, or smaller tasks".to_owned()))
        }
        NodeError::WorkloadDiskFull => (ExitCode::DiskFull, Some(disk_hint())),
        NodeError::TimeLimit => (ExitCode::TimeLimit, Some("raise --time-limit, or use smaller tasks".to_owned())),
        NodeError::NoResult => (
            ExitCode::NoResult,
            Some(
                "the workload must write its result to the path in $LIGHTHPC_OUTPUT; an empty file is a result"
                    .to_owned(),
            ),
        ),
        NodeError::LeaseLost { .. } => (
            ExitCode::LeaseLost,
            Some(
                "see the task's row for the attempt that now holds the lease; if DynamoDB is unreachable for a \
                 whole lease, another attempt can start"
                    .to_owned(),
            ),
        ),
        NodeError::Exhausted { .. } => (
            ExitCode::Exhausted,
            Some(
                "check the history in the row: a task that crashes its instance each time needs more memory or disk; \
                 or raise --max-interruptions"
                    .to_owned(),
            ),
        ),
        NodeError::OddRow { .. } => (
            ExitCode::Internal,
            Some("correct the row in the tasks table; docs/TABLES.md describes each attribute".to_owned()),
        ),
        NodeError::DrainCutShort => (
            ExitCode::Unavailable,
            Some("no action is needed: another node or a sweep takes over its task when the lease expires".to_owned()),
        ),
        NodeError::Panicked(_) => (ExitCode::Internal, Some("please report this".to_owned())),
    }
}

/// Returns the exit code and the hint for a failed service call, from the table in `backend/failures.rs`.
#[must_use]
pub fn of_cloud(error: &CloudError) -> (ExitCode, Option<String>) {
    let exit = ExitCode::ALL.into_iter().find(|exit| *exit as u8 == error.nature().exit);
    (exit.unwrap_or(ExitCode::Internal), Some(error.hint()))
}

/// Returns the exit code and the hint for a scheduler's error.
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
        SchedulerError::OtherTask { .. } => (
            ExitCode::Usage,
            hint("an object can be only one task: copy it to another key, or remove it from the inputs"),
        ),
        SchedulerError::OtherWork { .. } => {
            (ExitCode::Usage, hint("name another mission with --mission: the same inputs are other tasks there"))
        }
        SchedulerError::BadName(_) => (ExitCode::Usage, hint("check --mission and the keys of the inputs")),
    }
}

/// Returns the exit code and the hint for a failed transfer between S3 and the disk.
#[must_use]
pub fn of_store(error: &StoreError) -> (ExitCode, Option<String>) {
    match error {
        StoreError::Cloud(error) => of_cloud(error),
        StoreError::DiskFull { .. } => (ExitCode::DiskFull, Some(disk_hint())),
        StoreError::Changed { .. } => {
            (ExitCode::Unavailable, Some("wait until no program writes the input, then try again".to_owned()))
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
                "write less, pack many files into one, or raise the limit on the nodes; then redrive the task"
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
        StoreError::Disk { .. } => {
            (ExitCode::Internal, Some("check the disk, and the permissions of the work folder".to_owned()))
        }
    }
}

fn disk_hint() -> String {
    "free some space (`df -h`) or inodes (`df -i`), or use a larger disk: \
     a larger volume or --work-dir on a node, --local=DIR on this computer"
        .to_owned()
}

fn program_hint(program: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    // Linux: ENFILE and EMFILE. `io::ErrorKind` has no value for them.
    const FILES: [i32; 2] = [23, 24];
    // Linux: ENOEXEC.
    const NO_FORMAT: i32 = 8;
    match error.kind() {
        ErrorKind::ExecutableFileBusy => {
            return format!("{program} was open for writing: write it under another name, then rename it");
        }
        ErrorKind::WouldBlock => {
            return "the machine or the user has reached the limit of processes: raise it (`ulimit -u`, TasksMax=), or \
                    use fewer --slots"
                .to_owned();
        }
        ErrorKind::OutOfMemory => {
            return "the machine has too little memory to start a program: use an instance type with more memory, or \
                 fewer --slots"
                .to_owned();
        }
        ErrorKind::ArgumentListTooLong => {
            return "its arguments and environment are too long: pass them in a file".to_owned();
        }
        _ if error.raw_os_error().is_some_and(|code| FILES.contains(&code)) => {
            return "the machine or the node has reached the limit of open files: raise it (`ulimit -n`, LimitNOFILE=), \
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
    match error.kind() {
        ErrorKind::PermissionDenied => {
            format!(
                "make it executable: chmod +x {}; the folders above it must be accessible",
                printable::shell(program)
            )
        }
        _ if error.raw_os_error() == Some(NO_FORMAT) => {
            format!(
                "begin the script {program} with a line such as #!/bin/sh; a compiled program must be for this processor"
            )
        }
        _ if program.contains('/') => {
            format!("check that {program} exists, and also the program that its first line (#!) names")
        }
        _ => format!("{program} is not in PATH; give its path, as in ./{program}"),
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
        assert!(hints.iter().all(|hint| !hint.contains("exists") && !hint.contains("chmod")), "{hints:?}");
        assert!(hint_of(2).contains("exists") && hint_of(13).contains("chmod +x") && hint_of(8).contains("#!/bin/sh"));
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
