//! Why a node did not do its task, as its user sees it.

use std::path::PathBuf;

use crate::backend::store::{StoreError, is_no_room};
use crate::backend::{CloudError, Kind, Scope};
use crate::domain::ids::IdError;
use crate::domain::verdict::Verdict;
use crate::workload::is_of_machine;

/// Why a node did not do its task.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The machine cannot be identified.
    #[error("this machine cannot be identified")]
    Identity(#[source] CloudError),
    /// No task is named: no flag, no tag.
    #[error("no task: instance {instance} has neither a tag srcID nor missionID, and no --src-id was given")]
    NoTask {
        /// The instance.
        instance: String,
    },
    /// The mission that this machine is to serve does not exist.
    #[error("there is no mission {mission}")]
    NoMission {
        /// The mission.
        mission: String,
    },
    /// A name is not a legal one.
    #[error("reading the names of the task")]
    BadName(#[from] IdError),
    /// A setting is missing that this step needs.
    #[error("{what} is not set")]
    Setting {
        /// Which.
        what: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A service failed or refused.
    #[error("{doing}")]
    Cloud {
        /// The step, as a gerund phrase.
        doing: &'static str,
        /// The service's error.
        source: CloudError,
    },
    /// The input does not exist.
    #[error("the input {uri} does not exist")]
    MissingInput {
        /// The object.
        uri: String,
    },
    /// The first inputs of this node were all refused.
    #[error("this node could not read any input yet, and several were refused")]
    InputsRefused {
        /// The last refusal.
        source: StoreError,
    },
    /// The input or the result could not be moved.
    #[error("{doing}")]
    Store {
        /// The step, as a gerund phrase.
        doing: &'static str,
        /// What went wrong.
        source: StoreError,
    },
    /// The work folder failed.
    #[error("{doing} {path}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The program could not be started.
    #[error("starting the program {program}")]
    NotStarted {
        /// The program.
        program: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The workload failed.
    #[error("the workload {how}")]
    WorkloadFailed {
        /// How: `exited with code 3`, `was killed by signal 9`.
        how: String,
    },
    /// The kernel killed the workload because memory ran out.
    #[error("the workload ran out of memory, and the kernel killed it")]
    OutOfMemory,
    /// The workload failed when its disk had no room.
    #[error("the workload failed, and its disk is full")]
    WorkloadDiskFull,
    /// The workload took longer than it may.
    #[error("the workload ran into its time limit")]
    TimeLimit,
    /// The workload ended well and wrote nothing.
    #[error("the workload exited with code 0 but wrote no result to $LIGHTHPC_OUTPUT")]
    NoResult,
    /// Another attempt holds the task now.
    #[error("the lease on {src} (attempt {attempt}) is lost: nothing more was written")]
    LeaseLost {
        /// The task.
        src: String,
        /// The attempt.
        attempt: u64,
    },
    /// The task was interrupted more often than it may be.
    #[error("task {src} was interrupted more often than --max-interruptions allows ({interruptions} times before)")]
    Exhausted {
        /// The task.
        src: String,
        /// How often.
        interruptions: u64,
    },
    /// The task's row cannot be claimed as it is: another version or a person wrote it.
    #[error("{what}")]
    OddRow {
        /// The task, and what is odd.
        what: String,
    },
    /// The node was asked to stop, and its last writes did not finish in time.
    #[error("the node was asked to stop, and its last writes did not finish in time")]
    DrainCutShort,
    /// A panic; a bug.
    #[error("a bug: the node's task panicked: {0}")]
    Panicked(String),
}

/// Returns the verdict on an attempt whose input or result could not be transferred, and whether the failure is
/// transient. Only what is certainly this task's fault is permanent.
pub(super) fn classify(error: &StoreError) -> (Verdict, bool) {
    match error {
        StoreError::DiskFull { .. } => (Verdict::DiskFull, true),
        StoreError::BadResult { .. } | StoreError::TooLarge { .. } | StoreError::Taken { .. } => {
            (Verdict::AppError, false)
        }
        StoreError::Changed { .. } | StoreError::Disk { .. } => (Verdict::Infra, true),
        StoreError::Cloud(error) => match error.kind {
            Kind::DiskFull => (Verdict::DiskFull, true),
            Kind::NotStorable => (Verdict::AppError, false),
            _ => (Verdict::Infra, error.is_retryable() || error.scope() != Scope::Task),
        },
    }
}

impl NodeError {
    /// Returns whether the failure concerns this task alone, so that another task may succeed on this machine.
    pub(super) fn is_the_tasks_own(&self) -> bool {
        match self {
            Self::MissingInput { .. }
            | Self::WorkloadFailed { .. }
            | Self::OutOfMemory
            | Self::WorkloadDiskFull
            | Self::TimeLimit
            | Self::NoResult
            | Self::LeaseLost { .. }
            | Self::Exhausted { .. }
            | Self::OddRow { .. } => true,
            Self::Store { source, .. } => match source {
                StoreError::BadResult { .. }
                | StoreError::TooLarge { .. }
                | StoreError::Taken { .. }
                | StoreError::Changed { .. } => true,
                StoreError::Cloud(error) => error.scope() == Scope::Task,
                StoreError::DiskFull { .. } | StoreError::Disk { .. } => false,
            },
            Self::Cloud { source, .. } => source.scope() == Scope::Task,
            // A program that cannot be started fails the next task, too.
            Self::NotStarted { .. }
            | Self::Identity(_)
            | Self::NoTask { .. }
            | Self::NoMission { .. }
            | Self::BadName(_)
            | Self::Setting { .. }
            | Self::InputsRefused { .. }
            | Self::Disk { .. }
            | Self::DrainCutShort
            | Self::Panicked(_) => false,
        }
    }

    /// Returns whether the node's own disk has no room, for bytes or for files.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Disk { source, .. } => is_no_room(source),
            Self::Store { source, .. } => matches!(source, StoreError::DiskFull { .. }),
            _ => false,
        }
    }

    /// Returns how many bytes did not fit, as far as that is known.
    pub(super) fn wanted_bytes(&self) -> u64 {
        match self {
            Self::Store { source: StoreError::DiskFull { need_bytes, .. }, .. } => *need_bytes,
            _ => 0,
        }
    }

    /// Returns whether the node's own disk, or a limit of this machine, prevents that a file is written or read.
    pub(super) fn is_machines_disk(&self) -> bool {
        match self {
            Self::Disk { source, .. } | Self::Store { source: StoreError::Disk { source, .. }, .. } => {
                is_of_machine(source) || is_no_room(source)
            }
            _ => self.is_disk_full(),
        }
    }

    /// Wraps a service's failure.
    pub(super) fn cloud(doing: &'static str) -> impl FnOnce(CloudError) -> Self {
        move |source| Self::Cloud { doing, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::io;

    /// A checkpoint that this machine cannot restore is kept for another one; a checkpoint that is broken is not.
    #[test]
    fn a_machine_that_cannot_write_is_distinguished_from_a_file_that_is_wrong() {
        let both = |source: fn() -> io::Error| {
            let path = PathBuf::from("/file");
            let store = StoreError::Disk { doing: "writing", path: path.clone(), source: source() };
            [
                NodeError::Disk { doing: "writing", path, source: source() }.is_machines_disk(),
                NodeError::Store { doing: "fetching", source: store }.is_machines_disk(),
            ]
        };
        assert_eq!(both(|| Errno::MFILE.into()), [true, true]);
        assert_eq!(both(|| Errno::IO.into()), [true, true]);
        assert_eq!(both(|| Errno::NOSPC.into()), [true, true]);
        assert_eq!(both(|| Errno::EXIST.into()), [false, false]);
        assert_eq!(both(|| Errno::NAMETOOLONG.into()), [false, false]);
        assert_eq!(both(|| io::Error::other("it is not as long as it was")), [false, false]);
        let full = StoreError::DiskFull { path: PathBuf::from("/"), need_bytes: 7, free_bytes: 3 };
        let full = NodeError::Store { doing: "fetching", source: full };
        assert!(full.is_machines_disk());
    }
}
