//! Launches that are reserved, and what came of them.
//!
//! ```text
//!   reserve (one winner, with the request) ─► CreateFleet, by the token in it ─► note the instance
//!                                                                        ├─► note why there is none, and when again
//!                                                                        └─► no answer: the request stays, and is repeated
//! ```
//!
//! A scheduler that dies between two of these leaves a reservation without an instance, which a sweep finds. As long as the row
//! has the request, its repeat is equal to the first, so EC2 launches once. A repeat reserves the next number, so that it has one
//! winner, too, and the notes of whoever asked before are refused: what was taken of the count of nodes and was not launched is
//! given back by the one whose note is written.

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

/// Why no instance was launched for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The reason.
    pub why: String,
    /// Not before this is the next try made; `None`: at the next sweep.
    pub after: Option<String>,
    /// What stays in the row of the launch, if there may be an instance all the same: it is repeated, or looked for.
    pub open: Option<Reserved>,
}

impl Ledger {
    /// Reserves the launch of a node for a task that waits, as the row was seen. Of many callers one gets it. `tries` is the
    /// launch's number; `lost` says why the instance that was launched before is gone.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row is not as it was seen.
    pub async fn reserve_launch(
        &self,
        task: &Task,
        now: &str,
        tries: u64,
        reserved: &Reserved,
        lost: Option<&str>,
    ) -> Result<bool, CloudError> {
        // What was launched for this very attempt is gone, if another is launched now.
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

    /// Notes the instance that was launched. A row that has gone on meanwhile stays as it is.
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

    /// Notes why no instance was launched, and not before when the next try is made; the reservation is given up.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the row has gone on, so that what was taken for the launch is another's.
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

    /// Notes why nothing is launched for a task that waits, if nobody has reserved a launch since the row was seen.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_held(&self, task: &Task, why: &str) -> Result<(), CloudError> {
        let expression = waits(launch_as_seen(Expression::default(), task), task)
            .set(item::LAUNCH_ERROR, text(why))
            .remove(item::LAUNCH_AFTER);
        self.update_row(&task.src, &expression).await.map(|_| ())
    }

    /// Reserves a launch of a mission's nodes, as the row was seen: of many callers one gets it, and the next number. `new` of
    /// the nodes were not asked for before; those of a launch that is repeated were.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another was quicker.
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
            // Nothing is launched for a mission that was cancelled since.
            .when("attribute_not_exists({})", item::CANCELLED_AT, None)
            .when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_item_once(mission.id.as_str(), &expression).await
    }

    /// Notes what became of a round: the requests that may have launched and are not answered, and why there are fewer nodes
    /// than were wanted, if there are.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another has taken the round over, so that what was taken for it is another's.
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

    /// Notes in a mission's row why it has fewer nodes than it wants.
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

/// Requires that nobody has reserved a launch since the row was seen.
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
