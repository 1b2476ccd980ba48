//! Launches of nodes that serve a whole mission, in rounds: each reserves the next number in the mission's row, which makes its
//! tokens, and keeps its requests there until they are answered.

use std::time::Duration;

use super::limits::Grant;
use super::{Scheduler, SchedulerError};
use crate::backend::Kind;
use crate::backend::fleet::{Launched, Ours, Request};
use crate::domain::keys::digest_hex;
use crate::domain::mission::Mission;
use crate::domain::policy::{Policy, Purchase};
use crate::domain::request::Reserved;
use crate::domain::task::State;

/// How many rounds are tried in one go, should EC2 know a token of each from another request.
const ROUNDS_MAX: u32 = 3;

/// How many nodes a mission lacks, and what decides how they are paid for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lack<'a> {
    /// Its open tasks.
    pub(super) open: u64,
    /// How long its tasks have waited.
    pub(super) waited: Duration,
    /// Why a node of it ended as it was launched, if one did.
    pub(super) lost: Option<&'a str>,
}

/// What came of the requests of one launch.
#[derive(Debug, Default)]
struct Answers {
    launched: Launched,
    /// A token was used for another request: nothing was launched by it.
    is_other: bool,
    /// An answer was lost.
    is_open: bool,
}

impl Scheduler {
    /// Launches what a mission lacks of its own nodes, as tables and EC2 have it now.
    pub(super) async fn launch_own(&self, mission: &Mission) -> Result<Launched, SchedulerError> {
        // More than its nodes can take need not be counted.
        let most = u64::from(mission.nodes.unwrap_or(0)) * u64::from(mission.slots.unwrap_or(1)).max(1);
        let mut open = 0;
        for state in [State::Pending, State::Running] {
            let counted = self.backend.ledger.count_open(Some(&mission.id), mission.tally_shards, state, most).await;
            open += counted.map_err(SchedulerError::cloud("counting open tasks"))?;
        }
        let instances = self.list_ours().await?;
        self.launch_missing(mission, Lack { open, waited: Duration::ZERO, lost: None }, &instances).await
    }

    async fn list_ours(&self) -> Result<Vec<Ours>, SchedulerError> {
        self.backend.fleet.ours(self.mark()).await.map_err(SchedulerError::cloud("listing our instances"))
    }

    /// Launches what a mission lacks of its own nodes among `instances`; nothing if another scheduler is at it.
    pub(super) async fn launch_missing(
        &self,
        mission: &Mission,
        lack: Lack<'_>,
        instances: &[Ours],
    ) -> Result<Launched, SchedulerError> {
        let (mut mission, mut instances) = (mission.clone(), instances.to_vec());
        for _ in 0..ROUNDS_MAX {
            if let Some(launched) = self.launch_round(&mission, lack, &instances).await? {
                return Ok(launched);
            }
            // The next number, for what is missing by now.
            instances = self.list_ours().await?;
            let Some(now) = self.mission(&mission.id).await? else { return Ok(Launched::default()) };
            mission = now;
        }
        let why = format!("EC2 says {ROUNDS_MAX} times that a launch's token was used for another one");
        Ok(Launched { instances: Vec::new(), shortfall: vec![why] })
    }

    /// One round; `None` if a token of it was used for another request.
    async fn launch_round(
        &self,
        mission: &Mission,
        lack: Lack<'_>,
        instances: &[Ours],
    ) -> Result<Option<Launched>, SchedulerError> {
        let nodes: Vec<&Ours> = instances.iter().filter(|ours| ours.serves(&mission.id)).collect();
        let count = |nodes: usize| u32::try_from(nodes).unwrap_or(u32::MAX);
        let missing = mission.nodes_wanted(lack.open).saturating_sub(count(nodes.len()));
        if missing == 0 {
            return Ok(Some(Launched::default()));
        }
        let policy = self.policy(Some(mission))?;
        let repeated = self.requests_again(mission, &policy).await?;
        let (round, epoch, grant, requests) = if repeated.is_empty() {
            let grant = self.take_nodes(missing).await?;
            if grant.count == 0 {
                return self.hold_mission(mission, grant).await.map(Some);
            }
            let on_demand = count(nodes.iter().filter(|ours| !ours.is_spot).count());
            let round = mission.launch_round + 1;
            let split = policy.split(grant.count, on_demand, lack.waited);
            let requests = self.mission_requests(mission, &policy, split, &format!("round {round}"), &grant).await;
            (round, grant.epoch(), grant, requests?)
        } else {
            let total = repeated.iter().map(|request| request.count).sum();
            let epoch = mission.requests.first().and_then(|reserved| reserved.epoch);
            let grant = self.take_nodes_again(total, epoch).await?;
            if grant.count == 0 {
                return self.hold_mission(mission, grant).await.map(Some);
            }
            (mission.launch_round, epoch, grant, repeated)
        };
        let reserved: Vec<Reserved> = requests.iter().map(|request| request.reserved(round, epoch)).collect();
        let is_ours = self.backend.ledger.reserve_round(mission, round, &reserved).await;
        if !is_ours.map_err(SchedulerError::cloud("reserving a launch of nodes"))? {
            self.give_nodes_back(grant.count, &grant).await;
            return Ok(Some(Launched::default()));
        }
        let Answers { mut launched, is_other, is_open } = match self.ask_for_nodes(&requests, &grant).await {
            Ok(answers) => answers,
            Err(error) => {
                self.note_round(mission, round, Some(&crate::worker::words(&error))).await?;
                return Err(error);
            }
        };
        // What an earlier launch was answered with may run already, and was seen.
        launched.instances.retain(|id| !nodes.iter().any(|ours| ours.id == *id));
        launched.shortfall.extend(grant.why);
        let mut why = launched.shortfall.join("; ");
        if why.is_empty() {
            why.push_str(lack.lost.unwrap_or_default());
        }
        if is_open {
            self.note_mission(mission, &why).await?;
        } else {
            self.note_round(mission, round, Some(why.as_str()).filter(|why| !why.is_empty())).await?;
        }
        let (id, got) = (&mission.id, launched.instances.len());
        tracing::info!(mission = %id, "launched {got} of {missing} nodes for mission {id}");
        Ok((!is_other || is_open).then_some(launched))
    }

    /// Launches `count` nodes that serve a mission. `on_demand` of those that run are On-Demand; `name` tells this launch from
    /// others of the mission.
    pub(super) async fn launch_nodes(
        &self,
        mission: &Mission,
        count: u32,
        on_demand: u32,
        name: &str,
    ) -> Result<Launched, SchedulerError> {
        let policy = self.policy(Some(mission))?;
        let grant = self.take_nodes(count).await?;
        if grant.count == 0 {
            return self.hold_mission(mission, grant).await;
        }
        let split = policy.split(grant.count, on_demand, Duration::ZERO);
        let requests = self.mission_requests(mission, &policy, split, name, &grant).await?;
        let Answers { mut launched, is_other, .. } = self.ask_for_nodes(&requests, &grant).await?;
        if is_other {
            launched.shortfall.push("the launch's token was used for another one: a sweep launches".to_owned());
        }
        Ok(launched)
    }

    /// Says in the mission's row that a limit holds its nodes back.
    async fn hold_mission(&self, mission: &Mission, grant: Grant) -> Result<Launched, SchedulerError> {
        let why = grant.why.unwrap_or_default();
        self.note_mission(mission, &why).await?;
        Ok(Launched { instances: Vec::new(), shortfall: vec![why] })
    }

    /// Says in the mission's row why it has fewer nodes than it wants, unless it says so.
    pub(super) async fn note_mission(&self, mission: &Mission, why: &str) -> Result<(), SchedulerError> {
        if mission.launch_error.as_deref() == Some(why) {
            return Ok(());
        }
        let noted = self.backend.ledger.note_mission(&mission.id, why).await;
        noted.map_err(SchedulerError::cloud("noting why nodes are missing"))
    }

    async fn note_round(&self, mission: &Mission, round: u64, why: Option<&str>) -> Result<(), SchedulerError> {
        let noted = self.backend.ledger.note_round(&mission.id, round, why).await;
        noted.map_err(SchedulerError::cloud("noting a launch of nodes"))
    }

    /// The requests of the newest round that were not answered, as they were; none if one would be another by now.
    async fn requests_again(&self, mission: &Mission, policy: &Policy) -> Result<Vec<Request>, SchedulerError> {
        let mut again = Vec::new();
        for reserved in &mission.requests {
            let tags = self.tags(mission.id.as_str(), Some(mission));
            let token = reserved.token.clone();
            let now = self.request(policy, reserved.purchase, reserved.count, tags, token).await?;
            let is_its = reserved.number == mission.launch_round;
            match reserved.again(now, policy, &self.settings.subnets).filter(|_| is_its) {
                Some(request) => again.push(request),
                None => return Ok(Vec::new()),
            }
        }
        let total: u64 = again.iter().map(|request| u64::from(request.count)).sum();
        Ok(if total <= mission.nodes.unwrap_or(0).into() { again } else { Vec::new() })
    }

    /// The requests of a launch: On-Demand and Spot nodes, so many of each.
    async fn mission_requests(
        &self,
        mission: &Mission,
        policy: &Policy,
        (on_demand, spot): (u32, u32),
        name: &str,
        grant: &Grant,
    ) -> Result<Vec<Request>, SchedulerError> {
        let mut requests = Vec::new();
        self.name_mission(Some(mission)).await?;
        // A mission that was removed and made again is another one.
        let made_at = mission.made_at.as_deref().unwrap_or_default();
        for (purchase, count) in [(Purchase::OnDemand, on_demand), (Purchase::Spot, spot)] {
            if count == 0 {
                continue;
            }
            let tags = self.tags(mission.id.as_str(), Some(mission));
            let parts = ["mission", self.mark(), mission.id.as_str(), made_at, name, purchase.as_str()];
            let request = self.request(policy, purchase, count, tags, digest_hex(&parts, 48)).await;
            match request {
                Ok(request) => requests.push(request.in_epoch(grant.epoch())),
                Err(error) => {
                    self.give_nodes_back(grant.count, grant).await;
                    return Err(error);
                }
            }
        }
        Ok(requests)
    }

    /// Sends requests, one after the other, and gives back what EC2 does not launch.
    async fn ask_for_nodes(&self, requests: &[Request], grant: &Grant) -> Result<Answers, SchedulerError> {
        let mut answers = Answers::default();
        for (place, request) in requests.iter().enumerate() {
            self.pacer.turn().await;
            match self.backend.fleet.launch(request).await {
                Ok(Launched { instances, shortfall }) => {
                    let got = u32::try_from(instances.len()).unwrap_or(u32::MAX);
                    self.give_nodes_back(request.count.saturating_sub(got), grant).await;
                    answers.launched.instances.extend(instances);
                    answers.launched.shortfall.extend(shortfall);
                }
                Err(error) if error.kind == Kind::Precondition => answers.is_other = true,
                Err(error) if error.is_retryable() => {
                    answers.is_open = true;
                    answers.launched.shortfall.push(error.source.to_string());
                }
                Err(error) => {
                    let rest = requests[place..].iter().map(|request| request.count).sum();
                    self.give_nodes_back(rest, grant).await;
                    return Err(SchedulerError::cloud("launching nodes")(error));
                }
            }
        }
        Ok(answers)
    }
}
