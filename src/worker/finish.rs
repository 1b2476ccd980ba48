//! Steps 6 to 8: whatever the attempt came to, the row says so, the tally counts it, and people hear of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{Ending, LAST_WRITE_TIMEOUT, mission_of};
use super::checkpoint::{Checkpoints, Save};
use super::error::words;
use super::execute::{LAST_WORDS, Stop, Trouble};
use super::insist::insist;
use super::{Announcer, Node, NodeError, Step, log, step};
use crate::backend::ledger::{Commit, Fence, Finish, Outcome, Release};
use crate::clock;
use crate::domain::budget::{self, Next, decide};
use crate::domain::ids::{Attempt, InstanceId};
use crate::domain::mission::Mission;
use crate::domain::task::{PastAttempt, Task};
use crate::domain::verdict::{Budget, Verdict};
use crate::workload::Contract;

/// What is known of an attempt at its end.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) fence: Fence,
    /// The row as the claim left it.
    pub(super) row: Box<Task>,
    pub(super) started: String,
    pub(super) mission: Option<Mission>,
    pub(super) contract: Option<Arc<Contract>>,
    /// `ETag` of the input, once it is downloaded.
    pub(super) input_etag: Option<String>,
    pub(super) exit_code: Option<i32>,
    pub(super) time_cost_s: u64,
    /// Whose attempt this one took over, and where its log is.
    pub(super) lost: (Option<InstanceId>, Option<String>),
}

impl Attempted {
    pub(super) const fn new(fence: Fence, row: Box<Task>, started: String, taken_from: Option<InstanceId>) -> Self {
        let lost = (taken_from, None);
        Self {
            fence,
            row,
            started,
            mission: None,
            contract: None,
            input_etag: None,
            exit_code: None,
            time_cost_s: 0,
            lost,
        }
    }

    /// The attempt before this one, if it left no word.
    pub(super) fn lost_before(&self) -> Option<Attempt> {
        let before = Attempt(self.fence.attempt.0.saturating_sub(1));
        let last = self.row.history.last().map_or(Attempt(0), |past| past.attempt);
        (last < before).then_some(before)
    }

    /// Removes the attempt's folder: off this thread, for it may have very many files.
    pub(super) async fn clean(&self) {
        let Some(contract) = self.contract.clone() else { return };
        let folder = contract.folder().to_owned();
        let removed = tokio::task::spawn_blocking(move || contract.remove()).await;
        if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
            tracing::warn!("the folder {} is left behind: {error}", folder.display());
        }
    }

    /// The task's history with this attempt at its end; an attempt before it that left no word is entered as lost.
    fn history(&self, verdict: Verdict, exit_code: Option<i32>, log: Option<String>) -> Vec<PastAttempt> {
        let mut row = self.row.clone();
        let now = clock::now_rfc3339();
        if let Some(before) = self.lost_before() {
            let lost = PastAttempt {
                attempt: before,
                // Without a takeover it was this very instance, before a restart.
                instance: self.lost.0.as_ref().unwrap_or(&self.fence.owner).to_string(),
                started: String::new(),
                ended: self.started.clone(),
                verdict: Verdict::Lost,
                exit_code: None,
                log: self.lost.1.clone(),
            };
            row.history = row.history_with(lost);
        }
        row.history_with(PastAttempt {
            attempt: self.fence.attempt,
            instance: self.fence.owner.to_string(),
            started: self.started.clone(),
            ended: now,
            verdict,
            exit_code,
            log,
        })
    }
}

/// Ends the attempt: commit, fail, or release, each under the fence. The heartbeat has stopped.
pub(super) async fn finish(
    node: &Node,
    attempted: &Attempted,
    outcome: Result<Outcome, Stop>,
    checkpoints: Option<&Checkpoints>,
) -> Result<Ending, NodeError> {
    match outcome {
        Ok(outcome @ Outcome::Done { .. }) => {
            let log = save_log(node, attempted, LAST_WRITE_TIMEOUT).await;
            let history = attempted.history(Verdict::Ok, attempted.exit_code, log);
            let Outcome::Done { result, .. } = &outcome else { unreachable!("matched above") };
            let result = result.clone();
            commit(node, attempted, outcome, attempted.exit_code, history, checkpoints).await?;
            Ok(Ending::Committed { result })
        }
        Ok(Outcome::Failed(verdict)) => unreachable!("work never ends in {verdict}"),
        Err(Stop::LeaseLost) => Err(lease_lost(attempted)),
        Err(Stop::Drain) => {
            let stopped = budget::Ending { verdict: Verdict::Cancelled, may_pass: true };
            let next =
                hand_back(node, attempted, stopped, None, "the node was told to stop", LAST_WRITE_TIMEOUT).await?;
            if next == Next::Release { Ok(Ending::Drained) } else { Err(exhausted(attempted)) }
        }
        Err(Stop::Interrupted(deadline)) => {
            let taken = budget::Ending { verdict: Verdict::SpotInterrupted, may_pass: true };
            // The row must have its time, too.
            let left = deadline.saturating_duration_since(Instant::now());
            let next = hand_back(node, attempted, taken, None, "EC2 takes the instance back", left / 2).await?;
            if next == Next::Release { Ok(Ending::Interrupted) } else { Err(exhausted(attempted)) }
        }
        Err(Stop::Cancelled) => {
            let log = save_log(node, attempted, LAST_WRITE_TIMEOUT).await;
            let history = attempted.history(Verdict::Cancelled, None, log);
            commit(node, attempted, Outcome::Failed(Verdict::Cancelled), None, history, None).await?;
            Ok(Ending::Cancelled)
        }
        Err(Stop::Trouble(trouble)) => {
            let Trouble { ending, exit_code, error } = trouble;
            let next = hand_back(node, attempted, ending, exit_code, &error.to_string(), LAST_WRITE_TIMEOUT).await?;
            let is_workloads = matches!(error, NodeError::WorkloadFailed { .. } | NodeError::TimeLimit);
            if next == Next::Release && is_workloads { Ok(Ending::TryAgain(error)) } else { Err(error) }
        }
    }
}

/// Saves the checkpoint of an attempt that is told to end, within what time there is; without it the next attempt goes
/// on from the save before.
pub(super) async fn save_last(node: &Node, checkpoints: &mut Checkpoints, stop: &Stop) {
    let limit = match stop {
        Stop::Drain => LAST_WRITE_TIMEOUT,
        Stop::Interrupted(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            left.saturating_sub(LAST_WORDS).max(left / 3)
        }
        Stop::LeaseLost | Stop::Cancelled | Stop::Trouble(_) => return,
    };
    match tokio::time::timeout(limit, checkpoints.save(node)).await {
        Ok(Ok(Save::Saved | Save::Unchanged)) => {}
        Ok(Ok(Save::LeaseLost)) => tracing::warn!("the last checkpoint came after another attempt's claim"),
        Ok(Err(error)) => tracing::warn!("the last checkpoint was not saved: {}", words(&error)),
        Err(_) => tracing::warn!("the last checkpoint was not saved within {limit:?}"),
    }
}

/// Fails a task that was claimed although its budget of interruptions is spent: the attempts before this one vanished.
pub(super) async fn give_up(node: &Node, attempted: &Attempted) -> Result<Ending, NodeError> {
    let history = attempted.history(Verdict::Lost, None, None);
    commit(node, attempted, Outcome::Failed(Verdict::Lost), None, history, None).await?;
    Err(exhausted(attempted))
}

fn exhausted(attempted: &Attempted) -> NodeError {
    NodeError::Exhausted { src: attempted.fence.src.to_string(), interruptions: attempted.row.interruptions }
}

/// Hands the task back, or fails it if its budget is spent; with the log saved either way.
async fn hand_back(
    node: &Node,
    attempted: &Attempted,
    ending: budget::Ending,
    exit_code: Option<i32>,
    why: &str,
    log_limit: Duration,
) -> Result<Next, NodeError> {
    let log = save_log(node, attempted, log_limit).await;
    let (row, verdict) = (&attempted.row, ending.verdict);
    let next = decide(ending, row.app_failures, row.interruptions, node.settings.limits);
    match next {
        Next::Fail => {
            tracing::info!(verdict = verdict.as_str(), "task {} failed: {why}", row.src);
            let history = attempted.history(verdict, exit_code, log);
            commit(node, attempted, Outcome::Failed(verdict), exit_code, history, None).await?;
        }
        Next::Release => {
            tracing::info!(verdict = verdict.as_str(), "task {} is handed back: {why}", row.src);
            release(node, attempted, verdict, exit_code, log).await?;
        }
    }
    Ok(next)
}

/// Commits, and removes `spent`, the checkpoints that a result makes useless; then looks whether the mission is over.
async fn commit(
    node: &Node,
    attempted: &Attempted,
    outcome: Outcome,
    exit_code: Option<i32>,
    history: Vec<PastAttempt>,
    spent: Option<&Checkpoints>,
) -> Result<(), NodeError> {
    let input_etag = attempted.input_etag.clone();
    let finish = Finish { outcome, exit_code, input_etag, time_cost_s: attempted.time_cost_s, history };
    let fence = &attempted.fence;
    // An attempt that failed early has not read its mission; without it the end would not be counted.
    let mission = match &attempted.mission {
        Some(mission) => Some(mission.clone()),
        None => insist(node.settings.lease, || mission_of(node, &attempted.row))
            .await
            .map_err(NodeError::cloud("reading the mission"))?,
    };
    let commit = async {
        let commit = insist(node.settings.lease, || node.backend.ledger.commit(fence, mission.as_ref(), &finish));
        commit.await.map_err(NodeError::cloud("committing the task"))
    };
    match step(node, Step::Commit, commit).await? {
        Commit::Lost => return Err(lease_lost(attempted)),
        Commit::Committed => {}
    }
    if let Some(checkpoints) = spent {
        checkpoints.remove(node).await;
    }
    let Some(mission) = mission else { return Ok(()) };
    step(node, Step::Notify, Announcer::of(node).see(&fence.owner, fence.src.as_str(), &mission, None))
        .await
        .map(|_| ())
}

async fn release(
    node: &Node,
    attempted: &Attempted,
    verdict: Verdict,
    exit_code: Option<i32>,
    log: Option<String>,
) -> Result<(), NodeError> {
    debug_assert!(verdict.budget() != Budget::None, "a success is committed, not released");
    let history = attempted.history(verdict, exit_code, log);
    let release =
        Release { verdict, exit_code, time_cost_s: attempted.time_cost_s, history, now: clock::now_rfc3339() };
    let write = async {
        let released = insist(node.settings.lease, || node.backend.ledger.release(&attempted.fence, &release));
        released.await.map_err(NodeError::cloud("handing the task back"))
    };
    if step(node, Step::Release, write).await? { Ok(()) } else { Err(lease_lost(attempted)) }
}

fn lease_lost(attempted: &Attempted) -> NodeError {
    NodeError::LeaseLost { src: attempted.fence.src.to_string(), attempt: attempted.fence.attempt.0 }
}

async fn save_log(node: &Node, attempted: &Attempted, limit: Duration) -> Option<String> {
    log::save(node, attempted.contract.as_ref()?, &attempted.fence, limit).await
}
