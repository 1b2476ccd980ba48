//! The sweep: heals what nobody else will.
//!
//! ```text
//!   first look ──► what EC2 or the row says for certain is done at once
//!        └── what must be seen twice: wait a whole lease on this process's own clock ──► second look ──► done, if unchanged
//! ```
//!
//! Seen twice are: a lease whose holder EC2 says is running (it must not have moved), an instance without a live task (it may
//! be booting, or ending), a launch whose instance does not show, and a publisher that EC2 cannot speak for. A sweep remembers
//! nothing from one call to the next, so any number of them may run, on any machines, at any times.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::launch::{Node, waited};
use super::{Scheduler, SchedulerError};
use crate::backend::fleet::Ours;
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::tags;
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::Verdict;

/// How many instances that were launched for one attempt may vanish without a claim before the task is failed: each has
/// cost a boot, and an image that cannot boot will not learn to.
const LAUNCHES_LOST_MAX: u64 = 5;

/// How long an instance may run without a task of its own: a boot takes one or two minutes, a large image a few more. What
/// is older and holds nothing when it is looked at twice does not work.
const BOOT_MAX: Duration = Duration::from_mins(15);

/// What a sweep found, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it did.
    pub what: What,
    /// The task, the instance, or the mission.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A lost task is pending again.
    PutBack,
    /// A node was launched.
    Launched,
    /// A node is wanted and there is none.
    NoNode,
    /// A task was failed.
    Failed,
    /// An instance was ended.
    Ended,
    /// A mission's end was announced.
    Announced,
    /// Something could not be done.
    Trouble,
}

impl What {
    /// Returns the word that is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PutBack => "put-back",
            Self::Launched => "launched",
            Self::NoNode => "no-node",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Announced => "announced",
            Self::Trouble => "trouble",
        }
    }
}

/// What one look sees.
struct Look {
    missions: HashMap<MissionId, Mission>,
    pending: Vec<Task>,
    running: Vec<Task>,
    instances: Vec<Ours>,
}

/// What the first look leaves to the second.
#[derive(Default)]
struct Doubts {
    /// Leases whose holder may live: task → (attempt, beat).
    leases: BTreeMap<SrcId, (u64, u64)>,
    /// Instances without a live task.
    idle: BTreeSet<String>,
    /// Launches without an instance: task → tries.
    launches: BTreeMap<SrcId, u64>,
    /// Publishers that EC2 cannot speak for: mission → who.
    publishers: BTreeMap<MissionId, String>,
}

impl Doubts {
    fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.idle.is_empty() && self.launches.is_empty() && self.publishers.is_empty()
    }
}

impl Scheduler {
    /// Sweeps once. Waits a lease in between if something must be seen twice; `stop` ends the wait, and with it the sweep.
    ///
    /// # Errors
    /// [`SchedulerError`] if the tables or EC2 cannot be read. What goes wrong with one task is a finding.
    pub async fn sweep(&self, stop: &CancellationToken) -> Result<Vec<Finding>, SchedulerError> {
        let mut sweep = Sweep { scheduler: self, findings: Vec::new(), may_launch: self.settings.template.is_some() };
        let look = self.look().await?;
        let doubts = sweep.first(&look).await;
        if !doubts.is_empty() {
            // Both arms may be dropped: neither holds anything.
            tokio::select! {
                () = tokio::time::sleep(self.settings.lease) => {}
                () = stop.cancelled() => return Ok(sweep.findings),
            }
            let again = self.look().await?;
            sweep.second(&look, &again, &doubts).await;
        }
        Ok(sweep.findings)
    }

    /// Heals what one instance's end has lost: EC2 says that it is gone, or going.
    ///
    /// # Errors
    /// [`SchedulerError`].
    pub async fn instance_gone(&self, id: &str) -> Result<Vec<Finding>, SchedulerError> {
        let described = self.backend.fleet.one_of_ours(id, self.mark()).await;
        let Some(ours) = described.map_err(SchedulerError::cloud("reading an instance's tags"))? else {
            return Ok(Vec::new());
        };
        let mut sweep = Sweep { scheduler: self, findings: Vec::new(), may_launch: self.settings.template.is_some() };
        let mission = match ours.mission.clone().map(MissionId::new) {
            Some(Ok(mission)) => self.mission(&mission).await?,
            _ => None,
        };
        let srcs = match (&ours.src, &mission) {
            (Some(value), _) => self.src_of(value).await?.into_iter().collect(),
            (None, Some(mission)) => self.open(Some(&mission.id), mission.tally_shards, State::Running).await?,
            (None, None) => Vec::new(),
        };
        let tasks = self.backend.ledger.tasks(&srcs).await.map_err(SchedulerError::cloud("reading tasks"))?;
        for task in tasks {
            let held = task.state == State::Running && task.instance.as_ref().is_some_and(|owner| owner.as_str() == id);
            let was_for_it = task.state == State::Pending && task.launch.instance.as_deref() == Some(id);
            if held {
                sweep.put_back(&task, mission.as_ref(), "EC2 says that its instance is gone").await;
            } else if was_for_it && ours.src.is_some() {
                sweep.launch(&task, mission.as_ref(), "its instance is gone").await;
            }
        }
        Ok(sweep.findings)
    }

    async fn src_of(&self, value: &str) -> Result<Option<SrcId>, SchedulerError> {
        if tags::is_short(value) {
            return self.backend.ledger.key_of(value).await.map_err(SchedulerError::cloud("looking up a task's name"));
        }
        Ok(SrcId::new(value).ok())
    }

    pub(super) async fn mission(&self, id: &MissionId) -> Result<Option<Mission>, SchedulerError> {
        self.backend.ledger.mission(id).await.map_err(SchedulerError::cloud("reading the mission"))
    }

    pub(super) async fn open(
        &self,
        mission: Option<&MissionId>,
        shards: u32,
        state: State,
    ) -> Result<Vec<SrcId>, SchedulerError> {
        let open = self.backend.ledger.open_tasks(mission, shards, state).await;
        open.map_err(SchedulerError::cloud("listing open tasks"))
    }

    async fn look(&self) -> Result<Look, SchedulerError> {
        let missions = self.backend.ledger.missions().await.map_err(SchedulerError::cloud("listing missions"))?;
        let mut srcs = Vec::new();
        for state in [State::Pending, State::Running] {
            srcs.extend(self.open(None, 1, state).await?);
            for mission in missions.iter().filter(|mission| mission.notified != Notified::Yes || mission.is_late) {
                srcs.extend(self.open(Some(&mission.id), mission.tally_shards, state).await?);
            }
            if let Some(default) = &self.settings.default_mission
                && !missions.iter().any(|mission| mission.id == *default)
            {
                srcs.extend(self.open(Some(default), 1, state).await?);
            }
        }
        // The instances are read after the index and before the rows: one that a row names was there to be seen.
        let instances = self.backend.fleet.ours(self.mark()).await;
        let instances = instances.map_err(SchedulerError::cloud("listing our instances"))?;
        // Their tasks are looked at whether the index has them or not: it lags, and of rows of the first version has none.
        for value in instances.iter().filter_map(|ours| ours.src.as_deref()) {
            srcs.extend(self.src_of(value).await?);
        }
        srcs.sort();
        srcs.dedup();
        let tasks = self.backend.ledger.tasks(&srcs).await.map_err(SchedulerError::cloud("reading open tasks"))?;
        let (pending, rest): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| task.state == State::Pending);
        let running = rest.into_iter().filter(|task| task.state == State::Running).collect();
        let missions = missions.into_iter().map(|mission| (mission.id.clone(), mission)).collect();
        Ok(Look { missions, pending, running, instances })
    }
}

impl Look {
    fn mission_of(&self, task: &Task) -> Option<&Mission> {
        task.mission.as_ref().and_then(|id| self.missions.get(id))
    }

    fn has_instance(&self, id: &str) -> bool {
        self.instances.iter().any(|ours| ours.id == id)
    }

    /// Instances that have nothing to do: their task has ended or is another's, or their mission has no open task.
    fn idle(&self) -> BTreeMap<String, &'static str> {
        let holders: HashSet<&str> =
            self.running.iter().filter_map(|task| task.instance.as_ref()).map(InstanceId::as_str).collect();
        let publishers: HashSet<&str> = self
            .missions
            .values()
            .filter_map(|mission| match &mission.notified {
                Notified::Sending { by } => Some(by.as_str()),
                Notified::No | Notified::Yes => None,
            })
            .collect();
        let waiting: HashMap<String, &Task> =
            self.pending.iter().map(|task| (tags::src_value(&task.src), task)).collect();
        let open: HashSet<&MissionId> =
            self.pending.iter().chain(&self.running).filter_map(|task| task.mission.as_ref()).collect();
        let reason = |ours: &Ours| {
            if holders.contains(ours.id.as_str()) || publishers.contains(ours.id.as_str()) {
                return None;
            }
            let is_young = ours.age < BOOT_MAX;
            match (&ours.src, &ours.mission) {
                (Some(src), _)
                    if waiting.get(src).is_some_and(|task| !is_node_of(ours, task) && has_node(self, task)) =>
                {
                    Some("another instance was launched for its task")
                }
                (Some(src), _) if waiting.contains_key(src) => {
                    (!is_young).then_some("its task waits, and it has not claimed it")
                }
                (Some(_), _) => Some("its task has ended, or another instance holds it"),
                (None, Some(mission)) if open.iter().any(|id| id.as_str() == mission) => {
                    (!is_young).then_some("it holds none of its mission's tasks")
                }
                (None, Some(_)) => Some("its mission has no open task"),
                (None, None) => Some("it has neither a task nor a mission"),
            }
        };
        self.instances.iter().filter_map(|ours| Some((ours.id.clone(), reason(ours)?))).collect()
    }
}

struct Sweep<'a> {
    scheduler: &'a Scheduler,
    findings: Vec<Finding>,
    /// Cleared when EC2 refuses to launch at all: there is no use in asking it a thousand times.
    may_launch: bool,
}

impl Sweep<'_> {
    async fn first(&mut self, look: &Look) -> Doubts {
        let mut doubts = Doubts { idle: look.idle().into_keys().collect(), ..Doubts::default() };
        for task in &look.running {
            self.look_at_holder(look, task, &mut doubts).await;
        }
        for task in &look.pending {
            self.look_at_waiting(look, task, &mut doubts).await;
        }
        for mission in look.missions.values() {
            self.serve(look, mission).await;
            self.announce(mission, None, &mut doubts).await;
            let has_open =
                look.pending.iter().chain(&look.running).any(|task| task.mission.as_ref() == Some(&mission.id));
            if mission.is_late && !has_open {
                let noted = self.scheduler.backend.ledger.note_late(&mission.id, false).await;
                if let Err(error) = noted.map_err(SchedulerError::cloud("closing a mission")) {
                    self.trouble(mission.id.as_str(), &error);
                }
            }
        }
        doubts
    }

    async fn look_at_holder(&mut self, look: &Look, task: &Task, doubts: &mut Doubts) {
        let mission = look.mission_of(task);
        if mission.is_some_and(|mission| mission.cancelled_at.is_some()) && !task.cancelled {
            let asked = self.scheduler.backend.ledger.ask_to_cancel(task, &clock::now_rfc3339()).await;
            if let Err(error) = asked.map_err(SchedulerError::cloud("asking a node to stop")) {
                self.trouble(task.src.as_str(), &error);
            }
        }
        let owner = task.instance.as_ref().map_or("", InstanceId::as_str);
        let is_gone = !look.has_instance(owner)
            && self.scheduler.backend.machine.is_gone(owner).await.unwrap_or_else(|error| {
                tracing::info!("EC2 does not say whether {owner} lives: {}", error.source);
                false
            });
        if is_gone {
            self.put_back(task, mission, &format!("EC2 says that its instance {owner} is gone")).await;
        } else {
            doubts.leases.insert(task.src.clone(), (task.attempt.0, task.beat));
        }
    }

    async fn look_at_waiting(&mut self, look: &Look, task: &Task, doubts: &mut Doubts) {
        let mission = look.mission_of(task);
        if mission.is_some_and(|mission| mission.cancelled_at.is_some()) {
            return self.fail(task, mission, Verdict::Cancelled, "its mission is cancelled").await;
        }
        if mission.is_some_and(|mission| mission.nodes.is_some()) {
            return;
        }
        if has_node(look, task)
            || task.launch.after.as_deref().and_then(clock::until).is_some_and(|wait| !wait.is_zero())
        {
            return;
        }
        if task.launch.is_for(task.attempt) {
            // Launched, or about to be: an instance shows within a minute.
            doubts.launches.insert(task.src.clone(), task.launch.tries);
        } else {
            let reason = if task.attempt.0 > 0 { "it was put back" } else { "nothing was launched for it" };
            self.launch(task, mission, reason).await;
        }
    }

    async fn second(&mut self, before: &Look, look: &Look, doubts: &Doubts) {
        for task in &look.running {
            if doubts.leases.get(&task.src) == Some(&(task.attempt.0, task.beat)) {
                let mission = look.mission_of(task);
                if mission.is_some_and(|mission| mission.cancelled_at.is_some()) {
                    self.fail(task, mission, Verdict::Cancelled, "its mission is cancelled, and its holder is silent")
                        .await;
                } else {
                    self.put_back(task, mission, "its lease has not moved for a whole lease").await;
                }
            }
        }
        for task in &look.pending {
            if doubts.launches.get(&task.src) == Some(&task.launch.tries)
                && task.launch.is_for(task.attempt)
                && !has_node(look, task)
            {
                self.launch(task, look.mission_of(task), "what was launched for it is not there").await;
            }
        }
        let idle = look.idle();
        let (ids, reasons): (Vec<_>, Vec<_>) =
            idle.into_iter().filter(|(id, _)| doubts.idle.contains(id) && before.has_instance(id)).unzip();
        match self.scheduler.backend.fleet.terminate(&ids).await.map_err(SchedulerError::cloud("ending instances")) {
            Ok(()) => {
                for (id, reason) in ids.iter().zip(reasons) {
                    self.find(What::Ended, id, reason);
                }
            }
            Err(error) => self.trouble(&ids.join(", "), &error),
        }
        for (id, by) in &doubts.publishers {
            if let Some(mission) = look.missions.get(id)
                && mission.notified == (Notified::Sending { by: by.clone() })
            {
                self.announce(mission, Some(by), &mut Doubts::default()).await;
            }
        }
    }

    /// Puts a task back whose holder is gone, within its budget, and launches a node for it.
    async fn put_back(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        let Some(lease) = task.lease() else { return };
        let now = clock::now_rfc3339();
        let past = PastAttempt {
            attempt: task.attempt,
            instance: lease.owner.to_string(),
            started: task.open_since.clone().unwrap_or_default(),
            ended: now.clone(),
            verdict: Verdict::Lost,
            exit_code: None,
            log: None,
        };
        if task.interruptions >= self.scheduler.settings.limits.max_interruptions {
            let reason = format!("{reason}, and it has been interrupted {} times before", task.interruptions);
            return self.fail_with(task, mission, Verdict::Lost, Some(past), &reason).await;
        }
        let expired = self.scheduler.backend.ledger.expire(task, &lease, past, &now).await;
        match expired.map_err(SchedulerError::cloud("putting a task back")) {
            Ok(true) => {
                self.find(What::PutBack, task.src.as_str(), reason);
                let pending = Task { state: State::Pending, open_since: Some(now), ..task.clone() };
                if mission.is_none_or(|mission| mission.nodes.is_none()) {
                    self.launch(&pending, mission, "it was put back").await;
                }
            }
            // It moved after all.
            Ok(false) => {}
            Err(error) => self.trouble(task.src.as_str(), &error),
        }
    }

    async fn launch(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        if task.launch.is_for(task.attempt) && task.launch.lost + 1 >= LAUNCHES_LOST_MAX {
            let reason = format!("{LAUNCHES_LOST_MAX} instances for it have ended before they claimed it");
            return self.fail(task, mission, Verdict::Infra, &reason).await;
        }
        if !self.may_launch {
            return;
        }
        match self.scheduler.launch_for(task, mission).await {
            Ok(Node::Launched(instance)) => {
                self.find(What::Launched, task.src.as_str(), &format!("{reason}: {instance}"));
            }
            Ok(Node::Waits(why)) => self.find(What::NoNode, task.src.as_str(), &why),
            Ok(Node::NotNeeded) => {}
            Err(error) => {
                self.may_launch = !error.is_of_every_launch();
                self.trouble(task.src.as_str(), &error);
            }
        }
    }

    /// Launches what a mission lacks of its own nodes.
    async fn serve(&mut self, look: &Look, mission: &Mission) {
        let Some(most) = mission.nodes.filter(|_| mission.cancelled_at.is_none() && self.may_launch) else { return };
        let is_its = |task: &&Task| task.mission.as_ref() == Some(&mission.id);
        let pending: Vec<&Task> = look.pending.iter().filter(is_its).collect();
        if pending.is_empty() {
            return;
        }
        let open = pending.len() + look.running.iter().filter(is_its).count();
        let slots = usize::from(mission.slots.unwrap_or(1)).max(1);
        let nodes: Vec<&Ours> = look
            .instances
            .iter()
            .filter(|ours| ours.src.is_none() && ours.mission.as_deref() == Some(mission.id.as_str()))
            .collect();
        let wanted = u32::try_from(open.div_ceil(slots)).unwrap_or(u32::MAX).min(most);
        let missing = wanted.saturating_sub(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        if missing == 0 {
            return;
        }
        let on_demand = u32::try_from(nodes.iter().filter(|ours| !ours.is_spot).count()).unwrap_or(0);
        let longest = pending.iter().map(|task| waited(task)).max().unwrap_or(Duration::ZERO);
        // Two sweeps that see the same launch the same: the token is of what they saw.
        let mut seen: Vec<&str> = nodes.iter().map(|ours| ours.id.as_str()).collect();
        seen.sort_unstable();
        let round = format!("{} {missing} {}", seen.join(","), pending.len());
        match self.scheduler.launch_nodes(mission, missing, on_demand, longest, &round).await {
            Ok(launched) => {
                for instance in &launched.instances {
                    let reason = format!("{} tasks of mission {} wait", pending.len(), mission.id);
                    self.find(What::Launched, instance, &reason);
                }
                if !launched.shortfall.is_empty() {
                    self.find(What::NoNode, mission.id.as_str(), &launched.shortfall.join("; "));
                }
            }
            Err(error) => {
                self.may_launch = !error.is_of_every_launch();
                self.trouble(mission.id.as_str(), &error);
            }
        }
    }

    /// Looks whether a mission is over and nobody has said so.
    async fn announce(&mut self, mission: &Mission, dead: Option<&str>, doubts: &mut Doubts) {
        if mission.notified == Notified::Yes {
            return;
        }
        if let (Notified::Sending { by }, None) = (&mission.notified, dead)
            && !by.starts_with("i-")
        {
            doubts.publishers.insert(mission.id.clone(), by.clone());
            return;
        }
        let seen = self.scheduler.announce(mission, dead).await;
        match seen {
            Ok(true) => self.find(What::Announced, mission.id.as_str(), "its tasks have ended"),
            Ok(false) => {}
            Err(error) => self.trouble(mission.id.as_str(), &error),
        }
    }

    async fn fail(&mut self, task: &Task, mission: Option<&Mission>, verdict: Verdict, reason: &str) {
        self.fail_with(task, mission, verdict, None, reason).await;
    }

    async fn fail_with(
        &mut self,
        task: &Task,
        mission: Option<&Mission>,
        verdict: Verdict,
        past: Option<PastAttempt>,
        reason: &str,
    ) {
        let mission = tally_of(task, mission);
        let failed = self.scheduler.backend.ledger.fail(task, mission.as_ref(), verdict, past).await;
        match failed.map_err(SchedulerError::cloud("failing a task")) {
            Ok(true) => {
                self.find(What::Failed, task.src.as_str(), reason);
                if let Some(mission) = &mission {
                    self.announce(mission, None, &mut Doubts::default()).await;
                }
            }
            Ok(false) => {}
            Err(error) => self.trouble(task.src.as_str(), &error),
        }
    }

    fn find(&mut self, what: What, subject: &str, reason: &str) {
        tracing::info!(what = what.as_str(), "{} {subject}: {reason}", what.as_str());
        self.findings.push(Finding { what, subject: subject.to_owned(), reason: reason.to_owned() });
    }

    fn trouble(&mut self, subject: &str, error: &SchedulerError) {
        let reason = crate::worker::words(error);
        tracing::warn!("{subject}: {reason}");
        self.findings.push(Finding { what: What::Trouble, subject: subject.to_owned(), reason });
    }
}

impl Scheduler {
    /// Announces a mission's end, if it has come and nobody has; returns whether this scheduler did.
    pub(super) async fn announce(&self, mission: &Mission, dead: Option<&str>) -> Result<bool, SchedulerError> {
        let wrong = |source| SchedulerError::Announce { mission: mission.id.to_string(), source };
        self.announcer().see(&self.me, mission.id.as_str(), mission, dead).await.map_err(wrong)
    }
}

/// Whether an instance runs that was launched for this task's next attempt.
fn has_node(look: &Look, task: &Task) -> bool {
    look.instances.iter().any(|ours| is_node_of(ours, task))
}

/// Whether this is the instance that was launched for a task. Of a launch that was not noted, any that bears its name.
fn is_node_of(ours: &Ours, task: &Task) -> bool {
    let is_noted = match &task.launch.instance {
        Some(instance) if task.launch.is_for(task.attempt) => *instance == ours.id,
        _ => true,
    };
    is_noted && ours.src.as_deref() == Some(tags::src_value(&task.src).as_str())
}

/// The mission that a task's end is counted in: one without a row has a tally all the same.
pub(super) fn tally_of(task: &Task, mission: Option<&Mission>) -> Option<Mission> {
    mission.cloned().or_else(|| task.mission.clone().map(Mission::unknown))
}
