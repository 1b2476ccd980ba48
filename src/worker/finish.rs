//! Steps 6 and 7: write the attempt's end to the row, and count it in the mission's tally.
//!
//! Each write is under the fence. The lease is renewed until that write is sent, however long the log before it takes.

use tokio::time::Instant;

use super::attempt::Attempt;
use super::checkpoint::Checkpoints;
use super::cloud_log::{OutputTail, attempt_event};
use super::outcome::{AttemptFailure, Outcome, StopReason};
use super::result::StoredResult;
use super::retry::retry_transient;
use super::spot::FINAL_WRITES_TIME;
use super::{NodeError, Step, log};
use crate::backend::ledger::{Commit, Completion, Finish, Release};
use crate::clock;
use crate::domain::budget::{Disposition, FailureClass, decide};
use crate::domain::task::{AttemptEnd, Counts, PastAttempt};
use crate::domain::verdict::{Budget, Verdict};

/// An attempt's end, as the row has it.
#[derive(Clone, Debug)]
struct Record {
    end: AttemptEnd,
    history: Vec<PastAttempt>,
    /// The end of the workload's output, if it is sent to CloudWatch Logs.
    output: OutputTail,
}

/// When an attempt's log is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogOrder {
    /// Before the row is written: the row names what is there.
    BeforeRow,
    /// After a row that releases the task: the machine may be gone at any moment, and another node waits for the row.
    AfterRow,
}

/// The result of a commit that did not lose its lease.
enum Committed {
    Yes,
    NotCancelled,
}

impl Attempt {
    /// Writes the attempt's end: commits the task, fails it, or releases it.
    pub(super) async fn finish(&mut self, worked: Result<StoredResult, StopReason>) -> Result<Outcome, NodeError> {
        match worked {
            Ok(result) => self.commit_result(result).await,
            Err(StopReason::LeaseLost) => Err(self.lease_lost()),
            Err(StopReason::Drain) => {
                let why = "the node was asked to stop";
                self.interrupt(Verdict::Cancelled, why, Outcome::Drained, !self.waited_for_slot()).await
            }
            Err(StopReason::Interrupted(_)) => {
                let why = "EC2 takes the instance back";
                self.interrupt(Verdict::SpotInterrupted, why, Outcome::Interrupted, !self.waited_for_slot()).await
            }
            Err(StopReason::HandedBack(why)) => self.interrupt(Verdict::Cancelled, why, Outcome::Drained, false).await,
            Err(StopReason::Cancelled) => self.commit_cancelled().await,
            Err(StopReason::Failed(failure)) => self.fail(failure).await,
        }
    }

    /// Fails a task that was claimed although its budget of interruptions is spent: the attempts before this one left
    /// no entry.
    pub(super) async fn give_up(&mut self) -> Result<Outcome, NodeError> {
        let record = self.record(AttemptEnd::of(Verdict::Lost, &self.exhausted().to_string()), None).await;
        self.commit(Completion::Failed, record).await?;
        Err(self.exhausted())
    }

    /// Saves the checkpoint of an attempt that is stopped, within the time that is left. Without it the next attempt
    /// continues from the save before.
    pub(super) async fn save_last_checkpoint(&mut self, stop: &StopReason) {
        let (node, Some(checkpoints)) = (&self.host.node, &mut self.checkpoints) else { return };
        let limit = match stop {
            StopReason::Drain => node.stopping.upload_limit(),
            StopReason::Interrupted(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                left.saturating_sub(FINAL_WRITES_TIME).max(left / 3)
            }
            StopReason::Failed(_) => return log_unsaved(checkpoints),
            StopReason::LeaseLost | StopReason::Cancelled | StopReason::HandedBack(_) => return,
        };
        match tokio::time::timeout(limit, checkpoints.save_or_note(node)).await {
            Ok(true) => {}
            Ok(false) if checkpoints.unsaved().is_none() => {
                tracing::warn!("the last checkpoint came after another attempt's claim");
            }
            Ok(false) => log_unsaved(checkpoints),
            Err(_) => tracing::warn!("the last checkpoint was not saved within {limit:?}"),
        }
    }

    async fn commit_result(&mut self, result: StoredResult) -> Result<Outcome, NodeError> {
        let StoredResult { uri, etag, bytes } = result;
        let log = self.save_log().await;
        let record = self.record(AttemptEnd { exit_code: self.exit_code, ..AttemptEnd::ok() }, log).await;
        self.commit(Completion::Done { result: uri.clone(), etag, bytes }, record).await?;
        Ok(Outcome::Committed { result: uri })
    }

    /// Releases the task after an interruption, or fails it if its budget is spent.
    async fn interrupt(
        &mut self,
        verdict: Verdict,
        why: &str,
        outcome: Outcome,
        is_counted: bool,
    ) -> Result<Outcome, NodeError> {
        let class = FailureClass { verdict, is_transient: true, is_counted };
        match self.release_or_fail(class, AttemptEnd::of(verdict, why), LogOrder::AfterRow).await? {
            Disposition::Release => Ok(outcome),
            Disposition::Fail => Err(self.exhausted()),
        }
    }

    /// Ends the task because its mission is cancelled.
    async fn commit_cancelled(&mut self) -> Result<Outcome, NodeError> {
        let log = self.save_log().await;
        let record = self.record(AttemptEnd::of(Verdict::Cancelled, "the mission was cancelled"), log).await;
        match self.commit(Completion::Failed, record.clone()).await? {
            Committed::Yes => Ok(Outcome::Cancelled),
            // The mission was reinstated since the node found it cancelled: the task is pending again.
            Committed::NotCancelled => {
                self.release(record, self.row.counts_after(Verdict::Ok)).await?;
                Ok(Outcome::Drained)
            }
        }
    }

    async fn fail(&mut self, failure: AttemptFailure) -> Result<Outcome, NodeError> {
        let end = failure.end();
        let AttemptFailure { class, error, .. } = failure;
        let disposition = self.release_or_fail(class, end, LogOrder::BeforeRow).await?;
        if !class.is_counted {
            return Ok(Outcome::NoRoom(error));
        }
        let is_workloads = matches!(error, NodeError::WorkloadFailed { .. } | NodeError::TimeLimit);
        if disposition == Disposition::Release && is_workloads { Ok(Outcome::TryAgain(error)) } else { Err(error) }
    }

    /// Releases the task, or fails it if its budget is spent. Saves the log either way.
    async fn release_or_fail(
        &mut self,
        class: FailureClass,
        end: AttemptEnd,
        order: LogOrder,
    ) -> Result<Disposition, NodeError> {
        let (verdict, why) = (class.verdict, end.error.clone().unwrap_or_default());
        let limits = self.host.node.settings.limits;
        let disposition = decide(class, self.row.app_failures, self.row.interruptions, limits);
        let is_first = order == LogOrder::BeforeRow || disposition == Disposition::Fail;
        let log = if is_first { self.save_log().await } else { self.expected_log().await };
        match disposition {
            Disposition::Fail => {
                tracing::info!(verdict = verdict.as_str(), "task {} failed: {why}", self.row.src);
                let record = self.record(end, log).await;
                self.commit(Completion::Failed, record).await?;
            }
            Disposition::Release => {
                tracing::info!(verdict = verdict.as_str(), "task {} is released: {why}", self.row.src);
                let record = self.record(end, log).await;
                let counts = self.row.counts_after(if class.is_counted { verdict } else { Verdict::Ok });
                self.release(record, counts).await?;
            }
        }
        if !is_first && let Some(env) = &self.env {
            let node = &self.host.node;
            log::save(node, env, &self.fence, node.stopping.write_limit()).await;
        }
        Ok(disposition)
    }

    async fn record(&self, end: AttemptEnd, log: Option<String>) -> Record {
        let peak_memory = self.env.as_ref().and_then(|env| env.peak_memory());
        let end = AttemptEnd { peak_memory, ..end };
        let output = match (&self.host.node.settings.log, &self.env) {
            (Some(log), Some(env)) => OutputTail::of(&log::read(env).await, log.output_bytes),
            _ => OutputTail::default(),
        };
        Record { history: self.history(end.clone(), log).await, end, output }
    }

    /// Commits the end of the task, and removes the checkpoints that a result makes useless. Notes the mission that has
    /// one task less.
    async fn commit(&mut self, completion: Completion, record: Record) -> Result<Committed, NodeError> {
        let (node, fence) = (&self.host.node, &self.fence);
        let result = match &completion {
            Completion::Done { result, .. } => Some(result.clone()),
            Completion::Failed => None,
        };
        let Record { end, history, output } = record;
        let finish = Finish {
            completion,
            counts: self.row.counts_after(end.verdict),
            end: end.clone(),
            input_etag: self.input_etag.clone(),
            time_cost_ms: self.time_cost_ms,
            history,
            now: clock::now_rfc3339(),
        };
        // An attempt that failed early has not read its mission; without it the end would not be counted.
        let mission = match &self.mission {
            Some(mission) => Some(mission.clone()),
            None => retry_transient(node.settings.lease, || node.mission_of(&self.row))
                .await
                .map_err(NodeError::cloud("reading the mission"))?,
        };
        self.heartbeat.stop().await;
        let commit = async {
            let commit =
                retry_transient(node.settings.lease, || node.backend.ledger.commit(fence, mission.as_ref(), &finish));
            commit.await.map_err(NodeError::cloud("committing the task"))
        };
        match node.step(Step::Commit, commit).await? {
            Commit::Lost => return Err(self.lease_lost()),
            Commit::NotCancelled => return Ok(Committed::NotCancelled),
            Commit::Committed => {}
        }
        self.send_event(&end, result.as_deref(), &output);
        if result.is_some()
            && let Some(checkpoints) = &self.checkpoints
        {
            checkpoints.remove(node).await;
        }
        // A workload may have filled the disk; and the next steps may take long.
        self.remove_folder().await;
        self.counted_in = mission;
        Ok(Committed::Yes)
    }

    /// Releases the task: its row is `pending` again.
    async fn release(&mut self, record: Record, counts: Counts) -> Result<(), NodeError> {
        let Record { end, history, output } = record;
        debug_assert!(end.verdict.budget() != Budget::None, "a success is committed, not released");
        let node = &self.host.node;
        let now = clock::now_rfc3339();
        let release = Release { end: end.clone(), time_cost_ms: self.time_cost_ms, history, counts, now };
        self.heartbeat.stop().await;
        let write = async {
            let released = retry_transient(node.settings.lease, || node.backend.ledger.release(&self.fence, &release));
            released.await.map_err(NodeError::cloud("releasing the task"))
        };
        if !node.step(Step::Release, write).await? {
            return Err(self.lease_lost());
        }
        self.send_event(&end, None, &output);
        Ok(())
    }

    /// Adds the attempt's end, which is in the row now, to the log in CloudWatch Logs.
    fn send_event(&self, end: &AttemptEnd, result: Option<&str>, output: &OutputTail) {
        if let Some(log) = &self.host.node.settings.log {
            log.queue.push(&attempt_event(self, end, result, output));
        }
    }

    fn exhausted(&self) -> NodeError {
        NodeError::Exhausted { src: self.fence.src.to_string(), interruptions: self.row.interruptions }
    }

    fn lease_lost(&self) -> NodeError {
        NodeError::LeaseLost { src: self.fence.src.to_string(), attempt: self.fence.attempt.0 }
    }

    /// Saves the log before the row is written, unless a drain's time for uploads is over: the rest is the row's.
    async fn save_log(&self) -> Option<String> {
        let (node, env) = (&self.host.node, self.env.as_ref()?);
        // A put that is dropped has not been answered, and no row names that log.
        tokio::select! {
            log = log::save(node, env, &self.fence, node.stopping.write_limit()) => log,
            () = node.stopping.uploads_are_over() => None,
        }
    }

    /// Returns where the log will be that is saved after the row.
    async fn expected_log(&self) -> Option<String> {
        log::uri_if_any(&self.host.node, self.env.as_ref()?, &self.fence).await
    }
}

/// Logs that the next attempt continues from an older checkpoint, or from the start, and why.
fn log_unsaved(checkpoints: &Checkpoints) {
    if let Some(cause) = checkpoints.unsaved() {
        tracing::warn!("the attempt ends without a checkpoint of its last state: {cause}");
    }
}
