//! Launches: a node for a task, or nodes for a mission. The row and the launch belong together; see
//! [`crate::backend::ledger`] on reservations.

use std::time::Duration;

use super::{Scheduler, SchedulerError};
use crate::backend::fleet::{Launched, Ours, Request};
use crate::clock;
use crate::domain::keys::digest_hex;
use crate::domain::mission::Mission;
use crate::domain::policy::{Policy, Purchase};
use crate::domain::tags;
use crate::domain::task::{Launch, State, Task};

/// What came of a launch for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// This instance was launched.
    Launched(String),
    /// There is none: the row says why, and a sweep tries again.
    Waits(String),
    /// Another scheduler was quicker, or the task waits no more.
    NotNeeded,
}

/// The first pause after a launch that found no room; each doubles it.
const AGAIN_FIRST: Duration = Duration::from_mins(1);
/// The longest: capacity comes back within minutes, or not today.
const AGAIN_LAST: Duration = Duration::from_mins(30);

impl Scheduler {
    /// Launches a node for a task that waits, if nobody else does.
    ///
    /// # Errors
    /// [`SchedulerError`]; what EC2 refuses for good is in the row, too.
    pub async fn launch_for(&self, task: &Task, mission: Option<&Mission>) -> Result<Node, SchedulerError> {
        if self.settings.template.is_none() {
            return Err(SchedulerError::NoTemplate);
        }
        let now = clock::now_rfc3339();
        let reserved = self.backend.ledger.reserve_launch(task, &now).await;
        if !reserved.map_err(SchedulerError::cloud("reserving a launch"))? {
            return Ok(Node::NotNeeded);
        }
        let launch = Launch { at_attempt: Some(task.attempt), tries: task.launch.tries + 1, ..Launch::default() };
        self.launch_reserved(&Task { launch, ..task.clone() }, mission).await
    }

    /// Launches the node that the row reserves. May be called again for the same reservation: EC2 launches once.
    pub(super) async fn launch_reserved(&self, task: &Task, mission: Option<&Mission>) -> Result<Node, SchedulerError> {
        let request = match self.request_for(task, mission).await {
            Ok(request) => request,
            Err(error) => {
                self.note_none(task, &crate::worker::words(&error)).await?;
                return Err(error);
            }
        };
        self.pacer.turn().await;
        let launched = self.backend.fleet.launch(&request).await;
        let why = match &launched {
            Ok(Launched { instances, .. }) if !instances.is_empty() => {
                let noted = self.backend.ledger.note_launch(task, &instances[0]).await;
                noted.map_err(SchedulerError::cloud("noting a launch"))?;
                tracing::info!(src.id = %task.src, "launched {} for {}", instances[0], task.src);
                return Ok(Node::Launched(instances[0].clone()));
            }
            Ok(Launched { shortfall, .. }) => shortfall.join("; "),
            Err(error) => error.source.to_string(),
        };
        self.note_none(task, &why).await?;
        match launched {
            Err(error) if !error.is_retryable() => Err(SchedulerError::cloud("launching a node")(error)),
            _ => Ok(Node::Waits(why)),
        }
    }

    async fn note_none(&self, task: &Task, why: &str) -> Result<(), SchedulerError> {
        let after = clock::later(again_after(task.launch.tries, rand::random()));
        tracing::warn!(src.id = %task.src, "no node for {} before {after}: {why}", task.src);
        let noted = self.backend.ledger.note_no_launch(task, why, &after).await;
        noted.map_err(SchedulerError::cloud("noting that a launch failed"))
    }

    async fn request_for(&self, task: &Task, mission: Option<&Mission>) -> Result<Request, SchedulerError> {
        let policy = self.policy(mission)?;
        let value = tags::src_value(&task.src);
        if tags::is_short(&value) {
            let named = self.backend.ledger.name_key(&task.src).await;
            named.map_err(SchedulerError::cloud("writing down a long key"))?;
        }
        self.name_mission(mission).await?;
        let mut tags = self.tags(task.src.as_str(), mission);
        tags.push((tags::SRC.to_owned(), value));
        let attempt = task.attempt.to_string();
        let tries = task.launch.tries.to_string();
        let token = digest_hex(&["task", self.mark(), task.src.as_str(), &attempt, &tries], 48);
        let purchase = match policy.purchase(waited(task)) {
            Some(purchase) => purchase,
            None => self.by_floor(&policy, mission).await?,
        };
        self.request(&policy, purchase, 1, tags, token)
    }

    /// Launches what a mission lacks of its own nodes, as tables and EC2 have it now.
    pub(super) async fn launch_own(&self, mission: &Mission) -> Result<Launched, SchedulerError> {
        // More than its nodes can take need not be counted.
        let most = u64::from(mission.nodes.unwrap_or(0)) * u64::from(mission.slots.unwrap_or(1)).max(1);
        let mut open = 0;
        for state in [State::Pending, State::Running] {
            let counted = self.backend.ledger.count_open(Some(&mission.id), mission.tally_shards, state, most).await;
            open += counted.map_err(SchedulerError::cloud("counting open tasks"))?;
        }
        let instances = self.backend.fleet.ours(self.mark()).await;
        let instances = instances.map_err(SchedulerError::cloud("listing our instances"))?;
        self.launch_missing(mission, open, Duration::ZERO, &instances).await
    }

    /// Launches what a mission with so many `open` tasks lacks of its own nodes among `instances`; nothing if another
    /// scheduler is at it. `waited` is how long its tasks have waited.
    pub(super) async fn launch_missing(
        &self,
        mission: &Mission,
        open: u64,
        waited: Duration,
        instances: &[Ours],
    ) -> Result<Launched, SchedulerError> {
        let nodes: Vec<&Ours> = instances.iter().filter(|ours| ours.serves(&mission.id)).collect();
        let count = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
        let missing = mission.nodes_wanted(open).saturating_sub(count(nodes.len()));
        if missing == 0 {
            return Ok(Launched::default());
        }
        let on_demand = count(nodes.iter().filter(|ours| !ours.is_spot).count());
        let reserved = self.backend.ledger.reserve_round(mission).await;
        match reserved.map_err(SchedulerError::cloud("reserving a launch of nodes"))? {
            Some(round) => self.launch_nodes(mission, missing, on_demand, waited, &format!("round {round}")).await,
            None => Ok(Launched::default()),
        }
    }

    /// Launches `count` nodes that serve a mission. `on_demand` of those that run are On-Demand; `waited` is how long its
    /// tasks have waited; `round` tells this launch from others of the mission.
    pub(super) async fn launch_nodes(
        &self,
        mission: &Mission,
        count: u32,
        on_demand: u32,
        waited: Duration,
        round: &str,
    ) -> Result<Launched, SchedulerError> {
        let policy = self.policy(Some(mission))?;
        let (on_demand, spot) = policy.split(count, on_demand, waited);
        let mut all = Launched::default();
        for (purchase, count) in [(Purchase::OnDemand, on_demand), (Purchase::Spot, spot)] {
            if count == 0 {
                continue;
            }
            self.name_mission(Some(mission)).await?;
            let tags = self.tags(mission.id.as_str(), Some(mission));
            let kind = if purchase == Purchase::Spot { "spot" } else { "on-demand" };
            let token = digest_hex(&["mission", self.mark(), mission.id.as_str(), round, kind], 48);
            let request = self.request(&policy, purchase, count, tags, token)?;
            self.pacer.turn().await;
            let launched = self.backend.fleet.launch(&request).await;
            let launched = launched.map_err(SchedulerError::cloud("launching nodes"))?;
            all.instances.extend(launched.instances);
            all.shortfall.extend(launched.shortfall);
        }
        tracing::info!(mission = %mission.id, "launched {} of {count} nodes for mission {}", all.instances.len(), mission.id);
        Ok(all)
    }

    /// The request of one launch, as it would be sent: for `--dry-run`, too.
    pub(super) fn request(
        &self,
        policy: &Policy,
        purchase: Purchase,
        count: u32,
        tags: Vec<(String, String)>,
        token: String,
    ) -> Result<Request, SchedulerError> {
        Ok(Request {
            template: self.settings.template.clone().ok_or(SchedulerError::NoTemplate)?,
            instance_types: policy.instance_types.clone(),
            subnets: self.settings.subnets.clone(),
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
    async fn name_mission(&self, mission: Option<&Mission>) -> Result<(), SchedulerError> {
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
