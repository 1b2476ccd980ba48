//! The commit: the transaction that finishes a task and updates its mission's tally.

use aws_sdk_dynamodb::types::TransactWriteItem;

use super::expression::Expression;
use super::history::takes_no_history;
use super::item::{self, Row, number, text};
use super::key::task_key;
use super::mission::{mission_as_seen, mission_key};
use super::mission_row::TALLY_NAMES;
use super::open::{closed, failed};
use super::renew::{counted, ending, is_own};
use super::transaction::{TIME_MAX, Transacted, check, tally_key, update, with_time};
use super::{Fence, Ledger};
use crate::backend::CloudError;
use crate::domain::ids::{AttemptNumber, MissionId};
use crate::domain::keys::digest_hex;
use crate::domain::mission::{Mission, open_partition, shard_of};
use crate::domain::task::{AttemptEnd, Counts, PastAttempt, State};
use crate::domain::value::Form;
use crate::domain::verdict::Verdict;

/// The outcome of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The task has a result, which the row names.
    Done {
        /// `s3://bucket/key`.
        result: String,
        /// The result's `ETag`.
        etag: String,
        /// The result's size in bytes.
        bytes: u64,
    },
    /// The task has no result, and its budget is exhausted.
    Failed,
}

/// The end of a task, as the commit writes it.
#[derive(Clone, Debug)]
pub struct Finish {
    /// The outcome.
    pub completion: Completion,
    /// How the attempt ended.
    pub end: AttemptEnd,
    /// `ETag` of the input that was downloaded, if there was one.
    pub input_etag: Option<String>,
    /// The workload time of all attempts, in milliseconds.
    pub time_cost_ms: u64,
    /// The history, including this attempt.
    pub history: Vec<PastAttempt>,
    /// The counts of failed attempts, including this one.
    pub counts: Counts,
    /// The current time, RFC 3339 UTC: since when a failed task is failed.
    pub now: String,
}

/// The result of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// This attempt finished the task, which is counted once.
    Committed,
    /// Another attempt holds or finished the task: nothing was written.
    Lost,
    /// The reason for the end was a cancelled mission, and the mission is not cancelled any more: nothing was written.
    NotCancelled,
}

impl Ledger {
    /// Finishes the task and counts it in the mission's tally, in one transaction, on condition that the attempt holds
    /// the task.
    ///
    /// Idempotent in two ways: by `ClientRequestToken` (10 minutes), and by the condition, which is false after the
    /// attempt's own commit. After a lost answer, the row is read before the transaction is repeated.
    ///
    /// # Errors
    /// [`CloudError`] if the transaction fails and the row does not show that it was applied.
    pub async fn commit(
        &self,
        fence: &Fence,
        mission: Option<&Mission>,
        finish: &Finish,
    ) -> Result<Commit, CloudError> {
        match self.commit_once(fence, mission, finish).await {
            Err(error) if takes_no_history(&error, &finish.history) => {
                let end = finish.end.without_error();
                self.commit_once(fence, mission, &Finish { history: Vec::new(), end, ..finish.clone() }).await
            }
            committed => committed,
        }
    }

    async fn commit_once(
        &self,
        fence: &Fence,
        mission: Option<&Mission>,
        finish: &Finish,
    ) -> Result<Commit, CloudError> {
        let items = self.commit_items(fence, mission, finish)?;
        let shards = mission.map(|mission| (&mission.id, vec![shard_of(&fence.src, mission.tally_shards)]));
        let has_check = items.len() > 2;
        match self.transact(&items, &commit_token(fence, finish), shards).await {
            Ok(Transacted::Written) => Ok(Commit::Committed),
            Ok(Transacted::Refused(refused)) if has_check && refused == [2] => Ok(Commit::NotCancelled),
            Ok(Transacted::Refused(_)) => self.whose(fence, finish).await,
            Err(error) if error.is_ambiguous() && self.whose(fence, finish).await? == Commit::Committed => {
                Ok(Commit::Committed)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces values of other types in tally items by numbers, on condition that they have not changed. Returns
    /// whether there were any. A text is parsed as a number; anything else becomes 0.
    pub(super) async fn repair_tally(&self, mission: &MissionId, shards: &[u32]) -> Result<bool, CloudError> {
        let keys = shards.iter().map(|&shard| tally_key(mission, shard)).collect();
        let mut is_repaired = false;
        for row in self.batch_get(&self.tables.missions, keys).await? {
            let mut expression = Expression::default();
            let mut names = Vec::new();
            for name in TALLY_NAMES {
                let form = Row(&row).form(name);
                if !matches!(form, Form::Absent | Form::Number(_)) {
                    let value = Row(&row).number(name).unwrap_or(0);
                    expression = expression.set(name, number(value)).if_unchanged(name, &form);
                    names.push(name);
                }
            }
            let Some(key) = Row(&row).text(item::MISSION_KEY).filter(|_| !names.is_empty()) else { continue };
            tracing::warn!("repaired tally item {key}: it had no number in {}", names.join(", "));
            self.update_item(&key, &expression).await?;
            is_repaired = true;
        }
        Ok(is_repaired)
    }

    /// Reads whether the row shows this attempt's own commit.
    async fn whose(&self, fence: &Fence, finish: &Finish) -> Result<Commit, CloudError> {
        let state = match finish.completion {
            Completion::Done { .. } => State::Done,
            Completion::Failed => State::Failed,
        };
        let task = self.task(&fence.src).await?;
        Ok(if task.is_some_and(|task| is_own(&task, state, fence)) { Commit::Committed } else { Commit::Lost })
    }

    fn commit_items(
        &self,
        fence: &Fence,
        mission: Option<&Mission>,
        finish: &Finish,
    ) -> Result<Vec<TransactWriteItem>, CloudError> {
        let partition = open_partition(mission.map(|mission| &mission.id), shard_of_task(fence, mission));
        let task = finish_expression(finish, fence.attempt, &partition).fence(fence.attempt);
        let mut items = vec![update(&self.tables.tasks, task_key(&fence.src), &task)?];
        if let Some(mission) = mission {
            let counter = match finish.completion {
                Completion::Done { .. } => item::TRANS_OK,
                Completion::Failed => item::TRANS_FAILED,
            };
            let tally = with_time(
                Expression::default().add(counter, 1).add(item::TALLY_SEQ, 1),
                i64::try_from(finish.time_cost_ms).unwrap_or(TIME_MAX).min(TIME_MAX),
            );
            let key = tally_key(&mission.id, shard_of(&fence.src, mission.tally_shards));
            items.push(update(&self.tables.missions, key, &tally)?);
            if finish.completion == Completion::Failed && finish.end.verdict == Verdict::Cancelled {
                // A redrive may have reinstated the mission. Then the task must not finish for this reason.
                let is_cancelled = Expression::default().when("attribute_exists({})", item::CANCELLED_AT, None);
                items.push(check(&self.tables.missions, mission_key(&mission.id), &is_cancelled)?);
            }
        }
        Ok(items)
    }

    /// Returns the check that the mission's cancellation has not changed since it was read, and that it was not
    /// reopened.
    pub(super) fn check_mission(&self, mission: &Mission) -> Result<TransactWriteItem, CloudError> {
        let same = mission_as_seen(Expression::default(), mission);
        check(&self.tables.missions, mission_key(&mission.id), &same)
    }
}

fn shard_of_task(fence: &Fence, mission: Option<&Mission>) -> u32 {
    mission.map_or(0, |mission| shard_of(&fence.src, mission.tally_shards))
}

fn finish_expression(finish: &Finish, attempt: AttemptNumber, partition: &str) -> Expression {
    let expression = ending(&finish.end, finish.time_cost_ms, &finish.history);
    match &finish.completion {
        // The checkpoints of a finished task are removed. A failed task keeps them, because it may be redriven.
        Completion::Done { result, etag, bytes } => {
            let done = closed(expression)
                .set(item::STATE, text(State::Done.as_str()))
                .remove(item::CHECKPOINT)
                .remove(item::SUSPECT)
                .set(item::PROGRESS, text("100%"))
                .set(item::RESULT, text(result))
                .set(item::RESULT_ETAG, text(etag))
                .set(item::RESULT_BYTES, item::number(*bytes));
            match &finish.input_etag {
                Some(input) => done.set(item::INPUT_ETAG, text(input)),
                None => done.remove(item::INPUT_ETAG),
            }
        }
        // The row has no space: even the index needs some. Such a task is found by a scan.
        Completion::Failed if finish.history.is_empty() => {
            counted(closed(expression).set(item::STATE, text(State::Failed.as_str())), finish.counts, attempt)
        }
        // It stays in the index, so that failed tasks are found without a scan.
        Completion::Failed => counted(failed(expression, partition, &finish.now), finish.counts, attempt),
    }
}

/// Returns a token of 36 characters, DynamoDB's maximum, that is the same for each repetition of this attempt's commit.
fn commit_token(fence: &Fence, finish: &Finish) -> String {
    let history = if finish.history.is_empty() { "without history" } else { "" };
    digest_hex(&["commit", fence.src.as_str(), &fence.attempt.to_string(), fence.owner.as_str(), history], 36)
}
