//! Steps 6 to 8: whatever the attempt came to, the row says so, the tally counts it, and people hear of it.

use std::sync::Arc;

use tokio::time::Instant;

use super::checkpoint::Checkpoints;
use super::disk::Place;
use super::heartbeat::Heartbeat;
use super::node::{mission_of, step};
use super::outcome::{AttemptFailure, Outcome, StopReason};
use super::retry::{or_drained, retry_transient};
use super::spot::LAST_WORDS;
use super::{CompletionNotifier, Node, NodeError, Step, log};
use crate::backend::ledger::{Commit, Completion, Fence, Finish, Release};
use crate::clock;
use crate::domain::budget::{Disposition, FailureClass, decide};
use crate::domain::ids::{Attempt, InstanceId, SrcId};
use crate::domain::mission::Mission;
use crate::domain::task::{Counts, PastAttempt, Task};
use crate::domain::verdict::{Budget, Verdict};
use crate::workload::WorkloadEnv;

/// What is known of an attempt at its end.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) fence: Fence,
    /// The row as the claim left it.
    pub(super) row: Box<Task>,
    pub(super) started: String,
    pub(super) mission: Option<Mission>,
    pub(super) env: Option<Arc<WorkloadEnv>>,
    /// `ETag` of the input, once it is downloaded.
    pub(super) input_etag: Option<String>,
    pub(super) exit_code: Option<i32>,
    pub(super) time_cost_s: u64,
    /// Whose attempt this one took over, and where its log is.
    pub(super) lost: (Option<InstanceId>, Option<String>),
    /// Keeps its folder known, for whom the disk is full of.
    pub(super) place: Option<Place>,
}

impl Attempted {
    pub(super) const fn new(fence: Fence, row: Box<Task>, started: String, taken_from: Option<InstanceId>) -> Self {
        let lost = (taken_from, None);
        Self {
            fence,
            row,
            started,
            mission: None,
            env: None,
            input_etag: None,
            exit_code: None,
            time_cost_s: 0,
            lost,
            place: None,
        }
    }

    /// The attempt before this one, if it left no word.
    pub(super) fn lost_before(&self) -> Option<Attempt> {
        let before = Attempt(self.fence.attempt.0.saturating_sub(1));
        let last = self.row.history.last().map_or(Attempt(0), |past| past.attempt);
        (last < before).then_some(before)
    }

    /// Removes the attempt's folder: off this thread, for it may have very many files. A drain whose time is over leaves
    /// the rest to the next process.
    pub(super) async fn clean(&self, node: &Node) {
        let Some(env) = self.env.clone() else { return };
        let (folder, stop) = (env.folder().to_owned(), node.stopping.token().clone());
        let removed = tokio::task::spawn_blocking(move || env.remove_unless(&stop)).await;
        if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
            tracing::warn!("the folder {} is left behind: {error}", folder.display());
        }
    }

    /// Where the log of the attempt before this one is, if that left no word.
    pub(super) async fn lost_log(&self, node: &Node) -> Option<String> {
        let bucket = node.settings.result_bucket.as_deref();
        log::of_lost(&node.backend, bucket, &self.fence.src, self.lost_before()?).await
    }

    /// The task's history with this attempt at its end; an attempt before it that left no word is entered as lost.
    async fn history(
        &self,
        node: &Node,
        verdict: Verdict,
        exit_code: Option<i32>,
        log: Option<String>,
    ) -> Vec<PastAttempt> {
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
                // An attempt that ended early has not looked for it.
                log: if self.lost.1.is_some() { self.lost.1.clone() } else { self.lost_log(node).await },
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

/// Ends the attempt: commit, fail, or release, each under the fence. The lease is renewed until that write is sent, however long
/// the log takes before it.
pub(super) async fn finish(
    node: &Node,
    attempted: &Attempted,
    outcome: Result<Completion, StopReason>,
    checkpoints: Option<&Checkpoints>,
    heartbeat: &mut Heartbeat,
) -> Result<Outcome, NodeError> {
    match outcome {
        Ok(outcome @ Completion::Done { .. }) => {
            let log = save_log(node, attempted).await;
            let history = attempted.history(node, Verdict::Ok, attempted.exit_code, log).await;
            let Completion::Done { result, .. } = &outcome else { unreachable!("matched above") };
            let result = result.clone();
            commit(node, attempted, outcome, attempted.exit_code, history, checkpoints, heartbeat).await?;
            Ok(Outcome::Committed { result })
        }
        Ok(Completion::Failed(verdict)) => unreachable!("work never ends in {verdict}"),
        Err(StopReason::LeaseLost) => Err(lease_lost(attempted)),
        Err(StopReason::Drain) => {
            let stopped = FailureClass { verdict: Verdict::Cancelled, is_transient: true, is_counted: true };
            let why = "the node was told to stop";
            let next = hand_back(node, attempted, stopped, None, why, Log::After, heartbeat).await?;
            if next == Disposition::Release { Ok(Outcome::Drained) } else { Err(exhausted(attempted)) }
        }
        Err(StopReason::Interrupted(_)) => {
            let taken = FailureClass { verdict: Verdict::SpotInterrupted, is_transient: true, is_counted: true };
            let why = "EC2 takes the instance back";
            let next = hand_back(node, attempted, taken, None, why, Log::After, heartbeat).await?;
            if next == Disposition::Release { Ok(Outcome::Interrupted) } else { Err(exhausted(attempted)) }
        }
        Err(StopReason::Cancelled) => {
            let log = save_log(node, attempted).await;
            let history = attempted.history(node, Verdict::Cancelled, None, log).await;
            let failed = Completion::Failed(Verdict::Cancelled);
            match commit(node, attempted, failed, None, history.clone(), None, heartbeat).await? {
                Committed::Yes => Ok(Outcome::Cancelled),
                // The mission was reinstated since the node found it cancelled: the task waits again.
                Committed::NotCancelled => {
                    let counts = attempted.row.counts_after(Verdict::Ok);
                    release(node, attempted, Verdict::Cancelled, None, history, counts, heartbeat).await?;
                    Ok(Outcome::Drained)
                }
            }
        }
        Err(StopReason::Failed(failure)) => {
            let AttemptFailure { class, exit_code, error } = failure;
            let why = error.to_string();
            let next = hand_back(node, attempted, class, exit_code, &why, Log::Before, heartbeat).await?;
            if !class.is_counted {
                return Ok(Outcome::NoRoom(error));
            }
            let is_workloads = matches!(error, NodeError::WorkloadFailed { .. } | NodeError::TimeLimit);
            if next == Disposition::Release && is_workloads { Ok(Outcome::TryAgain(error)) } else { Err(error) }
        }
    }
}

/// Saves the checkpoint of an attempt that is told to end, within what time there is; without it the next attempt goes
/// on from the save before.
pub(super) async fn save_last(node: &Node, checkpoints: &mut Checkpoints, stop: &StopReason) {
    let limit = match stop {
        StopReason::Drain => node.stopping.upload_limit(),
        StopReason::Interrupted(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            left.saturating_sub(LAST_WORDS).max(left / 3)
        }
        StopReason::Failed(_) => return say_unsaved(checkpoints),
        StopReason::LeaseLost | StopReason::Cancelled => return,
    };
    match tokio::time::timeout(limit, checkpoints.save_or_note(node)).await {
        Ok(true) => {}
        Ok(false) if checkpoints.unsaved().is_none() => {
            tracing::warn!("the last checkpoint came after another attempt's claim");
        }
        Ok(false) => say_unsaved(checkpoints),
        Err(_) => tracing::warn!("the last checkpoint was not saved within {limit:?}"),
    }
}

/// Says at the attempt's end that the next one goes on from an older checkpoint, or from the start, and why.
fn say_unsaved(checkpoints: &Checkpoints) {
    if let Some(cause) = checkpoints.unsaved() {
        tracing::warn!("the attempt ends without a checkpoint of its last state: {cause}");
    }
}

/// Fails a task that was claimed although its budget of interruptions is spent: the attempts before this one vanished.
pub(super) async fn give_up(
    node: &Node,
    attempted: &Attempted,
    heartbeat: &mut Heartbeat,
) -> Result<Outcome, NodeError> {
    let history = attempted.history(node, Verdict::Lost, None, None).await;
    commit(node, attempted, Completion::Failed(Verdict::Lost), None, history, None, heartbeat).await?;
    Err(exhausted(attempted))
}

fn exhausted(attempted: &Attempted) -> NodeError {
    NodeError::Exhausted { src: attempted.fence.src.to_string(), interruptions: attempted.row.interruptions }
}

/// Hands the task back, or fails it if its budget is spent; with the log saved either way.
async fn hand_back(
    node: &Node,
    attempted: &Attempted,
    class: FailureClass,
    exit_code: Option<i32>,
    why: &str,
    log: Log,
    heartbeat: &mut Heartbeat,
) -> Result<Disposition, NodeError> {
    let (row, verdict) = (&attempted.row, class.verdict);
    let next = decide(class, row.app_failures, row.interruptions, node.settings.limits);
    let is_first = log == Log::Before || next == Disposition::Fail;
    let log = if is_first { save_log(node, attempted).await } else { will_have_log(node, attempted).await };
    match next {
        Disposition::Fail => {
            tracing::info!(verdict = verdict.as_str(), "task {} failed: {why}", row.src);
            let history = attempted.history(node, verdict, exit_code, log).await;
            commit(node, attempted, Completion::Failed(verdict), exit_code, history, None, heartbeat).await?;
        }
        Disposition::Release => {
            tracing::info!(verdict = verdict.as_str(), "task {} is handed back: {why}", row.src);
            let history = attempted.history(node, verdict, exit_code, log).await;
            let counts = row.counts_after(if class.is_counted { verdict } else { Verdict::Ok });
            release(node, attempted, verdict, exit_code, history, counts, heartbeat).await?;
        }
    }
    if !is_first && let Some(env) = &attempted.env {
        log::save(node, env, &attempted.fence, node.stopping.write_limit()).await;
    }
    Ok(next)
}

/// When an attempt's log is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    /// Before the row is written: the row names what is there.
    Before,
    /// After a row that hands the task back: the machine may be gone at any moment, and another node waits for the row.
    After,
}

/// Commits, and removes `spent`, the checkpoints that a result makes useless; then looks whether the mission is over.
async fn commit(
    node: &Node,
    attempted: &Attempted,
    outcome: Completion,
    exit_code: Option<i32>,
    history: Vec<PastAttempt>,
    spent: Option<&Checkpoints>,
    heartbeat: &mut Heartbeat,
) -> Result<Committed, NodeError> {
    let counts = match &outcome {
        Completion::Done { .. } => attempted.row.counts_after(Verdict::Ok),
        Completion::Failed(verdict) => attempted.row.counts_after(*verdict),
    };
    let input_etag = attempted.input_etag.clone();
    let finish =
        Finish { completion: outcome, exit_code, input_etag, time_cost_s: attempted.time_cost_s, history, counts };
    let fence = &attempted.fence;
    // An attempt that failed early has not read its mission; without it the end would not be counted.
    let mission = match &attempted.mission {
        Some(mission) => Some(mission.clone()),
        None => retry_transient(node.settings.lease, || mission_of(node, &attempted.row))
            .await
            .map_err(NodeError::cloud("reading the mission"))?,
    };
    heartbeat.stop().await;
    let commit = async {
        let commit =
            retry_transient(node.settings.lease, || node.backend.ledger.commit(fence, mission.as_ref(), &finish));
        commit.await.map_err(NodeError::cloud("committing the task"))
    };
    match step(node, Step::Commit, commit).await? {
        Commit::Lost => return Err(lease_lost(attempted)),
        Commit::NotCancelled => return Ok(Committed::NotCancelled),
        Commit::Committed => {}
    }
    if let Some(checkpoints) = spent {
        checkpoints.remove(node).await;
    }
    // A workload may have filled the disk; and what comes now may take long.
    attempted.clean(node).await;
    if let Some(mission) = mission {
        notify(node, &fence.owner, &fence.src, &mission).await?;
    }
    Ok(Committed::Yes)
}

/// Looks whether the mission is over, now that a task of it has ended. A drain leaves that to others if a service is away, or
/// if it takes too long: a sweep sees to it, and to a publisher that is broken off.
pub(super) async fn notify(node: &Node, me: &InstanceId, src: &SrcId, mission: &Mission) -> Result<(), NodeError> {
    let notifier = CompletionNotifier::of(node);
    let seen = tokio::select! {
        seen = step(node, Step::Notify, notifier.notify_if_complete(me, src.as_str(), mission, false)) => seen,
        () = node.stopping.writes_are_over() => {
            tracing::warn!("whether mission {} is over is left to others: the node drains", mission.id);
            return Ok(());
        }
    };
    or_drained(node, seen).map(drop)
}

/// What became of a commit that did not lose its lease.
enum Committed {
    Yes,
    NotCancelled,
}

async fn release(
    node: &Node,
    attempted: &Attempted,
    verdict: Verdict,
    exit_code: Option<i32>,
    history: Vec<PastAttempt>,
    counts: Counts,
    heartbeat: &mut Heartbeat,
) -> Result<(), NodeError> {
    debug_assert!(verdict.budget() != Budget::None, "a success is committed, not released");
    let release =
        Release { verdict, exit_code, time_cost_s: attempted.time_cost_s, history, counts, now: clock::now_rfc3339() };
    heartbeat.stop().await;
    let write = async {
        let released = retry_transient(node.settings.lease, || node.backend.ledger.release(&attempted.fence, &release));
        released.await.map_err(NodeError::cloud("handing the task back"))
    };
    if step(node, Step::Release, write).await? { Ok(()) } else { Err(lease_lost(attempted)) }
}

fn lease_lost(attempted: &Attempted) -> NodeError {
    NodeError::LeaseLost { src: attempted.fence.src.to_string(), attempt: attempted.fence.attempt.0 }
}

/// Saves the log before the row is written; a drain leaves the row its time.
async fn save_log(node: &Node, attempted: &Attempted) -> Option<String> {
    let env = attempted.env.as_ref()?;
    // A put that is dropped has not been answered, and the log is then named by nobody.
    tokio::select! {
        log = log::save(node, env, &attempted.fence, node.stopping.write_limit()) => log,
        () = node.stopping.uploads_are_over() => None,
    }
}

/// Returns where the log will be that is saved after the row.
async fn will_have_log(node: &Node, attempted: &Attempted) -> Option<String> {
    log::place(node, attempted.env.as_ref()?, &attempted.fence).await
}
