//! Reserves launches, and records their results.
//!
//! ```text
//!   reserve (one winner, with the request) ─► CreateFleet, with its token ─► record the instance
//!                                                                        ├─► record the reason, and the next try
//!                                                                        └─► no answer: the request stays, and is
//! repeated
//! ```
//!
//! If a scheduler dies in between, a sweep finds a reservation without an instance. While the row has the request, a
//! repetition is equal to the first request, so EC2 launches once. A repetition reserves the next number, so that it
//! has one winner, and records of earlier requests are refused. The scheduler whose record is written returns the
//! counted nodes that were not launched.

use aws_sdk_dynamodb::types::AttributeValue;

use super::Ledger;
use super::expression::Expression;
use super::item::{self, number, text};
use super::launch::waits;
use super::request;
use crate::backend::CloudError;
use crate::domain::ids::MissionId;
use crate::domain::mission::Mission;
use crate::domain::request::Reserved;
use crate::domain::task::Task;
use crate::domain::value::Form;

/// The reason why no instance was launched for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The reason.
    pub why: String,
    /// The earliest time of the next try; `None`: at the next sweep.
    pub after: Option<String>,
    /// The reservation that stays in the row if an instance may exist nevertheless: it is repeated, or its instance is
    /// searched.
    pub open: Option<Reserved>,
}

impl Ledger {
    /// Reserves the launch of a node for a pending task that has not changed. Of many callers one succeeds. `tries` is
    /// the launch's number; `lost` is the reason why the instance that was launched before is gone.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has changed.
    pub async fn reserve_launch(
        &self,
        task: &Task,
        now: &str,
        tries: u64,
        reserved: &Reserved,
        lost: Option<&str>,
    ) -> Result<bool, CloudError> {
        // If another instance is launched for this attempt, the previous one is gone.
        let is_lost = task.launch.is_for(task.attempt) && task.launch.instance.is_some();
        let expression = launch_as_seen(Expression::default(), task);
        let expression =
            if is_lost { expression.set(item::LAUNCHES_LOST, number(task.launch.lost + 1)) } else { expression };
        let expression = match lost.filter(|_| is_lost) {
            Some(why) => expression.set(item::LAUNCH_ERROR, text(why)),
            None => expression.remove(item::LAUNCH_ERROR),
        };
        let expression = waits(expression, task)
            .set(item::LAUNCH_AT_ATTEMPT, number(task.attempt.0))
            .set(item::LAUNCH_AT, text(now))
            .set(item::LAUNCH_TRIES, number(tries))
            .set(item::LAUNCH_REQUEST, request::value(reserved))
            .remove(item::LAUNCH_INSTANCE)
            .remove(item::LAUNCH_AFTER);
        self.update_row(&task.src, &expression).await
    }

    /// Records the launched instance, unless the row has changed.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_launch(&self, task: &Task, instance: &str) -> Result<(), CloudError> {
        let expression = Expression::default()
            .set(item::LAUNCH_INSTANCE, text(instance))
            .remove(item::LAUNCH_REQUEST)
            .when("{} = ?", item::LAUNCH_AT_ATTEMPT, Some(number(task.attempt.0)))
            .when("{} = ?", item::LAUNCH_TRIES, Some(number(task.launch.tries)));
        self.update_row(&task.src, &expression).await.map(|_| ())
    }

    /// Records why no instance was launched, and the earliest time of the next try. Removes the reservation.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has changed, so that another scheduler owns the launch.
    pub async fn note_no_launch(&self, task: &Task, note: &Note) -> Result<bool, CloudError> {
        let expression = waits(Expression::default(), task)
            .remove(item::LAUNCH_AT_ATTEMPT)
            .set(item::LAUNCH_ERROR, text(&note.why))
            .when("{} = ?", item::LAUNCH_AT_ATTEMPT, Some(number(task.attempt.0)))
            .when("{} = ?", item::LAUNCH_TRIES, Some(number(task.launch.tries)));
        let expression = match &note.after {
            Some(after) => expression.set(item::LAUNCH_AFTER, text(after)),
            None => expression.remove(item::LAUNCH_AFTER),
        };
        let expression = match &note.open {
            Some(reserved) => expression.set(item::LAUNCH_REQUEST, request::value(reserved)),
            None => expression.remove(item::LAUNCH_REQUEST),
        };
        self.update_row(&task.src, &expression).await
    }

    /// Records why nothing is launched for a pending task, unless a launch was reserved since the row was read.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_held(&self, task: &Task, why: &str) -> Result<(), CloudError> {
        let expression = waits(launch_as_seen(Expression::default(), task), task)
            .set(item::LAUNCH_ERROR, text(why))
            .remove(item::LAUNCH_AFTER);
        self.update_row(&task.src, &expression).await.map(|_| ())
    }

    /// Reserves a launch of a mission's nodes, and the next number: of many callers one succeeds. `new` of the nodes
    /// were not requested before; those of a repeated launch were.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another scheduler was faster.
    pub async fn reserve_round(&self, mission: &Mission, requests: &[Reserved], new: u32) -> Result<bool, CloudError> {
        let form = |value: u64| if value == 0 { Form::Absent } else { Form::Number(value.to_string()) };
        let (round, launched) = match &mission.seen {
            Some(seen) => (seen.launch_round.clone(), seen.nodes_launched.clone()),
            None => (form(mission.launch_round), form(mission.nodes_launched)),
        };
        let expression = Expression::default()
            .set(item::LAUNCH_ROUND, number(mission.next_round()))
            .set(item::NODES_LAUNCHED, number(mission.nodes_launched.saturating_add(new.into())))
            .set(item::LAUNCH_REQUESTS, requests_value(requests))
            .if_unchanged(item::LAUNCH_ROUND, &round)
            .if_unchanged(item::NODES_LAUNCHED, &launched)
            // Nothing is launched for a mission that was cancelled meanwhile.
            .when("attribute_not_exists({})", item::CANCELLED_AT, None)
            .when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_item_once(mission.id.as_str(), &expression).await
    }

    /// Records the result of a round: the requests that may have launched and are not answered, and the reason if there
    /// are fewer nodes than requested.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another scheduler has taken over the round and its counted nodes.
    pub async fn note_round(
        &self,
        id: &MissionId,
        round: u64,
        open: &[Reserved],
        why: Option<&str>,
    ) -> Result<bool, CloudError> {
        let expression = Expression::default().when("{} = ?", item::LAUNCH_ROUND, Some(number(round)));
        let expression = if open.is_empty() {
            expression.remove(item::LAUNCH_REQUESTS)
        } else {
            expression.set(item::LAUNCH_REQUESTS, requests_value(open))
        };
        let expression = match why {
            Some(why) => expression.set(item::LAUNCH_ERROR, text(why)),
            None => expression.remove(item::LAUNCH_ERROR),
        };
        self.update_mission(id, &expression).await
    }

    /// Records in a mission's row why it has too few nodes.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_mission(&self, id: &MissionId, why: &str) -> Result<(), CloudError> {
        let expression = Expression::default().set(item::LAUNCH_ERROR, text(why)).when(
            "attribute_exists({})",
            item::MISSION_KEY,
            None,
        );
        self.update_mission(id, &expression).await.map(|_| ())
    }
}

fn requests_value(requests: &[Reserved]) -> AttributeValue {
    AttributeValue::L(requests.iter().map(request::value).collect())
}

/// Requires that no launch was reserved since the row was read.
fn launch_as_seen(expression: Expression, task: &Task) -> Expression {
    if let Some(seen) = &task.seen {
        return expression
            .if_unchanged(item::LAUNCH_AT_ATTEMPT, &seen.launch_at_attempt)
            .if_unchanged(item::LAUNCH_TRIES, &seen.launch_tries);
    }
    let form = |value: Option<u64>| value.map_or(Form::Absent, |value| Form::Number(value.to_string()));
    let tries = Some(task.launch.tries).filter(|&tries| tries > 0);
    expression
        .if_unchanged(item::LAUNCH_AT_ATTEMPT, &form(task.launch.at_attempt.map(|attempt| attempt.0)))
        .if_unchanged(item::LAUNCH_TRIES, &form(tries))
}
