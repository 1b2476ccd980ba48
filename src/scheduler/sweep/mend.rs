//! What a sweep does about what it sees.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::look::Look;
use super::{Finding, What, tally_of};
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::scheduler::launch::{Node, waited};
use crate::scheduler::{Scheduler, SchedulerError};

/// How many instances that were launched for one attempt may vanish without a claim before the task is failed: each has
/// cost a boot, and an image that cannot boot will not learn to.
const LAUNCHES_LOST_MAX: u64 = 5;

/// How long one half of a sweep launches nodes for tasks, at two a second: the whole sweep, with a lease in between, must
/// end within the 15 minutes of a Lambda function. The next one goes on.
const LAUNCHES_TIME_MAX: Duration = Duration::from_mins(4);

/// What the first look leaves to the second.
#[derive(Default)]
pub(super) struct Doubts {
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
    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.idle.is_empty() && self.launches.is_empty() && self.publishers.is_empty()
    }
}

pub(super) struct Sweep<'a> {
    scheduler: &'a Scheduler,
    pub(super) findings: Vec<Finding>,
    /// Cleared when EC2 refuses to launch at all: there is no use in asking it a thousand times.
    may_launch: bool,
    /// Missions whose launches it refuses.
    refused: HashSet<Option<MissionId>>,
    /// Tasks that want a node, and why. Launches are slow, so they come after everything else.
    wanted: Vec<(Task, Option<Mission>, String)>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(scheduler: &'a Scheduler) -> Self {
        Self {
            scheduler,
            findings: Vec::new(),
            may_launch: scheduler.settings.template.is_some(),
            refused: HashSet::new(),
            wanted: Vec::new(),
        }
    }

    pub(super) async fn first(&mut self, look: &Look) -> Doubts {
        let mut doubts = Doubts { idle: look.idle(None).into_keys().collect(), ..Doubts::default() };
        for task in &look.running {
            self.look_at_holder(look, task, &mut doubts).await;
        }
        for task in &look.pending {
            self.look_at_waiting(look, task, &mut doubts).await;
        }
        for mission in look.missions.values() {
            self.announce(mission, None, &mut doubts).await;
            self.close(look, mission).await;
            self.serve(look, mission).await;
        }
        self.launch_wanted().await;
        doubts
    }

    /// Notes whether an announced mission still has open tasks.
    async fn close(&mut self, look: &Look, mission: &Mission) {
        if mission.notified != Notified::Yes {
            return;
        }
        let noted = match (look.is_open(&mission.id), &mission.closed_at) {
            (true, Some(_)) => self.scheduler.note_late(&mission.id).await,
            (false, None) => {
                let noted = self.scheduler.backend.ledger.close_mission(mission, &clock::now_rfc3339()).await;
                noted.map_err(SchedulerError::cloud("closing a mission"))
            }
            (true, None) | (false, Some(_)) => Ok(()),
        };
        if let Err(error) = noted {
            self.trouble(mission.id.as_str(), &error);
        }
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
        if look.has_node(task)
            || task.launch.after.as_deref().and_then(clock::until).is_some_and(|wait| !wait.is_zero())
        {
            return;
        }
        if task.launch.is_for(task.attempt) {
            // Launched, or about to be: an instance shows within a minute.
            doubts.launches.insert(task.src.clone(), task.launch.tries);
        } else {
            let reason = if task.attempt.0 > 0 { "it was put back" } else { "nothing was launched for it" };
            self.want(task, mission, reason);
        }
    }

    pub(super) fn want(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        self.wanted.push((task.clone(), mission.cloned(), reason.to_owned()));
    }

    /// Launches nodes for the tasks that want one.
    pub(super) async fn launch_wanted(&mut self) {
        let until = Instant::now() + LAUNCHES_TIME_MAX;
        let wanted = std::mem::take(&mut self.wanted);
        let total = wanted.len();
        for (number, (task, mission, reason)) in wanted.into_iter().enumerate() {
            if Instant::now() >= until {
                tracing::warn!("{} of {total} launches are left to the next sweep", total - number);
                return;
            }
            self.launch(&task, mission.as_ref(), &reason).await;
        }
    }

    pub(super) async fn second(&mut self, before: &Look, look: &Look, doubts: &Doubts) {
        for task in &look.running {
            if doubts.leases.get(&task.src) == Some(&(task.attempt.0, task.beat)) {
                self.put_back(task, look.mission_of(task), "its lease has not moved for a whole lease").await;
            }
        }
        for task in &look.pending {
            if doubts.launches.get(&task.src) == Some(&task.launch.tries)
                && task.launch.is_for(task.attempt)
                && !look.has_node(task)
            {
                self.want(task, look.mission_of(task), "what was launched for it is not there");
            }
        }
        let idle = look.idle(Some(before));
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
        self.launch_wanted().await;
    }

    /// Puts a task back whose holder is gone, within its budget; it wants a node then. In a cancelled mission it ends.
    pub(super) async fn put_back(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
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
        if mission.is_some_and(|mission| mission.cancelled_at.is_some()) {
            let reason = format!("its mission is cancelled, and {reason}");
            return self.fail_with(task, mission, Verdict::Cancelled, Some(past), &reason).await;
        }
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
                    self.want(&pending, mission, "it was put back");
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
        if !self.may_launch || self.refused.contains(&task.mission) {
            return;
        }
        match self.scheduler.launch_for(task, mission).await {
            Ok(Node::Launched(instance)) => {
                self.find(What::Launched, task.src.as_str(), &format!("{reason}: {instance}"));
            }
            Ok(Node::Waits(why)) => self.find(What::NoNode, task.src.as_str(), &why),
            Ok(Node::NotNeeded) => {}
            Err(error) => {
                self.refuse(task.mission.clone(), &error);
                self.trouble(task.src.as_str(), &error);
            }
        }
    }

    /// Remembers, for the rest of this sweep, what EC2 will refuse again.
    fn refuse(&mut self, mission: Option<MissionId>, error: &SchedulerError) {
        if error.is_of_every_launch() {
            self.may_launch = false;
        } else if !error.may_pass() {
            self.refused.insert(mission);
        }
    }

    /// Launches what a mission lacks of its own nodes.
    async fn serve(&mut self, look: &Look, mission: &Mission) {
        if mission.nodes.is_none() || mission.cancelled_at.is_some() || !self.may_launch {
            return;
        }
        let is_its = |task: &&Task| task.mission.as_ref() == Some(&mission.id);
        let pending: Vec<&Task> = look.pending.iter().filter(is_its).collect();
        if pending.is_empty() {
            return;
        }
        let open = (pending.len() + look.running.iter().filter(is_its).count()) as u64;
        let longest = pending.iter().map(|task| waited(task)).max().unwrap_or(Duration::ZERO);
        match self.scheduler.launch_missing(mission, open, longest, &look.instances).await {
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
                self.refuse(Some(mission.id.clone()), &error);
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
