//! The parts of transactions, and what becomes of them.

use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{ConditionCheck, TransactWriteItem, Update};

use super::client::Ledger;
use super::expression::Expression;
use super::item::{self, text};
use super::key::Item;
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{MissionId, TALLY};

/// How often a transaction, or the update of a mission's row, is tried that others' transactions were in the way of. The
/// SDK's own retries come on top; each of these waits a little longer than the last.
pub(super) const CONFLICT_ATTEMPTS_MAX: u32 = 8;

impl Ledger {
    /// Writes a transaction, again and again while others' are in its way. `token` names it, so that a repeat of one whose
    /// answer was lost is no second one. `tallies` names the tally items that it adds to: if one holds something that is no
    /// number, it is repaired.
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

/// One condition of a transaction on an item that the transaction does not change.
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

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Transacted {
    /// All of it is written.
    Written,
    /// The conditions of these items, by their places, did not hold: nothing is written.
    Refused(Vec<usize>),
}

/// Why DynamoDB cancelled a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cancelled {
    /// The conditions of these items did not hold.
    Condition(Vec<usize>),
    /// A conflict or a throttle, which is transient.
    Transient,
    /// An item does not fit its update: an operand has another type.
    Invalid,
}

/// Reads the reasons of a cancelled transaction, which are in the order of its items; `None` if it failed for another
/// reason. A failed condition outweighs the rest.
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
