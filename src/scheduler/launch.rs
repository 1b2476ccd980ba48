//! Launches: a node for a task. The row and the launch belong together; see `backend/ledger/reserve.rs` on reservations. Nodes
//! for a mission: `rounds.rs`.

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

/// What came of a launch for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// This instance was launched.
    Launched(String),
    /// There is none: the row says why, and a sweep tries again.
    Waits(String),
    /// There is none, for a limit of the deployment holds it back, as it does others: the row says so.
    Held(String),
    /// Another scheduler was quicker, or the task waits no more.
    NotNeeded,
}

/// What EC2 says of a launch for a task.
enum Asked {
    /// There is a node, or the answer was lost: the row says so.
    Answered(Node),
    /// It has no room now: why.
    NoRoom(String),
    /// It refuses the request as it is; nothing was launched by this call.
    Refused(CloudError),
}

/// The first pause after a launch that found no room; each doubles it.
const AGAIN_FIRST: Duration = Duration::from_mins(1);
/// The longest: capacity comes back within minutes, or not today.
const AGAIN_LAST: Duration = Duration::from_mins(30);
/// How many numbers are tried in one go, should EC2 know the token of each from another request.
const NUMBERS_MAX: u32 = 3;

impl Scheduler {
    /// Launches a node for a task that waits, if nobody else does.
    ///
    /// # Errors
    /// [`SchedulerError`]; a permanent refusal of EC2 is in the row, too.
    pub async fn launch_for(&self, task: &Task, mission: Option<&Mission>) -> Result<Node, SchedulerError> {
        self.launch_after(task, mission, None).await
    }

    /// As [`Self::launch_for`]; `lost` says why the instance that was launched for the task before is gone.
    pub(super) async fn launch_after(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        lost: Option<&str>,
    ) -> Result<Node, SchedulerError> {
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

    /// Repeats a launch whose answer was lost: EC2 launches once. If the request would be another one by now, or is refused by
    /// now, an instance that bears the task's name is looked for instead, as long as one may not show yet; only if there is none
    /// then, another one is launched.
    async fn repeat(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        reserved: &Reserved,
    ) -> Result<Node, SchedulerError> {
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
            return Ok(Node::NotNeeded);
        };
        if let Some(request) = request {
            match self.ask(&task, &request, &asked).await? {
                Asked::Answered(node) => return Ok(node),
                Asked::NoRoom(why) => return self.give_up(&task, why, &grant).await,
                // The function's role may launch the image of now alone, for example.
                Asked::Refused(error) => {
                    tracing::warn!(src.id = %task.src, "a launch for {} is not repeated: {}", task.src, error.source);
                }
            }
        }
        if let Some(node) = self.find_node(&task).await? {
            self.give_nodes_back(grant.new, &grant).await;
            return Ok(node);
        }
        if reserved.may_be_hidden(grant.now) {
            let why = "the answer to an earlier launch was lost, and its instance may not show yet";
            self.note_none(&task, why, Some(reserved.clone())).await?;
            self.give_nodes_back(grant.new, &grant).await;
            return Ok(Node::Waits(why.to_owned()));
        }
        self.launch_with(&task, mission, policy, None, grant).await
    }

    /// Launches under the next number.
    async fn launch_next(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        lost: Option<&str>,
    ) -> Result<Node, SchedulerError> {
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

    /// Launches what was taken, under the next number.
    async fn launch_with(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        lost: Option<&str>,
        grant: Grant,
    ) -> Result<Node, SchedulerError> {
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
                return Ok(Node::NotNeeded);
            };
            task = mine;
            match self.ask(&task, &request, &reserved).await? {
                Asked::Answered(node) => return Ok(node),
                Asked::NoRoom(why) => return self.give_up(&task, why, &grant).await,
                Asked::Refused(error) if error.kind == Kind::Precondition => {
                    tracing::warn!(src.id = %task.src, "a launch for {} has a used token: {}", task.src, error.source);
                }
                Asked::Refused(error) => {
                    self.give_up(&task, error.source.to_string(), &grant).await?;
                    return Err(SchedulerError::cloud("launching a node")(error));
                }
            }
            // Another deployment's, or a row's that was made again: never two nodes for one task.
            if let Some(node) = self.find_node(&task).await? {
                self.give_back(&grant).await;
                return Ok(node);
            }
        }
        let why = format!("EC2 says {NUMBERS_MAX} times that the launch's token was used for another one");
        self.give_up(&task, why, &grant).await
    }

    /// Reserves a launch in the row, under the next number; returns the task as it is then, or `None` if another scheduler was
    /// quicker.
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

    /// Asks EC2 for the node that the row reserves.
    async fn ask(&self, task: &Task, request: &Request, reserved: &Reserved) -> Result<Asked, SchedulerError> {
        self.pacer.turn().await;
        match self.backend.fleet.launch(request).await {
            Ok(Launched { instances, .. }) if !instances.is_empty() => {
                self.note_launch(task, &instances[0]).await.map(Asked::Answered)
            }
            Ok(Launched { shortfall, .. }) => Ok(Asked::NoRoom(shortfall.join("; "))),
            // It may have been launched: the request stays in the row, and what was taken for it stays taken.
            Err(error) if error.is_retryable() => {
                let why = error.source.to_string();
                self.note_none(task, &why, Some(Reserved { is_lost: true, ..reserved.clone() })).await?;
                Ok(Asked::Answered(Node::Waits(why)))
            }
            Err(error) => Ok(Asked::Refused(error)),
        }
    }

    /// Says in the row why nothing was launched, and gives back what was taken for it, unless the row has gone on: then it is
    /// another's.
    async fn give_up(&self, task: &Task, why: String, grant: &Grant) -> Result<Node, SchedulerError> {
        if self.note_none(task, &why, None).await? {
            self.give_back(grant).await;
        }
        Ok(Node::Waits(why))
    }

    async fn note_launch(&self, task: &Task, instance: &str) -> Result<Node, SchedulerError> {
        let noted = self.backend.ledger.note_launch(task, instance).await;
        noted.map_err(SchedulerError::cloud("noting a launch"))?;
        tracing::info!(src.id = %task.src, "launched {instance} for {}", task.src);
        Ok(Node::Launched(instance.to_owned()))
    }

    /// Looks for a living instance that bears the task's name, and notes it as the one that was launched.
    async fn find_node(&self, task: &Task) -> Result<Option<Node>, SchedulerError> {
        let found = self.backend.fleet.node_for(self.owner_tag(), &tags::src_value(&task.src)).await;
        match found.map_err(SchedulerError::cloud("listing our instances"))? {
            Some(ours) => self.note_launch(task, &ours.id).await.map(Some),
            None => Ok(None),
        }
    }

    /// Says in the row that a limit holds the task back: a sweep launches for it later.
    async fn hold(&self, task: &Task, grant: Grant) -> Result<Node, SchedulerError> {
        let why = grant.why.unwrap_or_else(|| "a limit of nodes is reached".to_owned());
        self.note_held(task, &why).await?;
        Ok(Node::Held(why))
    }

    /// Says in the row why nothing is launched for a task, unless it says so.
    pub(super) async fn note_held(&self, task: &Task, why: &str) -> Result<(), SchedulerError> {
        if task.launch.error.as_deref() == Some(why) && task.launch.after.is_none() {
            return Ok(());
        }
        tracing::info!(src.id = %task.src, "no node for {} yet: {why}", task.src);
        let noted = self.backend.ledger.note_held(task, why).await;
        noted.map_err(SchedulerError::cloud("noting that a task waits"))
    }

    async fn note_none(&self, task: &Task, why: &str, open: Option<Reserved>) -> Result<bool, SchedulerError> {
        let after = clock::later(again_after(task.launch.tries, rand::random()));
        tracing::warn!(src.id = %task.src, "no node for {} before {after}: {why}", task.src);
        let note = Note { why: why.to_owned(), after: Some(after), open };
        let noted = self.backend.ledger.note_no_launch(task, &note).await;
        noted.map_err(SchedulerError::cloud("noting that a launch failed"))
    }

    /// Makes the request of a task's next launch, and what the row keeps of it.
    async fn new_request(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        grant: &Grant,
    ) -> Result<(Request, Reserved), SchedulerError> {
        let attempt = task.attempt.to_string();
        let tries = (task.launch.tries + 1).to_string();
        // A row that was removed and made again is another task.
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
            named.map_err(SchedulerError::cloud("writing down a long key"))?;
        }
        self.name_mission(mission).await?;
        let mut tags = self.tags(task.src.as_str(), mission);
        tags.push((tags::SRC.to_owned(), value));
        self.request(policy, purchase, 1, tags, token.to_owned()).await
    }

    /// The mission's policy, with what it leaves open taken from the settings.
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

    /// Writes down the short name of a mission whose id no tag can hold.
    pub(super) async fn name_mission(&self, mission: Option<&Mission>) -> Result<(), SchedulerError> {
        let is_short = |mission: &&Mission| tags::is_short_mission(&tags::mission_value(&mission.id));
        let Some(mission) = mission.filter(is_short) else { return Ok(()) };
        let named = self.backend.ledger.name_mission(&mission.id).await;
        named.map_err(SchedulerError::cloud("writing down a mission's short name"))
    }

    /// Takes one of the On-Demand launches that a mission's floor asks for; `false` if it has them all.
    async fn take_on_demand(&self, policy: &Policy, mission: &Mission) -> Result<bool, SchedulerError> {
        let taken = self.backend.ledger.take_on_demand(&mission.id, policy.on_demand_floor.unwrap_or(0)).await;
        taken.map_err(SchedulerError::cloud("counting an On-Demand launch"))
    }
}

/// How long a task has waited for a node, by the clock of whoever wrote when it began to.
pub(super) fn waited(task: &Task) -> Duration {
    waited_since(task.open_since.as_deref())
}

/// How long ago a time was that a row has; nothing if it has none, or one that cannot be read.
pub(super) fn waited_since(since: Option<&str>) -> Duration {
    since.and_then(clock::since).unwrap_or_default()
}

/// The pause before a launch that found no room is tried again: doubled each time, and a half shorter by chance at the most.
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
