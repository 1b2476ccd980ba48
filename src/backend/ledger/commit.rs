//! The commit: the one transaction that ends a task and moves its mission's tally.

use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{TransactWriteItem, Update};

use super::expression::Expression;
use super::item::{self, text};
use super::open::closed;
use super::renew::{ending, is_own};
use super::{Fence, Item, Ledger, task_key};
use crate::backend::{CloudError, Kind};
use crate::domain::ids::MissionId;
use crate::domain::keys::digest_hex;
use crate::domain::mission::{Mission, shard_of};
use crate::domain::task::{PastAttempt, State};
use crate::domain::verdict::{Budget, Verdict};

/// How a task ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result, which the row names from now on.
    Done {
        /// `s3://bucket/key`.
        result: String,
        /// The result's `ETag`.
        etag: String,
        /// The result's size in bytes.
        bytes: u64,
    },
    /// Without one: out of budget.
    Failed(Verdict),
}

/// The end of a task, as it is written.
#[derive(Clone, Debug)]
pub struct Finish {
    /// With or without a result.
    pub outcome: Outcome,
    /// The workload's exit code, if it had one.
    pub exit_code: Option<i32>,
    /// `ETag` of the input that was downloaded, if there was one.
    pub input_etag: Option<String>,
    /// Whole seconds of workload time, all attempts together.
    pub time_cost_s: u64,
    /// The history, this attempt included.
    pub history: Vec<PastAttempt>,
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// The task has ended, by this attempt, and is counted once.
    Committed,
    /// Another attempt holds the task or has ended it: nothing was written.
    Lost,
}

/// How often a transaction is tried that others' transactions were in the way of. The SDK's own retries
/// come on top; each of these waits a little longer than the last.
const CONFLICT_ATTEMPTS_MAX: u32 = 8;

impl Ledger {
    /// Ends the task and counts it in the mission's tally, in one transaction, on condition that the attempt holds it.
    ///
    /// Idempotent twice over: by `ClientRequestToken` (10 minutes), and by the condition, which the attempt's own
    /// commit makes false. An answer that was lost is looked for in the row, not repeated blindly.
    ///
    /// # Errors
    /// [`CloudError`] if the transaction fails and the row does not show it as applied.
    pub async fn commit(
        &self,
        fence: &Fence,
        mission: Option<&Mission>,
        finish: &Finish,
    ) -> Result<Commit, CloudError> {
        let items = self.commit_items(fence, mission, finish)?;
        let resource = format!("tables {} and {}", self.tables.tasks, self.tables.missions);
        match self.transact(items, Some(commit_token(fence)), &resource).await {
            Ok(true) => Ok(Commit::Committed),
            Ok(false) => self.whose(fence, finish).await,
            Err(error) if error.is_ambiguous() && self.whose(fence, finish).await? == Commit::Committed => {
                Ok(Commit::Committed)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a transaction, again and again while others' are in its way; `false` if a condition did not hold.
    pub(super) async fn transact(
        &self,
        items: Vec<TransactWriteItem>,
        token: Option<String>,
        resource: &str,
    ) -> Result<bool, CloudError> {
        let mut tries = 0;
        loop {
            let write = self.client.transact_write_items().set_transact_items(Some(items.clone()));
            let Err(error) = write.set_client_request_token(token.clone()).send().await else { return Ok(true) };
            tries += 1;
            match cancelled_by(error.as_service_error()) {
                Some(Cancelled::Condition) => return Ok(false),
                Some(Cancelled::Passing) if tries < CONFLICT_ATTEMPTS_MAX => {
                    tokio::time::sleep(crate::domain::backoff::delay(tries, rand::random())).await;
                }
                _ => return Err(CloudError::sdk("TransactWriteItems", resource, error)),
            }
        }
    }

    /// Reads whether the row shows this attempt's own ending.
    async fn whose(&self, fence: &Fence, finish: &Finish) -> Result<Commit, CloudError> {
        let state = match finish.outcome {
            Outcome::Done { .. } => State::Done,
            Outcome::Failed(_) => State::Failed,
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
        let task = finish_expression(finish).fence(fence.attempt);
        let mut items = vec![update(&self.tables.tasks, task_key(&fence.src), &task)?];
        if let Some(mission) = mission {
            let counter = match finish.outcome {
                Outcome::Done { .. } => item::TRANS_OK,
                Outcome::Failed(_) => item::TRANS_FAILED,
            };
            let tally = Expression::default()
                .add(counter, 1)
                .add(item::TIME_COST, i64::try_from(finish.time_cost_s).unwrap_or(i64::MAX))
                .add(item::TALLY_SEQ, 1);
            let key = tally_key(&mission.id, shard_of(&fence.src, mission.tally_shards));
            items.push(update(&self.tables.missions, key, &tally)?);
        }
        Ok(items)
    }
}

fn finish_expression(finish: &Finish) -> Expression {
    let (verdict, state) = match &finish.outcome {
        Outcome::Done { .. } => (Verdict::Ok, State::Done),
        Outcome::Failed(verdict) => (*verdict, State::Failed),
    };
    let expression = closed(ending(verdict, finish.exit_code, finish.time_cost_s, &finish.history))
        .set(item::STATE, text(state.as_str()));
    match &finish.outcome {
        // Its checkpoints are removed; a failed task keeps them, for it may be redriven.
        Outcome::Done { result, etag, bytes } => {
            let done = expression
                .remove(item::CHECKPOINT)
                .set(item::PROGRESS, text("100%"))
                .set(item::RESULT, text(result))
                .set(item::RESULT_ETAG, text(etag))
                .set(item::RESULT_BYTES, item::number(*bytes));
            match &finish.input_etag {
                Some(input) => done.set(item::INPUT_ETAG, text(input)),
                None => done.remove(item::INPUT_ETAG),
            }
        }
        // A lost attempt was counted by the claim that took it over.
        Outcome::Failed(Verdict::Lost) => expression,
        Outcome::Failed(verdict) if verdict.budget() == Budget::Interruption => expression.add(item::INTERRUPTIONS, 1),
        Outcome::Failed(_) => expression.add(item::APP_FAILURES, 1),
    }
}

/// A token of 36 characters, the most DynamoDB takes, that is the same for every try of this attempt's commit.
fn commit_token(fence: &Fence) -> String {
    digest_hex(&["commit", fence.src.as_str(), &fence.attempt.to_string(), fence.owner.as_str()], 36)
}

/// The key of a tally item: `<mission>#tally#<n>`.
pub(super) fn tally_key(mission: &MissionId, shard: u32) -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(format!("{mission}#tally#{shard}")))])
}

/// One update of a transaction.
pub(super) fn update(table: &str, key: Item, expression: &Expression) -> Result<TransactWriteItem, CloudError> {
    let update = Update::builder()
        .table_name(table)
        .set_key(Some(key))
        .update_expression(expression.update())
        .set_condition_expression(expression.condition_text())
        .set_expression_attribute_names(expression.names())
        .set_expression_attribute_values(expression.values())
        .build()
        .map_err(|error| CloudError::new(Kind::Invalid, "TransactWriteItems", table, error.to_string()))?;
    Ok(TransactWriteItem::builder().update(update).build())
}

/// Why DynamoDB cancelled a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancelled {
    /// A condition did not hold.
    Condition,
    /// A conflict or a throttle, which passes.
    Passing,
}

/// Reads the reasons of a cancelled transaction; `None` if it failed for another reason. A failed condition outweighs
/// the rest.
fn cancelled_by(error: Option<&TransactWriteItemsError>) -> Option<Cancelled> {
    let reasons = match error? {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => cancelled.cancellation_reasons(),
        TransactWriteItemsError::TransactionInProgressException(_) => return Some(Cancelled::Passing),
        _ => return None,
    };
    let has = |code: &str| reasons.iter().any(|reason| reason.code() == Some(code));
    if has("ConditionalCheckFailed") {
        Some(Cancelled::Condition)
    } else if ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"].iter().any(|code| has(code)) {
        Some(Cancelled::Passing)
    } else {
        None
    }
}
