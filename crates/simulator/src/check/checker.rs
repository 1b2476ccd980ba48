//! The names of the checkers.

/// The checkers, in the order of docs/SIMULATION.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checker {
    /// A done task has one result, of its own bytes, that its row names and nobody changes.
    Result,
    /// A failed task has a verdict and an error, and something really failed.
    Verdict,
    /// The tally equals the rows, after each write.
    Tally,
    /// No attempt changes a row, or an object that a row names, after it lost its lease.
    Fence,
    /// Nobody takes a task, or the instance, from a holder whose lease is fresh.
    Lease,
    /// A holder that no fault hits renews its lease in time, up to the commit or release.
    Heartbeat,
    /// Attempts are numbered one after another.
    Attempt,
    /// The loss of an attempt is counted once.
    Interruptions,
    /// The index has the tasks that are not done, each in its state.
    Index,
    /// After the mission's cancellation no workload starts, and those that run stop.
    Cancel,
    /// A notification comes after the true end, at least once, and normally once.
    Notification,
    /// No task is forgotten: each submitted task has a row, and counts.
    Submission,
    /// Every mission ends.
    End,
    /// A node runs at most as many workloads at a time as it has slots.
    Slots,
    /// A task has one node at a time.
    OneNode,
    /// No instance runs for long after its last need.
    Billing,
    /// No upload, no checkpoint is left.
    Leftovers,
    /// No process makes more requests than its work needs.
    Requests,
    /// Nothing that is not ours is deleted, terminated, or overwritten.
    Foreign,
    /// Nothing panics.
    Panic,
}

impl Checker {
    /// Returns its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Verdict => "verdict",
            Self::Tally => "tally",
            Self::Fence => "fence",
            Self::Lease => "lease",
            Self::Heartbeat => "heartbeat",
            Self::Attempt => "attempt",
            Self::Interruptions => "interruptions",
            Self::Index => "index",
            Self::Cancel => "cancel",
            Self::Notification => "notification",
            Self::Submission => "submission",
            Self::End => "end",
            Self::Slots => "slots",
            Self::OneNode => "one-node",
            Self::Billing => "billing",
            Self::Leftovers => "leftovers",
            Self::Requests => "requests",
            Self::Foreign => "foreign",
            Self::Panic => "panic",
        }
    }
}
