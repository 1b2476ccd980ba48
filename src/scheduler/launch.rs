//! Launches a node for one task. The row and the launch belong together: see `backend/ledger/reserve.rs` for
//! reservations, and `rounds.rs` for the nodes of a mission.

use std::time::Duration;

use super::limits::Grant;
use super::{Scheduler, SchedulerError};
use crate::backend::fleet::{Launched, Request};
use crate::backend::ledger::Note;
use crate::backend::{CloudError, Kind, error_chain};
use crate::clock;
use crate::domain::backoff;
use crate::domain::keys::digest_hex;
use crate::domain::mission::Mission;
use crate::domain::policy::{BidMode, Policy, Purchase};
use crate::domain::request::Reserved;
use crate::domain::tags;
use crate::domain::task::{Launch, Task};

/// The result of a launch for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchResult {
    /// The instance was launched.
    Launched(String),
    /// No node was launched. The row has the reason, and a sweep retries.
    Waits(String),
    /// A limit of the deployment prevents the launch, and others too. The row has the reason.
    Held(String),
    /// Another scheduler launched first, or the task is no longer pending.
    NotNeeded,
}

/// EC2's answer to a launch for a task.
enum Asked {
    /// There is a node, or the answer was lost and the row records that.
    Answered(LaunchResult),
    /// EC2 has no capacity now, with the reason.
    NoRoom(String),
    /// EC2 refuses the request itself; this call launched nothing.
    Refused(CloudError),
}

/// The first pause after a launch without capacity. Each further one doubles it.
const AGAIN_FIRST: Duration = Duration::from_mins(1);
/// The longest pause. Capacity usually returns within minutes.
const AGAIN_LAST: Duration = Duration::from_mins(30);
/// The maximum number of tokens that are tried if EC2 knows each from another request.
const NUMBERS_MAX: u32 = 3;

impl Scheduler {
    /// Launches a node for a pending task, unless another scheduler does.
    ///
    /// # Errors
    /// [`SchedulerError`]. A permanent refusal of EC2 is also in the row.
    pub async fn launch_for(&self, task: &Task, mission: Option<&Mission>) -> Result<LaunchResult, SchedulerError> {
        self.launch_after(task, mission, None).await
    }

    /// Works like [`Self::launch_for`]; `lost` is the reason why the instance that was launched before has terminated.
    pub(super) async fn launch_after(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        lost: Option<&str>,
    ) -> Result<LaunchResult, SchedulerError> {
        if self.settings.template.is_none() {
            return Err(SchedulerError::NoTemplate);
        }
        let policy = match self.policy(mission) {
            Ok(policy) => policy,
            Err(error) => {
                self.note_held(task, &error_chain(&error)).await?;
                return Err(error);
            }
        };
        let is_open = |reserved: &&Reserved| reserved.number == task.attempt.0 && reserved.count == 1;
        let open = task.launch.request.as_ref().filter(is_open).filter(|_| task.launch.instance.is_none());
        match open {
            Some(reserved) => self.repeat(task, mission, &policy, reserved).await,
            None => self.launch_next(task, mission, &policy, lost).await,
        }
    }

    /// Repeats a launch whose answer was lost; EC2 launches once per token. If the request would differ now, or EC2
    /// refuses it now, searches for an instance with the task's tag until EC2 must list it. Only if there is none after
    /// that, launches another one.
    async fn repeat(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        reserved: &Reserved,
    ) -> Result<LaunchResult, SchedulerError> {
        let now = self.request_for(task, mission, policy, reserved.purchase, &reserved.token).await?;
        let request = reserved.again(now, policy, &self.settings.subnets);
        let mut grant = self.take_nodes_again(1, reserved.epoch).await?;
        if grant.count == 0 {
            return self.hold(task, grant).await;
        }
        let is_by_floor = policy.bid_mode == Some(BidMode::Mix) && reserved.purchase == Purchase::OnDemand;
        grant.on_demand_of = mission.filter(|_| is_by_floor).map(|mission| mission.id.clone());
        let asked_at = if request.is_some() { grant.now } else { reserved.asked_at };
        let asked = Reserved { asked_at, is_lost: false, ..reserved.clone() };
        let Some(task) = self.reserve(task, &asked, None).await? else {
            self.give_nodes_back(grant.new, &grant).await;
            return Ok(LaunchResult::NotNeeded);
        };
        if let Some(request) = request {
            match self.request_node(&task, &request, &asked).await? {
                Asked::Answered(node) => return Ok(node),
                Asked::NoRoom(why) => return self.give_up(&task, why, &grant).await,
                // Example: the function's role now allows only a newer image.
                Asked::Refused(error) => {
                    tracing::warn!(src.id = %task.src, "launch for {} cannot be repeated: {}", task.src, error.source);
                }
            }
        }
        if let Some(node) = self.find_node(&task).await? {
            self.give_nodes_back(grant.new, &grant).await;
            return Ok(node);
        }
        if reserved.may_be_hidden(grant.now) {
            let why = "the answer to an earlier launch was lost, and EC2 may not list its instance yet";
            self.note_none(&task, why, Some(reserved.clone())).await?;
            self.give_nodes_back(grant.new, &grant).await;
            return Ok(LaunchResult::Waits(why.to_owned()));
        }
        self.launch_with(&task, mission, policy, None, grant).await
    }

    /// Launches with the next number.
    async fn launch_next(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        lost: Option<&str>,
    ) -> Result<LaunchResult, SchedulerError> {
        let mut grant = self.take_nodes(1).await?;
        if grant.count == 0 {
            return self.hold(task, grant).await;
        }
        if policy.purchase(waited(task)).is_none()
            && let Some(mission) = mission
        {
            match self.take_on_demand(policy, mission).await {
                Ok(is_taken) => grant.on_demand_of = is_taken.then(|| mission.id.clone()),
                Err(error) => {
                    self.give_back(&grant).await;
                    return Err(error);
                }
            }
        }
        self.launch_with(task, mission, policy, lost, grant).await
    }

    /// Launches with the granted capacity and the next number.
    async fn launch_with(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        lost: Option<&str>,
        grant: Grant,
    ) -> Result<LaunchResult, SchedulerError> {
        let mut task = task.clone();
        for _ in 0..NUMBERS_MAX {
            let (request, reserved) = match self.new_request(&task, mission, policy, &grant).await {
                Ok(both) => both,
                Err(error) => {
                    self.give_back(&grant).await;
                    return Err(error);
                }
            };
            let Some(mine) = self.reserve(&task, &reserved, lost).await? else {
                self.give_back(&grant).await;
                return Ok(LaunchResult::NotNeeded);
            };
            task = mine;
            match self.request_node(&task, &request, &reserved).await? {
                Asked::Answered(node) => return Ok(node),
                Asked::NoRoom(why) => return self.give_up(&task, why, &grant).await,
                Asked::Refused(error) if error.kind == Kind::Precondition => {
                    tracing::warn!(src.id = %task.src, "launch token for {} was used: {}", task.src, error.source);
                }
                Asked::Refused(error) => {
                    self.give_up(&task, error.source.to_string(), &grant).await?;
                    return Err(SchedulerError::cloud("launching a node")(error));
                }
            }
            // The token belongs to another deployment, or to a row that was created again. Never two nodes for one
            // task.
            if let Some(node) = self.find_node(&task).await? {
                self.give_back(&grant).await;
                return Ok(node);
            }
        }
        let why = format!("EC2 refused {NUMBERS_MAX} client tokens because each was used for another launch");
        self.give_up(&task, why, &grant).await
    }

    /// Reserves a launch with the next number in the row. Returns the updated task, or `None` if another scheduler was
    /// faster.
    async fn reserve(
        &self,
        task: &Task,
        reserved: &Reserved,
        lost: Option<&str>,
    ) -> Result<Option<Task>, SchedulerError> {
        let (now, tries) = (clock::now_rfc3339(), task.launch.tries.saturating_add(1));
        let is_ours = self.backend.ledger.reserve_launch(task, &now, tries, reserved, lost).await;
        let launch = Launch { at_attempt: Some(task.attempt), tries, at: now, ..Launch::default() };
        let is_ours = is_ours.map_err(SchedulerError::cloud("reserving a launch"))?;
        Ok(is_ours.then(|| Task { launch, seen: None, ..task.clone() }))
    }

    /// Requests the reserved node from EC2.
    async fn request_node(&self, task: &Task, request: &Request, reserved: &Reserved) -> Result<Asked, SchedulerError> {
        self.pacer.turn().await;
        match self.backend.fleet.launch(request).await {
            Ok(Launched { instances, .. }) if !instances.is_empty() => {
                self.note_launch(task, &instances[0]).await.map(Asked::Answered)
            }
            Ok(Launched { shortfall, .. }) => Ok(Asked::NoRoom(shortfall.join("; "))),
            // The instance may have been launched: the reservation stays in the row, and its capacity stays counted.
            Err(error) if error.is_retryable() => {
                let why = error.source.to_string();
                self.note_none(task, &why, Some(Reserved { is_lost: true, ..reserved.clone() })).await?;
                Ok(Asked::Answered(LaunchResult::Waits(why)))
            }
            Err(error) => Ok(Asked::Refused(error)),
        }
    }

    /// Writes the reason into the row why nothing was launched, and returns the granted capacity. If the row has
    /// changed, another scheduler owns the launch, and nothing is returned.
    async fn give_up(&self, task: &Task, why: String, grant: &Grant) -> Result<LaunchResult, SchedulerError> {
        if self.note_none(task, &why, None).await? {
            self.give_back(grant).await;
        }
        Ok(LaunchResult::Waits(why))
    }

    async fn note_launch(&self, task: &Task, instance: &str) -> Result<LaunchResult, SchedulerError> {
        let noted = self.backend.ledger.note_launch(task, instance).await;
        noted.map_err(SchedulerError::cloud("recording a launch"))?;
        tracing::info!(src.id = %task.src, "launched {instance} for {}", task.src);
        Ok(LaunchResult::Launched(instance.to_owned()))
    }

    /// Finds a running instance with the task's tag, and records it as the task's node.
    async fn find_node(&self, task: &Task) -> Result<Option<LaunchResult>, SchedulerError> {
        let found = self.backend.fleet.node_for(self.owner_tag(), &tags::src_value(&task.src)).await;
        match found.map_err(SchedulerError::cloud("listing the instances of this deployment"))? {
            Some(ours) => self.note_launch(task, &ours.id).await.map(Some),
            None => Ok(None),
        }
    }

    /// Records in the row that a limit delays the launch. A sweep launches later.
    async fn hold(&self, task: &Task, grant: Grant) -> Result<LaunchResult, SchedulerError> {
        let why = grant.why.unwrap_or_else(|| "the limit of nodes is reached".to_owned());
        self.note_held(task, &why).await?;
        Ok(LaunchResult::Held(why))
    }

    /// Records in the row why nothing is launched, unless the row already has this reason.
    pub(super) async fn note_held(&self, task: &Task, why: &str) -> Result<(), SchedulerError> {
        if task.launch.error.as_deref() == Some(why) && task.launch.after.is_none() {
            return Ok(());
        }
        tracing::info!(src.id = %task.src, "no node is launched for {} yet: {why}", task.src);
        let noted = self.backend.ledger.note_held(task, why).await;
        noted.map_err(SchedulerError::cloud("recording that a task waits"))
    }

    async fn note_none(&self, task: &Task, why: &str, open: Option<Reserved>) -> Result<bool, SchedulerError> {
        let after = clock::later(again_after(task.launch.tries, rand::random()));
        tracing::warn!(src.id = %task.src, "no node is launched for {} before {after}: {why}", task.src);
        let note = Note { why: why.to_owned(), after: Some(after), open };
        let noted = self.backend.ledger.note_no_launch(task, &note).await;
        noted.map_err(SchedulerError::cloud("recording that a launch failed"))
    }

    /// Builds the request of a task's next launch, and the reservation for the row.
    async fn new_request(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        grant: &Grant,
    ) -> Result<(Request, Reserved), SchedulerError> {
        let attempt = task.attempt.to_string();
        let tries = (task.launch.tries + 1).to_string();
        // A row that was deleted and created again is another task.
        let made_at = task.made_at.as_deref().unwrap_or_default();
        let token = digest_hex(&["task", self.owner_tag(), task.src.as_str(), made_at, &attempt, &tries], 48);
        let purchase = match &grant.on_demand_of {
            Some(_) => Purchase::OnDemand,
            None => policy.purchase(waited(task)).unwrap_or(Purchase::Spot),
        };
        let request = self.request_for(task, mission, policy, purchase, &token).await?.in_epoch(grant.epoch());
        let reserved = request.reserved(task.attempt.0, grant.epoch(), grant.now);
        Ok((request, reserved))
    }

    async fn request_for(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        purchase: Purchase,
        token: &str,
    ) -> Result<Request, SchedulerError> {
        let value = tags::src_value(&task.src);
        if tags::is_short(&value) {
            let named = self.backend.ledger.name_key(&task.src).await;
            named.map_err(SchedulerError::cloud("storing a long key"))?;
        }
        self.name_mission(mission).await?;
        let mut tags = self.tags(task.src.as_str(), mission);
        tags.push((tags::SRC.to_owned(), value));
        self.request(policy, purchase, 1, tags, token.to_owned()).await
    }

    /// Returns the mission's policy; the settings fill what it leaves open.
    ///
    /// # Errors
    /// [`SchedulerError::Policy`].
    pub fn policy(&self, mission: Option<&Mission>) -> Result<Policy, SchedulerError> {
        let name = || mission.map_or_else(|| "none".to_owned(), |mission| mission.id.to_string());
        let wrong = |source| SchedulerError::Policy { mission: name(), source };
        let own = mission.map_or_else(|| Ok(Policy::default()), |mission| mission.policy.clone());
        let policy = own.map_err(wrong)?.or(&self.settings.policy);
        policy.check().map_err(|source| SchedulerError::Policy { mission: name(), source })?;
        Ok(policy)
    }

    pub(super) fn tags(&self, name: &str, mission: Option<&Mission>) -> Vec<(String, String)> {
        let mut tags =
            vec![(tags::OURS.to_owned(), self.owner_tag().to_owned()), (tags::NAME.to_owned(), tags::name_value(name))];
        if let Some(mission) = mission {
            tags.push((tags::MISSION.to_owned(), tags::mission_value(&mission.id)));
        }
        tags
    }

    /// Stores the short name of a mission whose id is too long for a tag.
    pub(super) async fn name_mission(&self, mission: Option<&Mission>) -> Result<(), SchedulerError> {
        let is_short = |mission: &&Mission| tags::is_short_mission(&tags::mission_value(&mission.id));
        let Some(mission) = mission.filter(is_short) else { return Ok(()) };
        let named = self.backend.ledger.name_mission(&mission.id).await;
        named.map_err(SchedulerError::cloud("storing a mission's short name"))
    }

    /// Counts one of the On-Demand launches that the mission's floor requires; `false` if it has them all.
    async fn take_on_demand(&self, policy: &Policy, mission: &Mission) -> Result<bool, SchedulerError> {
        let taken = self.backend.ledger.take_on_demand(&mission.id, policy.on_demand_floor.unwrap_or(0)).await;
        taken.map_err(SchedulerError::cloud("counting an On-Demand launch"))
    }
}

/// Returns how long a task has waited for a node, by the clock of the process that recorded the start.
pub(super) fn waited(task: &Task) -> Duration {
    waited_since(task.open_since.as_deref())
}

/// Returns the time since a row's timestamp; zero if it is missing or invalid.
pub(super) fn waited_since(since: Option<&str>) -> Duration {
    since.and_then(clock::since).unwrap_or_default()
}

/// Returns the pause before a launch without capacity is retried: doubled each time, minus a random part of up to one
/// half.
fn again_after(tries: u64, dice: u32) -> Duration {
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    let longest = backoff::doubled(AGAIN_FIRST, doublings, AGAIN_LAST);
    backoff::between(longest / 2, longest, dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_and_stops() {
        assert_eq!(again_after(1, u32::MAX), AGAIN_FIRST);
        assert_eq!(again_after(3, u32::MAX), 4 * AGAIN_FIRST);
        assert_eq!(again_after(90, u32::MAX), AGAIN_LAST);
        assert_eq!(again_after(1, 0), AGAIN_FIRST / 2);
    }
}
