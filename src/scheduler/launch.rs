//! Launches: a node for a task. The row and the launch belong together; see `backend/ledger/reserve.rs` on reservations. Nodes
//! for a mission: `rounds.rs`.

use std::time::Duration;

use super::limits::Grant;
use super::{Scheduler, SchedulerError};
use crate::backend::fleet::{Launched, Request};
use crate::backend::ledger::Note;
use crate::backend::{CloudError, Kind};
use crate::clock;
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
    /// [`SchedulerError`]; what EC2 refuses for good is in the row, too.
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
                self.note_held(task, &crate::worker::words(&error)).await?;
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

    /// Repeats a launch whose answer was lost: EC2 launches once. If the request would be another one by now, an instance that
    /// bears the task's name is looked for instead; only if there is none, another one is launched.
    async fn repeat(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        reserved: &Reserved,
    ) -> Result<Node, SchedulerError> {
        let now = self.request_for(task, mission, policy, reserved.purchase, &reserved.token).await?;
        let request = reserved.again(now, policy, &self.settings.subnets);
        let grant = match &request {
            Some(_) => self.take_nodes_again(1, reserved.epoch).await?,
            None => Grant { count: 1, ..Grant::default() },
        };
        if grant.count == 0 {
            return self.hold(task, grant).await;
        }
        let Some(task) = self.reserve(task, task.launch.tries, reserved, None).await? else {
            return Ok(Node::NotNeeded);
        };
        if let Some(request) = request
            && let Some(node) = self.ask(&task, &request, &grant).await?
        {
            return Ok(node);
        }
        match self.find_node(&task).await? {
            Some(node) => Ok(node),
            None => self.launch_next(&task, mission, policy, None).await,
        }
    }

    /// Launches under the next number.
    async fn launch_next(
        &self,
        task: &Task,
        mission: Option<&Mission>,
        policy: &Policy,
        lost: Option<&str>,
    ) -> Result<Node, SchedulerError> {
        let mut task = task.clone();
        for _ in 0..NUMBERS_MAX {
            let grant = self.take_nodes(1).await?;
            if grant.count == 0 {
                return self.hold(&task, grant).await;
            }
            let (request, reserved) = match self.new_request(&task, mission, policy, &grant).await {
                Ok(both) => both,
                Err(error) => {
                    self.give_nodes_back(1, &grant).await;
                    return Err(error);
                }
            };
            let Some(mine) = self.reserve(&task, task.launch.tries + 1, &reserved, lost).await? else {
                self.give_nodes_back(1, &grant).await;
                self.give_floor_back(policy, mission, request.purchase).await?;
                return Ok(Node::NotNeeded);
            };
            task = mine;
            if let Some(node) = self.ask(&task, &request, &grant).await? {
                return Ok(node);
            }
            // Another deployment's, or a row's that was made anew: never two nodes for one task.
            if let Some(node) = self.find_node(&task).await? {
                return Ok(node);
            }
        }
        let why = format!("EC2 says {NUMBERS_MAX} times that the launch's token was used for another one");
        self.note_none(&task, &why, false).await?;
        Ok(Node::Waits(why))
    }

    /// Reserves a launch in the row; returns the task as it is then, or `None` if another scheduler was quicker.
    async fn reserve(
        &self,
        task: &Task,
        tries: u64,
        reserved: &Reserved,
        lost: Option<&str>,
    ) -> Result<Option<Task>, SchedulerError> {
        let now = clock::now_rfc3339();
        let is_ours = self.backend.ledger.reserve_launch(task, &now, tries, reserved, lost).await;
        let launch = Launch { at_attempt: Some(task.attempt), tries, at: now, ..Launch::default() };
        let is_ours = is_ours.map_err(SchedulerError::cloud("reserving a launch"))?;
        Ok(is_ours.then(|| Task { launch, seen: None, ..task.clone() }))
    }

    /// Asks EC2 for the node that the row reserves; `None`: the token was used for another request.
    async fn ask(&self, task: &Task, request: &Request, grant: &Grant) -> Result<Option<Node>, SchedulerError> {
        self.pacer.turn().await;
        let (why, error) = match self.backend.fleet.launch(request).await {
            Ok(Launched { instances, .. }) if !instances.is_empty() => {
                return self.note_launch(task, &instances[0]).await.map(Some);
            }
            Ok(Launched { shortfall, .. }) => (shortfall.join("; "), None),
            Err(error) if error.kind == Kind::Precondition => {
                tracing::warn!(src.id = %task.src, "a launch for {} is not repeated: {}", task.src, error.source);
                return Ok(None);
            }
            Err(error) => (error.source.to_string(), Some(error)),
        };
        // It may have been launched: the request stays in the row, and what was taken for it stays taken.
        let is_open = error.as_ref().is_some_and(CloudError::is_retryable);
        self.note_none(task, &why, is_open).await?;
        if !is_open {
            self.give_nodes_back(1, grant).await;
        }
        match error {
            Some(error) if !is_open => Err(SchedulerError::cloud("launching a node")(error)),
            _ => Ok(Some(Node::Waits(why))),
        }
    }

    async fn note_launch(&self, task: &Task, instance: &str) -> Result<Node, SchedulerError> {
        let noted = self.backend.ledger.note_launch(task, instance).await;
        noted.map_err(SchedulerError::cloud("noting a launch"))?;
        tracing::info!(src.id = %task.src, "launched {instance} for {}", task.src);
        Ok(Node::Launched(instance.to_owned()))
    }

    /// Looks for a living instance that bears the task's name, and notes it as the one that was launched.
    async fn find_node(&self, task: &Task) -> Result<Option<Node>, SchedulerError> {
        let instances = self.backend.fleet.ours(self.mark()).await;
        let instances = instances.map_err(SchedulerError::cloud("listing our instances"))?;
        let value = tags::src_value(&task.src);
        let found = instances.into_iter().find(|ours| !ours.is_stopped && ours.src.as_deref() == Some(&value));
        match found {
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

    async fn note_none(&self, task: &Task, why: &str, is_open: bool) -> Result<(), SchedulerError> {
        let after = clock::later(again_after(task.launch.tries, rand::random()));
        tracing::warn!(src.id = %task.src, "no node for {} before {after}: {why}", task.src);
        let note = Note { why: why.to_owned(), after: Some(after), is_open };
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
        let token = digest_hex(&["task", self.mark(), task.src.as_str(), made_at, &attempt, &tries], 48);
        let purchase = match policy.purchase(waited(task)) {
            Some(purchase) => purchase,
            None => self.by_floor(policy, mission).await?,
        };
        let request = self.request_for(task, mission, policy, purchase, &token).await?.in_epoch(grant.epoch());
        let reserved = request.reserved(task.attempt.0, grant.epoch());
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

    /// The request of one launch, as it would be sent: for `--dry-run`, too.
    pub(super) async fn request(
        &self,
        policy: &Policy,
        purchase: Purchase,
        count: u32,
        tags: Vec<(String, String)>,
        token: String,
    ) -> Result<Request, SchedulerError> {
        let fleet = &self.backend.fleet;
        let dice = digest_hex(&[&token], 8);
        let dice = usize::from_str_radix(&dice, 16).unwrap_or(0);
        Ok(Request {
            template: self.settings.template.clone().ok_or(SchedulerError::NoTemplate)?,
            instance_types: self.offers.types(fleet, &policy.instance_types).await,
            subnets: self.offers.subnets(fleet, &self.settings.subnets, dice).await,
            purchase,
            max_price: policy.max_price.clone(),
            count,
            tags,
            token,
        })
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
            vec![(tags::OURS.to_owned(), self.mark().to_owned()), (tags::NAME.to_owned(), tags::name_value(name))];
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

    async fn by_floor(&self, policy: &Policy, mission: Option<&Mission>) -> Result<Purchase, SchedulerError> {
        let Some(mission) = mission else { return Ok(Purchase::Spot) };
        let floor = policy.on_demand_floor.unwrap_or(0);
        let taken = self.backend.ledger.take_on_demand(&mission.id, floor).await;
        let taken = taken.map_err(SchedulerError::cloud("counting an On-Demand launch"))?;
        Ok(if taken { Purchase::OnDemand } else { Purchase::Spot })
    }

    /// Gives back what [`Self::by_floor`] took, for a launch that another scheduler makes.
    async fn give_floor_back(
        &self,
        policy: &Policy,
        mission: Option<&Mission>,
        purchase: Purchase,
    ) -> Result<(), SchedulerError> {
        let Some(mission) = mission.filter(|_| policy.bid_mode == Some(BidMode::Mix)) else { return Ok(()) };
        if purchase != Purchase::OnDemand {
            return Ok(());
        }
        let given = self.backend.ledger.give_on_demand_back(&mission.id).await;
        given.map_err(SchedulerError::cloud("counting an On-Demand launch"))
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
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let longest = AGAIN_FIRST.saturating_mul(1 << doublings).min(AGAIN_LAST);
    longest.mul_f64(0.5 + 0.5 * f64::from(dice) / f64::from(u32::MAX))
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
