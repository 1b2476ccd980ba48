//! What a request is for. A fault that names a step hits the few requests that decide, among all that a node sends.

use std::fmt;

use local_cloud::{Call, Service};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::requests::{MISSIONS, TASKS, items};
use crate::who::Who;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Writes a task's row: a claim, a renewal, a release.
    Task,
    /// Writes the end of an attempt into a task's row, without a commit: a release by its node, or by a sweep. It is a
    /// `Task`, too.
    Release,
    /// Writes a mission's row, such as the begin or the end of its notification.
    Mission,
    /// Writes several rows at once: a commit.
    Commit,
    /// Reads a mission's tally.
    Tally,
    /// Puts an object.
    Object,
    /// Publishes a message.
    Message,
}

impl Step {
    /// Returns what a request does: none of these, one, or two.
    pub(crate) fn of(call: &Call) -> Vec<Self> {
        match (call.service, call.operation.as_str()) {
            (Service::S3, "PutObject" | "CompleteMultipartUpload") => vec![Self::Object],
            (Service::Sns, "Publish") => vec![Self::Message],
            (Service::Dynamodb, "TransactWriteItems") => vec![Self::Commit],
            (Service::Dynamodb, "BatchGetItem") => vec![Self::Tally],
            (Service::Dynamodb, "UpdateItem" | "PutItem") => {
                let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
                let tables: Vec<&str> = items(&body).iter().map(|item| item.table).collect();
                match tables.first() {
                    Some(&TASKS) if writes_history(&body) => vec![Self::Task, Self::Release],
                    Some(&TASKS) => vec![Self::Task],
                    Some(&MISSIONS) => vec![Self::Mission],
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }
}

/// Returns whether an update names the history of a task.
fn writes_history(body: &Value) -> bool {
    let names = body["ExpressionAttributeNames"].as_object();
    names.is_some_and(|names| names.values().any(|name| name == "history"))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Task => "write of a task",
            Self::Release => "release of a task",
            Self::Mission => "write of the mission",
            Self::Commit => "commit",
            Self::Tally => "read of the tally",
            Self::Object => "upload",
            Self::Message => "message",
        })
    }
}

/// Whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Sender {
    Machine(u64),
    /// All invocations and commands together.
    Callers,
}

impl Sender {
    pub(crate) const fn of(who: Who) -> Option<Self> {
        match who {
            Who::Node { machine, .. } => Some(Self::Machine(machine)),
            Who::Caller(_) => Some(Self::Callers),
            Who::Hand | Who::Observer => None,
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(machine) => write!(f, "machine {machine}"),
            Self::Callers => f.write_str("the callers"),
        }
    }
}
