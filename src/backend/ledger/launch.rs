//! What a scheduler writes: launches that are reserved, tasks that are put back or ended without a holder, missions that
//! are cancelled.
//!
//! ```text
//!   a launch:  reserve (one winner) ─► CreateFleet with a token of task, attempt, and try ─► note the instance
//!                                                                                    └─► note why there is none, and when again
//! ```
//!
//! A scheduler that dies between two of these leaves a reservation without an instance, which a sweep finds.

use super::commit::{tally_key, update};
use super::expression::Expression;
use super::item::{self, Row, history, number, text};
use super::mission::mission_key;
use super::open::{closed, open_as};
use super::{CloudError, Item, Ledger, task_key};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::lease::Lease;
use crate::domain::mission::{Mission, open_partition, shard_of};
use crate::domain::tags;
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::{Budget, Verdict};

impl Ledger {
    /// Reserves the launch of a node for a task that waits, as the row was seen. Of many callers one gets it.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row is not as it was seen.
    pub async fn reserve_launch(&self, task: &Task, now: &str) -> Result<bool, CloudError> {
        let seen = match (task.launch.at_attempt, task.launch.tries) {
            (None, 0) => Expression::default().when("attribute_not_exists({})", item::LAUNCH_AT_ATTEMPT, None),
            (None, tries) => Expression::default()
                .when("attribute_not_exists({})", item::LAUNCH_AT_ATTEMPT, None)
                .when("{} = ?", item::LAUNCH_TRIES, Some(number(tries))),
            (Some(attempt), 0) => Expression::default()
                .when("{} = ?", item::LAUNCH_AT_ATTEMPT, Some(number(attempt.0)))
                .when("attribute_not_exists({})", item::LAUNCH_TRIES, None),
            (Some(attempt), tries) => Expression::default()
                .when("{} = ?", item::LAUNCH_AT_ATTEMPT, Some(number(attempt.0)))
                .when("{} = ?", item::LAUNCH_TRIES, Some(number(tries))),
        };
        // What was launched for this very attempt is gone, if another is launched now.
        let is_lost = task.launch.is_for(task.attempt) && task.launch.instance.is_some();
        let seen = if is_lost { seen.add(item::LAUNCHES_LOST, 1) } else { seen };
        let expression = waits(seen, task)
            .set(item::LAUNCH_AT_ATTEMPT, number(task.attempt.0))
            .set(item::LAUNCH_AT, text(now))
            .add(item::LAUNCH_TRIES, 1)
            .remove(item::LAUNCH_INSTANCE)
            .remove(item::LAUNCH_ERROR)
            .remove(item::LAUNCH_AFTER);
        self.update_row(&task.src, &expression).await
    }

    /// Notes the instance that was launched. A row that has gone on meanwhile stays as it is.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_launch(&self, task: &Task, instance: &str) -> Result<(), CloudError> {
        let expression = Expression::default()
            .set(item::LAUNCH_INSTANCE, text(instance))
            .remove(item::LAUNCH_ERROR)
            .when("{} = ?", item::LAUNCH_AT_ATTEMPT, Some(number(task.attempt.0)));
        self.update_row(&task.src, &expression).await.map(|_| ())
    }

    /// Notes why no instance was launched, and not before when the next try is made; the reservation is given up.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_no_launch(&self, task: &Task, why: &str, after: &str) -> Result<(), CloudError> {
        let expression = waits(Expression::default(), task)
            .remove(item::LAUNCH_AT_ATTEMPT)
            .set(item::LAUNCH_ERROR, text(why))
            .set(item::LAUNCH_AFTER, text(after))
            .when("{} = ?", item::LAUNCH_AT_ATTEMPT, Some(number(task.attempt.0)));
        self.update_row(&task.src, &expression).await.map(|_| ())
    }

    /// Takes over a waiting row of no mission, or one that is in no index: of the first version, made by hand, or made by an
    /// upload before there was the mission.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has gone on.
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

    /// Puts a task back whose holder is gone: `running → pending`, on condition that the lease is still as it was seen. An
    /// interruption.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the lease has moved.
    pub async fn expire(&self, task: &Task, lease: &Lease, past: PastAttempt, now: &str) -> Result<bool, CloudError> {
        let expression = Expression::default()
            .set(item::STATE, text(State::Pending.as_str()))
            .set(item::OPEN_AS, text(open_as(State::Pending, now)))
            .set(item::VERDICT, text(past.verdict.as_str()))
            .set(item::HISTORY, history(&task.history_with(past)))
            .add(item::INTERRUPTIONS, 1)
            .remove(item::CANCELLED)
            .fence(lease.attempt)
            .when("{} = ?", item::BEAT, Some(number(lease.beat)));
        self.update_row(&task.src, &expression).await
    }

    /// Fails a task that no attempt ends: it waits, or its holder does not answer. Counted in the mission's tally, in one
    /// transaction, on condition that state and attempt are as they were seen.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has changed.
    pub async fn fail(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        verdict: Verdict,
        past: Option<PastAttempt>,
    ) -> Result<bool, CloudError> {
        let mut row = closed(Expression::default())
            .set(item::STATE, text(State::Failed.as_str()))
            .set(item::VERDICT, text(verdict.as_str()));
        if let Some(past) = past {
            row = row.set(item::HISTORY, history(&task.history_with(past)));
        }
        if verdict.budget() == Budget::Application {
            row = row.add(item::APP_FAILURES, 1);
        }
        let row = as_seen(row, task);
        let mut items = vec![update(&self.tables.tasks, task_key(&task.src), &row)?];
        if let Some(mission) = mission {
            let tally = Expression::default()
                .add(item::TRANS_FAILED, 1)
                .add(item::TIME_COST, i64::try_from(task.time_cost_s).unwrap_or(i64::MAX))
                .add(item::TALLY_SEQ, 1);
            let key = tally_key(&mission.id, shard_of(&task.src, mission.tally_shards));
            items.push(update(&self.tables.missions, key, &tally)?);
        }
        // No token: a repeat of one whose answer was lost finds the row changed, which is as good.
        self.transact(items, None, &format!("task {}", task.src)).await
    }

    /// Asks the holder of a task to end it, because its mission is cancelled: its next heartbeat finds this.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if nobody holds it.
    pub async fn ask_to_cancel(&self, task: &Task, now: &str) -> Result<bool, CloudError> {
        let expression = Expression::default().set(item::CANCELLED, text(now)).fence(task.attempt);
        self.update_row(&task.src, &expression).await
    }

    /// Marks a mission as cancelled; the first time stays. `Ok(false)` if there is no such mission.
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

    /// Opens a cancelled mission again.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn uncancel_mission(&self, id: &MissionId) -> Result<(), CloudError> {
        let expression =
            Expression::default().remove(item::CANCELLED_AT).when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Notes that a mission got a task although its end was announced; `mark` is a new one each time.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_late(&self, id: &MissionId, mark: &str) -> Result<(), CloudError> {
        let expression = Expression::default().set(item::LATE, text(mark)).remove(item::CLOSED);
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Notes that an announced mission has no open task, so that sweeps need not look for some after a while; unless one came
    /// since the row was read.
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
        self.update_mission(&mission.id, &expression).await.map(|_| ())
    }

    /// Reserves a launch of a mission's nodes, as the row was seen: of many callers one gets it, with a number that no other
    /// launch of the mission has.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(None)` if another was quicker.
    pub async fn reserve_round(&self, mission: &Mission) -> Result<Option<u64>, CloudError> {
        let expression = Expression::default().add(item::LAUNCH_ROUND, 1);
        let expression = if mission.launch_round == 0 {
            expression.when("attribute_not_exists({})", item::LAUNCH_ROUND, None)
        } else {
            expression.when("{} = ?", item::LAUNCH_ROUND, Some(number(mission.launch_round)))
        };
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        let is_ours = self.update_mission(&mission.id, &expression).await?;
        Ok(is_ours.then_some(mission.launch_round + 1))
    }

    /// Takes one of the launches of nodes that serve the whole mission; its number, from 1. `None` if all `most` are taken.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn take_node(&self, id: &MissionId, most: u32) -> Result<Option<u64>, CloudError> {
        self.take(id, item::NODES_LAUNCHED, most).await
    }

    /// Takes one of the mission's On-Demand launches. `Ok(false)` if all `floor` are taken.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn take_on_demand(&self, id: &MissionId, floor: u32) -> Result<bool, CloudError> {
        self.take(id, item::ON_DEMAND_LAUNCHED, floor).await.map(|taken| taken.is_some())
    }

    /// Counts an attribute of the mission's row up, if it is below `most`; returns what it is then.
    async fn take(&self, id: &MissionId, name: &str, most: u32) -> Result<Option<u64>, CloudError> {
        use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
        use aws_sdk_dynamodb::types::ReturnValue;
        let expression =
            Expression::default().add(name, 1).when("attribute_exists({})", item::MISSION_KEY, None).when_any(vec![
                vec![("attribute_not_exists({})", name, None), ("attribute_exists({})", item::MISSION_KEY, None)],
                vec![("{} < ?", name, Some(number(most.into())))],
            ]);
        if most == 0 {
            return Ok(None);
        }
        let answer = expression
            .on(self.client.update_item().table_name(&self.tables.missions).set_key(Some(mission_key(id))))
            .return_values(ReturnValue::UpdatedNew)
            .send()
            .await;
        match answer {
            Ok(answer) => Ok(answer.attributes.and_then(|row| Row(&row).number(name))),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(_)) => Ok(None),
                _ => Err(self.missions_error("UpdateItem", error)),
            },
        }
    }

    /// Writes down which key a short name stands for: a tag cannot hold every key. May be called twice.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn name_key(&self, src: &SrcId) -> Result<(), CloudError> {
        let mut row = short_key(&tags::short(src));
        row.insert(item::SRC.to_owned(), text(src.as_str()));
        self.put_new(&self.tables.missions, item::MISSION_KEY, row).await.map(|_| ())
    }

    /// Reads which key a short name stands for; `None` if nobody wrote it down.
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

/// Requires that the task waits, at the attempt that was seen.
fn waits(expression: Expression, task: &Task) -> Expression {
    let pending = Task { state: State::Pending, ..task.clone() };
    as_seen(expression, &pending)
}

/// Requires that state and attempt are as they were seen; of a row of the first version neither may be there.
pub(super) fn as_seen(expression: Expression, task: &Task) -> Expression {
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
    expression.when_any(states).when_any(attempts).when("attribute_exists({})", item::SRC, None)
}
