//! Launches of nodes that serve a whole mission, in rounds: each reserves the next number in the mission's row, which makes its
//! tokens, and keeps its requests there until they are answered.

use std::time::Duration;

use super::limits::Grant;
use super::{Scheduler, SchedulerError};
use crate::backend::fleet::{Launched, Ours, Request};
use crate::backend::{CloudError, Kind};
use crate::domain::ids::MissionId;
use crate::domain::keys::digest_hex;
use crate::domain::mission::Mission;
use crate::domain::policy::{Policy, Purchase};
use crate::domain::request::Reserved;
use crate::domain::task::State;

/// How many rounds are tried in one go, should EC2 know a token of each from another request, or refuse a repeat.
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

impl Lack<'_> {
    /// How many nodes are missing, given those that serve the mission.
    fn missing(&self, mission: &Mission, nodes: &[Ours]) -> u32 {
        mission.nodes_wanted(self.open).saturating_sub(count(nodes))
    }
}

/// A launch of nodes that is to be asked for: what was taken for it, its requests, and whether it was asked for before.
struct Round {
    grant: Grant,
    requests: Vec<Request>,
    /// When it was asked for before, if it is repeated: the reservations as they were.
    before: Vec<Reserved>,
}

/// What to do about a round whose answers are not known.
enum OpenRound {
    /// Repeat it.
    Repeat(Round),
    /// Another scheduler may be at it.
    UnderWay,
    /// It cannot be repeated, and what it launched may not show yet: why.
    Hidden(String),
    /// It cannot be repeated, and what it launched shows by now.
    Past,
    /// The mission has all its nodes without it.
    NotNeeded,
}

/// What came of the requests of one round.
#[derive(Debug, Default)]
struct Answers {
    launched: Launched,
    /// How many instances are certainly not launched.
    none: u32,
    /// Requests that may have launched: their answers were lost.
    lost: Vec<usize>,
    /// Requests that EC2 refuses as they are; the rest was not asked for then.
    refused: Option<CloudError>,
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
        // The row first: who launches after it was read has another number.
        let Some(mission) = self.mission(&mission.id).await? else { return Ok(Launched::default()) };
        let instances = self.list_ours().await?;
        self.launch_missing(&mission, Lack { open, waited: Duration::ZERO, lost: None }, &instances).await
    }

    async fn list_ours(&self) -> Result<Vec<Ours>, SchedulerError> {
        self.backend.fleet.ours(self.mark()).await.map_err(SchedulerError::cloud("listing our instances"))
    }

    /// Launches what a mission lacks of its own nodes among `instances`, which were listed after its row was read; nothing if
    /// another scheduler is at it.
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
            let Some(now) = self.mission(&mission.id).await? else { return Ok(Launched::default()) };
            mission = now;
            instances = self.list_ours().await?;
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
        let mut nodes = serving(instances, &mission.id);
        let mut missing = lack.missing(mission, &nodes);
        let policy = self.policy(Some(mission))?;
        let mut repeated = None;
        if !mission.requests.is_empty() {
            match self.open_round(mission, &policy, missing).await? {
                OpenRound::Repeat(round) => repeated = Some(round),
                OpenRound::UnderWay => return Ok(Some(Launched::default())),
                OpenRound::Hidden(why) => return self.hold_mission(mission, why).await.map(Some),
                OpenRound::NotNeeded => {}
                OpenRound::Past => {
                    nodes = serving(&self.list_ours().await?, &mission.id);
                    missing = lack.missing(mission, &nodes);
                }
            }
        }
        if missing == 0 {
            if !mission.requests.is_empty() {
                self.note_round(mission, mission.launch_round, &[], None).await?;
            }
            return Ok(Some(Launched::default()));
        }
        let round = if let Some(round) = repeated {
            round
        } else {
            let grant = self.take_nodes(missing).await?;
            if grant.count == 0 {
                return self.hold_mission(mission, grant.why.unwrap_or_default()).await.map(Some);
            }
            let on_demand: Vec<_> = nodes.iter().filter(|ours| !ours.is_spot).collect();
            self.new_round(mission, &policy, grant, count(&on_demand), lack.waited).await?
        };
        let launched = self.ask_for_round(mission, round, &nodes, lack.lost).await?;
        if let Some(launched) = &launched {
            let (id, got) = (&mission.id, launched.instances.len());
            tracing::info!(mission = %id, "launched {got} of {missing} nodes for mission {id}");
        }
        Ok(launched)
    }

    /// Launches one node of a mission, as long as it has not had all of them, and no other scheduler is at it; `None` if so.
    pub(super) async fn launch_one(&self, mission: &Mission) -> Result<Option<Launched>, SchedulerError> {
        let has_all = |mission: &Mission| mission.nodes_launched >= mission.nodes.unwrap_or(0).into();
        if has_all(mission) {
            return Ok(None);
        }
        let Some(mission) = self.mission(&mission.id).await? else { return Ok(None) };
        if has_all(&mission) || !mission.requests.is_empty() {
            return Ok(None);
        }
        let policy = self.policy(Some(&mission))?;
        let grant = self.take_nodes(1).await?;
        if grant.count == 0 {
            return self.hold_mission(&mission, grant.why.unwrap_or_default()).await.map(Some);
        }
        let on_demand = u32::try_from(mission.nodes_launched).unwrap_or(u32::MAX);
        let round = self.new_round(&mission, &policy, grant, on_demand, Duration::ZERO).await?;
        let launched = self.ask_for_round(&mission, round, &[], None).await?;
        let is_used = || "the launch's token was used for another one: a sweep launches".to_owned();
        Ok(Some(launched.unwrap_or_else(|| Launched { instances: Vec::new(), shortfall: vec![is_used()] })))
    }

    /// Decides about a round whose answers are not known, for a mission that lacks `missing` nodes.
    async fn open_round(&self, mission: &Mission, policy: &Policy, missing: u32) -> Result<OpenRound, SchedulerError> {
        let before = mission.requests.clone();
        let epoch = before.first().and_then(|reserved| reserved.epoch);
        let now = self.node_count_and_time().await?.1;
        if before.iter().any(|reserved| reserved.is_under_way(now)) {
            return Ok(OpenRound::UnderWay);
        }
        if missing == 0 {
            return Ok(OpenRound::NotNeeded);
        }
        let total: u64 = before.iter().map(|reserved| u64::from(reserved.count)).sum();
        let mut why = format!("the answer to a launch of {total} nodes was lost, and they may not show yet");
        if let (Ok(total), Some(requests)) = (u32::try_from(total), self.requests_again(mission, policy).await?)
            && total <= missing
        {
            let grant = self.take_nodes_again(total, epoch).await?;
            if grant.count == total {
                return Ok(OpenRound::Repeat(Round { grant, requests, before }));
            }
            why = grant.why.unwrap_or(why);
        }
        let is_hidden = before.iter().any(|reserved| reserved.may_be_hidden(now));
        Ok(if is_hidden { OpenRound::Hidden(why) } else { OpenRound::Past })
    }

    /// Reserves a round, sends its requests, and notes what came of them; whoever's note is written gives back what was taken
    /// for nothing. `None`: a token of it was used for another request, or what is repeated is refused by now.
    async fn ask_for_round(
        &self,
        mission: &Mission,
        round: Round,
        nodes: &[Ours],
        lost: Option<&str>,
    ) -> Result<Option<Launched>, SchedulerError> {
        let Round { grant, requests, before } = round;
        let number = mission.next_round();
        let new = if before.is_empty() { grant.count } else { 0 };
        let epoch = before.first().map_or(grant.epoch(), |reserved| reserved.epoch);
        let reserved: Vec<Reserved> =
            requests.iter().map(|request| request.reserved(number, epoch, grant.now)).collect();
        let is_ours = self.backend.ledger.reserve_round(mission, &reserved, new).await;
        if !is_ours.map_err(SchedulerError::cloud("reserving a launch of nodes"))? {
            self.give_nodes_back(grant.new, &grant).await;
            return Ok(Some(Launched::default()));
        }
        let Answers { mut launched, none, lost: unanswered, refused } = self.ask_for_nodes(&requests).await;
        // What an earlier launch was answered with may run already, and was seen.
        launched.instances.retain(|id| !nodes.iter().any(|ours| ours.id == *id));
        launched.shortfall.extend(grant.why.clone());
        let is_used = refused.as_ref().is_some_and(|error| error.kind == Kind::Precondition);
        launched.shortfall.extend(refused.iter().filter(|_| !is_used).map(|error| error.source.to_string()));
        let is_repeat_refused = refused.is_some() && !before.is_empty();
        // What is repeated may have launched when it was asked for first: that time counts.
        let open: Vec<Reserved> = if is_repeat_refused {
            before.into_iter().filter(|before| before.may_be_hidden(grant.now)).collect()
        } else {
            unanswered.iter().map(|&place| Reserved { is_lost: true, ..reserved[place].clone() }).collect()
        };
        let open: Vec<Reserved> = open.into_iter().map(|open| Reserved { number, ..open }).collect();
        let mut why = launched.shortfall.join("; ");
        if why.is_empty() {
            why.push_str(lost.unwrap_or_default());
        }
        let why = Some(why.as_str()).filter(|why| !why.is_empty());
        if self.note_round(mission, number, &open, why).await? && !is_repeat_refused {
            self.give_nodes_back(none, &grant).await;
        }
        match refused {
            Some(_) if is_repeat_refused || is_used => {
                Ok(Some(launched).filter(|launched| !open.is_empty() || !launched.instances.is_empty()))
            }
            Some(error) => Err(SchedulerError::cloud("launching nodes")(error)),
            None => Ok(Some(launched)),
        }
    }

    /// Says in the mission's row what holds its nodes back.
    async fn hold_mission(&self, mission: &Mission, why: String) -> Result<Launched, SchedulerError> {
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

    async fn note_round(
        &self,
        mission: &Mission,
        round: u64,
        open: &[Reserved],
        why: Option<&str>,
    ) -> Result<bool, SchedulerError> {
        let noted = self.backend.ledger.note_round(&mission.id, round, open, why).await;
        noted.map_err(SchedulerError::cloud("noting a launch of nodes"))
    }

    /// The requests of the newest round that were not answered, as they were; `None` if one would be another by now.
    async fn requests_again(&self, mission: &Mission, policy: &Policy) -> Result<Option<Vec<Request>>, SchedulerError> {
        let mut again = Vec::new();
        for reserved in &mission.requests {
            let tags = self.tags(mission.id.as_str(), Some(mission));
            let token = reserved.token.clone();
            let now = self.request(policy, reserved.purchase, reserved.count, tags, token).await?;
            match reserved.again(now, policy, &self.settings.subnets) {
                Some(request) => again.push(request),
                None => return Ok(None),
            }
        }
        Ok(Some(again))
    }

    /// Returns a new round: On-Demand and Spot nodes, as the policy divides them. `on_demand` of the running nodes are
    /// On-Demand.
    async fn new_round(
        &self,
        mission: &Mission,
        policy: &Policy,
        grant: Grant,
        on_demand: u32,
        waited: Duration,
    ) -> Result<Round, SchedulerError> {
        let (on_demand, spot) = policy.split(grant.count, on_demand, waited);
        let of = [(Purchase::OnDemand, on_demand), (Purchase::Spot, spot)];
        match self.mission_requests(mission, policy, of, &grant).await {
            Ok(requests) => Ok(Round { grant, requests, before: Vec::new() }),
            Err(error) => {
                self.give_nodes_back(grant.count, &grant).await;
                Err(error)
            }
        }
    }

    async fn mission_requests(
        &self,
        mission: &Mission,
        policy: &Policy,
        of: [(Purchase, u32); 2],
        grant: &Grant,
    ) -> Result<Vec<Request>, SchedulerError> {
        let mut requests = Vec::new();
        self.name_mission(Some(mission)).await?;
        // A mission that was removed and made again is another one.
        let made_at = mission.made_at.as_deref().unwrap_or_default();
        let name = format!("round {}", mission.next_round());
        for (purchase, count) in of.into_iter().filter(|(_, count)| *count > 0) {
            let tags = self.tags(mission.id.as_str(), Some(mission));
            let parts = ["mission", self.mark(), mission.id.as_str(), made_at, &name, purchase.as_str()];
            let request = self.request(policy, purchase, count, tags, digest_hex(&parts, 48)).await?;
            requests.push(request.in_epoch(grant.epoch()));
        }
        Ok(requests)
    }

    /// Sends requests, one after the other, until one is refused.
    async fn ask_for_nodes(&self, requests: &[Request]) -> Answers {
        let mut answers = Answers::default();
        for (place, request) in requests.iter().enumerate() {
            self.pacer.turn().await;
            match self.backend.fleet.launch(request).await {
                Ok(Launched { instances, shortfall }) => {
                    answers.none += request.count.saturating_sub(count(&instances));
                    answers.launched.instances.extend(instances);
                    answers.launched.shortfall.extend(shortfall);
                }
                Err(error) if error.is_retryable() => {
                    answers.lost.push(place);
                    answers.launched.shortfall.push(error.source.to_string());
                }
                Err(error) => {
                    answers.none += requests[place..].iter().map(|request| request.count).sum::<u32>();
                    answers.refused = Some(error);
                    break;
                }
            }
        }
        answers
    }
}

/// The instances that run, or boot, and serve a mission.
fn serving(instances: &[Ours], mission: &MissionId) -> Vec<Ours> {
    instances.iter().filter(|ours| ours.serves(mission)).cloned().collect()
}

fn count<T>(some: &[T]) -> u32 {
    u32::try_from(some.len()).unwrap_or(u32::MAX)
}
