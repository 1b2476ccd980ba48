//! How an attempt ends: its [`Outcome`], the [`StopReason`] that ends its work early, and the failure that it reports.
//!
//! There are three words for endings: `Exit` is how a process ended (`workload::Exit`), `Outcome` how an attempt ended,
//! and `Verdict` what the row says.

use tokio::time::Instant;

use super::NodeError;
use crate::backend::error_chain;
use crate::domain::budget::FailureClass;
use crate::domain::ids::InstanceId;
use crate::domain::task::{AttemptEnd, State};
use crate::domain::verdict::Verdict;

/// How an attempt at a task ended on this node.
#[derive(Debug)]
pub enum Outcome {
    /// Its result is committed.
    Committed {
        /// `s3://…` of the result.
        result: String,
    },
    /// It had ended before.
    EndedBefore(State),
    /// Another instance holds it and lives.
    HeldByOther(InstanceId),
    /// It was not claimed: it is suspected of a crash, and would not run alone here.
    Suspect,
    /// It is released, because the node drains.
    Drained,
    /// It is released, because EC2 takes the instance back.
    Interrupted,
    /// Its mission was cancelled, and the task has ended with that.
    Cancelled,
    /// Tasks of a mission were done one after another, until none was left or the node was to end.
    Served {
        /// Committed results.
        done: u64,
        /// Attempts that ended otherwise.
        other: u64,
    },
    /// It is released, and no budget counts the attempt: other tasks of this machine have filled the disk.
    NoRoom(NodeError),
    /// It is released after a transient failure.
    TryAgain(NodeError),
}

/// Why an attempt's work ends early.
#[derive(Debug)]
pub(super) enum StopReason {
    /// The lease is lost: nothing may be written.
    LeaseLost,
    /// The node drains.
    Drain,
    /// The mission was cancelled.
    Cancelled,
    /// EC2 takes the machine back at this instant.
    Interrupted(Instant),
    /// Its workload has not started, and another node may be faster, for this reason. No budget counts it.
    HandedBack(&'static str),
    /// Something failed.
    Failed(AttemptFailure),
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeaseLost => f.write_str("the lease is lost"),
            Self::Drain => f.write_str("the node is to drain"),
            Self::Cancelled => f.write_str("the mission is cancelled"),
            Self::Interrupted(_) => f.write_str("EC2 takes the instance back"),
            Self::HandedBack(why) => f.write_str(why),
            Self::Failed(failure) => failure.error.fmt(f),
        }
    }
}

/// A failure, as the task's row and the user see it.
#[derive(Debug)]
pub(super) struct AttemptFailure {
    pub(super) class: FailureClass,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) error: NodeError,
}

impl AttemptFailure {
    /// Makes a failure that the budget counts, of a workload without an exit code.
    pub(super) const fn new(verdict: Verdict, is_transient: bool, error: NodeError) -> Self {
        Self { class: FailureClass { verdict, is_transient, is_counted: true }, exit_code: None, signal: None, error }
    }

    /// Returns whether the next task would fail in the same way on this node. A full disk gets room when tasks end.
    pub(super) fn is_the_nodes(&self) -> bool {
        self.class.verdict != Verdict::DiskFull && !self.error.is_the_tasks_own()
    }

    /// Returns the end of the attempt, as the row keeps it.
    pub(super) fn end(&self) -> AttemptEnd {
        let error = error_chain(&self.error);
        AttemptEnd { exit_code: self.exit_code, signal: self.signal, ..AttemptEnd::of(self.class.verdict, &error) }
    }
}

impl From<AttemptFailure> for StopReason {
    fn from(failure: AttemptFailure) -> Self {
        Self::Failed(failure)
    }
}

/// Makes a failure of the node's own disk, which may be full.
pub(super) fn of_disk(error: NodeError) -> StopReason {
    AttemptFailure::new(if error.is_disk_full() { Verdict::DiskFull } else { Verdict::Infra }, true, error).into()
}

/// Makes a transient failure of something around the workload.
pub(super) fn infra(error: NodeError) -> StopReason {
    AttemptFailure::new(Verdict::Infra, true, error).into()
}
