//! Renewing and releasing a lease.

use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::update_item::{UpdateItemError, UpdateItemOutput};
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};

use super::expression::Expression;
use super::history::takes_no_history;
use super::item::{self, Row, history, number, text};
use super::key::task_key;
use super::open::open_as;
use super::{Fence, Ledger};
use crate::backend::CloudError;
use crate::domain::ids::Attempt;
use crate::domain::progress::Progress;
use crate::domain::task::{Counts, PastAttempt, State, Task};
use crate::domain::verdict::Verdict;

/// What became of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The lease is renewed.
    Renewed,
    /// The lease is lost: another attempt holds the task, or it has ended.
    Lost,
    /// The lease is ours and was not renewed, for the mission was cancelled.
    Cancelled,
}

/// Why an attempt ends without an end for its task.
#[derive(Clone, Debug)]
pub struct Release {
    /// The verdict.
    pub verdict: Verdict,
    /// The workload's exit code, if it had one.
    pub exit_code: Option<i32>,
    /// Whole seconds of workload time, all attempts together.
    pub time_cost_s: u64,
    /// The history, this attempt included.
    pub history: Vec<PastAttempt>,
    /// The counts of bad endings, this one included.
    pub counts: Counts,
    /// Now, RFC 3339 UTC: tasks that wait longer come first.
    pub now: String,
}

impl Ledger {
    /// Renews the lease and reports progress and time cost, in one fenced write.
    ///
    /// With `stop_if_cancelled` it is refused once the mission was cancelled; a holder that knows renews without, until its end.
    ///
    /// Sent once, not repeated by the SDK: its back-off would sleep while the lease runs out, and the next beat says more.
    /// One that arrives twice counts `beat` up twice, which an observer reads as what it is: a sign of life.
    ///
    /// # Errors
    /// [`CloudError`]; a refused fence is [`Beat::Lost`].
    pub async fn beat(
        &self,
        fence: &Fence,
        progress: Progress,
        time_cost_s: u64,
        stop_if_cancelled: bool,
    ) -> Result<Beat, CloudError> {
        let expression = Expression::default()
            .set(item::PROGRESS, text(progress.to_string()))
            .set(item::TIME_COST, text(time_cost_s.to_string()))
            .set(item::INSTANCE, text(fence.owner.as_str()))
            .fence(fence.attempt);
        let expression = if stop_if_cancelled {
            expression.when("attribute_not_exists({})", item::CANCELLED, None)
        } else {
            expression
        };
        let counted = expression.clone().add(item::BEAT, 1);
        let mut sent = self.update_task(fence, &counted, RetryConfig::disabled().into()).await;
        if let Err(error) = &sent
            && error.code() == Some("ValidationException")
            && let Some(row) = self.task(&fence.src).await?
        {
            // Somebody has written something into `beat` that is no number: it is counted on from what can be read of it.
            let counted = expression.set(item::BEAT, number(row.beat + 1));
            sent = self.update_task(fence, &counted, RetryConfig::disabled().into()).await;
        }
        match sent {
            Ok(_) => Ok(Beat::Renewed),
            Err(error) => {
                let row = self.refused_row(error, fence).await?;
                let is_held = row.as_ref().and_then(Task::lease).is_some_and(|lease| lease.attempt == fence.attempt);
                let is_cancelled = row.is_some_and(|row| row.cancelled);
                Ok(if is_held && is_cancelled { Beat::Cancelled } else { Beat::Lost })
            }
        }
    }

    /// Names the newest complete checkpoint in the row, under the fence. May be called twice.
    ///
    /// # Errors
    /// [`CloudError`]; a refused fence is [`Beat::Lost`].
    pub async fn name_checkpoint(&self, fence: &Fence, uri: &str) -> Result<Beat, CloudError> {
        let expression = Expression::default().set(item::CHECKPOINT, text(uri)).fence(fence.attempt);
        match self.update_task(fence, &expression, None).await {
            Ok(_) => Ok(Beat::Renewed),
            Err(error) => self.refused(error).map(|_| Beat::Lost),
        }
    }

    /// Hands the task back: `running → pending`, with the verdict of the attempt that ended.
    ///
    /// May be called twice: the second finds its own release and says so.
    ///
    /// # Errors
    /// [`CloudError`]; a refused fence is `Ok(false)`.
    pub async fn release(&self, fence: &Fence, release: &Release) -> Result<bool, CloudError> {
        match self.release_once(fence, release).await {
            Err(error) if takes_no_history(&error, &release.history) => {
                self.release_once(fence, &Release { history: Vec::new(), ..release.clone() }).await
            }
            released => released,
        }
    }

    async fn release_once(&self, fence: &Fence, release: &Release) -> Result<bool, CloudError> {
        let expression = ending(release.verdict, release.exit_code, release.time_cost_s, &release.history)
            .set(item::STATE, text(State::Pending.as_str()))
            .set(item::OPEN_AS, text(open_as(State::Pending, &release.now)));
        let expression = counted(expression, release.counts, fence.attempt).fence(fence.attempt);
        match self.update_task(fence, &expression, None).await {
            Ok(_) => Ok(true),
            Err(error) => {
                let row = self.refused_row(error, fence).await?;
                Ok(row.is_some_and(|row| is_own(&row, State::Pending, fence)))
            }
        }
    }

    async fn update_task(
        &self,
        fence: &Fence,
        expression: &Expression,
        retries: Option<RetryConfig>,
    ) -> Result<UpdateItemOutput, SdkError<UpdateItemError>> {
        let mut own = Builder::new();
        own.set_retry_config(retries);
        expression
            .on(self.client.update_item().table_name(&self.tables.tasks).set_key(Some(task_key(&fence.src))))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .customize()
            .config_override(own)
            .send()
            .await
    }

    /// The row that a condition was refused for, as it is.
    async fn refused_row(&self, error: SdkError<UpdateItemError>, fence: &Fence) -> Result<Option<Task>, CloudError> {
        match self.refused(error)? {
            Some(row) => Ok(Some(Row(&row).task(fence.src.clone()))),
            // Not every emulator sends the row along.
            None => self.task(&fence.src).await,
        }
    }

    /// Tells a refused condition, with the row as it is, from a failed call.
    fn refused(&self, error: SdkError<UpdateItemError>) -> Result<Option<super::key::Item>, CloudError> {
        match error.as_service_error() {
            Some(UpdateItemError::ConditionalCheckFailedException(refusal)) => Ok(refusal.item.clone()),
            _ => Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
        }
    }
}

/// Returns whether a row shows what this very attempt wrote last.
pub(super) fn is_own(task: &Task, state: State, fence: &Fence) -> bool {
    task.state == state && task.attempt == fence.attempt && task.instance.as_ref() == Some(&fence.owner)
}

/// What every ending without a result writes. After a crash the task is suspect.
pub(super) fn counted(expression: Expression, counts: Counts, attempt: Attempt) -> Expression {
    let counted = expression
        .set(item::APP_FAILURES, number(counts.app_failures))
        .set(item::INTERRUPTIONS, number(counts.interruptions));
    match counts.crash {
        Some(crash) => counted
            .set(item::CRASHES, number(crash.crashes))
            .set(item::SUSPECT, number(attempt.0))
            .set(item::ERROR, text(crash.to_string())),
        None => counted.remove(item::ERROR),
    }
}

/// What every ending of an attempt writes.
pub(super) fn ending(
    verdict: Verdict,
    exit_code: Option<i32>,
    time_cost_s: u64,
    attempts: &[PastAttempt],
) -> Expression {
    let mut expression = Expression::default()
        .set(item::VERDICT, text(verdict.as_str()))
        .set(item::TIME_COST, text(time_cost_s.to_string()));
    // A history has this attempt at least, unless there is no room for one: what takes room goes then.
    expression = if attempts.is_empty() {
        expression.remove(item::HISTORY)
    } else {
        expression.set(item::HISTORY, history(attempts))
    };
    if let Some(code) = exit_code {
        expression = expression.set(item::EXIT_CODE, AttributeValue::N(code.to_string()));
    }
    expression
}
