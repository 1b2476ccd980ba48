//! Claims a task by one conditional `UpdateItem`.

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::Ledger;
use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::key::task_key;
use super::launch::{as_seen, same_beat};
use super::open::open_as;
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{InstanceId, MISSION_BYTES_MAX, MissionId, OWN, SrcId, TALLY};
use crate::domain::mission::open_partition;
use crate::domain::task::{State, Task};
use crate::domain::value::Form;

/// The claimant, and the values for attributes that the row lacks.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The claiming instance.
    pub owner: InstanceId,
    /// The mission from the instance's tag or a flag. A mission in the row has precedence.
    pub mission: Option<MissionId>,
    /// The bucket of the input, for a new row.
    pub bucket: Option<String>,
    /// The current time, RFC 3339 UTC, for `timeBoarding` of a new row.
    pub now: String,
    /// The token of this claim: the same for all repetitions of the call.
    pub token: String,
    /// Whether the node runs nothing else until the attempt has finished. Otherwise a suspect task is not claimed.
    pub is_alone: bool,
}

/// The result of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The claimant holds the task; the current row.
    Held(Box<Task>),
    /// The task is `done` or `failed`.
    Ended(Box<Task>),
    /// Another instance holds the task; the row that was read.
    HeldByOther(Box<Task>),
    /// The task must run alone on its node, and this claim does not promise that; the row that was read.
    Suspect(Box<Task>),
    /// The row cannot be claimed, and nobody holds it: this version does not support its state or attempt.
    Odd {
        /// The row that was read.
        row: Box<Task>,
        /// The unsupported value.
        what: String,
    },
}

/// The maximum attempt. Up to 2^53, floating-point numbers are exact; some other writers use them.
const ATTEMPT_MAX: u64 = 1 << 53;

impl Ledger {
    /// Claims a task that is `pending`, new, or already held by this same instance (which restarted).
    ///
    /// If the call arrives twice, the second finds the first by its token: the task is held, and nothing is claimed
    /// again. A row from another writer is claimed with its values as conditions: `attempt` may be text, `state` may
    /// have another case.
    ///
    /// # Errors
    /// [`CloudError`]; a refused condition is a [`Claim`], not an error.
    pub async fn claim(&self, src: &SrcId, who: &Claimant) -> Result<Claim, CloudError> {
        let row = match self.try_claim(src, &claim_expression(who)).await? {
            // `ADD` to a fraction gives a fraction, which no fence would match. A second claim rounds it up.
            Tried::Held(task) if !has_plain_attempt(&task) => task,
            Tried::Held(task) => return Ok(Claim::Held(task)),
            Tried::Refused(row) => row,
        };
        if let Some(what) = row.oddity() {
            return Ok(Claim::Odd { row, what });
        }
        let is_own = row.state == State::Running && row.instance.as_ref() == Some(&who.owner);
        let is_this_claim = row.claim_token.as_ref() == Some(&who.token);
        match row.state {
            State::Running if is_own && is_this_claim && has_plain_attempt(&row) => Ok(Claim::Held(row)),
            State::Running if !is_own => Ok(Claim::HeldByOther(row)),
            State::Done | State::Failed => Ok(Claim::Ended(row)),
            State::Pending | State::Running if row.is_suspect && !who.is_alone => Ok(Claim::Suspect(row)),
            State::Pending | State::Running => match self.claim_as_seen(&row, who, row.interruptions).await? {
                Some(task) => Ok(Claim::Held(task)),
                None => self.read_again(src, who).await,
            },
            State::Unknown => unreachable!("an unknown state is an oddity"),
        }
    }

    /// Takes over a task whose lease expired: `running` with the same `attempt` and `beat` as in `seen`. Counts as an
    /// interruption. `Ok(None)` if the row has changed: the change was counted by its writer.
    ///
    /// If the call arrives twice, the second finds the first by its token.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn take_over(&self, seen: &Task, who: &Claimant) -> Result<Option<Box<Task>>, CloudError> {
        if seen.state != State::Running || seen.oddity().is_some() {
            return Ok(None);
        }
        // The attempt that is taken over finished without a report.
        self.claim_as_seen(seen, who, seen.interruptions.saturating_add(1)).await
    }

    /// Claims a row on condition that it has not changed since it was read.
    async fn claim_as_seen(
        &self,
        row: &Task,
        who: &Claimant,
        interruptions: u64,
    ) -> Result<Option<Box<Task>>, CloudError> {
        let mut expression = as_seen(claimed(who), row)
            .set(item::ATTEMPT, number(row.attempt.0 + 1))
            .set(item::INTERRUPTIONS, number(interruptions));
        if row.state == State::Running {
            expression = same_beat(expression, row);
        }
        if let Some(seen) = row.seen.as_ref().filter(|_| !who.is_alone) {
            expression = expression.if_unchanged(item::SUSPECT, &seen.suspect);
        }
        match self.try_claim(&row.src, &expression).await? {
            Tried::Held(task) => Ok(Some(task)),
            Tried::Refused(now) if now.state == State::Running && now.claim_token.as_ref() == Some(&who.token) => {
                Ok(Some(now))
            }
            Tried::Refused(_) => Ok(None),
        }
    }

    /// Reads the row again after it changed between a refusal and the second claim.
    async fn read_again(&self, src: &SrcId, who: &Claimant) -> Result<Claim, CloudError> {
        let row = Box::new(self.task(src).await?.ok_or_else(|| self.vanished(src))?);
        match row.state {
            State::Running if row.claim_token.as_ref() == Some(&who.token) => Ok(Claim::Held(row)),
            State::Running => Ok(Claim::HeldByOther(row)),
            State::Done | State::Failed => Ok(Claim::Ended(row)),
            State::Pending | State::Unknown => {
                let what = row.oddity().unwrap_or_else(|| "it changed during the claim".to_owned());
                Ok(Claim::Odd { what, row })
            }
        }
    }

    async fn try_claim(&self, src: &SrcId, expression: &Expression) -> Result<Tried, CloudError> {
        let answer = expression
            .on(self.client.update_item().table_name(&self.tables.tasks).set_key(Some(task_key(src))))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        match answer {
            Ok(answer) => Ok(Tried::Held(Box::new(Row(&answer.attributes.unwrap_or_default()).task(src.clone())))),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refusal)) => {
                    Ok(Tried::Refused(Box::new(match &refusal.item {
                        Some(item) => Row(item).task(src.clone()),
                        // Some emulators do not return the row.
                        None => self.task(src).await?.ok_or_else(|| self.vanished(src))?,
                    })))
                }
                _ => Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
            },
        }
    }

    fn vanished(&self, src: &SrcId) -> CloudError {
        let words = format!("task {src} refused the claim, and its row was deleted afterwards");
        CloudError::new(Kind::Conflict, "UpdateItem", format!("table {}", self.tables.tasks), words)
    }
}

/// Returns whether the row's attempt is an integer, as the fence needs.
fn has_plain_attempt(row: &Task) -> bool {
    row.seen.as_ref().is_none_or(|seen| matches!(&seen.attempt, Form::Number(n) if n.parse() == Ok(row.attempt.0)))
}

enum Tried {
    Held(Box<Task>),
    Refused(Box<Task>),
}

/// Returns the usual claim, which needs no previous read. `ADD` needs a number, so a row whose `attempt` is not an
/// integer is refused here, and claimed by its values afterwards.
fn claim_expression(who: &Claimant) -> Expression {
    let state = |state: State| Some(text(state.as_str()));
    let cases = vec![
        // New, or written before `state` existed and not finished then.
        vec![
            ("attribute_not_exists({})", item::STATE, None),
            ("(attribute_not_exists({}) OR {} <> ?)", item::PROGRESS, Some(text("100%"))),
        ],
        vec![("attribute_not_exists({})", item::STATE, None), ("attribute_not_exists({})", item::RESULT, None)],
        vec![("{} = ?", item::STATE, state(State::Pending))],
        // Held by this instance before a restart, but not by a previous call of this claim.
        vec![
            ("{} = ?", item::STATE, state(State::Running)),
            ("{} = ?", item::INSTANCE, Some(text(who.owner.as_str()))),
            ("(attribute_not_exists({}) OR {} <> ?)", item::CLAIM_TOKEN, Some(text(&who.token))),
        ],
    ];
    let claim = claimed(who).add(item::ATTEMPT, 1);
    // Other rows with the attribute are claimed by their values afterwards.
    let claim = if who.is_alone { claim } else { claim.when("attribute_not_exists({})", item::SUSPECT, None) };
    claim
        .when_any(cases)
        .when_any(vec![
            vec![("attribute_not_exists({})", item::ATTEMPT, None)],
            vec![("{} >= ?", item::ATTEMPT, Some(number(0))), ("{} < ?", item::ATTEMPT, Some(number(ATTEMPT_MAX)))],
        ])
        // With another value, the task would not be counted anywhere.
        .when_any(vec![
            vec![("attribute_not_exists({})", item::MISSION, None)],
            vec![
                ("attribute_type({}, ?)", item::MISSION, Some(text("S"))),
                ("size({}) > ?", item::MISSION, Some(number(0))),
                ("size({}) <= ?", item::MISSION, Some(number(MISSION_BYTES_MAX as u64))),
                // These are keys of other items of the missions table, which the end of such a task would change.
                ("NOT contains({}, ?)", item::MISSION, Some(text(TALLY))),
                ("NOT begins_with({}, ?)", item::MISSION, Some(text(OWN))),
            ],
        ])
}

/// Returns the attributes that every claim writes.
fn claimed(who: &Claimant) -> Expression {
    let mut expression = Expression::default()
        .set(item::STATE, text(State::Running.as_str()))
        .set(item::INSTANCE, text(who.owner.as_str()))
        .set(item::BEAT, AttributeValue::N("0".to_owned()))
        .set(item::CLAIM_TOKEN, text(&who.token))
        .set_if_absent(item::TIME_BOARDING, text(&who.now))
        // From now on, a sweep finds a row that no scheduler created.
        .set_if_absent(item::OPEN_IN, text(open_partition(who.mission.as_ref(), 0)))
        .set(item::OPEN_AS, text(open_as(State::Running, &who.now)))
        .remove(item::LAUNCHES_LOST)
        .remove(item::CANCELLED)
        .remove(item::LAUNCH_REQUEST)
        .remove(item::LAUNCH_ERROR);
    if let Some(mission) = &who.mission {
        expression = expression.set_if_absent(item::MISSION, text(mission.as_str()));
    }
    if let Some(bucket) = &who.bucket {
        expression = expression.set_if_absent(item::BUCKET, text(bucket));
    }
    expression
}
