//! The count of the deployment's nodes. A launch is counted before it is requested.
//!
//! ```text
//!   take (nodes + n, on condition that they fit) ─► launch ─► give back what EC2 did not launch
//!   sweep: read ─► list the instances ─► nodes := the living ones + those that are counted and not listed yet
//! ```
//!
//! The count is kept by epoch, and each instance has its epoch in a tag, so a sweep knows which counted nodes are
//! listed. A sweep starts a new epoch when the newest is ten minutes old. Two epochs later, nodes that were never
//! listed (a scheduler died between take and launch) are dropped. All writes are differences, so those of a sweep and a
//! launch add up; each is a transaction, which is applied once however often the SDK repeats it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_dynamodb::types::AttributeValue;

use super::Ledger;
use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::key::Item;
use super::preflight::DateOfAnswer;
use crate::backend::CloudError;
use crate::domain::node_limit::NodeLimits;
use crate::domain::value::Form;

/// The key of the item in the missions table. A new mission's id cannot start with `~`, so no mission has it.
const NAME: &str = "~nodes";

const MAX: &str = "maxNodes";
const MAX_PER_HOUR: &str = "maxNodesPerHour";
const TAKEN: &str = "nodes";
const EPOCH: &str = "epoch";
const EPOCH_SINCE: &str = "epochSince";
const IN_EPOCH: &str = "nodesInEpoch";
const IN_LAST_EPOCH: &str = "nodesInLastEpoch";
const HOUR: &str = "hour";
const IN_HOUR: &str = "nodesInHour";
const COUNTED: &str = "counted";

/// The minimum duration of an epoch. A launch takes up to 150 s, and EC2 lists an instance within minutes (an unknown
/// instance counts as gone after 5). So a node that was counted an epoch ago is listed, or does not exist.
const EPOCH_MIN: Duration = Duration::from_mins(10);

/// The count that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeCount {
    /// Whether the count is unusable because of a manual edit. It must be created again.
    pub is_spoilt: bool,
    /// The stored limits of the deployment.
    pub limits: NodeLimits,
    /// The nodes that run or are being launched.
    pub taken: i64,
    /// The newest epoch.
    pub epoch: u64,
    /// The nodes that were counted in it.
    pub in_epoch: i64,
    /// The nodes that were counted in the previous epoch.
    pub in_last_epoch: i64,
    /// The hour of the hourly count, such as `2026-01-01T07`.
    pub hour: String,
    /// The nodes that were counted in it.
    pub in_hour: i64,
    /// The start of the epoch, in seconds of DynamoDB's clock.
    epoch_since: u64,
    /// The number of corrections of the count.
    counted: Form,
    taken_form: Form,
    hour_form: Form,
    epoch_form: Form,
}

/// The time when nodes were counted, which is needed to give them back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The epoch.
    pub epoch: u64,
    /// The hour.
    pub hour: String,
}

/// The limits to store, for nodes at a time and per hour: `Some(None)` removes one, `None` does not change it.
pub type StoredLimits = [Option<Option<u64>>; 2];

/// The numbers of instances that EC2 lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The living ones.
    pub alive: u64,
    /// Those that were counted in the newest epoch, living or terminated.
    pub in_epoch: u64,
    /// Those of the previous epoch.
    pub in_last_epoch: u64,
}

impl NodeCount {
    /// Returns the number of nodes that were counted in the hour of `now`, in seconds of DynamoDB's clock.
    #[must_use]
    pub fn taken_in_hour(&self, now: u64) -> i64 {
        if self.has_hour(now) { self.in_hour } else { 0 }
    }

    /// Returns whether the stored hour is the current or the next one, because DynamoDB's machines have separate
    /// clocks. Any other hour has passed, or was edited.
    fn has_hour(&self, now: u64) -> bool {
        self.hour == hour_of(now) || self.hour == hour_of(now + 60)
    }
}

/// Returns the hour of the clock, such as `2026-01-01T07`.
#[must_use]
pub fn hour_of(now: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(now)).unwrap_or(UNIX_EPOCH);
    crate::clock::rfc3339(time).chars().take("2026-01-01T00".len()).collect()
}

impl Ledger {
    /// Reads the count; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn node_count(&self) -> Result<Option<NodeCount>, CloudError> {
        self.node_count_and_time().await.map(|(count, _)| count)
    }

    /// Reads the count, and the time in seconds of DynamoDB's clock, which all schedulers share. If an emulator reports
    /// none, uses this machine's clock.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn node_count_and_time(&self) -> Result<(Option<NodeCount>, u64), CloudError> {
        let date = DateOfAnswer::default();
        let get = self.client.get_item().table_name(&self.tables.missions).set_key(Some(key())).consistent_read(true);
        let answer = get.customize().interceptor(date.clone()).send().await;
        let row = answer.map_err(|error| self.missions_error("GetItem", error))?.item.unwrap_or_default();
        Ok((read(Row(&row)), seconds(date.seen())))
    }

    /// Creates the count with `alive` nodes, unless another scheduler has since it was `seen`. `limits` are stored if
    /// it did not exist.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn make_node_count(
        &self,
        seen: Option<&NodeCount>,
        alive: u64,
        limits: StoredLimits,
    ) -> Result<(), CloudError> {
        let since = self.seconds().await?;
        let (taken, counted) = seen.map_or((&Form::Absent, &Form::Absent), |seen| (&seen.taken_form, &seen.counted));
        let expression = Expression::default()
            .set(TAKEN, number(alive))
            .set(EPOCH, number(seen.map_or(0, |seen| seen.epoch) + 1))
            .set(EPOCH_SINCE, number(since))
            .set(IN_EPOCH, number(0))
            .set(IN_LAST_EPOCH, number(0))
            .set(COUNTED, number(1))
            .remove(HOUR)
            .remove(IN_HOUR)
            .if_unchanged(TAKEN, taken)
            .if_unchanged(COUNTED, counted);
        let expression = if seen.is_none() { store(expression, limits) } else { expression };
        self.update_item(NAME, &expression).await.map(|_| ())
    }

    /// Counts `n` more nodes if they fit into `limits`, and if the count has not changed in a way that matters.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(None)` if they do not fit, or the count has changed.
    pub async fn take_nodes(
        &self,
        seen: &NodeCount,
        n: u32,
        now: u64,
        limits: NodeLimits,
    ) -> Result<Option<Ticket>, CloudError> {
        let fits = |most: u64| AttributeValue::N((i128::from(most) - i128::from(n)).to_string());
        let mut expression =
            Expression::default().add(TAKEN, n.into()).add(IN_EPOCH, n.into()).if_unchanged(EPOCH, &seen.epoch_form);
        if let Some(most) = limits.at_a_time {
            expression = expression.when("{} <= ?", TAKEN, Some(fits(most)));
        } else {
            expression = expression.when("attribute_exists({})", TAKEN, None);
        }
        expression = expression.if_unchanged(HOUR, &seen.hour_form);
        let hour = if seen.has_hour(now) {
            expression = expression.add(IN_HOUR, n.into());
            if let Some(most) = limits.per_hour {
                expression = expression.when("{} <= ?", IN_HOUR, Some(fits(most)));
            }
            seen.hour.clone()
        } else {
            let hour = hour_of(now);
            expression = expression.set(HOUR, text(&hour)).set(IN_HOUR, number(n.into()));
            hour
        };
        let is_taken = self.update_item_once(NAME, &expression).await?;
        Ok(is_taken.then_some(Ticket { epoch: seen.epoch, hour }))
    }

    /// Subtracts `n` nodes that were counted and not launched. For a dropped epoch, nothing is subtracted.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the count has changed since it was read.
    pub async fn give_nodes_back(&self, seen: &NodeCount, n: u32, ticket: &Ticket) -> Result<bool, CloudError> {
        let less = -i64::from(n);
        let expression = match seen.epoch.checked_sub(ticket.epoch) {
            Some(0) => Expression::default().add(IN_EPOCH, less),
            Some(1) => Expression::default().add(IN_LAST_EPOCH, less),
            _ => return Ok(true),
        };
        let expression = expression
            .add(TAKEN, less)
            .if_unchanged(EPOCH, &seen.epoch_form)
            .if_unchanged(HOUR, &seen.hour_form)
            .when("attribute_exists({})", TAKEN, None);
        let expression = if seen.hour == ticket.hour { expression.add(IN_HOUR, less) } else { expression };
        self.update_item_once(NAME, &expression).await
    }

    /// Corrects the count by EC2's list, which must be newer than the count. Starts a new epoch if it is time. Stores
    /// `limits`.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another sweep was faster.
    pub async fn correct_node_count(
        &self,
        seen: &NodeCount,
        shown: Shown,
        limits: StoredLimits,
    ) -> Result<bool, CloudError> {
        let now = self.seconds().await?;
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let hidden = |taken: i64, shown: u64| (taken - count(shown)).max(0);
        let is_new = now.saturating_sub(seen.epoch_since) >= EPOCH_MIN.as_secs();
        let last = if is_new { 0 } else { hidden(seen.in_last_epoch, shown.in_last_epoch) };
        let most = count(shown.alive) + hidden(seen.in_epoch, shown.in_epoch) + last;
        let mut expression = Expression::default().add(TAKEN, most - seen.taken).add(COUNTED, 1);
        if is_new {
            expression = expression
                .set_from(IN_LAST_EPOCH, IN_EPOCH)
                .set(IN_EPOCH, number(0))
                .set(EPOCH, number(seen.epoch + 1))
                .set(EPOCH_SINCE, number(now));
        }
        let expression = store(expression, limits)
            .if_unchanged(COUNTED, &seen.counted)
            .if_unchanged(EPOCH, &seen.epoch_form)
            .when("attribute_type({}, ?)", TAKEN, Some(text("N")));
        self.update_item(NAME, &expression).await
    }

    async fn seconds(&self) -> Result<u64, CloudError> {
        self.time().await.map(seconds)
    }
}

fn seconds(date: Option<SystemTime>) -> u64 {
    let now = date.unwrap_or_else(crate::clock::now);
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn store(mut expression: Expression, limits: StoredLimits) -> Expression {
    for (name, limit) in [MAX, MAX_PER_HOUR].into_iter().zip(limits) {
        expression = match limit {
            Some(Some(most)) => expression.set(name, number(most)),
            Some(None) => expression.remove(name),
            None => expression,
        };
    }
    expression
}

fn read(row: Row<'_>) -> Option<NodeCount> {
    if row.0.is_empty() {
        return None;
    }
    // An invalid limit prevents all launches until a user corrects it.
    let most = |name: &str| row.number(name).or((row.form(name) != Form::Absent).then_some(0));
    let signed = |name: &str| row.signed(name).unwrap_or(0);
    let is_number = |name: &str| matches!(row.form(name), Form::Number(_)) && row.signed(name).is_some();
    let is_spoilt = ![TAKEN, EPOCH, IN_EPOCH, IN_LAST_EPOCH, COUNTED].into_iter().all(is_number)
        || row.form(HOUR) != Form::Absent && !is_number(IN_HOUR);
    Some(NodeCount {
        is_spoilt,
        limits: NodeLimits { at_a_time: most(MAX), per_hour: most(MAX_PER_HOUR) },
        taken: signed(TAKEN),
        epoch: row.number(EPOCH).unwrap_or(0),
        in_epoch: signed(IN_EPOCH),
        in_last_epoch: signed(IN_LAST_EPOCH),
        hour: row.text(HOUR).unwrap_or_default(),
        in_hour: signed(IN_HOUR),
        epoch_since: row.number(EPOCH_SINCE).unwrap_or(0),
        counted: row.form(COUNTED),
        taken_form: row.form(TAKEN),
        hour_form: row.form(HOUR),
        epoch_form: row.form(EPOCH),
    })
}

fn key() -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(NAME))])
}
