//! What a sweep does about what it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::look::{Look, has_node};
use super::{Finding, What, tally_of};
use crate::backend::fleet::Ours;
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
}

impl<'a> Sweep<'a> {
    pub(super) fn new(scheduler: &'a Scheduler) -> Self {
        Self { scheduler, findings: Vec::new(), may_launch: scheduler.settings.template.is_some() }
    }

    pub(super) async fn first(&mut self, look: &Look) -> Doubts {
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

    pub(super) async fn second(&mut self, before: &Look, look: &Look, doubts: &Doubts) {
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

    pub(super) async fn launch(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
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
