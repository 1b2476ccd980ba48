//! Renews and releases a lease.

use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::update_item::{UpdateItemError, UpdateItemOutput};
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};

use super::expression::Expression;
use super::history::{history, takes_no_history};
use super::item::{self, Row, number, text};
use super::key::task_key;
use super::open::open_as;
use super::{Fence, Ledger};
use crate::backend::CloudError;
use crate::domain::ids::AttemptNumber;
use crate::domain::progress::Progress;
use crate::domain::task::{AttemptEnd, Counts, PastAttempt, State, Task};

/// The result of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The lease is renewed.
    Renewed,
    /// The lease is lost: another attempt holds the task, or the task is finished.
    Lost,
    /// The lease is held but was not renewed, because the mission was cancelled.
    Cancelled,
}

/// The end of an attempt that does not finish its task.
#[derive(Clone, Debug)]
pub struct Release {
    /// How the attempt ended.
    pub end: AttemptEnd,
    /// The workload time of all attempts, in milliseconds.
    pub time_cost_ms: u64,
    /// The history, including this attempt.
    pub history: Vec<PastAttempt>,
    /// The counts of failed attempts, including this one.
    pub counts: Counts,
    /// The current time, RFC 3339 UTC. Tasks that wait longer come first.
    pub now: String,
}

impl Ledger {
    /// Renews the lease, and writes progress and time cost, in one fenced write.
    ///
    /// With `stop_if_cancelled` it is refused after the mission was cancelled. A holder that knows the cancellation
    /// renews without it until it has finished.
    ///
    /// The SDK does not repeat it: its back-off would continue while the lease expires, and the next heartbeat has
    /// newer values. A heartbeat that arrives twice increments `beat` twice, which is harmless: an observer reads it as
    /// a renewal.
    ///
    /// # Errors
    /// [`CloudError`]; a refused fence is [`Beat::Lost`].
    pub async fn beat(
        &self,
        fence: &Fence,
        progress: Progress,
        time_cost_ms: u64,
        stop_if_cancelled: bool,
    ) -> Result<Beat, CloudError> {
        let expression = Expression::default()
            .set(item::PROGRESS, text(progress.to_string()))
            .set(item::TIME_COST, text(seconds(time_cost_ms).to_string()))
            .set(item::TIME_COST_MS, number(time_cost_ms))
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
            // Another program wrote a value into `beat` that is not a number: counting continues from its numeric part.
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

    /// Writes the newest complete checkpoint into the row, with the fence. May be repeated.
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

    /// Releases the task: `running → pending`, with the verdict of the finished attempt.
    ///
    /// May be repeated: the second call finds its own release.
    ///
    /// # Errors
    /// [`CloudError`]; a refused fence is `Ok(false)`.
    pub async fn release(&self, fence: &Fence, release: &Release) -> Result<bool, CloudError> {
        match self.release_once(fence, release).await {
            Err(error) if takes_no_history(&error, &release.history) => {
                let end = release.end.without_error();
                self.release_once(fence, &Release { history: Vec::new(), end, ..release.clone() }).await
            }
            released => released,
        }
    }

    async fn release_once(&self, fence: &Fence, release: &Release) -> Result<bool, CloudError> {
        let expression = ending(&release.end, release.time_cost_ms, &release.history)
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

    /// Returns the current row after a refused condition.
    async fn refused_row(&self, error: SdkError<UpdateItemError>, fence: &Fence) -> Result<Option<Task>, CloudError> {
        match self.refused(error)? {
            Some(row) => Ok(Some(Row(&row).task(fence.src.clone()))),
            // Some emulators do not return the row.
            None => self.task(&fence.src).await,
        }
    }

    /// Distinguishes a refused condition, with the current row, from a failed call.
    fn refused(&self, error: SdkError<UpdateItemError>) -> Result<Option<super::key::Item>, CloudError> {
        match error.as_service_error() {
            Some(UpdateItemError::ConditionalCheckFailedException(refusal)) => Ok(refusal.item.clone()),
            _ => Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
        }
    }
}

/// Returns whether the row shows this attempt's own last write.
pub(super) fn is_own(task: &Task, state: State, fence: &Fence) -> bool {
    task.state == state && task.attempt == fence.attempt && task.instance.as_ref() == Some(&fence.owner)
}

/// Adds what every end without a result writes. After a crash the task is suspect.
pub(super) fn counted(expression: Expression, counts: Counts, attempt: AttemptNumber) -> Expression {
    let counted = expression
        .set(item::APP_FAILURES, number(counts.app_failures))
        .set(item::INTERRUPTIONS, number(counts.interruptions));
    match counts.crash {
        Some(crash) => counted.set(item::CRASHES, number(crash.crashes)).set(item::SUSPECT, number(attempt.0)),
        None => counted,
    }
}

/// Returns whole seconds of workload time, rounded: the value of `timeCost`.
pub(super) const fn seconds(time_cost_ms: u64) -> u64 {
    time_cost_ms.saturating_add(500) / 1000
}

/// Adds what every end of an attempt writes.
pub(super) fn ending(end: &AttemptEnd, time_cost_ms: u64, attempts: &[PastAttempt]) -> Expression {
    let expression = described(Expression::default(), end)
        .set(item::TIME_COST, text(seconds(time_cost_ms).to_string()))
        .set(item::TIME_COST_MS, number(time_cost_ms));
    // A history has at least this attempt, unless there is no space for it: then other large attributes are removed.
    if attempts.is_empty() {
        expression.remove(item::HISTORY)
    } else {
        expression.set(item::HISTORY, history(attempts))
    }
}

/// Adds how the last attempt ended. What is not known of it is removed, so that the row does not mix two attempts.
pub(super) fn described(expression: Expression, end: &AttemptEnd) -> Expression {
    let code = |value: Option<i32>| value.map(|value| AttributeValue::N(value.to_string()));
    let values = [
        (item::EXIT_CODE, code(end.exit_code)),
        (item::SIGNAL, code(end.signal)),
        (item::ERROR, end.error.as_ref().map(text)),
    ];
    values.into_iter().fold(expression.set(item::VERDICT, text(end.verdict.as_str())), |expression, (name, value)| {
        match value {
            Some(value) => expression.set(name, value),
            None => expression.remove(name),
        }
    })
}
