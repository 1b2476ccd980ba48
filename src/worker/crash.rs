//! A crash of the node is counted: by the process that is started after it on the same machine.
//!
//! ```text
//!   the process dies ─► its folders stay, and its rows say running, held by this instance
//!   the next one     ─► each of these tasks: back to pending, and suspect, in one fenced write
//!                                            └─ it ran alone: crashes + 1; the third fails it
//! ```
//!
//! Which of several tasks made the node crash, nobody knows: so a suspect task runs alone on its node from then on, and
//! only a crash of that node counts against it. No budget counts anything of its neighbours.
//!
//! A crash is the death of the process in a boot that goes on. A reboot, and an instance that is gone, may have any
//! cause: they are interruptions, as before. If this process dies before a row is written, nothing is counted, and the
//! task is taken up as after a reboot.

use super::error::words;
use super::identity::Instance;
use super::insist::{insist, insist_unless};
use super::{Announcer, Node, NodeError, attempt::mission_of, log};
use crate::backend::CloudError;
use crate::backend::ledger::{Commit, Fence, Finish, Outcome, Release};
use crate::clock;
use crate::domain::budget::CRASHES_MAX;
use crate::domain::ids::SrcId;
use crate::domain::task::{Counts, Crash, PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::workload::Left;

/// A task that an earlier process of this machine was at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) src: SrcId,
    /// Its crash; none if the process did not crash, or does not hold it any more.
    pub(super) crash: Option<Crash>,
}

/// Reports the crash of an earlier process in the rows of the tasks that it held. Returns what there is to be taken up:
/// all that was left, but for what has failed now.
///
/// # Errors
/// [`NodeError`] if a row can be neither read nor written for as long as a node may be idle.
pub(super) async fn report(node: &Node, instance: &Instance) -> Result<Vec<Found>, NodeError> {
    let mut found = Vec::new();
    for left in &node.settings.left {
        if node.stopping.drain.is_cancelled() {
            break;
        }
        let crash = if left.is_same_boot { report_one(node, instance, left).await? } else { None };
        if crash.is_none_or(|crash| crash.crashes < CRASHES_MAX) {
            found.push(Found { src: left.src.clone(), crash });
        }
    }
    Ok(found)
}

async fn report_one(node: &Node, instance: &Instance, left: &Left) -> Result<Option<Crash>, NodeError> {
    let (drain, limit) = (&node.stopping.drain, node.settings.max_idle);
    let row = insist_unless(drain, limit, || node.backend.ledger.task(&left.src)).await;
    let Some(row) = or_drained(node, row, "reading a task that a crash left")?.flatten() else { return Ok(None) };
    // It has handed the task back, has ended it, or was not its holder: then another counts, or nobody has to.
    let is_held = row.state == State::Running && row.attempt == left.attempt;
    if !is_held || row.instance.as_ref() != Some(&instance.id) || row.oddity().is_some() {
        return Ok(None);
    }
    let counts = row.counts_after_crash();
    let Some(crash) = counts.crash else { return Ok(None) };
    tracing::warn!(src.id = %row.src, attempt = row.attempt.0, crashes = crash.crashes, "task {}: {crash}", row.src);
    let is_written = if crash.was_alone && crash.crashes >= CRASHES_MAX {
        fail(node, instance, &row, counts).await?
    } else {
        put_back(node, instance, &row, counts).await?
    };
    Ok(is_written.then_some(crash))
}

/// Hands the task back; `false` if it has moved, or the node drains. A second call finds the first one's write.
async fn put_back(node: &Node, instance: &Instance, row: &Task, counts: Counts) -> Result<bool, NodeError> {
    let release = Release {
        verdict: Verdict::Lost,
        exit_code: None,
        time_cost_s: row.time_cost_s,
        history: history(node, row, Verdict::Lost).await,
        counts,
        now: clock::now_rfc3339(),
    };
    let (fence, drain, limit) = (fence(instance, row), &node.stopping.drain, node.settings.max_idle);
    let released = insist_unless(drain, limit, || node.backend.ledger.release(&fence, &release)).await;
    Ok(or_drained(node, released, "noting a crash")?.unwrap_or(false))
}

/// Fails the task and counts it; then looks whether its mission is over.
async fn fail(node: &Node, instance: &Instance, row: &Task, counts: Counts) -> Result<bool, NodeError> {
    let limit = node.settings.max_idle;
    let mission = insist(limit, || mission_of(node, row)).await.map_err(NodeError::cloud("reading the mission"))?;
    let finish = Finish {
        outcome: Outcome::Failed(Verdict::AppError),
        exit_code: None,
        input_etag: None,
        time_cost_s: row.time_cost_s,
        history: history(node, row, Verdict::AppError).await,
        counts,
    };
    let fence = fence(instance, row);
    let committed = insist(limit, || node.backend.ledger.commit(&fence, mission.as_ref(), &finish)).await;
    if committed.map_err(NodeError::cloud("failing a task that crashes its nodes"))? != Commit::Committed {
        return Ok(false);
    }
    if let Some(mission) = mission {
        // The task has ended: whoever comes by, or a sweep, sees to the mission's end otherwise.
        let seen = Announcer::of(node).see(&instance.id, row.src.as_str(), &mission, false).await;
        if let Err(error) = seen {
            tracing::warn!("whether mission {} is over is left to others: {}", mission.id, words(&error));
        }
    }
    Ok(true)
}

fn fence(instance: &Instance, row: &Task) -> Fence {
    Fence { src: row.src.clone(), attempt: row.attempt, owner: instance.id.clone() }
}

async fn history(node: &Node, row: &Task, verdict: Verdict) -> Vec<PastAttempt> {
    let bucket = node.settings.result_bucket.as_deref();
    row.history_with(PastAttempt {
        attempt: row.attempt,
        instance: row.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
        started: row.open_since.clone().unwrap_or_default(),
        ended: clock::now_rfc3339(),
        verdict,
        exit_code: None,
        log: log::of_lost(&node.backend, bucket, &row.src, row.attempt).await,
    })
}

/// Returns nothing of a call that a drain cut short: the row then stays as it is, and its lease runs out.
fn or_drained<T>(node: &Node, result: Result<T, CloudError>, doing: &'static str) -> Result<Option<T>, NodeError> {
    match result {
        Err(error) if error.is_retryable() && node.stopping.drain.is_cancelled() => Ok(None),
        result => result.map(Some).map_err(NodeError::cloud(doing)),
    }
}
