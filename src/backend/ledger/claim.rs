//! Claiming a task: one conditional `UpdateItem`.

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

/// Who claims, and what a row gets that nobody has written yet.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The claiming instance.
    pub owner: InstanceId,
    /// The mission, if the instance's tag or a flag names one; a row that names its own keeps it.
    pub mission: Option<MissionId>,
    /// The bucket of the input, for a new row.
    pub bucket: Option<String>,
    /// Now, RFC 3339 UTC, for `timeBoarding` of a new row.
    pub now: String,
    /// Names this claim among all: the same however often it is sent.
    pub token: String,
    /// Whether nothing else runs on the claimant's node until the attempt has ended. Without that, a suspect task is
    /// not claimed.
    pub is_alone: bool,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The task is ours; the row as it is now.
    Held(Box<Task>),
    /// The task is `done` or `failed`.
    Ended(Box<Task>),
    /// Somebody else holds it; the row as it was seen.
    HeldByOther(Box<Task>),
    /// The task must run alone on its node, and this claim does not promise that; the row as it was seen.
    Suspect(Box<Task>),
    /// The row cannot be claimed, and nobody holds it: it has a state or an attempt that this version does not understand.
    Odd {
        /// The row as it was seen.
        row: Box<Task>,
        /// What cannot be understood.
        what: String,
    },
}

/// The highest attempt that is counted on: up to 2^53, floating numbers are exact, which is what some other writers have.
const ATTEMPT_MAX: u64 = 1 << 53;

impl Ledger {
    /// Claims a task that is `pending`, new, or already held by this very instance (which was restarted).
    ///
    /// If the call arrives twice, the second finds the first by its token: the task is held, and nothing is claimed again.
    /// A row that another hand wrote is claimed as it was seen: `attempt` may be text, and `state` may have another case.
    ///
    /// # Errors
    /// [`CloudError`]; a refused condition is a [`Claim`], not an error.
    pub async fn claim(&self, src: &SrcId, who: &Claimant) -> Result<Claim, CloudError> {
        let row = match self.try_claim(src, &claim_expression(who)).await? {
            // Of a fraction `ADD` makes another, which no fence would match: it is rounded up by one more claim.
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
                None => self.look_again(src, who).await,
            },
            State::Unknown => unreachable!("an unknown state is an oddity"),
        }
    }

    /// Takes over a task whose lease the caller saw expire: `running` with the same `attempt` and `beat` as in `seen`. An
    /// interruption. `Ok(None)` if the row has moved: whatever happened to it counted itself.
    ///
    /// If the call arrives twice, the second finds the first by its token.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn take_over(&self, seen: &Task, who: &Claimant) -> Result<Option<Box<Task>>, CloudError> {
        if seen.state != State::Running || seen.oddity().is_some() {
            return Ok(None);
        }
        // The attempt that is taken over ended without a report.
        self.claim_as_seen(seen, who, seen.interruptions.saturating_add(1)).await
    }

    /// Claims a row on condition that it is just as it was seen.
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

    /// Reads what became of a row that moved between a refusal and the claim of it as it was seen.
    async fn look_again(&self, src: &SrcId, who: &Claimant) -> Result<Claim, CloudError> {
        let row = Box::new(self.task(src).await?.ok_or_else(|| self.vanished(src))?);
        match row.state {
            State::Running if row.claim_token.as_ref() == Some(&who.token) => Ok(Claim::Held(row)),
            State::Running => Ok(Claim::HeldByOther(row)),
            State::Done | State::Failed => Ok(Claim::Ended(row)),
            State::Pending | State::Unknown => {
                let what = row.oddity().unwrap_or_else(|| "it moved while it was claimed".to_owned());
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
                        // Not every emulator sends the row along.
                        None => self.task(src).await?.ok_or_else(|| self.vanished(src))?,
                    })))
                }
                _ => Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
            },
        }
    }

    fn vanished(&self, src: &SrcId) -> CloudError {
        let words = format!("task {src} refused the claim and was gone when looked at");
        CloudError::new(Kind::Conflict, "UpdateItem", format!("table {}", self.tables.tasks), words)
    }
}

/// Returns whether the row's attempt is a whole number, as the fence compares it.
fn has_plain_attempt(row: &Task) -> bool {
    row.seen.as_ref().is_none_or(|seen| matches!(&seen.attempt, Form::Number(n) if n.parse() == Ok(row.attempt.0)))
}

enum Tried {
    Held(Box<Task>),
    Refused(Box<Task>),
}

/// The usual claim, which needs no look at the row before. `ADD` takes numbers alone, so a row whose `attempt` is something
/// else, or no whole number, is refused here and claimed as it was seen.
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
        // Our own, from before a restart; not from this very claim, which arrived before.
        vec![
            ("{} = ?", item::STATE, state(State::Running)),
            ("{} = ?", item::INSTANCE, Some(text(who.owner.as_str()))),
            ("(attribute_not_exists({}) OR {} <> ?)", item::CLAIM_TOKEN, Some(text(&who.token))),
        ],
    ];
    let claim = claimed(who).add(item::ATTEMPT, 1);
    // One that only looks suspect is claimed as it was seen.
    let claim = if who.is_alone { claim } else { claim.when("attribute_not_exists({})", item::SUSPECT, None) };
    claim
        .when_any(cases)
        .when_any(vec![
            vec![("attribute_not_exists({})", item::ATTEMPT, None)],
            vec![("{} >= ?", item::ATTEMPT, Some(number(0))), ("{} < ?", item::ATTEMPT, Some(number(ATTEMPT_MAX)))],
        ])
        // With another value, the task would be counted nowhere.
        .when_any(vec![
            vec![("attribute_not_exists({})", item::MISSION, None)],
            vec![
                ("attribute_type({}, ?)", item::MISSION, Some(text("S"))),
                ("size({}) > ?", item::MISSION, Some(number(0))),
                ("size({}) <= ?", item::MISSION, Some(number(MISSION_BYTES_MAX as u64))),
                // The keys of other items of the missions table, which the end of such a task would change.
                ("NOT contains({}, ?)", item::MISSION, Some(text(TALLY))),
                ("NOT begins_with({}, ?)", item::MISSION, Some(text(OWN))),
            ],
        ])
}

/// What every claim writes.
fn claimed(who: &Claimant) -> Expression {
    let mut expression = Expression::default()
        .set(item::STATE, text(State::Running.as_str()))
        .set(item::INSTANCE, text(who.owner.as_str()))
        .set(item::BEAT, AttributeValue::N("0".to_owned()))
        .set(item::CLAIM_TOKEN, text(&who.token))
        .set_if_absent(item::TIME_BOARDING, text(&who.now))
        // A row that no scheduler made is found by a sweep from now on.
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
