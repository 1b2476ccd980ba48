//! A scheduler's writes other than launches (`reserve.rs`): returned tasks, failed tasks, cancelled missions.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::TransactWriteItem;

use super::Ledger;
use super::expression::Expression;
use super::history::{history, takes_no_history};
use super::item::{self, Row, number, text};
use super::key::{Item, task_key};
use super::mission::opened;
use super::open::{closed, failed, open_as};
use super::renew::described;
use super::transaction::{TIME_MAX, Transacted, fresh_token, tally_key, update, with_time};
use crate::backend::{CloudError, Kind, error_chain};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, open_partition, shard_of};
use crate::domain::tags;
use crate::domain::task::{AttemptEnd, PastAttempt, State, Task};
use crate::domain::verdict::{Budget, Verdict};

impl Ledger {
    /// Adds a pending row to a mission, or to its index. Such rows come from the first version, from manual edits, or
    /// from an upload before the mission existed.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has changed.
    pub async fn adopt(&self, task: &Task, mission: &Mission, now: &str) -> Result<bool, CloudError> {
        let shard = shard_of(&task.src, mission.tally_shards);
        let expression = waits(Expression::default(), task)
            .set(item::MISSION, text(mission.id.as_str()))
            .set(item::STATE, text(State::Pending.as_str()))
            .set(item::OPEN_IN, text(open_partition(Some(&mission.id), shard)))
            .set(item::OPEN_AS, text(open_as(State::Pending, now)))
            .when_any(vec![
                vec![("attribute_not_exists({})", item::MISSION, None)],
                vec![("{} = ?", item::MISSION, Some(text(mission.id.as_str())))],
            ]);
        self.update_row(&task.src, &expression).await
    }

    /// Releases a task whose holder is gone: `running → pending`, on condition that the row has not
    /// changed. Counts as an interruption. Returns the new row.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(None)` if the row has changed.
    pub async fn expire(&self, task: &Task, past: PastAttempt, now: &str) -> Result<Option<Task>, CloudError> {
        let write = |end: &AttemptEnd, attempts: &[PastAttempt]| {
            let expression = described(Expression::default(), end)
                .set(item::STATE, text(State::Pending.as_str()))
                .set(item::OPEN_AS, text(open_as(State::Pending, now)))
                .set(item::INTERRUPTIONS, number(task.interruptions.saturating_add(1)))
                .remove(item::CANCELLED);
            let expression = match attempts {
                [] => expression.remove(item::HISTORY),
                attempts => expression.set(item::HISTORY, history(attempts)),
            };
            same_beat(as_seen(expression, task), task)
        };
        let end = past.end.clone();
        let past = task.history_with(past);
        match self.update_row_to(&task.src, &write(&end, &past)).await {
            Err(error) if takes_no_history(&error, &past) => {
                self.update_row_to(&task.src, &write(&end.without_error(), &[])).await
            }
            expired => expired,
        }
    }

    /// Fails tasks that no attempt finishes: pending ones, or those whose holder does not respond. Each is counted in
    /// the mission's tally. Conditions: state, attempt and, for running tasks, beat have not changed.
    ///
    /// All tasks must be of `mission`. Up to 25 are written in one transaction; those that have changed are omitted.
    ///
    /// # Errors
    /// [`CloudError`]. Tasks that were written before the error stay failed.
    pub async fn fail(
        &self,
        tasks: &[(Task, Option<PastAttempt>)],
        mission: Option<&Mission>,
        failure: &GivenUp,
    ) -> Result<Failed, CloudError> {
        let mut failed = Failed { tasks: Vec::new(), has_mission_moved: false };
        for batch in tasks.chunks(FAIL_BATCH) {
            let mut batch: Vec<EndedTask> = batch.iter().map(|(task, past)| (task, past.as_ref())).collect();
            let mut has_details = true;
            while !batch.is_empty() {
                let items = self.fail_items(&batch, mission, failure, has_details)?;
                let shards = mission.map(|mission| (&mission.id, shards_of(&batch, mission).into_keys().collect()));
                let token = fresh_token();
                let written = match self.transact(&items, &token, shards).await {
                    Err(error) => {
                        // Even without an attempt the error needs space.
                        if has_details && error.kind == Kind::Invalid {
                            tracing::warn!("failing tasks without their history: {}", error_chain(&error));
                            has_details = false;
                            continue;
                        }
                        return Err(error);
                    }
                    Ok(written) => written,
                };
                match written {
                    Transacted::Written => {
                        failed.tasks.extend(batch.drain(..).map(|(task, _)| task.src.clone()));
                    }
                    // The check of the mission is the last item.
                    Transacted::Refused(places) if failure.is_for_cancel && places.contains(&(items.len() - 1)) => {
                        failed.has_mission_moved = true;
                        return Ok(failed);
                    }
                    Transacted::Refused(places) => {
                        let before = batch.len();
                        let mut place = 0..;
                        batch.retain(|_| !places.contains(&place.next().unwrap_or(0)));
                        if batch.len() == before {
                            // Only the tally items remain, and they have no condition.
                            let what = "DynamoDB refused a transaction by a condition that it does not have";
                            let resource = format!("table {}", self.tables.tasks);
                            return Err(CloudError::new(Kind::Invalid, "TransactWriteItems", resource, what));
                        }
                    }
                }
            }
        }
        Ok(failed)
    }

    fn fail_items(
        &self,
        batch: &[EndedTask],
        mission: Option<&Mission>,
        failure: &GivenUp,
        has_details: bool,
    ) -> Result<Vec<TransactWriteItem>, CloudError> {
        let mut items = Vec::with_capacity(2 * batch.len() + 1);
        for (task, past) in batch {
            let id = mission.map(|mission| &mission.id);
            let shard = mission.map_or(0, |mission| shard_of(&task.src, mission.tally_shards));
            let end = if has_details { failure.end.clone() } else { failure.end.without_error() };
            let mut row = described(Expression::default(), &end);
            row = if has_details {
                failed(row, &open_partition(id, shard), &failure.now)
            } else {
                // Even the index needs space. Such a failed task is found by a scan.
                closed(row).set(item::STATE, text(State::Failed.as_str()))
            };
            row = match past {
                Some(past) if has_details => row.set(item::HISTORY, history(&task.history_with((*past).clone()))),
                Some(_) => row.remove(item::HISTORY),
                None => row,
            };
            if failure.end.verdict.budget() == Budget::Application {
                row = row.set(item::APP_FAILURES, number(task.app_failures.saturating_add(1)));
            }
            row = as_seen(row, task);
            if task.state == State::Running {
                row = same_beat(row, task);
            }
            items.push(update(&self.tables.tasks, task_key(&task.src), &row)?);
        }
        let Some(mission) = mission else { return Ok(items) };
        for (shard, (count, time_cost_ms)) in shards_of(batch, mission) {
            let tally = Expression::default().add(item::TRANS_FAILED, count).add(item::TALLY_SEQ, count);
            let tally = with_time(tally, i64::try_from(time_cost_ms).unwrap_or(TIME_MAX).min(TIME_MAX));
            items.push(update(&self.tables.missions, tally_key(&mission.id, shard), &tally)?);
        }
        if failure.is_for_cancel {
            items.push(self.check_mission(mission)?);
        }
        Ok(items)
    }

    /// Requests the holders of tasks to stop because their mission is cancelled. They read this at their next
    /// heartbeat. Condition: the mission is still cancelled. Up to 50 tasks are in one transaction, because
    /// transactions that check one mission conflict. Returns the number of requested tasks; the others, or the mission,
    /// have changed.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn ask_to_cancel(&self, tasks: &[&Task], mission: &Mission, now: &str) -> Result<u64, CloudError> {
        let mut asked = 0;
        for batch in tasks.chunks(ASK_BATCH) {
            let mut batch = batch.to_vec();
            while !batch.is_empty() {
                let ask = |task: &&Task| {
                    let expression = as_seen(Expression::default().set(item::CANCELLED, text(now)), task);
                    update(&self.tables.tasks, task_key(&task.src), &expression)
                };
                let mut items = batch.iter().map(ask).collect::<Result<Vec<_>, _>>()?;
                items.push(self.check_mission(mission)?);
                match self.transact(&items, &fresh_token(), None).await? {
                    Transacted::Written => asked += batch.drain(..).len() as u64,
                    Transacted::Refused(places) if places.contains(&batch.len()) => return Ok(asked),
                    Transacted::Refused(places) => {
                        let mut place = 0..;
                        batch.retain(|_| !places.contains(&place.next().unwrap_or(0)));
                    }
                }
            }
        }
        Ok(asked)
    }

    /// Corrects the index after a write of another program: removes a task that is done, or updates another one. Condition: the row has not changed.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has changed.
    pub async fn repair_index(&self, task: &Task, now: &str) -> Result<bool, CloudError> {
        let expression = if task.state == State::Done {
            closed(Expression::default())
        } else {
            Expression::default().set(item::OPEN_AS, text(open_as(task.state, now)))
        };
        let expression = as_seen(expression, task);
        let expression = match &task.seen {
            Some(seen) => expression.if_unchanged(item::OPEN_AS, &seen.open_as),
            None => expression,
        };
        let is_repaired = self.update_row(&task.src, &expression).await?;
        if is_repaired {
            let state = task.state.as_str();
            tracing::warn!(src.id = %task.src, "corrected the index for {}: its row is {state}", task.src);
        }
        Ok(is_repaired)
    }

    /// Marks a mission as cancelled; an earlier timestamp stays. `Ok(false)` if the mission does not exist.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn cancel_mission(&self, id: &MissionId, now: &str) -> Result<bool, CloudError> {
        let expression = Expression::default().set_if_absent(item::CANCELLED_AT, text(now)).when(
            "attribute_exists({})",
            item::MISSION_KEY,
            None,
        );
        self.update_mission(id, &expression).await
    }

    /// Reinstates a cancelled mission: it is reopened, and its notification will be sent again.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn reinstate_mission(&self, mission: &Mission) -> Result<(), CloudError> {
        let expression = opened(Expression::default(), mission).remove(item::CANCELLED_AT);
        self.update_mission(&mission.id, &expression).await.map(|_| ())
    }

    /// Records that a mission got a task after its notification was sent. `mark` must be new each time.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_late(&self, id: &MissionId, mark: &str) -> Result<(), CloudError> {
        let expression = Expression::default().set(item::LATE, text(mark)).remove(item::CLOSED);
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Records that a mission with a sent notification has no open task, unless one was added since the row was read.
    /// After a while, sweeps do not check such a mission.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn close_mission(&self, mission: &Mission, now: &str) -> Result<(), CloudError> {
        let expression = Expression::default().set(item::CLOSED, text(now)).remove(item::LATE).when(
            "{} = ?",
            item::NOTIFIED,
            Some(text("Yes")),
        );
        let expression = match &mission.late {
            Some(mark) => expression.when("{} = ?", item::LATE, Some(text(mark))),
            None => expression.when("attribute_not_exists({})", item::LATE, None),
        };
        let expression = match &mission.seen {
            Some(seen) => expression.if_unchanged(item::OPENED, &seen.opened),
            None => expression,
        };
        self.update_mission(&mission.id, &expression).await.map(|_| ())
    }

    /// Counts one of the mission's On-Demand launches. `Ok(false)` if all `floor` are counted.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn take_on_demand(&self, id: &MissionId, floor: u32) -> Result<bool, CloudError> {
        if floor == 0 {
            return Ok(false);
        }
        let name = item::ON_DEMAND_LAUNCHED;
        let is_below = vec![("{} < ?", name, Some(number(floor.into())))];
        let expression = Expression::default()
            .add(name, 1)
            .when("attribute_exists({})", item::MISSION_KEY, None)
            .when_any(vec![vec![("attribute_not_exists({})", name, None)], is_below]);
        self.update_item_once(id.as_str(), &expression).await
    }

    /// Subtracts one of the mission's On-Demand launches that was not made.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn give_on_demand_back(&self, id: &MissionId) -> Result<(), CloudError> {
        let name = item::ON_DEMAND_LAUNCHED;
        let expression = Expression::default().add(name, -1).when("{} > ?", name, Some(number(0)));
        self.update_item_once(id.as_str(), &expression).await.map(|_| ())
    }

    /// Stores the key of a short name, because a tag cannot hold every key. May be repeated.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn name_key(&self, src: &SrcId) -> Result<(), CloudError> {
        let mut row = short_key(&tags::short(src));
        row.insert(item::SRC.to_owned(), text(src.as_str()));
        self.put_new(&self.tables.missions, item::MISSION_KEY, row).await.map(|_| ())
    }

    /// Stores the mission of a short name. May be repeated.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn name_mission(&self, id: &MissionId) -> Result<(), CloudError> {
        let mut row = short_key(&tags::mission_value(id));
        row.insert(item::MISSION.to_owned(), text(id.as_str()));
        self.put_new(&self.tables.missions, item::MISSION_KEY, row).await.map(|_| ())
    }

    /// Reads the mission that the value of a tag names, by its id or by its short name. `None` if it is not a mission
    /// id or an unknown short name.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn mission_named(&self, value: &str) -> Result<Option<MissionId>, CloudError> {
        if !tags::is_short_mission(value) {
            return Ok(MissionId::new(value).ok());
        }
        let answer = self.client.get_item().table_name(&self.tables.missions).set_key(Some(short_key(value)));
        let answer = answer.consistent_read(true).send().await.map_err(|e| self.missions_error("GetItem", e))?;
        Ok(answer.item.and_then(|row| Row(&row).text(item::MISSION)).and_then(|id| MissionId::new(id).ok()))
    }

    /// Reads the key of a short name; `None` if it is unknown.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn key_of(&self, short: &str) -> Result<Option<SrcId>, CloudError> {
        let answer = self.client.get_item().table_name(&self.tables.missions).set_key(Some(short_key(short)));
        let answer = answer.consistent_read(true).send().await.map_err(|e| self.missions_error("GetItem", e))?;
        Ok(answer.item.and_then(|row| Row(&row).text(item::SRC)).and_then(|src| SrcId::new(src).ok()))
    }
}

fn short_key(short: &str) -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(short))])
}

/// Requires that the task is pending, with the same attempt as when it was read.
pub(super) fn waits(expression: Expression, task: &Task) -> Expression {
    if task.state == State::Pending {
        return as_seen(expression, task);
    }
    as_seen(expression, &Task { state: State::Pending, seen: None, ..task.clone() })
}

/// Requires that state and attempt have not changed. A row of the first version may have neither.
pub(super) fn as_seen(expression: Expression, task: &Task) -> Expression {
    let expression = expression.when("attribute_exists({})", item::SRC, None);
    if let Some(seen) = &task.seen {
        return expression.if_unchanged(item::STATE, &seen.state).if_unchanged(item::ATTEMPT, &seen.attempt);
    }
    let state = ("{} = ?", item::STATE, Some(text(task.state.as_str())));
    let attempt = ("{} = ?", item::ATTEMPT, Some(number(task.attempt.0)));
    let mut states = vec![vec![state]];
    let mut attempts = vec![vec![attempt]];
    if task.state == State::Pending {
        states.push(vec![("attribute_not_exists({})", item::STATE, None)]);
    }
    if task.attempt.0 == 0 {
        attempts.push(vec![("attribute_not_exists({})", item::ATTEMPT, None)]);
    }
    expression.when_any(states).when_any(attempts)
}

/// Requires that the holder has not renewed its lease since the row was read.
pub(super) fn same_beat(expression: Expression, task: &Task) -> Expression {
    match &task.seen {
        Some(seen) => expression.if_unchanged(item::BEAT, &seen.beat),
        None => expression.when("{} = ?", item::BEAT, Some(number(task.beat))),
    }
}

/// A task to be failed, with the lost attempt, if there was one.
type EndedTask<'a> = (&'a Task, Option<&'a PastAttempt>);

fn shards_of(batch: &[EndedTask], mission: &Mission) -> BTreeMap<u32, (i64, u64)> {
    let mut shards = BTreeMap::new();
    for (task, _) in batch {
        let (count, time_cost_ms) = shards.entry(shard_of(&task.src, mission.tally_shards)).or_insert((0_i64, 0_u64));
        *count += 1;
        *time_cost_ms = time_cost_ms.saturating_add(task.time_cost_ms);
    }
    shards
}

/// Why tasks fail that no attempt finishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The verdict and the error.
    pub end: AttemptEnd,
    /// Whether the reason is that the mission is cancelled. Then it must still be cancelled, because a redrive may have
    /// reinstated it.
    pub is_for_cancel: bool,
    /// The current time, RFC 3339 UTC.
    pub now: String,
}

impl GivenUp {
    /// Makes the reason for the pending tasks of a cancelled mission.
    #[must_use]
    pub fn by_cancel(now: String) -> Self {
        Self { end: AttemptEnd::of(Verdict::Cancelled, "the mission was cancelled"), is_for_cancel: true, now }
    }
}

/// The result of failing tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The tasks that this call failed. The others have changed.
    pub tasks: Vec<SrcId>,
    /// The mission's cancellation has changed: nothing more was written.
    pub has_mission_moved: bool,
}

/// The number of tasks in one transaction. With one tally item each and the mission's check these are 51 of the 100
/// items of `TransactWriteItems`. Larger transactions conflict more often with commits of nodes.
const FAIL_BATCH: usize = 25;

/// The number of holders in one transaction: 51 items with the mission's check.
const ASK_BATCH: usize = 50;
