//! Transactions: their items, and their results.

use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{ConditionCheck, TransactWriteItem, Update};

use super::client::Ledger;
use super::expression::Expression;
use super::item::{self, text};
use super::key::Item;
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{MissionId, TALLY};

/// The maximum number of attempts of a transaction, or of the update of a mission's row, that conflicts with other
/// transactions. The SDK's own retries are in addition; each attempt waits a little longer than the last.
pub(super) const CONFLICT_ATTEMPTS_MAX: u32 = 8;

impl Ledger {
    /// Writes a transaction, and retries while it conflicts with others. `token` makes a repetition after a lost answer
    /// harmless. `tallies` are the tally items that it adds to: one with a value that is not a number is repaired.
    pub(super) async fn transact(
        &self,
        items: &[TransactWriteItem],
        token: &str,
        tallies: Option<(&MissionId, Vec<u32>)>,
    ) -> Result<Transacted, CloudError> {
        let resource = format!("tables {} and {}", self.tables.tasks, self.tables.missions);
        let (mut tries, mut is_repaired) = (0, false);
        loop {
            let write = self.client.transact_write_items().set_transact_items(Some(items.to_vec()));
            let Err(error) = write.client_request_token(token).send().await else { return Ok(Transacted::Written) };
            tries += 1;
            let cancelled = cancelled_by(error.as_service_error());
            let error = CloudError::sdk("TransactWriteItems", &resource, error);
            match cancelled {
                Some(Cancelled::Condition(refused)) => return Ok(Transacted::Refused(refused)),
                Some(Cancelled::Transient) if tries < CONFLICT_ATTEMPTS_MAX => {
                    tokio::time::sleep(crate::domain::backoff::delay(tries, rand::random())).await;
                }
                Some(Cancelled::Transient) => return Err(error),
                Some(Cancelled::Invalid) | None => {
                    let (Kind::Invalid, false, Some((mission, shards))) = (error.kind, is_repaired, &tallies) else {
                        return Err(error);
                    };
                    is_repaired = true;
                    if !self.repair_tally(mission, shards).await? {
                        return Err(error);
                    }
                }
            }
        }
    }
}

/// Returns the key of a tally item: `<mission>#tally#<n>`.
pub(super) fn tally_key(mission: &MissionId, shard: u32) -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(format!("{mission}{TALLY}{shard}")))])
}

/// The longest workload time that is counted, in milliseconds: rows may be edited, and a sum must not overflow.
pub(super) const TIME_MAX: i64 = i64::MAX / 1_000_000;

/// Adds a workload time to a tally item, or subtracts a negative one: in milliseconds, and in whole seconds, which
/// earlier versions read.
pub(super) fn with_time(expression: Expression, time_cost_ms: i64) -> Expression {
    expression
        .add(item::TIME_COST, (time_cost_ms + time_cost_ms.signum() * 500) / 1000)
        .add(item::TIME_COST_MS, time_cost_ms)
}

/// Returns a token for a transaction that is not sent before, in DynamoDB's length of at most 36 characters.
#[must_use]
pub fn fresh_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Returns an update of one item.
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

/// Returns a condition on an item that the transaction does not change.
pub(super) fn check(table: &str, key: Item, expression: &Expression) -> Result<TransactWriteItem, CloudError> {
    let check = ConditionCheck::builder()
        .table_name(table)
        .set_key(Some(key))
        .set_condition_expression(expression.condition_text())
        .set_expression_attribute_names(expression.names())
        .set_expression_attribute_values(expression.values())
        .build()
        .map_err(|error| CloudError::new(Kind::Invalid, "TransactWriteItems", table, error.to_string()))?;
    Ok(TransactWriteItem::builder().condition_check(check).build())
}

/// The result of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Transacted {
    /// Everything was written.
    Written,
    /// The conditions of the items with these indexes did not hold: nothing was written.
    Refused(Vec<usize>),
}

/// DynamoDB's reason for cancelling a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cancelled {
    /// The conditions of these items did not hold.
    Condition(Vec<usize>),
    /// A conflict or a throttle.
    Transient,
    /// An update does not match its item: an operand has another type.
    Invalid,
}

/// Returns the reason of a cancelled transaction from its list of reasons, which has the order of the items; `None` if
/// it failed for another reason. A failed condition has precedence.
/// Source: DynamoDB API reference, `TransactWriteItems`, "Cancellation reason codes".
fn cancelled_by(error: Option<&TransactWriteItemsError>) -> Option<Cancelled> {
    let reasons = match error? {
        TransactWriteItemsError::TransactionCanceledException(cancelled) => cancelled.cancellation_reasons(),
        TransactWriteItemsError::TransactionInProgressException(_) => return Some(Cancelled::Transient),
        _ => return None,
    };
    let with = |codes: &[&str]| -> Vec<usize> {
        let is_one = |reason: &aws_sdk_dynamodb::types::CancellationReason| {
            reason.code().is_some_and(|code| codes.contains(&code))
        };
        reasons.iter().enumerate().filter(|(_, reason)| is_one(reason)).map(|(place, _)| place).collect()
    };
    let refused = with(&["ConditionalCheckFailed"]);
    if !refused.is_empty() {
        Some(Cancelled::Condition(refused))
    } else if !with(&["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"]).is_empty() {
        Some(Cancelled::Transient)
    } else if !with(&["ValidationError"]).is_empty() {
        Some(Cancelled::Invalid)
    } else {
        None
    }
}
