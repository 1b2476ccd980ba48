//! Reports a crash of the node, in the process that is started after it on the same machine.
//!
//! ```text
//!   the process dies ─► its folders stay, and its rows say running, held by this instance
//!   the next one     ─► each of these tasks: back to pending, and suspect, in one fenced write
//!                                            └─ it ran alone: crashes + 1; the third fails it
//! ```
//!
//! It is not known which of several tasks made the node crash. So a suspect task runs alone on its node from then on,
//! and only a crash of that node counts against it. No budget counts anything of its neighbours.
//!
//! A crash is the death of the process while the machine's boot continues. A reboot, and an instance that is gone, may
//! have any cause: they are interruptions. So is the death of a process that was asked to stop. If this process dies
//! before a row is written, the next one still finds the marker of the attempt's folder, and reports it: a marker is
//! removed only when its row is written.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::identity::Instance;
use super::retry::{or_drained, retry_transient_unless};
use super::{CompletionNotifier, Node, NodeError, log};
use crate::backend::error_chain;
use crate::backend::ledger::{Commit, Completion, Finish, Release};
use crate::clock;
use crate::domain::budget::CRASHES_MAX;
use crate::domain::ids::{AttemptNumber, SrcId};
use crate::domain::task::{AttemptEnd, Counts, Crash, Marks, PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::workload::Left;

/// A task that an earlier process of this machine worked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecoveredTask {
    pub(super) src: SrcId,
    /// Its crash; none if the process did not crash, or does not hold the task any more.
    pub(super) crash: Option<Crash>,
}

/// What the report did with the tasks that an earlier process of this machine worked at.
#[derive(Debug, Default)]
pub(super) struct Reported {
    /// Tasks to continue: all that were left, except those that have failed now.
    pub(super) found: Vec<RecoveredTask>,
    /// Tasks whose row could not be written, and why: they are not continued here, because a claim would hide the
    /// crash.
    pub(super) failed: Vec<(SrcId, NodeError)>,
    /// Folders that are not needed any more.
    pub(super) settled: Vec<Left>,
    /// Folders whose crash is still to be reported, by the next process.
    pub(super) unsettled: Vec<Left>,
}

/// Reports the crash of an earlier process in the rows of the tasks that it held. A failure of one row does not affect
/// the others. While the tables are unavailable, all rows together are retried for as long as a node may be idle.
pub(super) async fn report(node: &Node, instance: &Instance) -> Reported {
    let (started, mut reported) = (Instant::now(), Reported::default());
    let mut newest: HashMap<&SrcId, AttemptNumber> = HashMap::new();
    for left in &node.settings.left {
        let Some(src) = &left.src else { continue };
        let attempt = newest.entry(src).or_insert(left.attempt);
        *attempt = left.attempt.max(*attempt);
    }
    let mut is_away = false;
    for left in &node.settings.left {
        // A task's earlier attempts, and another deployment's tasks, need no report.
        let Some(src) = left.src.clone().filter(|src| newest.get(src) == Some(&left.attempt)) else {
            reported.settled.push(left.clone());
            continue;
        };
        if !left.is_crash {
            reported.settled.push(left.clone());
            reported.found.push(RecoveredTask { src, crash: None });
            continue;
        }
        if is_away || node.stopping.drain.is_cancelled() {
            reported.unsettled.push(left.clone());
            continue;
        }
        let limit = node.settings.max_idle.saturating_sub(started.elapsed());
        match or_drained(node, report_one(node, instance, &src, left.attempt, limit).await) {
            Ok(Some(crash)) => {
                reported.settled.push(left.clone());
                if crash.is_none_or(|crash| crash.crashes < CRASHES_MAX) {
                    reported.found.push(RecoveredTask { src, crash });
                }
            }
            Ok(None) => reported.unsettled.push(left.clone()),
            Err(error) => {
                tracing::warn!(src.id = %src, "the crash at task {src} is not reported: {}", error_chain(&error));
                is_away = matches!(&error, NodeError::Cloud { source, .. } if source.is_retryable());
                reported.unsettled.push(left.clone());
                reported.failed.push((src, error));
            }
        }
    }
    reported
}

/// Reports one crash. Returns it, if the row now says that there was one.
async fn report_one(
    node: &Node,
    instance: &Instance,
    src: &SrcId,
    attempt: AttemptNumber,
    limit: Duration,
) -> Result<Option<Crash>, NodeError> {
    let row = retry_transient_unless(&node.stopping.drain, limit, || node.backend.ledger.task(src)).await;
    let row = row.map_err(NodeError::cloud("reading a task that a crash left"))?;
    let Some(row) = row else { return Ok(None) };
    // It has released the task, has ended it, or was not its holder: then another process counts it, if anything is to
    // count.
    if row.state != State::Running
        || row.attempt != attempt
        || row.instance.as_ref() != Some(&instance.id)
        || row.oddity().is_some()
    {
        return Ok(None);
    }
    let counts = row.counts_after_crash();
    let Some(crash) = counts.crash else { return Ok(None) };
    tracing::warn!(src.id = %row.src, attempt = row.attempt.0, crashes = crash.crashes, "task {}: {crash}", row.src);
    let is_written = if crash.was_alone && crash.crashes >= CRASHES_MAX {
        fail(node, instance, &row, counts, limit).await?
    } else {
        put_back(node, instance, &row, counts, limit).await?
    };
    Ok(is_written.then_some(crash))
}

/// Releases the task; `false` if the row has changed. A second call finds the first one's write.
async fn put_back(
    node: &Node,
    instance: &Instance,
    row: &Task,
    counts: Counts,
    limit: Duration,
) -> Result<bool, NodeError> {
    let end = end_by(counts, Verdict::Lost);
    let release = Release {
        time_cost_ms: row.time_cost_ms,
        history: history(node, instance, row, &end).await,
        end,
        counts,
        now: clock::now_rfc3339(),
    };
    let (drain, fence) = (&node.stopping.drain, instance.fence(row));
    retry_transient_unless(drain, limit, || node.backend.ledger.release(&fence, &release))
        .await
        .map_err(NodeError::cloud("noting a crash"))
}

/// Fails the task and counts it; then sends the notification if its mission is complete.
async fn fail(
    node: &Node,
    instance: &Instance,
    row: &Task,
    counts: Counts,
    limit: Duration,
) -> Result<bool, NodeError> {
    let drain = &node.stopping.drain;
    let mission = retry_transient_unless(drain, limit, || node.mission_of(row)).await;
    let mission = mission.map_err(NodeError::cloud("reading the mission"))?;
    let end = end_by(counts, Verdict::AppError);
    let finish = Finish {
        completion: Completion::Failed,
        input_etag: None,
        time_cost_ms: row.time_cost_ms,
        history: history(node, instance, row, &end).await,
        end,
        counts,
        now: clock::now_rfc3339(),
    };
    let fence = instance.fence(row);
    let committed =
        retry_transient_unless(drain, limit, || node.backend.ledger.commit(&fence, mission.as_ref(), &finish)).await;
    if committed.map_err(NodeError::cloud("failing a task that crashes its nodes"))? != Commit::Committed {
        return Ok(false);
    }
    if let Some(mission) = mission {
        // The task has ended. If this fails, another node or a sweep sends the notification.
        let seen = CompletionNotifier::for_node(node)
            .notify_if_complete(&instance.id, row.src.as_str(), &mission, false)
            .await;
        if let Err(error) = seen {
            tracing::warn!("whether mission {} is complete is left to others: {}", mission.id, error_chain(&error));
        }
    }
    Ok(true)
}

/// Returns how the attempt ended: by a crash.
fn end_by(counts: Counts, verdict: Verdict) -> AttemptEnd {
    AttemptEnd::of(verdict, &counts.crash.map_or_else(String::new, |crash| crash.to_string()))
}

async fn history(node: &Node, instance: &Instance, row: &Task, end: &AttemptEnd) -> Vec<PastAttempt> {
    let bucket = node.settings.result_bucket.as_deref();
    row.history_with(PastAttempt {
        attempt: row.attempt,
        instance: row.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
        // It was this machine, whose boot continues.
        machine: instance.machine_info(),
        started: row.open_since.clone().unwrap_or_default(),
        ended: clock::now_rfc3339(),
        end: end.clone(),
        marks: Marks::default(),
        log: log::find_lost(&node.backend, bucket, &row.src, row.attempt).await,
    })
}
