//! Claiming a task: one conditional `UpdateItem`.

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::open::open_as;
use super::{Ledger, task_key};
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::lease::Lease;
use crate::domain::mission::open_partition;
use crate::domain::task::{State, Task};

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
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The task is ours; the row as it is now.
    Held(Box<Task>),
    /// The task is `done` or `failed`.
    Ended(Box<Task>),
    /// Somebody else holds it.
    HeldByOther(Lease),
}

impl Ledger {
    /// Claims a task that is `pending`, new, or already held by this very instance (which was restarted).
    /// With `expired`, also one that is still held by exactly this lease, which the caller saw expire.
    ///
    /// If the call arrives twice, the second finds the first by its token: the task is held, and nothing is claimed again.
    ///
    /// # Errors
    /// [`CloudError`]; a refused condition is a [`Claim`], not an error.
    pub async fn claim(&self, src: &SrcId, who: &Claimant, expired: Option<&Lease>) -> Result<Claim, CloudError> {
        let expression = claim_expression(who, expired);
        let answer = expression
            .on(self.client.update_item().table_name(&self.tables.tasks).set_key(Some(task_key(src))))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        let task = match answer {
            Ok(answer) => {
                let item = answer.attributes.unwrap_or_default();
                return Ok(Claim::Held(Box::new(Row(&item).task(src.clone()))));
            }
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refusal)) => match &refusal.item {
                    Some(item) => Row(item).task(src.clone()),
                    // Not every emulator sends the row along.
                    None => self.task(src).await?.ok_or_else(|| self.vanished(src))?,
                },
                _ => return Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
            },
        };
        match task.lease() {
            Some(_) if task.claim_token.as_ref() == Some(&who.token) => Ok(Claim::Held(Box::new(task))),
            Some(lease) => Ok(Claim::HeldByOther(lease)),
            None if task.state.is_final() => Ok(Claim::Ended(Box::new(task))),
            None => {
                let words = format!("task {src} has a state that this version does not know");
                Err(CloudError::new(Kind::Invalid, "UpdateItem", format!("table {}", self.tables.tasks), words))
            }
        }
    }

    fn vanished(&self, src: &SrcId) -> CloudError {
        let words = format!("task {src} refused the claim and was gone when looked at");
        CloudError::new(Kind::Conflict, "UpdateItem", format!("table {}", self.tables.tasks), words)
    }
}

fn claim_expression(who: &Claimant, expired: Option<&Lease>) -> Expression {
    let state = |state: State| Some(text(state.as_str()));
    let owner = || Some(text(who.owner.as_str()));
    let mut cases = vec![
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
            ("{} = ?", item::INSTANCE, owner()),
            ("(attribute_not_exists({}) OR {} <> ?)", item::CLAIM_TOKEN, Some(text(&who.token))),
        ],
    ];
    let mut expression = Expression::default();
    if let Some(lease) = expired {
        // The attempt that is taken over ended without a word: an interruption.
        expression = expression.add(item::INTERRUPTIONS, 1);
        cases.push(vec![
            ("{} = ?", item::STATE, state(State::Running)),
            ("{} = ?", item::ATTEMPT, Some(number(lease.attempt.0))),
            ("{} = ?", item::BEAT, Some(number(lease.beat))),
        ]);
    }
    expression = expression
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
        .remove(item::LAUNCH_ERROR)
        .add(item::ATTEMPT, 1)
        .when_any(cases);
    if let Some(mission) = &who.mission {
        expression = expression.set_if_absent(item::MISSION, text(mission.as_str()));
    }
    if let Some(bucket) = &who.bucket {
        expression = expression.set_if_absent(item::BUCKET, text(bucket));
    }
    expression
}
